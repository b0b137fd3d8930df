"""No step waits for a device: nothing in it reads a tensor's value, whether rows pad or not, and masks are those that
transformers makes when it looks."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from raypft.backbones import guard
from raypft.backbones.flops import STEPS
from raypft.backbones.padding import PADS
from raypft.batch import collate
from raypft.contract import cases, tiny
from raypft.contract.checks import dataset
from raypft.training import loop
from raypft.training.stepper import TorchStepper

LOOKS = ("deberta", "xlm", "falcon-h1")
"""Kinds whose own code reads a value."""
READS = ("aten._local_scalar_dense", "aten.is_nonzero", "aten.item", "aten.nonzero", "aten.masked_select")


class Watched(TorchDispatchMode):
    """Which functions read a tensor's value."""

    def __init__(self) -> None:
        super().__init__()
        self.read = list[str]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).rpartition(".")[0]
        self.read += [name] * (name in READS)
        return func(*args, **(kwargs or {}))


def batches(backbone):
    """Prompts of unlike lengths, and two of one length."""
    prompts = guard.prompts(backbone)
    assert len({len(prompt.ids) for prompt in prompts}) > 1
    return {"pads": collate(prompts, backbone.pad), "is full": collate(prompts[:1] * 2, backbone.pad)}


@pytest.mark.parametrize("which", ["pads", "is full"])
@pytest.mark.parametrize("kind", tiny.MODELS)
def test_nothing_is_read_and_states_are_the_same(kind, which, monkeypatch):
    backbone = tiny.backbone(kind)
    batch = batches(backbone)[which]
    assert batch.pads == (which == "pads")
    backbone.model.get_input_embeddings().requires_grad_(True)
    found = []
    for told in (True, False):
        if not told:  # transformers looks
            monkeypatch.setattr("raypft.backbones.base.padding", lambda _pads: contextlib.nullcontext())
        with Watched() as watched:
            states = backbone(batch)
            backbone.vocabulary_scores(states, torch.tensor([3, 5])).sum().backward()
        found.append((states.detach(), watched.read))
    (states, read), (others, looked) = found
    assert torch.equal(states, others)
    assert bool(read) == (kind in LOOKS)
    assert looked or kind not in ("bert", "gpt2", "llama"), "what is told spares a look"
    assert PADS.get() is None


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "gemma3", "mt5"])
def test_one_who_does_not_know_may_say_that_rows_pad(kind, attention):
    backbone = tiny.backbone(kind)
    backbone.model.set_attn_implementation(attention)
    batch = batches(backbone)["is full"]
    torch.testing.assert_close(backbone(replace(batch, pads=True)), backbone(batch), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("method", "kind"), [pair for pair in cases.supported() if pair[1] not in LOOKS])
def test_no_method_reads_a_value_in_a_step(method, kind):
    """Batches are made before, losses are read behind; Adam, the gradient's norm and clipping among what is run."""
    cell, settings = cases.cell(method, tiny.backbone(kind)), cases.SETTINGS.model_copy(update={"clip": 1.0})
    if not cell.learner.method.trains:
        pytest.skip("nothing trains")
    stepper = TorchStepper(cell.learner.train(), settings)
    (step, *_) = dataset(cell).epoch(stepper, settings, 0, 0, 0)
    made = [*step.batches]
    told, reads = torch.zeros(1), list[str]()
    for number in range(2):  # the first step also measures its work
        with stepper.learner.method.backbone.flops.piece(STEPS) as part, Watched() as watched:
            given = replace(step, batches=iter(made))
            told = loop._optimizer_step(stepper, given, settings, 0, number, 2, False, part)
        reads += watched.read
    assert reads == []
    with Watched() as watched:
        float(told[0])
    assert watched.read == ["aten._local_scalar_dense"]

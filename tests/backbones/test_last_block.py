"""The last block run for the slots alone: states, gradients and dropout masks as when it runs for all tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from raypft.backbones import guard
from raypft.batch import collate
from raypft.contract import cases, tiny
from raypft.contract.checks import dataset
from raypft.training.dropout import RowDropout

WHOLE = (
    "deberta",
    "deberta-v2",
    "mdeberta",
    "rembert",
    "xlm",
    "albert",
    "bloom",
    "xglm",
    "falcon-h1",
    "t5",
    "mt5",
    "umt5",
)
"""Kinds whose last block runs for all tokens: their attention looks up no function by name, a state-space part stands
beside it, or (T5's encoder) all of its states are read."""
FEW = [kind for kind in tiny.MODELS if kind not in WHOLE]


def of_last_slot(backbone):
    """Three prompts of unequal length, each read at its last token."""
    made = [replace(prompt, marks={"slot": [len(prompt.ids) - 1]}) for prompt in guard.prompts(backbone)]
    return collate(made, backbone.pad)


@pytest.mark.parametrize("kind", tiny.MODELS)
def test_which_kinds_allow_it(kind):
    assert tiny.backbone(kind)._reads_rows == (kind not in WHOLE)


@pytest.mark.parametrize("kind", FEW)
@torch.no_grad()
def test_states_at_the_slots_are_those_of_all_tokens(kind):
    backbone = tiny.backbone(kind)
    batch, lengths = of_last_slot(backbone), []
    backbone.blocks[-1].register_forward_hook(lambda *given: lengths.append(given[-1][0].shape[-2]))
    few = backbone(batch)
    assert lengths == [2], "tokens that the whole block ran for"
    backbone.shortcuts = False
    assert torch.allclose(few, backbone(batch), atol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["bert", "modernbert", "gpt2", "llama", "mistral"])
def test_a_training_step_with_dropout_is_the_same(kind, attention):
    results = []
    for on in (True, False):
        backbone = tiny.backbone(kind, dropout=0.3)
        backbone.model.set_attn_implementation(attention)
        backbone.shortcuts = on
        cell = cases.cell("full", backbone)
        batch = dataset(cell).batch(range(5))
        cell.learner.train()
        with RowDropout(batch, 0, 3) as dropout:
            loss, _ = cell.learner.readout.loss(cell.learner(batch), batch)
        assert not dropout.drew
        loss.backward()
        grads = {name: p.grad for name, p in cell.learner.named_parameters() if p.grad is not None}
        results.append((loss, dropout.places, grads))
    (loss, places, grads), (expected, all_places, all_grads) = results
    assert places == all_places > 0
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    assert set(grads) == set(all_grads)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, all_grads[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("slots", [[[0], [1, 2], [5]], [[3, 1], [0, 2], [4]]])
@torch.no_grad()
def test_prompts_may_have_unlike_numbers_of_slots(slots):
    backbone = tiny.backbone("bert")
    made = [replace(p, marks={"slot": own}) for p, own in zip(guard.prompts(backbone), slots, strict=True)]
    made = [replace(p, gold=[-1] * len(p.marks["slot"])) for p in made]
    batch = collate(made, backbone.pad)
    few = backbone(batch)
    backbone.shortcuts = False
    assert torch.allclose(few, backbone(batch), atol=1e-6)


@torch.no_grad()
def test_a_seam_behind_the_last_block_gets_all_tokens():
    backbone, seen = tiny.backbone("gpt2"), []

    class Seen(torch.nn.Module):
        def forward(self, states, batch):
            seen.append(states.abs().sum(-1).gt(0).all())
            return states

    backbone.on_layer(backbone.num_layers, Seen())
    backbone(of_last_slot(backbone))
    assert seen == [True]

"""The last block run for the slots alone: states, gradients and dropout masks as when it runs for all tokens."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
import torch

from raypft.backbones import guard
from raypft.backbones.attention import find_attention
from raypft.backbones.products import PLAIN
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
NO_KEYS = ("bert", "xlmr", "roberta", "xlmr-xl", "electra", "distilbert", "gpt2", "opt", "opt-350m")
"""Kinds whose keys and values are linear in the states: few queries look at the states instead."""


def of_last_slot(backbone):
    """Three prompts of unequal length, each read at its last token."""
    made = [replace(prompt, marks={"slot": [len(prompt.ids) - 1]}) for prompt in guard.prompts(backbone)]
    return collate(made, backbone.pad)


@pytest.mark.parametrize("kind", tiny.MODELS)
def test_which_kinds_allow_it(kind):
    assert tiny.backbone(kind)._reads_rows == (kind not in WHOLE)


@pytest.mark.parametrize(
    ("error", "told"),
    [(RuntimeError("size of tensor a"), False), (IndexError("out of range"), False), (AttributeError("no maps"), True)],
)
def test_only_what_cannot_be_cut_to_some_tokens_turns_the_shortcut_off(error, told, monkeypatch):
    """A fault of the code is no property of a model."""

    def few(*given):
        raise error

    monkeypatch.setattr("raypft.backbones.last_block._few", few)
    with pytest.raises(AttributeError, match="no maps") if told else contextlib.nullcontext():
        assert not tiny.backbone("gpt2")._reads_rows


@pytest.mark.parametrize("kind", FEW)
@torch.no_grad()
def test_states_at_the_slots_are_those_of_all_tokens(kind):
    backbone = tiny.backbone(kind)
    batch, lengths = of_last_slot(backbone), []
    backbone.blocks[-1].register_forward_hook(lambda *given: lengths.append(given[-1][0].shape[-2]))
    few = backbone(batch)
    assert lengths == [1 if kind in NO_KEYS else 2], "tokens that the whole block ran for"
    backbone.shortcuts = False
    assert torch.allclose(few, backbone(batch), atol=1e-6)


@contextlib.contextmanager
def tokens_made(backbone):
    """How many tokens each linear layer of the last block's attention runs for."""
    counts, attention = [], find_attention(backbone.blocks[-1])
    before: dict[type, Any] = {kind: kind.forward for kind in PLAIN}

    def forward(layer, states):
        counts.extend([states.shape[-2]] * any(layer is module for module in attention.modules()))
        return before[type(layer)](layer, states)

    with pytest.MonkeyPatch.context() as patch:
        for kind in PLAIN:
            patch.setattr(kind, "forward", forward)
        yield counts


@pytest.mark.parametrize("kind", tiny.MODELS)
@torch.no_grad()
def test_which_kinds_make_no_keys_of_tokens_that_are_not_read(kind):
    backbone = tiny.backbone(kind)
    assert backbone._makes_keys_alone == (kind in NO_KEYS)
    if kind in FEW:
        with tokens_made(backbone) as counts:
            backbone(of_last_slot(backbone))
        assert ({*counts} == {1}) == (kind in NO_KEYS)


@pytest.mark.parametrize("scale", [1, 40])
@pytest.mark.parametrize("kind", NO_KEYS)
@torch.no_grad()
def test_states_are_looked_at_as_sharply_as_keys(kind, scale):
    backbone = tiny.backbone(kind)
    for name, parameter in backbone.model.named_parameters():
        if "norm" not in name.lower() and "ln" not in name and "embed" not in name:
            parameter.normal_(std=0.02 * scale, generator=torch.Generator().manual_seed(len(name)))
    batch = of_last_slot(backbone)
    with tokens_made(backbone) as counts:
        few = backbone(batch)
    assert {*counts} == {1}
    backbone.shortcuts = False
    whole = backbone(batch)
    assert torch.allclose(few, whole, rtol=1e-5, atol=2e-6 * float(whole.abs().max()))


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
@torch.no_grad()
def test_keys_of_a_beginning_are_looked_at_beside_the_states(kind):
    backbone = tiny.backbone(kind)
    made = [replace(p, marks={"slot": [len(p.ids) - 1]}) for p in guard.prompts(backbone)]
    made = [replace(p, ids=made[0].ids[:2] + p.ids[2:], gold=[-1]) for p in made]
    expected = backbone(collate(made, backbone.pad))
    beginning = backbone.begin(collate([made[0].until(2)], backbone.pad))
    with tokens_made(backbone) as counts:
        found = backbone(collate([p.behind(2) for p in made], backbone.pad, beginning=beginning))
    assert {*counts} == {1}
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("method", ["lora", "prefix", "ia3"])
def test_a_method_in_the_attention_gets_keys_of_all_tokens(method):
    cell = cases.cell(method, tiny.backbone("gpt2"))
    backbone, batch = cell.learner.method.backbone, dataset(cell).batch(range(5))
    for parameter in cell.learner.trainable().values():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), tokens_made(backbone) as counts:
        few = cell.learner.eval()(batch)
        assert max(counts) == batch.ids.shape[1]
        backbone.shortcuts = False
        torch.testing.assert_close(few, cell.learner(batch), rtol=1e-4, atol=1e-4)


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

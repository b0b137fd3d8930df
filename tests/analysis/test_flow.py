"""Information flow: against finite differences, every pair of tokens on one path, models left as they were."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest
import torch
from torch.nn import functional

from raypft.analysis.flow import information, paths, scores
from raypft.backbones.load import backbone_from_config
from raypft.contract import cases, tiny
from raypft.encoded import Encoded
from raypft.errors import UserError
from raypft.training.loader import PromptDataset

CASES = [("full", "gpt2", {}), ("full", "phi", {}), ("gnnavi", "gpt2", {"layer": 1}), ("prefix", "phi", {})]


def two_layers(method: str, kind: str, **options) -> cases.Cell:
    """A cell on a model of two layers, in double precision (no RMSNorm, which rounds); Phi's keys are of two heads."""
    config = tiny.config(kind)
    config.num_hidden_layers = 2
    if kind == "phi":
        config.num_key_value_heads = 2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = backbone_from_config(config, tiny.tokenizer(False))
    made = cases.cell(method, backbone, **options)
    made.learner.double().eval()
    return made


def attend(scales: dict[int, torch.Tensor]):
    """Attention written out, its weights multiplied by `scales[layer]`, [A, T, T]."""

    def eager(module, query, key, value, attention_mask, scaling=None, **keywords):
        heads = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(heads, 1), value.repeat_interleave(heads, 1)
        products = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        weights = functional.softmax(products + attention_mask, dim=-1)
        scale = scales[module.layer_idx]
        weights = weights * functional.pad(scale, (weights.shape[-1] - scale.shape[-1], 0), value=1.0)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    return eager


@pytest.mark.parametrize(("method", "kind", "options"), CASES)
def test_it_equals_a_finite_difference(method, kind, options, monkeypatch):
    """Of the loss by a factor on each weight of each head: both formulas, through the graph layer and grouped heads,
    behind keys of a prefix."""
    cell = two_layers(method, kind, **options)
    prompt, backbone = cell.prompts[0], cell.learner.method.backbone
    found = information(cell.learner, prompt)
    assert sorted(found) == [1, 2]
    size, heads = len(prompt.ids), 4
    scales = {layer: torch.ones(heads, size, size, dtype=torch.float64) for layer in (0, 1)}
    module = sys.modules[type(backbone.attentions[0]).__module__]
    monkeypatch.setattr(module, "eager_attention_forward", attend(scales))
    backbone.shortcuts = False
    batch = PromptDataset([prompt], cell.learner.method, backbone.pad).batch([0])
    see = ExposeEager(backbone)
    step, target, anchor = 1e-4, size - 1, prompt.marks["demo_label"][0]
    with see, torch.no_grad():
        pairs = ((target, anchor), (anchor, 0), (target, 1), (anchor + 1, anchor))
        for layer, (i, j) in itertools.product((0, 1), pairs):
            slopes = []
            for head in range(heads):
                losses = []
                for sign in (1, -1):
                    scales[layer][head, i, j] = 1 + sign * step
                    losses.append(float(functional.cross_entropy(cell.learner(batch), batch.gold)))
                scales[layer][head, i, j] = 1
                slopes.append((losses[0] - losses[1]) / (2 * step))
            assert float(found[layer + 1][0, i, j]) == pytest.approx(abs(sum(slopes)), rel=1e-3, abs=1e-9)
            assert float(found[layer + 1][1, i, j]) == pytest.approx(sum(map(abs, slopes)), rel=1e-3, abs=1e-9)
    assert float(found[1].max()) > 1e-5


class ExposeEager:
    """The model's eager attention, by its configuration, while open."""

    def __init__(self, backbone) -> None:
        self.config: Any = backbone.attentions[0].config

    def __enter__(self) -> None:
        self.before = self.config._attn_implementation
        prefix = "keys_first_" if str(self.before).startswith("keys_first_") else ""
        self.config._attn_implementation = prefix + "eager"

    def __exit__(self, *raised) -> None:
        self.config._attn_implementation = self.before


@pytest.mark.parametrize("anchors", [[2, 5], [1, 2, 3], [6]])
def test_every_pair_is_of_one_path(anchors):
    """S_wp has sum p pairs, S_pq C, S_ww what is left of (t + 1) t / 2."""
    prompt = Encoded("en/1", "en", [3] * 9, [0] * 9, {"demo_label": anchors, "slot": [8]})
    found = paths(prompt)
    counts = {name: int(pairs.sum()) for name, pairs in found.items()}
    assert counts == {"S_wp": sum(anchors), "S_pq": len(anchors), "S_ww": 9 * 8 // 2 - sum(anchors) - len(anchors)}
    assert torch.equal(torch.stack(list(found.values())).sum(0), torch.ones(9, 9).tril(-1).long())


@pytest.mark.parametrize(
    ("method", "kind"), [("full", "gpt2"), ("gnnavi", "llama"), ("lora", "qwen3"), ("full", "phi")]
)
def test_nothing_flows_into_label_words_in_the_last_layer(method, kind):
    """Its states are read at the last token alone: exactly 0, while the layers below have some."""
    cell = cases.cell(method, tiny.backbone(kind))
    found = scores(cell.learner, cell.prompts[:2])
    assert sorted(found) == [1, 2, 3]
    assert found[3][:, 0].tolist() == [0.0, 0.0]
    assert float(found[1][:, 0].min()) > 0
    assert float(found[3][:, 1].min()) > 0
    assert (found[1][1] >= found[1][0]).all(), "the sum of absolute values is no less than the absolute sum"


def test_kept_states_give_the_same_picture():
    """Above the cut, where GNNavi's states below it are kept; layers that do not run have none."""
    cell = cases.cell("gnnavi", tiny.backbone("gpt2"), layer=1)
    method, prompt = cell.learner.method, cell.prompts[0]
    kept = method.backbone.frozen_states.after(1, [prompt], "cpu")
    cached = information(cell.learner, prompt, PromptDataset([prompt], method, 1, kept))
    whole = information(cell.learner, prompt)
    assert (sorted(cached), sorted(whole)) == ([2, 3], [1, 2, 3])
    for layer, flowing in cached.items():
        assert torch.allclose(flowing, whole[layer], rtol=1e-4, atol=1e-9)
    assert float(whole[2].max()) > 0


def test_the_graph_layer_changes_the_picture():
    """What attention sees above it are the states that it gives."""
    cell = cases.cell("gnnavi", tiny.backbone("gpt2"), layer=1)
    before = information(cell.learner, cell.prompts[0])
    with torch.no_grad():
        for parameter in cell.learner.method.trainable().values():
            parameter.mul_(0.5)
    after = information(cell.learner, cell.prompts[0])
    assert not torch.allclose(before[3], after[3], rtol=1e-2)
    assert not torch.allclose(before[1], after[1], rtol=1e-2), "the gradient below it went through it"


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_model_is_left_as_it_was(kind):
    cell = cases.cell("lora", tiny.backbone(kind))
    learner, backbone = cell.learner, cell.learner.method.backbone
    learner.train()
    attention: Any = backbone.attentions[0]
    kinds, names, opened = attention.config._attn_implementation, set(vars(attention)), set(learner.trainable())
    information(learner, cell.prompts[0])
    assert attention.config._attn_implementation == kinds
    assert set(vars(attention)) == names
    assert set(learner.trainable()) == opened
    assert learner.training
    assert backbone.shortcuts
    assert all(parameter.grad is None for parameter in learner.parameters())


def test_attention_that_cannot_be_seen_is_told():
    """BLOOM's blocks do not look it up by name."""
    cell = cases.cell("full", tiny.backbone("bloom"))
    with pytest.raises(UserError, match="BloomBlock has no attention"):
        information(cell.learner, cell.prompts[0])

"""Every family that people use: scores are the model's own, heads and exports are transformers', every method works or
says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from raypft.backbones import guard
from raypft.backbones.export import save_model
from raypft.backbones.heads import CLASSES
from raypft.backbones.load import FAMILIES, load_backbone
from raypft.batch import collate
from raypft.contract import cases, tiny
from raypft.contract.checks import (
    cached_states_give_the_uncached_numbers,
    dataset,
    states_are_one_row_per_slot,
)
from raypft.encoded import Encoded
from raypft.errors import UserError
from raypft.methods import METHODS

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
MARKERS = ("<!-- table -->\n", "<!-- /table -->")
WITH_HEADS = [kind for kind, (family, _, _) in tiny.MODELS.items() if family != "seq2seq"]


def spread(backbone):
    """Weights large enough that what is left out would show, and the model's norms and biases too."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return backbone


@pytest.mark.parametrize("kind", tiny.MODELS)
def test_scores_are_the_models_own_alone_and_in_a_batch(kind):
    """Also where the model multiplies, caps or maps its scores; of a decoder, what comes later changes nothing."""
    found = guard.differences(spread(tiny.backbone(kind)))
    assert set(found) == {"alone", "in a batch"} | ({"a beginning"} if tiny.MODELS[kind][0] == "causal" else set())
    assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize("kind", tiny.MODELS)
@torch.no_grad()
def test_chosen_columns_are_those_of_the_whole_vocabulary(kind):
    backbone = spread(tiny.backbone(kind))
    states = backbone(collate(guard.prompts(backbone), backbone.pad))
    columns = torch.tensor([7, 3, 11])
    expected = backbone.vocabulary_scores(states)[:, columns]
    torch.testing.assert_close(backbone.vocabulary_scores(states, columns), expected, rtol=0, atol=1e-5)


MORE_THAN_A_DECODER = (
    *("bert", "xlmr", "roberta", "xlmr-xl", "deberta", "deberta-v2", "mdeberta", "modernbert", "electra", "distilbert"),
    *("rembert", "albert", "gemma2", "falcon-h1", "t5", "umt5"),
)
"""Kinds whose scores are not those of the output embedding alone: a transform before it, a cap or a multiplier."""


@pytest.mark.parametrize("kind", tiny.MODELS)
def test_scores_are_the_models_own_bit_for_bit(kind):
    """With and without the model's code around its output embedding, which is passed by where it does nothing."""
    backbone = spread(tiny.backbone(kind))
    assert backbone._decoder_alone == (kind not in MORE_THAN_A_DECODER)
    states = backbone(collate(guard.prompts(backbone), backbone.pad)).detach()
    for columns in (None, torch.tensor([7, 3, 11])):
        found = [states.clone().requires_grad_() for _ in range(2)]
        for backbone.shortcuts, one in zip((True, False), found, strict=True):
            scores = backbone.vocabulary_scores(one, columns)
            (scores * torch.linspace(-1, 1, scores.shape[1])).sum().backward()
            one.scores = scores
        assert torch.equal(found[0].scores, found[1].scores)
        torch.testing.assert_close(found[0].grad, found[1].grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", tiny.MODELS)
@torch.no_grad()
def test_a_model_folder_read_by_transformers_alone_gives_our_scores(kind, tmp_path):
    backbone = spread(tiny.backbone(kind))
    save_model(backbone, tmp_path, None, [])
    alone = FAMILIES[backbone.family].auto.from_pretrained(tmp_path).eval()
    for prompt in guard.prompts(backbone):
        batch = collate([prompt], backbone.pad)
        more = {"decoder_input_ids": batch.target} if backbone.family == "seq2seq" else {}
        expected = alone(input_ids=batch.ids, attention_mask=batch.mask, **more).logits[0]
        # torch's tanh form of GELU is the one that a model writes out to 1e-6
        close = max(1e-5, 2e-6 * float(expected.abs().max()))
        torch.testing.assert_close(backbone.vocabulary_scores(backbone(batch)), expected, rtol=0, atol=close)


@pytest.mark.parametrize("reads", ["sequence", "token"])
@pytest.mark.parametrize("kind", WITH_HEADS)
@torch.no_grad()
def test_a_head_is_the_one_transformers_has_for_the_family(kind, reads, tmp_path):
    """Trained values are written to where that model has them; it alone gives our scores of prompts in one batch."""
    backbone = spread(tiny.backbone(kind))
    head = cast(nn.Module, backbone.head(3) if reads == "sequence" else backbone.word_head(3)).eval()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    auto = AutoModelForSequenceClassification if reads == "sequence" else AutoModelForTokenClassification
    if backbone.config.model_type not in CLASSES[auto]:
        with pytest.raises(UserError, match="transformers has no"):
            save_model(backbone, tmp_path, (reads, head), ["a", "b", "c"])
        return
    save_model(backbone, tmp_path, (reads, head), ["a", "b", "c"])
    alone = auto.from_pretrained(tmp_path).eval()
    made = [
        Encoded(prompt.key, "en", prompt.ids, prompt.segments, {"slot": _slots(backbone, reads, len(prompt.ids))}, [-1])
        for prompt in guard.prompts(backbone)
    ]
    batch = collate(made, 1)
    logits = alone(input_ids=batch.ids, attention_mask=batch.mask).logits
    expected = logits if reads == "sequence" else logits[batch.slots[:, 0], batch.slots[:, 1]]
    torch.testing.assert_close(head(backbone(batch)), expected, rtol=0, atol=1e-5)


def _slots(backbone, reads: str, length: int) -> list[int]:
    if reads == "token":
        return list(range(length))
    return [0 if backbone.family == "masked" else length - 1]


def refusal(method: str, kind: str) -> str:
    """Why a method does not work on a kind of tiny model, empty where it does: a step gives every trainable parameter a
    finite gradient, and the count is the predicted one."""
    said = cases.refusal(method, kind)
    if said:
        return said
    states_are_one_row_per_slot(method, kind)
    cell = cases.cell(method, tiny.backbone(kind))
    batch = dataset(cell).batch(range(len(cell.prompts)))
    loss, _ = cell.learner.readout.loss(cell.learner(batch), batch)
    assert torch.isfinite(loss)
    trainable = cell.learner.method.trainable()
    assert sum(p.numel() for p in trainable.values()) == cell.learner.method.predicted_parameters()
    if METHODS.load(method).trains:
        loss.backward()
        reached = [name for name, p in trainable.items() if p.grad is not None and bool(p.grad.isfinite().all())]
        assert any(bool(cast(Any, trainable[name].grad).any()) for name in reached)
        assert not [name for name, p in trainable.items() if p.grad is not None and not p.grad.isfinite().all()]
    return ""


SHORT = {
    "no attention that can take": "attention",
    "no row of blocks": "blocks",
    "trains biases": "no biases",
    "do not end in linear layers": "experts",
    "scores with its input embedding": "tied head",
}


def test_the_page_of_families_says_what_works():
    """docs/families.md holds the table that the tiny models give; printed where it differs."""
    methods = METHODS.names()
    lines = ["| model | " + " | ".join(methods) + " |", "|---|" + "---|" * len(methods)]
    for kind, (family, _, _) in tiny.MODELS.items():
        cells = []
        for method in methods:
            if family not in METHODS.load(method).families:
                cells.append("–")
                continue
            said = refusal(method, kind)
            cells.append(next((short for part, short in SHORT.items() if part in said), said) if said else "✓")
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    table = "\n".join(lines) + "\n"
    page = PAGE.read_text()
    start, end = page.index(MARKERS[0]) + len(MARKERS[0]), page.index(MARKERS[1])
    assert page[start:end] == table, table


@pytest.mark.parametrize(
    "kind", ["mdeberta", "modernbert", "eurobert", "gemma3", "qwen3", "opt-350m", "falcon-h1", "umt5"]
)
def test_a_folder_of_the_family_is_loaded_and_checked(kind, tmp_path):
    made = spread(tiny.backbone(kind))
    made.model.save_pretrained(tmp_path)
    made.text.tokenizer.save_pretrained(tmp_path)
    loaded = load_backbone(str(tmp_path))
    assert loaded.lacks == ()
    batch = collate(guard.prompts(made), 1)
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch), made(batch), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", tiny.of_family("causal"))
def test_states_below_a_layer_may_be_kept_in_every_decoder(kind):
    """Also where a block gives more than its states, and where the embedding is narrower than they are."""
    cached_states_give_the_uncached_numbers("gnnavi", kind)


@pytest.mark.parametrize("kind", [kind for kind in tiny.MODELS if tiny.MODELS[kind][0] != "seq2seq"])
def test_two_adapters_a_block_find_the_layers_that_end_its_halves(kind):
    """At first they change almost nothing, with their last weights at 1 they do."""
    if kind in ("xlm", "albert", "gpt-oss"):
        with pytest.raises(UserError, match=r"no row of blocks|do not end in linear layers"):
            cases.cell("adapter", tiny.backbone(kind), placement="houlsby")
        return
    cell = cases.cell("adapter", tiny.backbone(kind), placement="houlsby")
    batch = dataset(cell).batch(range(len(cell.prompts)))
    cell.learner.eval()
    with torch.no_grad():
        before = cell.learner(batch)
        for adapter in cast(Any, cell.learner.method).adapters:
            adapter.up.bias.fill_(1.0)
            adapter.up.bias[0] = -3.0
        after = cell.learner(batch)
        cell.learner.method.backbone.reset()
        plain = cell.learner.readout.scores(cell.learner.method.backbone(batch), batch)
    assert (before - plain).abs().max() < 0.1 * (after - plain).abs().max()

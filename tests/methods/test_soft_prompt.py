"""Soft prompts: the prompt encoder against its formula written with loops, where its vectors go, what trains."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from transformers import XLMRobertaConfig

from raypft.backbones.load import backbone_from_config
from raypft.batch import collate
from raypft.contract import tiny
from raypft.encoded import Encoded
from raypft.methods.soft_prompt import Config, PromptEncoder, SoftPrompt
from raypft.tasks.kinds import KINDS
from raypft.tasks.prompts import render
from raypft.tasks.task import Label, Pattern, Source, Task

TEXT = {"masked": "{text} . <soft> <slot> .", "causal": "{text} . <soft> <slot>"}


def prompts() -> list[Encoded]:
    """Two prompts with three soft tokens at different places."""
    return [
        Encoded("a", "en", [7, 8, 4, 4, 4, 9, 10], [0] * 7, {"soft": [2, 3, 4], "slot": [6]}),
        Encoded("b", "en", [4, 4, 4, 8, 9], [0] * 5, {"soft": [0, 1, 2], "slot": [4]}),
    ]


def one_direction(lstm, inputs: torch.Tensor, suffix: str) -> list[torch.Tensor]:
    """An LSTM cell by cell: inputs [P, H] -> P outputs [H]."""
    weight_in, weight_back = getattr(lstm, f"weight_ih_l0{suffix}"), getattr(lstm, f"weight_hh_l0{suffix}")
    bias = getattr(lstm, f"bias_ih_l0{suffix}") + getattr(lstm, f"bias_hh_l0{suffix}")
    state = memory = torch.zeros(inputs.shape[1])
    outputs = []
    for vector in inputs:
        enter, forget, candidate, leave = (weight_in @ vector + weight_back @ state + bias).chunk(4)
        memory = forget.sigmoid() * memory + enter.sigmoid() * candidate.tanh()
        state = leave.sigmoid() * memory.tanh()
        outputs.append(state)
    return outputs


@torch.no_grad()
def test_forward_equals_the_formula():
    """MLP(BiLSTM(E)) at the soft positions of every row, all other embeddings untouched."""
    encoder = SoftPrompt(Config(length=3), tiny.backbone("xlmr")).prompt
    forward = one_direction(encoder.lstm, encoder.embedding, "")
    backward = one_direction(encoder.lstm, encoder.embedding.flip(0), "_reverse")[::-1]
    first, _, second = cast(Any, encoder.mlp)
    both = [torch.cat(pair) for pair in zip(forward, backward, strict=True)]
    expected = [second.weight @ (first.weight @ one + first.bias).clamp(min=0) + second.bias for one in both]
    batch = collate(prompts(), 1)
    states = torch.randn(2, 7, tiny.HIDDEN, generator=torch.Generator().manual_seed(1))
    out = encoder(states.clone(), batch)
    assert out.shape == states.shape
    for row, own in enumerate(prompts()):
        for token in range(7):
            soft = own.marks["soft"]
            value = expected[soft.index(token)] if token in soft else states[row, token]
            assert torch.allclose(out[row, token], value, atol=1e-6)


@torch.no_grad()
def test_without_encoder_the_vectors_are_used_directly():
    """`encoder: none`: P x H parameters."""
    made = SoftPrompt(Config(length=3, encoder="none", train_backbone=False), tiny.backbone("xlmr"))
    out = made.prompt(torch.zeros(2, 7, tiny.HIDDEN), collate(prompts(), 1))
    assert torch.equal(out[0, 2:5], made.prompt.embedding)
    assert torch.equal(out[1, 0:3], made.prompt.embedding)
    assert made.predicted_parameters() == sum(p.numel() for p in made.trainable().values()) == 3 * tiny.HIDDEN


def test_the_first_vectors_are_drawn_as_an_embeddings():
    """N(0, 1), as torch.nn.Embedding draws."""
    torch.manual_seed(0)
    vectors = PromptEncoder(50, 32, "none").embedding.detach()
    assert float(vectors.std()) == pytest.approx(1.0, abs=0.1)
    assert float(vectors.mean()) == pytest.approx(0.0, abs=0.1)


def test_encoder_size_on_xlmr_base():
    """11,223,552 parameters with four soft tokens, predicted and counted (Zhao & Schuetze's prompt encoder)."""
    with torch.device("meta"):
        made = SoftPrompt(
            Config(train_backbone=False),
            backbone_from_config(XLMRobertaConfig(vocab_size=250002, architectures=["XLMRobertaForMaskedLM"])),
        )
    assert sum(p.numel() for p in made.prompt.parameters()) == 11_223_552
    assert sum(p.numel() for p in made.trainable().values()) == made.predicted_parameters() == 11_223_552


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("train_backbone", [True, False])
def test_what_trains(kind, train_backbone):
    """The encoder always, every part of it gets a gradient; the model only where asked."""
    made = SoftPrompt(Config(length=3, train_backbone=train_backbone), tiny.backbone(kind))
    made(collate(prompts(), 1))[:, 0].sum().backward()  # the sum over a layer norm's output would be constant
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.prompt.parameters())
    reached = {name for name, p in made.named_parameters() if p.grad is not None}
    assert any(name.startswith("backbone.") for name in reached) == train_backbone
    assert all(name.startswith("prompt.") for name in made.trainable()) != train_backbone


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_positions_are_recorded_while_rendering(kind):
    """<soft> becomes P tokens just before the slot, and their positions a mark; [B, P] in a batch."""
    backbone = tiny.backbone(kind)
    pattern = Pattern(text=TEXT[backbone.family], verbalizer={"negative": "bad", "positive": "good"}, source="test")
    task = Task(
        name="t",
        about="",
        kind=KINDS["choice"],
        fields={"text": "text"},
        label=Label(names=["negative", "positive"]),
        languages=["en"],
        metric="accuracy",
        sources={"x": Source(files={"test": "x"})},
        patterns={"p": pattern},
    )
    made = [
        backbone.text.encode(render(task, pattern, {"text": words}, "en", soft_length=3))
        for words in ("good film", "it was one good film")
    ]
    for own in made:
        dot = backbone.text.tokenizer.convert_ids_to_tokens(own.ids).index(".")
        assert own.marks["soft"] == [dot + 1, dot + 2, dot + 3]
        assert own.marks["slot"] == [dot + 4 if backbone.family == "masked" else dot + 3]
    soft = collate(made, 1).soft
    assert soft is not None
    assert soft.tolist() == [own.marks["soft"] for own in made]

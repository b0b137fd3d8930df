"""Answers of a decoder: those of transformers' generate, with and without what is kept from token to token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from raypft.backbones import guard
from raypft.batch import collate
from raypft.contract import cases, tiny
from raypft.methods import METHODS
from raypft.readouts import _decoding
from raypft.readouts._decoding import Speaker, all_agree, beam_search, greedy

END, PAD = 2, 1
METHODS_TRIED = {"full": {}, "prefix": {"length": 3}, "lora": {}, "soft_prompt": {"length": 2}}


def made(kind: str, seed: int, name: str):
    """A method on a tiny model whose weights are large enough to say different things, and a batch of three prompts."""
    backbone = tiny.backbone(kind, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    torch.manual_seed(0)
    method = METHODS.load(name)(cases.config_of(name, backbone, **METHODS_TRIED[name]), backbone).eval()
    marks = {"slot": [0], "soft": [1, 2]} if name == "soft_prompt" else {"slot": [0]}
    prompts = [replace(p, target=p.target[:1], marks=marks, gold=[-1]) for p in guard.prompts(backbone)]
    return method, collate(prompts, backbone.pad)


@torch.no_grad()
def said(method, batch, beams: int, longest: int) -> tuple[list[list[int]], torch.Tensor]:
    """What is said up to the end, and its log-probability."""
    speaker = Speaker(method, method.backbone, batch, beams)
    if beams == 1:
        tokens, chance = greedy(speaker, longest, END)
    else:
        tokens, chance = beam_search(speaker, beams, longest, END, PAD)
    return [until_end(row) for row in tokens.tolist()], chance


def until_end(row: list[int]) -> list[int]:
    return row[: row.index(END) + 1] if END in row else row


@pytest.mark.parametrize("longest", [1, 4, 7])
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", ["t5", "mt5", "umt5"])
def test_answers_are_those_of_generate(kind, beams, longest):
    for seed in range(4):
        method, batch = made(kind, seed, "full")
        expected = method.backbone.model.generate(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            num_beams=beams,
            max_new_tokens=longest,
            do_sample=False,
            eos_token_id=END,
            pad_token_id=PAD,
        )
        assert said(method, batch, beams, longest)[0] == [until_end(row) for row in expected[:, 1:].tolist()]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", METHODS_TRIED)
def test_what_is_kept_from_token_to_token_changes_nothing(name, beams):
    """Also where a method's vectors, keys or layers are in the encoder and the decoder."""
    method, batch = made("mt5", 1, name)
    texts, chance = said(method, batch, beams, 6)
    method.backbone.shortcuts = False
    again, expected = said(method, batch, beams, 6)
    assert texts == again
    assert torch.allclose(chance, expected, atol=1e-4)


def test_the_encoder_runs_once_and_an_answer_ends_early():
    method, batch = made("t5", 0, "full")
    encoder, decoder = (method.backbone.model.get_submodule(side) for side in ("encoder", "decoder"))
    run = []
    encoder.register_forward_hook(lambda *_: run.append("encoder"))
    decoder.register_forward_hook(lambda *_: run.append("decoder"))
    lengths = [len(row) for row in said(method, batch, 1, 40)[0]]
    assert run == ["encoder", *["decoder"] * max(lengths)]


def test_a_method_with_a_forward_of_its_own_is_asked_each_time():
    method, batch = made("t5", 0, "full")

    class Own(type(method)):
        def forward(self, batch):
            return 2 * self.backbone(batch)

    method.__class__ = Own
    assert Speaker(method, method.backbone, batch).beginning is None


class Scripted:
    """Says the likeliest of what is given: steps of log-probabilities, [B, V] each."""

    def __init__(self, steps: list[torch.Tensor]) -> None:
        self.steps, self.said = iter(steps), torch.zeros(len(steps[0]), 1, dtype=torch.long)

    def scores(self) -> torch.Tensor:
        return next(self.steps)

    def say(self, token: torch.Tensor) -> None:
        self.said = torch.cat([self.said, token.unsqueeze(1)], 1)


def test_an_answers_score_is_that_of_its_tokens_up_to_the_end():
    """Of two answers the first ends at once, the other at the third token; a fourth is not asked for."""
    chances = [[[0.2, 0.8], [0.7, 0.3]], [[0.9, 0.1], [0.6, 0.4]], [[0.6, 0.4], [0.1, 0.9]]]
    said, chance = greedy(Scripted([torch.tensor(step).log() for step in chances]), 9, end=1)  # type: ignore[arg-type]
    assert said[0, 0] == 1
    assert said[1].tolist() == [0, 0, 1]
    assert chance.exp().tolist() == pytest.approx([0.8, 0.7 * 0.6 * 0.9])


def test_beams_have_each_prompt_so_many_times_one_after_the_other():
    batch = collate(guard.prompts(tiny.backbone("bert")), 1)
    prompts = len(batch.names)
    batch = replace(batch, soft=torch.arange(prompts).unsqueeze(1), extra={"mix": list(range(prompts))})
    assert _decoding._repeated(batch, 1) is batch
    twice = _decoding._repeated(batch, 2)
    order = [row for row in range(prompts) for _ in range(2)]
    assert twice.names == [batch.names[row] for row in order]
    for name in ("ids", "mask", "segments", "soft"):
        assert getattr(twice, name).tolist() == [getattr(batch, name).tolist()[row] for row in order]
    assert twice.extra == {"mix": order}
    assert _decoding._repeated(replace(batch, soft=None), 2).soft is None


@pytest.mark.parametrize("others", [0, 1])
def test_an_answer_is_over_when_it_is_on_all_ranks(others, monkeypatch):
    def least(tensor, operation):
        assert operation == torch.distributed.ReduceOp.MIN
        tensor.copy_(torch.minimum(tensor, torch.tensor(others)))

    assert [all_agree(torch.tensor(here)) for here in (True, False)] == [True, False]
    monkeypatch.setattr(_decoding.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(_decoding.distributed, "all_reduce", least)
    assert [all_agree(torch.tensor(here)) for here in (True, False)] == [bool(others), False]


class Beams:
    """Says the same log-probabilities whatever was said before, those of the last step as long as it is asked, and
    counts that."""

    def __init__(self, size: int, beams: int, *chances: list[float]) -> None:
        self.said, self.asked = torch.zeros(size * beams, 1, dtype=torch.long), 0
        self.steps = [torch.tensor(of_step).log().expand(size * beams, -1) for of_step in chances]

    def scores(self) -> torch.Tensor:
        self.asked += 1
        return self.steps[min(self.asked, len(self.steps)) - 1]

    def say(self, tokens: torch.Tensor, after: torch.Tensor) -> None:
        self.said = torch.cat([self.said[after], tokens.unsqueeze(1)], 1)


def test_beams_end_when_none_can_come_to_more_and_told_is_the_chance_of_the_whole_answer():
    """Of a mean a token: the end at once (0.6) is beaten by nothing that goes on with 0.3 or 0.1."""
    speaker = Beams(3, 2, [0.3, 0.6, 0.1])
    said, chance = beam_search(speaker, 2, 5, end=1, pad=9)  # type: ignore[arg-type]
    assert said.tolist() == [[1, 9, 9, 9, 9]] * 3
    assert chance.exp().tolist() == pytest.approx([0.6] * 3)
    assert speaker.asked == 2, "a second beam ends at the second token"
    speaker = Beams(1, 2, [0.5, 1e-6, 0.3])
    said, chance = beam_search(speaker, 2, 3, end=1, pad=9)  # type: ignore[arg-type]
    assert said.tolist() == [[0, 0, 0]], "which never ends is told as far as it may go"
    assert chance.exp().tolist() == pytest.approx([0.5**3])
    assert speaker.asked == 3


def test_only_the_likeliest_of_what_goes_on_may_end():
    """Of two beams an end in the third place does not count, though it has more a token than all that comes of them."""
    speaker = Beams(3, 2, [0.4, 0.25, 0.35, *[0.0] * 7], [0.13, *[0.87 / 9] * 9])
    said, chance = beam_search(speaker, 2, 2, end=1, pad=9)  # type: ignore[arg-type]
    assert said.tolist() == [[0, 0]] * 3
    assert chance.exp().tolist() == pytest.approx([0.4 * 0.13] * 3)

"""Readout span: the loss by hand, what an answer may be, which window answers; three toy questions are learned."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_encode import asked, spans, task
from torch.nn import functional

from raypft.batch import collate
from raypft.config.job import Train
from raypft.contract import tiny
from raypft.encoded import Encoded, Passage
from raypft.errors import UserError
from raypft.methods import METHODS
from raypft.readouts.base import Answer
from raypft.readouts.span import Config, SpanReadout
from raypft.runs.scores import by_row
from raypft.tasks.metrics import exact_match, f1
from raypft.tasks.task import Label
from raypft.training.loader import PromptDataset
from raypft.training.loop import evaluate, fit
from raypft.training.stepper import Learner, TorchStepper

TEXT = "one two three four"
PASSAGE = Passage(TEXT, [0, 0, 4, 8, 14], [0, 3, 7, 13, 18])


def readout(longest: int = 30, unanswerable: bool = False) -> SpanReadout:
    own = task("span", "{question} <sep> {context}", question="question", context="context")
    own = own.model_copy(update={"label": Label(column="answers", unanswerable=unanswerable)})
    return SpanReadout(Config(longest=longest), own, own.pattern("p"), tiny.backbone("bert"))


def window(part: int, gold: list[int], passage: Passage | None = None, key: str = "en/1") -> Encoded:
    """A prompt whose first len(gold) tokens are slots."""
    return Encoded(
        key,
        "en",
        [5] * 6,
        [0] * 6,
        {"slot": list(range(len(gold)))},
        gold=gold,
        part=part,
        answers=["two"],
        passage=passage,
    )


def test_loss_is_the_mean_cross_entropy_of_start_and_end_over_a_windows_slots():
    """Windows of unequal size in one batch; one without the answer learns its first slot."""
    batch = collate([window(0, [0, 0, 1, 2, 0]), window(1, [3, 0, 0]), window(2, [0, 3])], 1)
    scores = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for own, (start, end) in ((slice(0, 5), (2, 3)), (slice(5, 8), (0, 0)), (slice(8, 10), (1, 1))):
        logs = scores[own].log_softmax(0)
        expected -= (logs[start, 0] + logs[end, 1]) / 2
    loss, weight = readout().loss(scores, batch)
    assert torch.allclose(loss, expected)
    assert weight == 3
    assert readout().weight(window(0, [0, 0, 1, 2, 0])) == 1
    apart = [
        readout().loss(scores[own], collate([one], 1))[0]
        for one, own in ((window(0, [0, 0, 1, 2, 0]), slice(0, 5)), (window(1, [3, 0, 0]), slice(5, 8)))
    ]
    assert torch.allclose(apart[0], functional.cross_entropy(scores[:5].T, torch.tensor([2, 3])))
    assert torch.allclose(
        torch.stack(apart).sum(),
        readout().loss(scores[:8], collate([window(0, [0, 0, 1, 2, 0]), window(1, [3, 0, 0])], 1))[0],
    )


def test_a_filler_weighs_nothing():
    scores = torch.randn(3, 2, requires_grad=True)
    loss, weight = readout().loss(scores, collate([window(0, [0, 1, 2])], 1, weights=[0.0]))
    assert float(loss.detach()) == float(weight) == 0
    loss.backward()
    assert scores.grad is not None
    assert not scores.grad.any()


@pytest.mark.parametrize("longest", [1, 2, 3, 30])
@pytest.mark.parametrize("seed", range(4))
def test_the_answer_is_the_best_pair_that_is_allowed(longest, seed):
    """Start before end, at most `longest` tokens, never the first slot, however well it scores; against trying all
    pairs."""
    scores = torch.randn(10, 2, generator=torch.Generator().manual_seed(seed))
    scores[0], scores[6] = 50, 50  # the first slots of both windows
    answers = readout(longest).decide(scores, collate([window(0, [0] * 6), window(1, [0] * 4)], 1))
    assert [answer.prompt for answer in answers] == ["en/1#0", "en/1#1"]
    for answer, own in zip(answers, (scores[:6], scores[6:])):
        pairs = [(s, e) for s, e in itertools.product(range(1, len(own)), repeat=2) if s <= e < s + longest]
        best = max(pairs, key=lambda pair: float(own[pair[0], 0] + own[pair[1], 1]))
        assert answer.value == list(best)
        assert answer.scores == [pytest.approx(float(own[best[0], 0] + own[best[1], 1]))]


def test_the_best_window_answers_with_the_characters_between():
    later = Passage(TEXT, [0, 8, 14], [0, 13, 18])
    prompts = [window(0, [0] * 5, PASSAGE), window(1, [0] * 3, later)]
    first, second = Answer("en/1#0", [2, 3], [1.0]), Answer("en/1#1", [1, 2], [2.0])
    assert readout().gather(prompts, [first, second]) == ("three four", [2.0])
    assert readout().gather(prompts, [first._replace(scores=[3.0]), second]) == ("two three", [3.0])
    assert readout().gold(prompts) == ["two"]


@pytest.mark.parametrize(("kind", "max_tokens"), [("bert", 12), ("xlmr", 12), ("llama", 8)])
def test_three_toy_questions_are_learned(kind, max_tokens):
    """Exact match 100 through fit; the last passage takes two windows and more."""
    backbone = tiny.backbone(kind)
    encoder = spans(backbone, max_tokens, window_stride=3)
    rows = [
        asked("film", "one two good film four", "good film"),
        asked("Yes", "bad one two three", "bad"),
        asked("No", "seven six five four three two one great fine", "great fine"),
    ]
    prompts = []
    for i, row in enumerate(rows):
        prompts += encoder({**row, "id": str(i)})
    assert len(prompts) > len(rows)
    torch.manual_seed(0)
    full = METHODS.load("full")
    learner = Learner(full(full.Config(), backbone), SpanReadout(Config(), encoder.task, encoder.pattern, backbone))
    settings = Train(epochs=60, lr=1e-2, batch_size=8, select="last", eval_batch=2)
    stepper, data = TorchStepper(learner, settings), PromptDataset(prompts, learner.method, 1)

    def score(answers: Iterable[Answer]) -> float:
        found = by_row(learner.readout, prompts, list(answers))
        return exact_match([row.gold for row in found], [row.answer for row in found])

    assert score(evaluate(stepper, data, Train(eval_batch=2))) < 100
    progress = fit(stepper, data, data, settings, 0, score)
    assert progress.history[-1]["dev"] == 100
    assert [row.answer for row in by_row(learner.readout, prompts, evaluate(stepper, data, Train(eval_batch=2)))] == [
        "good film",
        "bad",
        "great fine",
    ]


# questions without an answer


@pytest.mark.parametrize("seed", range(6))
def test_none_is_answered_where_every_first_slot_beats_the_best_span_of_all_windows(seed):
    """Against trying all pairs of both windows, as SQuAD 2.0's baselines do (threshold 0)."""
    scores = torch.randn(8, 2, generator=torch.Generator().manual_seed(seed))
    windows = [window(0, [0] * 5, PASSAGE), window(1, [0] * 3, Passage(TEXT, [0, 8, 14], [0, 13, 18]))]
    own = readout(unanswerable=True)
    answers = own.decide(scores, collate(windows, 1))
    text, told = own.gather(windows, answers)
    spans = [
        (float(part[s, 0] + part[e, 1]), TEXT[place.starts[s] : place.ends[e]])
        for part, place in ((scores[:5], windows[0].passage), (scores[5:], windows[1].passage))
        for s, e in itertools.combinations_with_replacement(range(1, len(part)), 2)
        if place is not None
    ]
    best, said = max(spans)
    none = min(float(scores[0].sum()), float(scores[5].sum()))
    assert told == [pytest.approx(best), pytest.approx(none)]
    assert text == ("" if none > best else said)
    assert readout().gather(windows, readout().decide(scores, collate(windows, 1))) == (said, [pytest.approx(best)])


def test_where_none_scores_as_much_as_the_best_span_the_span_is_said():
    own, windows = readout(unanswerable=True), [window(0, [0] * 5, PASSAGE)]
    assert own.gather(windows, [Answer("en/1#0", [2, 3], [1.0, 1.0])]) == ("two three", [1.0, 1.0])
    assert own.gather(windows, [Answer("en/1#0", [2, 3], [1.0, 1.5])]) == ("", [1.0, 1.5])


def test_windows_move_by_the_stride_or_what_they_do_not_share():
    assert [Config(window_stride=4).step(room) for room in (3, 4, 5)] == [3, 4, 4]
    assert [Config(window_overlap=3).step(room) for room in (4, 9)] == [1, 6]
    for room in (2, 3):
        with pytest.raises(UserError, match=f"^readout.window_overlap: found 3; .* room for only {room} tokens"):
            Config(window_overlap=3).step(room)


@pytest.mark.parametrize(("told", "std"), [({"initializer_range": 0.5}, 0.5), ({}, 0.02)])
def test_the_layer_of_ends_begins_as_the_models_own(told, std):
    backbone: Any = SimpleNamespace(state_size=5000, config=SimpleNamespace(**told))
    own = task("span", "{question} <sep> {context}", question="question", context="context")
    ends = SpanReadout(Config(), own, own.pattern("p"), backbone).ends
    assert ends.weight.shape == (2, 5000)
    assert float(ends.weight.detach().std()) == pytest.approx(std, rel=0.05)
    assert not ends.bias.any()


def test_both_kinds_of_answers_come_about():
    own, windows = readout(unanswerable=True), [window(0, [0] * 5, PASSAGE)]
    for first, expected in ((-9.0, "one"), (9.0, "")):
        scores = torch.zeros(5, 2)
        scores[0], scores[1] = first, 1.0
        assert own.gather(windows, own.decide(scores, collate(windows, 1)))[0] == expected


@pytest.mark.parametrize("unanswerable", [True, False])
def test_a_passage_without_tokens_has_no_answer(unanswerable):
    windows = [window(0, [0], Passage("", [0], [0]))]
    own = readout(unanswerable=unanswerable)
    text, scores = own.gather(windows, own.decide(torch.ones(1, 2), collate(windows, 1)))
    assert (text, scores) == ("", [2.0] * (1 + unanswerable))


def test_windows_of_a_question_without_an_answer_learn_their_first_slot():
    """A row without labels, by contrast, has nothing to learn."""
    encoder = spans(tiny.backbone("bert"), 12, window_stride=3)
    question = asked("film", "one two good film four five six seven")
    windows = encoder({**question, "label": []})
    assert len(windows) > 1
    assert all(prompt.gold == [3] + [0] * (len(prompt.gold) - 1) and not prompt.answers for prompt in windows)
    assert all(set(prompt.gold) == {-1} for prompt in encoder(question))


def test_questions_without_an_answer_are_learned():
    backbone = tiny.backbone("bert")
    encoder = spans(backbone, 12, window_stride=3)
    rows = [
        asked("film", "one two good film four", "good film"),
        {**asked("No", "one two good film four"), "label": []},
        asked("Yes", "bad one two three", "bad"),
        {**asked("No", "seven six five four three two one great fine"), "label": []},
    ]
    prompts = list(itertools.chain.from_iterable(encoder({**row, "id": str(i)}) for i, row in enumerate(rows)))
    torch.manual_seed(0)
    full = METHODS.load("full")
    own = readout(unanswerable=True)
    settings = Train(epochs=60, lr=1e-2, batch_size=8, select="last", eval_batch=2)
    stepper = TorchStepper(Learner(full(full.Config(), backbone), own), settings)
    data = PromptDataset(prompts, stepper.learner.method, 1)

    def score(answers: Iterable[Answer]) -> float:
        found = by_row(own, prompts, list(answers))
        return f1([row.gold for row in found], [row.answer for row in found])

    assert score(evaluate(stepper, data, Train(eval_batch=2))) < 100
    assert fit(stepper, data, data, settings, 0, score).history[-1]["dev"] == 100
    found = by_row(own, prompts, evaluate(stepper, data, Train(eval_batch=2)))
    assert [row.answer for row in found] == ["good film", "", "bad", ""]

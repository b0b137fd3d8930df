"""The loop's own promises: what it tells on the way, the learning rate of every step, which epoch is kept, what ends a
training."""

from __future__ import annotations

import itertools
import math
from collections import deque
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from raypft.config.job import Train
from raypft.contract import cases, tiny
from raypft.contract.checks import dataset
from raypft.errors import UserError
from raypft.readouts.base import Answer
from raypft.readouts.mlm import MaskedLanguageModel
from raypft.readouts.span import SpanReadout
from raypft.runs.cell import rows_to_cache
from raypft.training import checkpoint, loader, loop, room
from raypft.training.ahead import Told, made_ahead
from raypft.training.loader import PromptDataset, Step, Streamed
from raypft.training.loop import answered, evaluate, expect_scores, fit, learning_rate
from raypft.training.states import States, TrainState
from raypft.training.stepper import TorchStepper


def test_a_long_epoch_is_told_while_it_runs(monkeypatch):
    """Steps are told beside epochs, but not the last one of an epoch, which the epoch's own event tells."""
    monkeypatch.setattr(loop, "TELL_SECONDS", -1)
    cell = cases.cell("full", tiny.backbone("bert"))
    settings = cases.SETTINGS.model_copy(update={"epochs": 2, "batch_size": 2})
    rows = PromptDataset(cell.prompts, cell.learner.method, 1)
    events: list[dict] = []
    progress = fit(TorchStepper(cell.learner, settings), rows, None, settings, 0, cell.score, tell=events.append)
    steps = [event for event in events if event["event"] == "steps"]
    events = [event for event in events if event["event"] != "steps"]
    told = [(event["event"], event["epoch"], event.get("step")) for event in events]
    assert told == [
        ("step", 1, 1),
        ("step", 1, 2),
        ("epoch", 1, None),
        ("step", 2, 1),
        ("step", 2, 2),
        ("epoch", 2, None),
    ]
    assert events[0]["loss"] == progress.losses[0]
    assert events[0]["steps"] == 3
    assert [(event["first"], len(event["losses"]), len(event["lr"])) for event in steps] == [
        *((1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 1, 1), (5, 1, 1), (6, 1, 1))
    ]
    assert [loss for event in steps for loss in event["losses"]] == progress.losses


def test_a_short_epoch_tells_no_steps(monkeypatch):
    monkeypatch.setattr(loop, "TELL_SECONDS", 60)
    cell = cases.cell("full", tiny.backbone("bert"))
    settings = cases.SETTINGS.model_copy(update={"epochs": 1, "batch_size": 2})
    events = list[dict[str, Any]]()
    fit(TorchStepper(cell.learner, settings), dataset(cell), None, settings, 0, cell.score, tell=events.append)
    assert [event["event"] for event in events] == ["steps", "epoch"]


@pytest.mark.parametrize("save_every", [None, 100])
def test_a_worker_whose_node_goes_away_keeps_its_state_at_once(save_every, monkeypatch, tmp_path):
    """After every step from the notice on while that costs less than half of the time, whatever the settings say."""
    monkeypatch.setattr(checkpoint, "DISK", 1e15)
    cell = cases.cell("full", tiny.backbone("bert"))
    settings = cases.SETTINGS.model_copy(update={"epochs": 3, "batch_size": 2, "save_every": save_every})
    notices = iter([False, False, False, True, True, True, False, False, False])
    stepper = TorchStepper(cell.learner, settings)
    stepper.leaving = lambda: next(notices)
    saved: list[tuple[int, int]] = []
    rows = PromptDataset(cell.prompts, cell.learner.method, 1)
    states = States(tmp_path / "state.pt", tmp_path / "state.previous.pt", tmp_path / "state", "cell")
    monkeypatch.setattr(States, "save_whole", lambda self, state, stepper: saved.append((state.epoch, state.step)))
    fit(stepper, rows, None, settings, 0, cell.score, states=states)
    within = [at for at in saved if at[1]]
    assert within == [(1, 1), (1, 2), (1, 3)], "states inside of an epoch, those of the epoch of the notice"


@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
@pytest.mark.parametrize(
    ("method", "kind"), [("full", kind) for kind in (*tiny.KINDS, "t5")] + [("soft_prompt", "bert")]
)
def test_biases_and_normalisations_do_not_decay(method, kind, optimizer):
    """A step without a gradient moves what decays, and only that, in whatever words a model calls its norms."""
    learner = cases.cell(method, tiny.backbone(kind)).learner
    settings = cases.SETTINGS.model_copy(update={"weight_decay": 0.5, "optimizer": optimizer, "lr": 0.1})
    stepper = TorchStepper(learner, settings)
    for parameter in learner.trainable().values():
        with torch.no_grad():
            parameter.fill_(1.0)
        parameter.grad = torch.zeros_like(parameter)
    stepper.step(0.1)
    still = {name for name, value in stepper.values().items() if (value == 1).all()}
    moved = set(learner.trainable()) - still
    norms = ("LayerNorm", "layer_norm", "layernorm", ".ln_", ".norm.")
    assert still == {name for name in learner.trainable() if "bias" in name or any(norm in name for norm in norms)}
    assert any(word in name for name in moved for word in ("embed", "wte", "shared")), "word embeddings decay"
    assert method == "full" or {name for name in moved if ".prompt." in name} >= {"method.prompt.embedding"}


@pytest.mark.parametrize(("optimizer", "expected"), [("adamw", 0.95), ("adam", 0.9)])
def test_adamw_decays_the_values_and_adam_their_gradients(optimizer, expected):
    """Without a gradient of the loss: by rate times decay, or by a whole step as after any first gradient."""
    learner = cases.cell("soft_prompt", tiny.backbone("bert")).learner
    settings = cases.SETTINGS.model_copy(update={"weight_decay": 0.5, "optimizer": optimizer})
    stepper, (name, parameter) = TorchStepper(learner, settings), next(iter(learner.trainable().items()))
    assert "bias" not in name
    with torch.no_grad():
        parameter.fill_(1.0)
    parameter.grad = torch.zeros_like(parameter)
    stepper.step(0.1)
    assert stepper.values()[name].flatten()[0] == pytest.approx(expected)


@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
def test_a_gradient_as_small_as_adams_epsilon_makes_half_a_step(optimizer):
    learner = cases.cell("full", tiny.backbone("bert")).learner
    settings = cases.SETTINGS.model_copy(update={"weight_decay": 0.0, "optimizer": optimizer, "clip": None})
    stepper, (name, parameter) = TorchStepper(learner, settings), next(iter(learner.trainable().items()))
    before = stepper.values()[name].clone()
    parameter.grad = torch.full_like(parameter, 1e-8)
    stepper.step(0.1)
    moved = before - stepper.values()[name]
    assert torch.allclose(moved, torch.full_like(moved, 0.05), rtol=1e-3)


def test_the_order_of_rows_is_of_the_seed_and_the_epoch():
    orders = [loader.order(20, seed, epoch) for seed in range(3) for epoch in range(3)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len(set(map(tuple, orders))) == 9
    assert loader.order(20, 1, 2) == orders[5]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_step_weighs_as_much_as_its_slots(streamed):
    """Not as its prompts: a long sentence counts for all of its words."""
    cell = cases.cell("full", tiny.backbone("bert"), readout="head")
    sizes = [1, 2, 3, 1, 4]
    slots = [{**p.marks, "slot": p.marks["slot"] * size} for p, size in zip(cell.prompts, sizes, strict=True)]
    prompts = [p.but(marks=some, gold=p.gold * len(some["slot"])) for p, some in zip(cell.prompts, slots, strict=True)]
    rows: Any = PromptDataset(prompts, cell.learner.method, 1)
    if streamed:
        rows = Streamed(Given(prompts), prompts[0], cell.learner.method, 1)
    settings = cases.SETTINGS.model_copy(update={"batch_size": 5})
    (step,) = rows.epoch(TorchStepper(cell.learner, settings), settings, 0, 0, 0)
    assert step.weight == sum(sizes)
    assert sum(float(batch.weight.sum()) for batch in step.batches) == sum(sizes)


def test_the_rate_of_every_step():
    """Warm-up rises to the full rate; then constant, linear to 0, or 0.95 an epoch."""
    rates = {
        name: [learning_rate(Train(lr=1.0, epochs=2, schedule=name), step, 4) for step in range(4)]
        for name in ("constant", "linear", "exponential")
    }
    assert rates["constant"] == [1, 1, 1, 1]
    assert rates["linear"] == [1, 0.75, 0.5, 0.25]
    assert rates["exponential"] == pytest.approx([1, 1, 0.95, 0.95])
    assert [learning_rate(Train(lr=1.0, epochs=2, warmup=0.5), step, 4) for step in range(4)] == [0.5, 1, 1, 1]


@pytest.mark.parametrize("schedule", ["constant", "linear", "exponential"])
def test_a_warm_up_may_take_a_whole_training_or_round_to_nothing(schedule):
    rates = [learning_rate(Train(lr=1.0, epochs=2, schedule=schedule, warmup=1.0), step, 4) for step in range(4)]
    assert rates == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate(Train(lr=1.0, epochs=2, schedule=schedule, warmup=0.2), 0, 4) == 1.0


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([6.0, 0, 0, 0, 4, 0, 0, 1], (3.0, False)),  # loss, leaving, drew, repeats, passes, dropouts, squares, finite
        ([6.0, 2, 0, 3, 2, 8, 32, 1], (3.0, True)),  # two passes of four dropouts, prompts that count twice
        ([6.0, 0, 1, 0, 1, 4, 16, 1], (3.0, False)),  # one pass may draw as it likes
        ([6.0, 0, 0, 0, 2, 8, 34, 1], "draws random numbers"),  # three and five dropouts
        ([6.0, 0, 1, 0, 2, 8, 32, 1], "draws random numbers"),
        ([6.0, 0, 1, 1, 1, 4, 16, 1], "draws random numbers"),
        ([math.inf, 0, 0, 0, 1, 0, 0, 1], "the loss is inf at optimizer step 8;"),
        ([6.0, 0, 0, 0, 1, 0, 0, 0], "the gradient is not finite at optimizer step 8;"),
    ],
)
def test_what_a_step_tells_of_all_ranks(told, expected):
    """Of two of them."""
    if isinstance(expected, tuple):
        assert loop._checked(told, 7, 2, Train()) == expected
        return
    with pytest.raises(UserError, match=expected):
        loop._checked(told, 7, 2, Train())


def test_seconds_add_up_over_epochs_and_where_a_training_goes_on(monkeypatch):
    """Of a clock that moves on by one each time it is asked."""
    clock = itertools.count(100.0)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: next(clock))
    _, state = watched(epochs=3)
    first, *others = (record["train_seconds"] for record in state.history)
    assert 0 < first < 50
    assert others == [2 * first, 3 * first]
    assert [record["loss"] for record in state.history] == state.losses
    cell = cases.cell("full", tiny.backbone("bert"))
    settings = cases.SETTINGS.model_copy(update={"batch_size": 5, "epochs": 4})
    fit(TorchStepper(cell.learner, settings), dataset(cell), None, settings, 0, cell.score, state)
    assert state.history[3]["train_seconds"] == 4 * first


def test_the_loss_of_an_epoch_is_the_mean_of_its_steps():
    _, state = watched(epochs=2, batch_size=2)
    assert len(state.losses) == 6
    assert [record["loss"] for record in state.history] == pytest.approx(
        [sum(state.losses[:3]) / 3, sum(state.losses[3:]) / 3]
    )
    assert [record["epoch"] for record in state.history] == [1, 2]


def test_torchs_generators_are_seeded_by_seed_and_step():
    seen = list[int]()

    class Seeded(TorchStepper):
        def scores(self, batch):
            seen.append(torch.initial_seed())
            return super().scores(batch)

    for seed in (3, 2**45):
        cell = cases.cell("full", tiny.backbone("bert"))
        settings = cases.SETTINGS.model_copy(update={"batch_size": 5, "epochs": 2})
        fit(Seeded(cell.learner, settings), dataset(cell), None, settings, seed, cell.score)
    assert seen == [(seed * 1_000_003 + step) % 2**63 for seed in (3, 2**45) for step in (0, 1)]


class Watched(TorchStepper):
    """Remembers the rate of every step, every loss that went backward, and the values after every step."""

    def __init__(self, cell: cases.Cell, settings: Train) -> None:
        super().__init__(cell.learner, settings)
        self.rates: list[float] = []
        self.backward_losses: list[list[float]] = [[]]
        self.after: list[dict[str, torch.Tensor]] = []
        self.lasts: list[bool] = []

    def backward(self, loss, last):
        self.backward_losses[-1].append(float(loss.detach()))
        self.lasts.append(last)
        super().backward(loss, last)

    def step(self, lr):
        done = super().step(lr)
        self.rates.append(lr)
        self.backward_losses.append([])
        self.after.append(self.values())
        return done


def watched(scores=(), method: str = "full", dropout: float = 0.0, **changes: Any):
    """The stepper of a finished training whose dev scores are these, and where it stands; one step an epoch."""
    cell = cases.cell(method, tiny.backbone("bert", dropout=dropout))
    settings = cases.SETTINGS.model_copy(update={"batch_size": 5, "epochs": max(1, len(scores)), **changes})
    stepper, given = Watched(cell, settings), iter(scores)
    dev = dataset(cell) if scores else None
    return stepper, fit(stepper, dataset(cell), dev, settings, 0, lambda answers: next(given))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


# steps


def test_the_steps_of_a_training_have_the_rates_of_its_schedule():
    stepper, _ = watched(epochs=4, schedule="linear", warmup=0.5, lr=1e-3)
    assert stepper.rates == pytest.approx([0.5e-3, 1e-3, 1e-3, 0.5e-3])


def test_the_rates_that_are_told_are_those_of_the_steps():
    cell, events = cases.cell("full", tiny.backbone("bert")), list[dict[str, Any]]()
    settings = cases.SETTINGS.model_copy(update={"batch_size": 2, "epochs": 2, "schedule": "linear", "warmup": 0.3})
    stepper = Watched(cell, settings)
    fit(stepper, dataset(cell), None, settings, 0, cell.score, tell=events.append)
    told = [event["lr"] for event in events if event["event"] == "steps"]
    assert list(itertools.chain.from_iterable(told)) == stepper.rates
    assert len(set(stepper.rates)) == 5, "of six steps one warms up, and the next has its rate"


@pytest.mark.parametrize("size", [None, 1, 2])
def test_the_penalty_is_added_once_a_step(size, monkeypatch):
    def penalty(self):
        return 7.0 + 0 * next(iter(self.trainable().values())).sum()

    plain, _ = watched(micro_batch=size)
    monkeypatch.setattr("raypft.methods.full.FullFineTuning.penalty", penalty, raising=False)
    stepper, state = watched(micro_batch=size)
    with_it, without = stepper.backward_losses[0], plain.backward_losses[0]
    assert len(with_it) == (-(-5 // size) if size else 1)
    assert sum(with_it) - sum(without) == pytest.approx(7.0, abs=1e-5)
    assert state.losses[0] == pytest.approx(sum(without)), "what is told is the loss of the rows"


def test_the_last_micro_batch_of_a_step_is_told():
    """It is when gradients are summed over workers."""
    stepper, _ = watched(micro_batch=2, epochs=2)
    assert stepper.lasts == [False, False, True] * 2


@pytest.mark.parametrize("trains", [True, False])
def test_a_batch_has_the_room_of_what_is_done_with_it(trains, monkeypatch):
    """A training keeps states for the gradients, an evaluation does not."""
    asked, room_for = list[bool](), room.room_for

    def asking(*wanted: Any, trains: bool) -> Any:
        asked.append(trains)
        return room_for(*wanted, trains=trains)

    monkeypatch.setattr(loader if trains else loop, "room_for", asking)
    cell = cases.cell("full", tiny.backbone("bert"))
    stepper = TorchStepper(cell.learner, cases.SETTINGS)
    if trains:
        fit(stepper, dataset(cell), None, cases.SETTINGS, 0, cell.score)
    else:
        evaluate(stepper, dataset(cell), cases.SETTINGS)
    assert set(asked) == {trains}


# dropout


def test_every_step_has_its_own_masks_and_a_seed_its_own():
    """With a vanishing rate and all rows in a step, losses of equal masks would repeat."""

    def losses(seed: int, **changes: Any) -> list[float]:
        cell = cases.cell("full", tiny.backbone("bert", dropout=0.1))
        settings = cases.SETTINGS.model_copy(update={"batch_size": 5, "epochs": 4, "lr": 1e-12, **changes})
        return fit(TorchStepper(cell.learner, settings), dataset(cell), None, settings, seed, cell.score).losses

    first = losses(0)
    assert len({round(loss, 5) for loss in [*first, *losses(1)]}) == 8
    assert losses(0) == first
    assert losses(0, micro_batch=2) == pytest.approx(first, rel=1e-5)


def test_an_evaluation_has_no_dropout():
    """After a step of training as well, and it leaves no trace in the training."""
    _, plain = watched(dropout=0.5, epochs=2)
    cell = cases.cell("full", tiny.backbone("bert", dropout=0.5))
    rows = dataset(cell)
    settings = cases.SETTINGS.model_copy(update={"batch_size": 5, "epochs": 2, "select": "last", "lr": 1e-3})
    seen: list[list[Answer]] = []
    stepper = TorchStepper(cell.learner, settings)
    state = fit(stepper, rows, rows, settings, 0, lambda answers: seen.append(list(answers)) or 0.0)
    assert state.losses == plain.losses
    assert evaluate(stepper, rows, Train(eval_batch=2)) == evaluate(stepper, rows, Train(eval_batch=2))
    cell.learner.eval()
    expected = cell.learner.answer(rows.batch(range(5)))
    assert [answer.scores for answer in seen[-1]] == [pytest.approx(answer.scores, abs=1e-6) for answer in expected]


def drawing(cell: cases.Cell) -> None:
    """The method adds noise to its states."""
    forward = cell.learner.method.forward
    cell.learner.method.forward = lambda batch: forward(batch) + torch.rand(())


def test_a_method_that_draws_otherwise_is_refused_where_others_would_get_other_numbers():
    settings = cases.SETTINGS.model_copy(update={"epochs": 1})
    losses = []
    for _ in range(2):
        cell = cases.cell("full", tiny.backbone("bert"))
        drawing(cell)
        losses.append(fit(TorchStepper(cell.learner, settings), dataset(cell), None, settings, 0, cell.score).losses)
        torch.rand(1)  # what was drawn before plays no part
    assert losses[0] == losses[1]
    settings = settings.model_copy(update={"micro_batch": 2})
    cell = cases.cell("full", tiny.backbone("bert"))
    drawing(cell)
    with pytest.raises(
        UserError, match=r"^train: the model or the method draws random numbers that are no row's dropout"
    ):
        fit(TorchStepper(cell.learner, settings), dataset(cell), None, settings, 0, cell.score)


# which epoch is kept


@pytest.mark.parametrize(
    ("scores", "best"), [([1, 3, 2], 2), ([1, 2, 3], 3), ([3, 1, 2], 1), ([1, 2, 2], 2), ([0, 0, 0], 1)], ids=str
)
def test_the_values_of_the_best_epoch_are_put_back_and_of_equals_the_first(scores, best):
    stepper, state = watched(scores)
    assert (state.best_epoch, state.best_score) == (best, max(scores))
    assert same(stepper.values(), stepper.after[best - 1])
    assert not same(stepper.after[0], stepper.after[1])


def test_select_last_keeps_the_last():
    stepper, state = watched([3, 1, 2], select="last")
    assert same(stepper.values(), stepper.after[2])
    assert state.best_epoch == 1


@pytest.mark.parametrize(
    ("rule", "patience", "scores", "epochs"),
    [
        ("best", 1, [2, 3, 3, 4], 3),
        ("best", 2, [2, 3, 1, 2, 9], 4),
        ("best", 2, [1, 2, 3, 4], 4),
        ("previous", 1, [3, 1, 2, 3], 2),
        ("previous", 1, [1, 2, 2, 3], 3),
        ("previous", 2, [3, 1, 2, 1, 1, 9], 5),
        ("best", None, [3, 2, 1], 3),
    ],
)
def test_patience_counts_epochs_without_gain(rule, patience, scores, epochs):
    _, state = watched(scores, patience=patience, patience_rule=rule)
    assert len(state.history) == epochs


# prompts that repeat


def twice(method: str = "gnnavi", readout: str = "verbalizer", dropout: float = 0.0) -> cases.Cell:
    """Five rows, four of them twice under other names; of the last repetition the label is another."""
    cell = cases.cell(method, tiny.backbone(cases.kinds_of(method)[0], dropout=dropout), readout=readout)
    again = [prompt.but(key=f"{prompt.key}-again") for prompt in cell.prompts[:4]]
    again[3] = again[3].but(gold=[1 - again[3].gold[0]])
    return replace(cell, prompts=cell.prompts + again)


class Prompts(TorchStepper):
    """Counts the prompts that run, and keeps the gradient of each step."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.count, self.gradients = 0, list[torch.Tensor]()

    def scores(self, batch):
        self.count += int((batch.weight > 0).sum())
        return super().scores(batch)

    def step(self, lr):
        self.gradients.append(torch.cat([p.grad.flatten() for p in self.parameters.values() if p.grad is not None]))
        return super().step(lr)


def run_twice(cell: cases.Cell, rows: Any, **changes: Any) -> tuple[int, list[float], torch.Tensor]:
    """Prompts that ran in two epochs of one step, the losses, and the gradients."""
    settings = cases.SETTINGS.model_copy(update={"batch_size": 9, "epochs": 2, **changes})
    stepper = Prompts(cell.learner, settings)
    losses = fit(stepper, rows, None, settings, 0, cell.score).losses
    return stepper.count, losses, torch.stack(stepper.gradients)


class Given:
    """A flow of prompts that are known."""

    def __init__(self, prompts) -> None:
        self.prompts, self.rows = prompts, len(prompts)

    def __call__(self, share):
        yield self.prompts


@pytest.mark.parametrize(
    ("method", "readout"),
    [
        ("gnnavi", "verbalizer"),
        ("gnnavi", "head"),
        ("prefix", "verbalizer"),
        ("prefix", "head"),
        ("lora", "verbalizer"),
        ("full", "verbalizer"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_a_prompt_that_repeats_in_a_step_runs_once(method, readout, streamed, micro_batch):
    """With the loss and the gradient of all; a repetition with another label runs by itself."""
    found = []
    for shortcuts in (False, True):
        cell = twice(method, readout)
        rows: Any = dataset(cell)
        if streamed:
            rows = Streamed(Given(cell.prompts), cell.prompts[0], cell.learner.method, 1)
        found.append(run_twice(cell, rows, shortcuts=shortcuts, micro_batch=micro_batch))
    (whole, losses, gradients), (few, same_losses, same_gradients) = found
    assert (whole, few) == (18, 12)
    assert same_losses == pytest.approx(losses, rel=1e-6)
    assert torch.allclose(same_gradients, gradients, rtol=1e-4, atol=1e-7)


def test_prompts_that_repeat_run_each_where_dropout_is_drawn():
    """A row's masks are its own, and what others' code draws no one knows."""
    assert run_twice(cell := twice("full", dropout=0.1), dataset(cell))[0] == 18
    cell = twice()
    cell.learner.readout.__class__ = type("Own", (type(cell.learner.readout),), {"__module__": "mine"})
    assert run_twice(cell, dataset(cell))[0] == 18


@pytest.mark.parametrize("shortcuts", [True, False])
def test_what_draws_without_a_rate_is_refused_where_a_prompt_counts_twice(shortcuts):
    cell = twice("full")
    cell.learner.method.backbone.blocks[0].register_forward_pre_hook(lambda *_: torch.rand(1) and None)
    if not shortcuts:
        assert run_twice(cell, dataset(cell), shortcuts=False)[0] == 18
        return
    with pytest.raises(UserError, match=r"no row's dropout.* and train\.shortcuts=false$"):
        run_twice(cell, dataset(cell))


@pytest.mark.parametrize(("size", "expected"), [(1, [2, 3, 4, 8]), (3, [3, 8]), (5, [8]), (100, [8])])
def test_an_evaluation_goes_on_stretch_by_stretch(size, expected, monkeypatch):
    """The prompts of a row stay together; a prompt that stands in two stretches has the same answer in both."""
    monkeypatch.setattr(loader, "AT_ONCE", size)
    cell = cases.cell("full", tiny.backbone("bert"))
    one, other = cell.prompts[:2]
    parts = [one, one.but(part=1), other, one, one, other.but(part=1), one.but(part=2), other.but(part=3)]
    rows = PromptDataset(parts, cell.learner.method, cell.learner.method.backbone.pad)
    assert [some.stop for some in rows.stretches()] == expected
    told = list(answered(TorchStepper(cell.learner, cases.SETTINGS), rows, cases.SETTINGS))
    assert [some for some, _ in told] == rows.stretches()
    found = list(itertools.chain.from_iterable(answers for _, answers in told))
    assert [answer.prompt for answer in found] == [prompt.name for prompt in parts]
    for number in (1, 3, 4, 6):
        assert found[number].scores == pytest.approx(found[0].scores, rel=1e-5)
    assert PromptDataset([], cell.learner.method, 1).stretches() == []
    for world in (1, 2, 3):
        cached = [rows_to_cache(rows, rank, world) for rank in range(world)]
        assert len(set(map(len, cached))) == 1
        for some in rows.stretches():
            for rank in range(world):
                assert {0, *rows.distinct(True, some)[rank::world]} <= set(cached[rank])


def test_an_evaluation_tells_how_far_it_is(monkeypatch):
    """Of five prompts two at once; three and two are answered together."""
    told = list[float | str]()
    work: Any = SimpleNamespace(at=told.append, end=lambda: told.append("end"))
    monkeypatch.setattr(loop, "Work", lambda what, total: told.append(f"{what} of {total}") or work)
    monkeypatch.setattr(loader, "AT_ONCE", 3)
    cell = cases.cell("full", tiny.backbone("bert"))
    evaluate(TorchStepper(cell.learner, cases.SETTINGS), dataset(cell), Train(eval_batch=2))
    assert told == ["evaluation of 5", 1.5, 3.0, 5.0, "end"]


def test_a_method_with_columns_of_its_own_may_tell_languages_apart():
    """One prompt in two languages is answered twice then."""
    cell = cases.cell("full", tiny.backbone("bert"))
    prompts = [cell.prompts[0], cell.prompts[0].but(key="de/0", language="de"), cell.prompts[0].but(key="en/9")]
    assert PromptDataset(prompts, cell.learner.method, 1).first_alike(range(3)).tolist() == [0, 0, 0]
    method: Any = cell.learner.method
    method.columns = lambda prompt: {"language": prompt.language}
    assert PromptDataset(prompts, cell.learner.method, 1).first_alike(range(3)).tolist() == [0, 1, 0]


# what ends a training


@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_gradient_that_is_not_finite_ends_the_training_before_it_reaches_the_values(clip):
    cell = cases.cell("full", tiny.backbone("bert"))
    settings = cases.SETTINGS.model_copy(update={"batch_size": 2, "clip": clip})
    stepper = Watched(cell, settings)
    gradients = iter([1.0, 1.0, math.nan])
    next(iter(stepper.parameters.values())).register_hook(lambda gradient: gradient * next(gradients))
    expected = r"^train: the gradient is not finite at optimizer step 3; lower train.lr, or use train.precision=fp32$"
    with pytest.raises(UserError, match=expected):
        fit(stepper, dataset(cell), None, settings, 0, cell.score)
    assert same(stepper.values(), stepper.after[1])


@pytest.mark.parametrize("behind", [0, 1])
@pytest.mark.parametrize("save_every", [None, 1, 2])
def test_what_a_step_tells_may_be_read_behind_the_next(behind, save_every, monkeypatch, tmp_path):
    """As on a GPU: the same losses, the same line about the same step, and no state behind a step that has failed."""
    monkeypatch.setattr(checkpoint.StateWriter, "_is_due", lambda writer, patience=10: True)
    monkeypatch.setattr(Told, "__init__", lambda told, device: vars(told).update(behind=behind, _unread=deque()))
    settings = cases.SETTINGS.model_copy(update={"batch_size": 2, "save_every": save_every})

    def run(factors: list[float]) -> tuple[list[float], list[int], str, bool]:
        cell, saved, line = cases.cell("full", tiny.backbone("bert")), [], ""
        stepper, state, given = Watched(cell, settings), TrainState(), iter(factors)
        states = States(tmp_path / "state.pt", tmp_path / "state.previous.pt", tmp_path / "state", "cell")
        monkeypatch.setattr(States, "save_whole", lambda own, kept, stepper: saved.append(len(kept.losses)))
        next(iter(stepper.parameters.values())).register_hook(lambda gradient: gradient * next(given, 1.0))
        try:
            fit(stepper, dataset(cell), None, settings, 0, cell.score, state, states)
        except UserError as error:
            line = str(error)
        return state.losses, saved, line, same(stepper.values(), stepper.after[4])

    losses, saved, line, stays = run([])
    assert (len(losses), line, stays) == (15, "", False)
    steps = range(save_every, 16, save_every) if save_every else []
    assert saved == sorted([*steps, 3, 6, 9, 12, 15]), "with all losses up to there"
    broken, kept, line, stays = run([1.0] * 5 + [math.nan])
    assert broken == losses[:5]
    assert line == "train: the gradient is not finite at optimizer step 6; lower train.lr, or use train.precision=fp32"
    assert stays, "no step moves the values after one whose gradient was not finite"
    assert kept == [number for number in saved if number <= 5]


@pytest.mark.parametrize("behind", [0, 1])
def test_a_state_before_a_node_goes_has_all_losses_and_other_steps_are_not_waited_for(behind, monkeypatch, tmp_path):
    """The notice of the second step is read after it, or one step later."""
    monkeypatch.setattr(checkpoint.StateWriter, "_is_due", lambda writer, patience=10: patience == 2)
    monkeypatch.setattr(Told, "__init__", lambda told, device: vars(told).update(behind=behind, _unread=deque()))
    settings = cases.SETTINGS.model_copy(update={"batch_size": 2, "epochs": 2})
    cell, saved, unread = cases.cell("full", tiny.backbone("bert")), list[tuple[int, int]](), list[int]()
    stepper, notices = TorchStepper(cell.learner, settings), iter([False, True])
    stepper.leaving = lambda: next(notices, False)
    after_step = checkpoint.StateWriter.after_step

    def watch(writer: Any, state: TrainState, number: int, leaving: bool) -> None:
        unread.append(number - len(state.losses))
        after_step(writer, state, number, leaving)

    monkeypatch.setattr(checkpoint.StateWriter, "after_step", watch)
    monkeypatch.setattr(States, "save_whole", lambda own, kept, stepper: saved.append((kept.step, len(kept.losses))))
    states = States(tmp_path / "state.pt", tmp_path / "state.previous.pt", tmp_path / "state", "cell")
    fit(stepper, dataset(cell), None, settings, 0, cell.score, states=states)
    assert saved == [(2 + behind, 2 + behind)]
    assert unread == [behind if number != 2 + behind else 0 for number in range(1, 7)]


def test_what_a_gpu_tells_is_read_once_it_is_there(monkeypatch):
    """Of a copy that arrives when its event is waited for."""
    told, copied, recorded = Told("cuda:0"), torch.zeros(2), list[bool]()
    event = SimpleNamespace(record=lambda: recorded.append(True), synchronize=lambda: copied.add_(7.0))
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    numbers: Any = SimpleNamespace(is_cuda=True, to=lambda place, non_blocking: copied)
    told.add(3, numbers)
    assert (recorded, len(told), told.behind, list(told.read(1))) == ([True], 1, 1, [])
    assert list(told.read()) == [(3, [7.0, 7.0])]


def test_batches_made_ahead_are_those_of_their_steps_in_order():
    """The batches that a GPU gets, one of them at a time beside that which runs; a fault is told where it is met."""
    cell, made = cases.cell("full", tiny.backbone("bert")), list[int]()
    rows, stepper = dataset(cell), TorchStepper(cell.learner, cases.SETTINGS)

    def noted(batches):
        for batch in batches:
            made.append(len(made))
            yield batch

    settings = cases.SETTINGS.model_copy(update={"micro_batch": 1})
    plain = [(work.weight, [*work.batches]) for work in rows.epoch(stepper, settings, 0, 0, 0)]
    watched_steps = (replace(work, batches=noted(work.batches)) for work in rows.epoch(stepper, settings, 0, 0, 0))
    taken = 0
    for (weight, batches), work in zip(plain, made_ahead(watched_steps, "cpu"), strict=True):
        assert work.weight == weight
        for expected, batch in zip(batches, work.batches, strict=True):
            taken += 1
            assert taken <= len(made) + 1 <= taken + 2
            assert batch.names == expected.names
            assert all(torch.equal(getattr(batch, name), getattr(expected, name)) for name in ("ids", "gold", "slots"))

    def failing():
        yield plain[0][1][0]
        raise RuntimeError("a row that can't be read")

    steps = made_ahead([Step(1.0, 2, failing())], "cpu")
    work = next(steps)
    assert next(work.batches).names == plain[0][1][0].names
    with pytest.raises(RuntimeError, match="a row that can't be read"):
        next(work.batches)


def test_a_loss_that_is_not_finite_ends_the_training():
    with pytest.raises(UserError, match=r"^train: the loss is nan at optimizer step 2; lower train.lr"):
        watched(lr=1e30, epochs=3)


@pytest.mark.parametrize(("kind", "readout"), [("bert", "verbalizer"), ("gpt2", "head"), ("t5", "text")])
def test_scores_that_are_nan_are_no_answer(kind, readout):
    """Of a model with a weight that is nan, or of a last step that went too far."""
    cell = cases.cell("full", tiny.backbone(kind), readout=readout)
    with torch.no_grad():
        next(iter(cell.learner.trainable().values())).fill_(math.nan)
    with pytest.raises(UserError, match=r"^scores are nan, first for row en/0; expected finite ones"):
        evaluate(TorchStepper(cell.learner, cases.SETTINGS), dataset(cell), cases.SETTINGS)


def test_readouts_of_tokens_tell_nan_in_their_scores():
    batch = dataset(cases.cell("full", tiny.backbone("bert"))).batch([0, 1])
    slots = torch.tensor([[0, 0], [0, 1], [0, 2], [1, 0], [1, 1]])
    scores = torch.zeros(5, 2)
    scores[4, 0] = math.nan
    for readout in (MaskedLanguageModel, SpanReadout):
        several: Any = SimpleNamespace(names=batch.names, slots=slots)
        answers = readout.decide(SimpleNamespace(longest=3, unanswerable=False), scores, several)  # type: ignore[arg-type]
        assert expect_scores(answers[:1]) == answers[:1]
        with pytest.raises(UserError, match=r"^scores are nan, first for row en/1;"):
            expect_scores(answers)


@pytest.mark.parametrize(
    ("scores", "found"),
    [
        ([0.2, 0.8], ""),
        ([-math.inf, -0.1], ""),  # a label that can't be
        ([], ""),
        ([0.5, math.nan], "nan"),
        ([math.nan, math.inf], "nan"),
        ([-math.inf, -math.inf], "-inf"),
        ([0.0, math.inf], "inf"),
    ],
    ids=str,
)
def test_which_scores_say_nothing(scores, found):
    answers = [Answer("en/0#0", 0, [0.5]), Answer("en/1#2", 0, scores)]
    if not found:
        assert expect_scores(answers) is answers
        return
    with pytest.raises(UserError, match=f"^scores are {found}, first for row en/1; expected finite ones"):
        expect_scores(answers)

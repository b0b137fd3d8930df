"""The promises of a method, each a function of a method and a kind of tiny model.

A function raises AssertionError with one line that says what was found where a promise is broken, DoesNotApply where
the method has nothing to promise.
"""

from __future__ import annotations

import itertools
import math
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from raypft.backbones.base import Backbone
from raypft.backbones.sparse import Sparse
from raypft.config.job import Train
from raypft.contract import cases, tiny
from raypft.methods import METHODS
from raypft.training.loader import PromptDataset
from raypft.training.loop import evaluate, fit
from raypft.training.states import TrainState
from raypft.training.stepper import Learner, TorchStepper

CLOSE = 1e-4
"""How far a loss may lie from the one it should be, relative to the largest of the curve: sums are taken in another
order. (Of a loss near 0 nothing but the rounding of its logits would be compared.)"""
DROPOUT = 0.1
"""The rate of the models, and of a method's key `dropout`, where one loss curve is promised."""
WITHOUT_GRADIENT = re.compile(r"key\.bias|token_type")
"""In names of parameters that need not move: softmax ignores what all keys share, rows of one segment use one type."""


class DoesNotApply(Exception):
    """Why a method has nothing to promise here."""


@dataclass(frozen=True)
class Promise:
    """A promise in words, the function that checks it, and whether only methods that train make it."""

    text: str
    check: Callable[..., None]
    of_training: bool = False

    def __str__(self) -> str:
        return self.text


def expect(kept: bool, line: str) -> None:
    """Raise an AssertionError with this line unless the promise is kept."""
    if not kept:
        raise AssertionError(line)


def trained(cell: cases.Cell, settings: Train = cases.SETTINGS, seed: int = 0) -> tuple[TorchStepper, TrainState]:
    """Fit a cell; its stepper and where its training stands."""
    stepper = TorchStepper(cell.learner, settings)
    rows = dataset(cell)
    return stepper, fit(stepper, rows, rows, settings, seed, cell.score)


def dataset(cell: cases.Cell) -> PromptDataset:
    """The rows of a cell."""
    return PromptDataset(cell.prompts, cell.learner.method, cell.learner.method.backbone.pad)


def dropping(method: str, kind: str, backbone: Backbone | None = None, **options: Any) -> cases.Cell:
    """A cell whose model drops states out, and its method if that has a key for it.

    Args:
        backbone: instead of one made in memory.
    """
    if "dropout" in METHODS.load(method).Config.model_fields:
        options = {"dropout": DROPOUT, **options}
    return cases.cell(method, backbone or tiny.backbone(kind, dropout=DROPOUT), **options)


def states_are_one_row_per_slot(method: str, kind: str, **options: Any) -> None:
    """Three prompts with a slot each give [3, H]."""
    cell = cases.cell(method, tiny.backbone(kind), **options)
    states = cell.learner.method(dataset(cell).batch([0, 1, 2]))
    shape = list(getattr(states, "shape", [type(states).__name__]))
    width = cell.learner.method.backbone.state_size
    expect(
        shape == [3, width],
        f"forward gave {shape} for 3 slots; expected [S, H], here [3, {width}], as backbone(batch) gives",
    )


def exactly_the_declared_parameters_move(method: str, kind: str, **options: Any) -> None:
    """A trainable tensor moves somewhere in ten steps (rows of unused tokens stay), a frozen one never does."""
    cell = cases.cell(method, tiny.backbone(kind), **options)
    trainable = set(cell.learner.trainable())
    expect(bool(trainable), "no parameter trains; open some through the backbone's seams, or set trains = False")
    before = _values(cell.learner)
    trained(cell)
    moved = {name for name, value in _values(cell.learner).items() if not torch.equal(value, before[name])}
    frozen = moved - trainable
    expect(not frozen, f"{_some(frozen)} moved in training but must stay frozen; write to weights through seams only")
    still = {name for name in trainable - moved if not WITHOUT_GRADIENT.search(name)}
    expect(not still, f"{_some(still)} is trainable but did not move in ten steps; use it in forward, or freeze it")


def _values(learner: Learner) -> dict[str, Tensor]:
    """Of all parameters, by name; of a weight of which some entries train the others."""
    values = {name: p.detach().clone() for name, p in learner.named_parameters()}
    for name, module in learner.named_modules():
        if isinstance(module, Sparse):
            values[f"{name}.base"].view(-1)[module.index.long()] = 0
    return values


def the_trainable_count_is_the_predicted_one(method: str, kind: str, **options: Any) -> None:
    """`predicted_parameters` is what is trainable."""
    learner = cases.cell(method, tiny.backbone(kind), **options).learner
    trainable = learner.method.trainable()
    count, predicted = sum(p.numel() for p in trainable.values()), learner.method.predicted_parameters()
    expect(
        count == predicted,
        f"{count:,} parameters are trainable ({_some(trainable)}), predicted_parameters says {predicted:,}",
    )


def saved_parameters_give_equal_scores(method: str, kind: str, **options: Any) -> None:
    """What was trained answers alike in a fresh model, after a file."""
    cell = cases.cell(method, tiny.backbone(kind), **options)
    stepper, _ = trained(cell)
    with tempfile.TemporaryDirectory(prefix="raypft-contract-") as folder:
        path = Path(folder) / "trained.safetensors"
        save_file({name: value.contiguous() for name, value in stepper.values().items()}, path)
        again = cases.cell(method, tiny.backbone(kind), seed=9, **options)
        fresh = TorchStepper(again.learner, cases.SETTINGS)
        values = load_file(path)
        fresh.put(lambda key, name, start, end: values[name].view(-1)[start:end])
    expect(
        evaluate(stepper, dataset(cell), cases.SETTINGS) == evaluate(fresh, dataset(again), cases.SETTINGS),
        "the trained parameters, saved and put into a fresh model, give other scores; "
        "something that forward uses is no trainable parameter and not the same in every model",
    )


def cached_states_give_the_uncached_numbers(method: str, kind: str, **options: Any) -> None:
    """The blocks that `constant_below` counts need not run again."""
    cell = cases.cell(method, tiny.backbone(kind), **options)
    built = cell.learner.method
    if not built.constant_below:
        raise DoesNotApply("nothing is constant below this method")
    states = built.backbone.frozen_states.after(built.constant_below, cell.prompts, "cpu")
    plain, cached = (
        cell.learner(PromptDataset(cell.prompts, built, built.backbone.pad, lower).batch([2, 0, 4]))
        for lower in (None, states)
    )
    off = float((plain - cached).detach().abs().max())
    expect(
        off <= 1e-6,
        f"scores from cached states are off by {off:.2g}; "
        f"constant_below says {built.constant_below}, but what these blocks give changes",
    )


def a_shared_beginning_gives_equal_scores(method: str, kind: str, **options: Any) -> None:
    """Demonstrations in front of all prompts may be run once, before the rest."""
    cell = cases.cell(method, tiny.backbone(kind), **options)
    if cell.learner.method.trains:
        trained(cell)
    backbone, rows = cell.learner.method.backbone, dataset(cell)
    cell.learner.eval()
    beginning = rows.begin(backbone, "cpu")
    if beginning is None:
        raise DoesNotApply("no beginning is shared")
    chosen = [2, 0, 4]
    with torch.no_grad():
        shared, whole = (cell.learner(rows.batch(chosen, beginning=begun)) for begun in (beginning, None))
    off = float((shared - whole).abs().max())
    expect(
        off <= 1e-5,
        f"scores behind a beginning that was run before are off by {off:.2g}; a module that says "
        "behind_a_beginning must read batch.begins and batch.beginning",
    )


def cells_a_b_a_give_equal_bits(method: str, kind: str, **options: Any) -> None:
    """One backbone serves cell after cell; a seed gives the same bits before and after another seed's."""
    backbone = tiny.backbone(kind, dropout=0.1)
    losses, values = [], []
    for seed in (0, 1, 0):
        cell = cases.cell(method, backbone, seed, **options)
        stepper, state = trained(cell, seed=seed)
        losses.append(state.losses)
        values.append(stepper.values())
    same = losses[0] == losses[2] and all(torch.equal(values[0][name], values[2][name]) for name in values[0])
    expect(
        same,
        "seeds 0, 1, 0 on one backbone: seed 0 came out otherwise the second time; "
        "something outlives the cell, or draws from another generator than torch's",
    )
    expect(losses[0] != losses[1], "seeds 0 and 1 gave the same losses; expected the seed to decide something")


def bf16_stays_finite(method: str, kind: str, **options: Any) -> None:
    """Ten steps in bfloat16."""
    settings = cases.SETTINGS.model_copy(update={"precision": "bf16"})
    losses = trained(cases.cell(method, tiny.backbone(kind), **options), settings)[1].losses
    expect(all(map(math.isfinite, losses)), f"train.precision=bf16: losses {losses}")


def micro_batches_do_not_change_the_losses(method: str, kind: str, **options: Any) -> None:
    """Steps of four rows at once and one by one, with dropout."""
    curves = []
    for size in (None, 1):
        settings = cases.SETTINGS.model_copy(update={"micro_batch": size})
        curves.append(trained(dropping(method, kind, **options), settings)[1].losses)
    expect_curve(curves[1], curves[0], "train.micro_batch=1", "all rows at once")


def shortcuts_do_not_change_the_losses(method: str, kind: str, **options: Any) -> None:
    """Everything computed, and only what is read, of rows that repeat within a step; with dropout and without, answers
    too."""
    for dropout in (DROPOUT, 0.0):
        curves, scores = [], []
        for on in (False, True):
            made = dropping(method, kind, **options) if dropout else cases.cell(method, tiny.backbone(kind), **options)
            cell = replace(made, prompts=made.prompts + [p.but(key=f"{p.key} again") for p in made.prompts])
            cell.learner.method.backbone.shortcuts = on
            settings = cases.SETTINGS.model_copy(update={"shortcuts": on, "batch_size": 8})
            stepper, state = trained(cell, settings)
            curves.append(state.losses)
            scores.append([answer.scores for answer in evaluate(stepper, dataset(cell), settings)])
        expect_curve(curves[1], curves[0], f"with shortcuts, dropout {dropout}", "all computed")
        both = zip(*map(itertools.chain.from_iterable, scores), strict=True)
        off = max(abs(one - other) for one, other in both)
        expect(
            off <= CLOSE, f"with shortcuts, dropout {dropout}, scores are off by {off:.2g} from those of all computed"
        )


def checkpointing_does_not_change_the_losses(method: str, kind: str, **options: Any) -> None:
    """Blocks that run again in the backward pass drop what they dropped, with what the method put into them."""
    curves = []
    for on in (False, True):
        cell = dropping(method, kind, **options)
        cell.learner.method.backbone.checkpointing = on
        curves.append(trained(cell)[1].losses)
    expect_curve(curves[1], curves[0], "train.checkpointing=true", "false", within=1e-6)


def filler_rows_weigh_nothing(method: str, kind: str, **options: Any) -> None:
    """A worker without rows runs a filler, whose loss and weight are 0."""
    cell = cases.cell(method, tiny.backbone(kind), **options)
    filler = dataset(cell).batch([])
    loss, weight = (float(value.detach()) for value in cell.learner.readout.loss(cell.learner(filler), filler))
    expect(loss == 0 and weight == 0, f"a filler row has loss {loss} and weight {weight}; expected 0 and 0")


def expect_curve(losses: list[float], expected: list[float], what: str, against: str, within: float = CLOSE) -> None:
    """Raise an AssertionError unless two loss curves are one; within: see `CLOSE`."""
    expect(len(losses) == len(expected), f"{what}: {len(losses)} steps; {against}: {len(expected)}")
    largest = max(map(abs, expected), default=0.0)
    for step, (loss, other) in enumerate(zip(losses, expected, strict=True), start=1):
        expect(
            abs(loss - other) <= within * largest,
            f"{what}: the loss of step {step} is {loss:.6g}; {against}: {other:.6g}",
        )


def _some(names: Iterable[str]) -> str:
    """The first of some names, and how many more there are."""
    first, *others = sorted(names) or ["none"]
    return f"{first} and {len(others)} more" if others else first


SHAPE = Promise("states are one row per slot", states_are_one_row_per_slot)
"""What all the others build on."""
PROMISES = (
    SHAPE,
    Promise("exactly the declared parameters move", exactly_the_declared_parameters_move, of_training=True),
    Promise("the trainable count is the predicted one", the_trainable_count_is_the_predicted_one),
    Promise("saved parameters give equal scores", saved_parameters_give_equal_scores, of_training=True),
    Promise("cached states give the uncached numbers", cached_states_give_the_uncached_numbers),
    Promise("a beginning that is run once gives equal scores", a_shared_beginning_gives_equal_scores),
    Promise("cells A, B, A on one backbone give equal bits", cells_a_b_a_give_equal_bits, of_training=True),
    Promise("bf16 stays finite", bf16_stays_finite, of_training=True),
    Promise("micro-batches do not change the losses", micro_batches_do_not_change_the_losses, of_training=True),
    Promise("shortcuts do not change the losses", shortcuts_do_not_change_the_losses, of_training=True),
    Promise("checkpointing does not change the losses", checkpointing_does_not_change_the_losses, of_training=True),
    Promise("filler rows weigh nothing", filler_rows_weigh_nothing),
)

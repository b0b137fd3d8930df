"""The loop: `fit` trains a learner, `evaluate` asks it. No ray and no deepspeed here.

The weights of a whole optimizer step are counted over all workers before its first backward; local loss x world size /
global weight then gives the same gradient for any split over workers and micro-batches.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from raypft.backbones.flops import STEPS, Part
from raypft.config.job import Train
from raypft.errors import UserError
from raypft.progress import Work
from raypft.readouts.base import Answer
from raypft.training.ahead import Told, ahead
from raypft.training.checkpoint import StateWriter
from raypft.training.dropout import NoDropout, RowDropout, may_drop
from raypft.training.loader import PromptDataset, Step, Streamed
from raypft.training.room import room_for
from raypft.training.states import States, TrainState
from raypft.training.stepper import Stepper

TELL_SECONDS = 30
"""In a long epoch, how often its progress is told."""


def learning_rate(settings: Train, step: int, total: int) -> float:
    """The rate of optimizer step `step` (from 0) out of `total`: linear warm-up, then constant, linear to 0, or 0.95
    an epoch."""
    warmup = int(settings.warmup * total)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    if settings.schedule == "exponential":
        return settings.lr * 0.95 ** (step * settings.epochs // total)
    if settings.schedule == "linear":
        return settings.lr * (total - step) / (total - warmup)
    return settings.lr


def fit(
    stepper: Stepper,
    train: PromptDataset | Streamed,
    dev: PromptDataset | None,
    settings: Train,
    seed: int,
    score: Callable[[Iterator[Answer]], float],
    state: TrainState | None = None,
    states: States | None = None,
    tell: Callable[[dict[str, Any]], None] = lambda event: None,
) -> TrainState:
    """Train the learner; the kept epoch's values are in the model when it returns.

    Args:
        score: dev answers, as they come, to the number that selects the epoch.
        state: where an interrupted run stands; its values and optimizer state are already in the stepper.
        states: where states are kept; tell: called on every rank with the events steps, step and epoch.

    Raises:
        UserError: the loss or the gradient is not finite; or what is drawn would depend on workers or micro-batches.
    """
    state = state or TrainState()
    steps = train.steps(settings.batch_size)
    writer = StateWriter(stepper, settings, states)
    seconds = state.history[-1]["train_seconds"] if state.history else 0.0
    told, teller = Told(stepper.device), _Teller(tell, settings, steps)
    drops = may_drop(stepper.learner.train())

    def read(behind: int = 0) -> bool:
        """Take in what steps told, but for the last `behind`; whether a node goes away."""
        leaving = False
        for number, numbers in told.read(behind):
            loss, leaves = _checked(numbers, number, stepper.world, settings)
            state.losses.append(loss)
            leaving |= leaves
        return leaving

    while state.epoch < settings.epochs and not _out_of_patience(state, settings):
        began = time.perf_counter()
        for work in ahead(train.epoch(stepper, settings, seed, state.epoch, state.step), stepper.device):
            number = state.epoch * steps + state.step
            with stepper.learner.method.backbone.flops.piece(STEPS) as part:
                done = _optimizer_step(stepper, work, settings, seed, number, steps * settings.epochs, drops, part)
            told.add(number, done)
            state.step += 1
            leaving = read(0 if writer.looks(number + 1) else told.behind)
            if leaving:
                read()
            writer.after_step(state, number + 1, leaving)
            teller.step(state, len(told))
        read()
        seconds += time.perf_counter() - began
        state.step, state.epoch = 0, state.epoch + 1
        record = {"epoch": state.epoch, "loss": sum(state.losses[-steps:]) / steps, "train_seconds": seconds}
        if dev is not None:
            record["dev"] = score(each(answered(stepper, dev, settings)))
            stepper.learner.train()
        state.history.append(record)
        improved = _is_better(state, record)
        teller.epoch(state)
        writer.after_epoch(state, improved and settings.select == "best")
    writer.end(state)
    return state


class _Teller:
    """What a training tells of itself: losses, how far an epoch is where it takes long, and each epoch.

    Args:
        steps: of an epoch.
    """

    def __init__(self, tell: Callable[[dict[str, Any]], None], settings: Train, steps: int) -> None:
        self.tell, self.settings, self.steps = tell, settings, steps
        self.said, self.heard = time.perf_counter(), 0

    def step(self, state: TrainState, behind: int) -> None:
        """A step was made; behind: steps whose losses are not known yet."""
        if time.perf_counter() - self.said > TELL_SECONDS and behind < state.step < self.steps:
            self._losses(state)
            at = {"epoch": state.epoch + 1, "step": state.step - behind, "steps": self.steps}
            self.tell({"event": "step", **at, "loss": state.losses[-1]})

    def epoch(self, state: TrainState) -> None:
        """An epoch ended; its record is the last of the history."""
        self._losses(state)
        self.tell({"event": "epoch", **state.history[-1]})

    def _losses(self, state: TrainState) -> None:
        """Those since this was last told; at first from the first step on, where a run goes on, too."""
        losses, total = state.losses[self.heard :], self.steps * self.settings.epochs
        rates = [learning_rate(self.settings, number, total) for number in range(self.heard, len(state.losses))]
        self.said = time.perf_counter()
        self.tell({"event": "steps", "first": self.heard + 1, "losses": losses, "lr": rates})
        self.heard += len(losses)


def _optimizer_step(
    stepper: Stepper, work: Step, settings: Train, seed: int, number: int, total: int, drops: bool, part: Part
) -> Tensor:
    """What the step tells, on the device: see `_checked`; drops: see `may_drop`; part: hears its padded tokens."""
    # what draws from torch's generators depends on where the run is, not on how it got there; dropout asks its rows
    _seed((seed * 1_000_003 + number) % (1 << 63), stepper.device)
    learner = stepper.learner
    total_loss = torch.zeros((), dtype=torch.float64, device=stepper.device)
    drew, places = False, list[int]()
    for i, batch in enumerate(work.batches, start=1):
        part.tokens += batch.ids.numel()
        dropout = RowDropout(batch, seed, number) if drops else NoDropout(batch.ids.device)
        with dropout:
            loss, _ = learner.readout.loss(stepper.scores(batch), batch)
        drew |= dropout.drew
        places.append(dropout.places)
        if not loss.requires_grad:
            raise UserError(
                "train: no parameter that trains has a part in the loss; the model does not use them for texts like "
                "these; choose another method or backbone"
            )
        loss = loss * (stepper.world / work.weight)
        total_loss += loss.detach()
        penalty = learner.method.penalty() if i == work.count else None
        stepper.backward(loss if penalty is None else loss + penalty, last=i == work.count)
    counted = [stepper.leaving(), drew, work.repeats, work.count, sum(places), sum(place**2 for place in places)]
    numbers = torch.tensor(counted, dtype=torch.float64).to(stepper.device, non_blocking=True)
    told = torch.cat([total_loss.view(1), numbers])
    told = stepper.sum(told)
    finite = torch.as_tensor(stepper.step(learning_rate(settings, number, total)))
    return torch.cat([told, finite.view(1).to(told, non_blocking=True)])


def _checked(told: list[float], number: int, world: int, settings: Train) -> tuple[float, bool]:
    """The loss of a step, and whether any worker's node goes away.

    Args:
        told: sums over the ranks of losses, nodes that go away, those that drew at random, those for which a prompt
            counted more than once, forward passes, dropouts in each of these and their squares; and whether the
            gradient was finite.

    Raises:
        UserError: see `fit`.
    """
    loss, leaving, drew, repeats, passes, first, second, finite = told
    uneven = passes * second != first**2  # equal numbers alone have such sums
    if (passes > 1 and (drew or uneven)) or (drew and repeats):
        raise _drawn_otherwise(settings.batch_size)
    mean = loss / world
    if not math.isfinite(mean):
        raise _diverged(f"the loss is {mean}", number)
    if not finite:
        raise _diverged("the gradient is not finite", number)
    return mean, bool(leaving)


def _seed(number: int, device: str) -> None:
    """Seed torch's generators of the CPU and of this device. `torch.manual_seed` asks every kind of device, and where
    one is not there it keeps the stack of each call for later."""
    torch.default_generator.manual_seed(number)
    if device.startswith("cuda"):
        torch.cuda.manual_seed(number)


def _drawn_otherwise(batch_size: int) -> UserError:
    """What to say where not all forward passes of a step had equally many dropouts and drew by row alone."""
    return UserError(
        "train: the model or the method draws random numbers that are no row's dropout, so its numbers would depend on "
        "workers and micro-batches; use resources.workers=1 (or 0), "
        f"train.micro_batch={batch_size}, all rows of a step at once, and train.shortcuts=false"
    )


def _diverged(found: str, number: int) -> UserError:
    return UserError(f"train: {found} at optimizer step {number + 1}; lower train.lr, or use train.precision=fp32")


def _is_better(state: TrainState, record: dict[str, Any]) -> bool:
    """Whether an epoch is better on dev than all before, which is noted."""
    if "dev" not in record:
        state.best_epoch = record["epoch"]
        return False
    better = record["dev"] > state.best_score
    if better:
        state.best_score, state.best_epoch = record["dev"], record["epoch"]
    return better


def _out_of_patience(state: TrainState, settings: Train) -> bool:
    scores = [record["dev"] for record in state.history if "dev" in record]
    if settings.patience is None or len(scores) <= settings.patience:
        return False
    if settings.patience_rule == "best":
        return state.history[-1]["epoch"] - state.best_epoch >= settings.patience
    last = scores[-settings.patience - 1 :]
    return all(after <= before for before, after in itertools.pairwise(last))


def evaluate(stepper: Stepper, rows: PromptDataset, settings: Train) -> list[Answer]:
    """The answers of all rows, see `answered`."""
    return list(each(answered(stepper, rows, settings)))


def each(found: Iterable[tuple[range, list[Answer]]]) -> Iterator[Answer]:
    """The answers of stretches, one after the other."""
    return itertools.chain.from_iterable(answers for _, answers in found)


@torch.no_grad()
def answered(stepper: Stepper, rows: PromptDataset, settings: Train) -> Iterator[tuple[range, list[Answer]]]:
    """Stretches of prompts and their answers, on every rank, in the rows' order; each rank runs its share of a stretch
    in equally many batches.

    A prompt that repeats is answered once, what all prompts begin with is run once.

    Raises:
        UserError: scores say nothing, see `expect_scores`.
    """
    learner = stepper.learner
    learner.eval()
    room = room_for(stepper, settings, settings.eval_batch, trains=False)
    beginning = rows.begin(learner.method.backbone, stepper.device)
    begins = 0 if beginning is None else beginning.length
    far = Work("evaluation", len(rows))
    for some in rows.stretches():
        numbers = rows.distinct(settings.shortcuts, some)
        lengths = [length - begins for length in rows.lengths(numbers)]
        answers: dict[int, Answer] = {}
        parts = room.parts(numbers, lengths, stepper.rank, stepper.world)
        made = map(functools.partial(rows.batch, beginning=beginning), parts)
        for work in ahead([Step(0.0, len(parts), made)], stepper.device):
            for number, (part, batch) in enumerate(zip(parts, work.batches, strict=True), 1):
                given = learner.answer(batch)
                if part:
                    answers |= zip(part, given, strict=True)
                far.at(some.start + number / len(parts) * len(some))
        for others in stepper.gather(answers):
            answers |= others
        first = rows.first_alike(some) if settings.shortcuts else some
        told = zip(map(int, first), rows.prompts[some.start : some.stop], strict=True)
        yield some, expect_scores([answers[row]._replace(prompt=prompt.name) for row, prompt in told])
    far.end()


def expect_scores(answers: list[Answer]) -> list[Answer]:
    """The answers, if their scores say something: none is nan, the best is finite (an impossible label may have -inf).

    Raises:
        UserError: they do not; a label would be answered all the same, the first or the last.
    """
    for name, _, scores in answers:
        unknown = any(map(math.isnan, scores))
        if unknown or not math.isfinite(max(scores, default=0.0)):
            found, row = "nan" if unknown else max(scores), name.rpartition("#")[0]
            raise UserError(
                f"scores are {found}, first for row {row}; expected finite ones: look whether the backbone's weights "
                "are finite, lower train.lr, or use train.precision=fp32"
            )
    return answers

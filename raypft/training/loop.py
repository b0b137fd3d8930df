"""The loop: Learner (method and readout) and `fit`. No ray and no deepspeed here.

A `Stepper` hides how gradients meet and parameters are stored; `TorchStepper` is one process, or several that average
gradients by all-reduce. The weights of a whole optimizer step are counted over all workers before its first backward;
local loss x world size / global weight then gives the same gradient for any split over workers and micro-batches.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from raypft.batch import Batch
from raypft.config.job import Train
from raypft.errors import UserError
from raypft.methods.base import Method
from raypft.readouts.base import Answer, Readout
from raypft.storage import on_disk, written
from raypft.training.loader import Rows, Streamed, Work, share


class Learner(nn.Module):
    """A method and a readout: batch -> scores [S, C]."""

    def __init__(self, method: Method, readout: Readout) -> None:
        super().__init__()
        self.method = method
        self.readout = readout

    def forward(self, batch: Batch) -> Tensor:
        return self.readout.scores(self.method(batch), batch)

    def answer(self, batch: Batch) -> list[Answer]:
        """One answer per prompt."""
        return self.readout.answer(self.method, batch)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name to trainable parameter, in a fixed order."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


class Stepper(ABC):
    """One way to run optimizer steps."""

    learner: Learner
    rank: int = 0
    world: int = 1
    device: str = "cpu"

    @abstractmethod
    def scores(self, batch: Batch) -> Tensor:
        """Forward pass, [S, C]."""

    @abstractmethod
    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulate gradients; `last` marks the step's final micro-batch."""

    @abstractmethod
    def step(self, lr: float) -> None:
        """Average gradients over workers, clip, update, clear."""

    @abstractmethod
    def values(self) -> dict[str, Tensor]:
        """The trainable parameters, whole, fp32, on CPU. Every rank calls it."""

    @abstractmethod
    def set_values(self, values: dict[str, Tensor]) -> None:
        """Write the trainable parameters of the model (not the optimizer's copies): for the end of training."""

    @abstractmethod
    def optimizer_state(self) -> dict[str, Any]:
        """Adam's state whole, by parameter name, and its step count. Every rank calls it."""

    def close(self) -> None:  # noqa: B027  (most hold nothing)
        """Let go of what the stepper holds."""

    def leaving(self) -> bool:
        """Whether this worker's node was told to go away soon."""
        return False

    def gather(self, value: Any) -> list[Any]:
        """One value per rank, on every rank."""
        if self.world == 1:
            return [value]
        out: list[Any] = [None] * self.world
        distributed.all_gather_object(out, value)
        return out


def make_optimizer(parameters: Sequence[nn.Parameter], settings: Train) -> torch.optim.Optimizer:
    """Adam or AdamW with eps 1e-8, betas (0.9, 0.999)."""
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=settings.lr, eps=1e-8, weight_decay=settings.weight_decay)


class TorchStepper(Stepper):
    """Plain torch; where a process group exists, gradients are averaged over its ranks.

    Args:
        state: an `optimizer_state` to go on from (the parameter values are put into the learner before).
    """

    def __init__(
        self, learner: Learner, settings: Train, device: str = "cpu", state: dict[str, Any] | None = None
    ) -> None:
        self.learner, self.settings, self.device = learner.to(device), settings, device
        if distributed.is_available() and distributed.is_initialized():
            self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        self.parameters = learner.trainable()
        self.optimizer = make_optimizer(list(self.parameters.values()), settings) if self.parameters else None
        if state is not None and self.optimizer is not None:
            set_adam_state(self.optimizer, self.parameters, state)

    def scores(self, batch: Batch) -> Tensor:
        context = (
            torch.autocast(self.device.split(":")[0], torch.bfloat16)
            if self.settings.precision == "bf16"
            else contextlib.nullcontext()
        )
        with context:
            return self.learner(batch)

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()

    def step(self, lr: float) -> None:
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.world > 1:
            for parameter in self.parameters.values():
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                distributed.all_reduce(parameter.grad)
                parameter.grad /= self.world
        if self.settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def values(self) -> dict[str, Tensor]:
        return {name: p.detach().float().cpu().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def set_values(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def optimizer_state(self) -> dict[str, Any]:
        return adam_state(self.optimizer, self.parameters)


def adam_state(optimizer: torch.optim.Optimizer | None, parameters: dict[str, nn.Parameter]) -> dict[str, Any]:
    """Adam's moments by parameter name and its step count, on CPU."""
    state = optimizer.state if optimizer is not None else {}
    moments = {
        name: {key: state[p][key].detach().cpu().clone() for key in ("exp_avg", "exp_avg_sq")}
        for name, p in parameters.items()
        if p in state
    }
    steps = [int(state[p]["step"]) for p in parameters.values() if p in state]
    return {"step": max(steps, default=0), "moments": moments}


def set_adam_state(
    optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], state: dict[str, Any]
) -> None:
    """Give a fresh Adam the state that `adam_state` read."""
    for name, parameter in parameters.items():
        if name in state["moments"]:
            own = {key: value.to(parameter.device).clone() for key, value in state["moments"][name].items()}
            optimizer.state[parameter] = {"step": torch.tensor(float(state["step"])), **own}


LOOK = 20
"""Steps between looks at whether a state is due."""
TELL_SECONDS = 30
"""In a long epoch, how often its progress is told."""
DISK = 200e6
"""Bytes a second that a state file is assumed to be written with before one has been: values and two moments, fp32."""


@dataclass
class Progress:
    """Where a cell stands: all that is needed to go on after a crash, whole and free of the number of workers.

    epoch, step: the next to run; best: score, epoch and values kept so far; history: one dict per finished epoch.
    """

    epoch: int = 0
    step: int = 0
    values: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    best_score: float = -math.inf
    best_epoch: int = -1
    best_values: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write to `path`; a kill at any moment leaves the old file or the new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with written(path) as file:
            torch.save(vars(self), file)

    @classmethod
    def load(cls, path: Path) -> Progress | None:
        """What `save` wrote, or None where there is none."""
        if not path.is_file():
            return None
        with on_disk(path) as file:
            return cls(**torch.load(file, weights_only=True))


def learning_rate(settings: Train, step: int, total: int) -> float:
    """The rate of optimizer step `step` (from 0) out of `total`: linear warm-up, then constant, linear to 0, or 0.95 an epoch."""
    warmup = int(settings.warmup * total)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    if settings.schedule == "exponential":
        return settings.lr * 0.95 ** (step * settings.epochs // total)
    if settings.schedule == "linear":
        return settings.lr * (total - step) / max(1, total - warmup)
    return settings.lr


def fit(
    stepper: Stepper,
    train: Rows | Streamed,
    dev: Rows | None,
    settings: Train,
    seed: int,
    score: Callable[[list[Answer]], float],
    progress: Progress | None = None,
    save: Callable[[Progress], None] | None = None,
    tell: Callable[[dict[str, Any]], None] = lambda event: None,
) -> Progress:
    """Train the learner; the kept epoch's values are in the model when it returns.

    Args:
        score: dev answers to the number that selects the epoch.
        progress: where an interrupted run stands; its values and optimizer state are already in the stepper.
        save: keeps a Progress (called on rank 0); tell: called on every rank with the events epoch and step.

    Raises:
        UserError: the loss is not finite.
    """
    progress = progress or Progress()
    steps = train.steps(settings.batch_size)
    saver = _Saver(stepper, settings, save)
    seconds = progress.history[-1]["train_seconds"] if progress.history else 0.0
    told = time.perf_counter()
    while progress.epoch < settings.epochs and not _out_of_patience(progress, settings):
        began = time.perf_counter()
        stepper.learner.train()
        for work in train.epoch(stepper, settings, seed, progress.epoch, progress.step):
            number = progress.epoch * steps + progress.step
            loss, leaving = _optimizer_step(stepper, work, settings, seed, number, steps * settings.epochs)
            progress.losses.append(loss)
            progress.step += 1
            saver.after_step(progress, number + 1, leaving)
            if time.perf_counter() - told > TELL_SECONDS and progress.step < steps:
                told = time.perf_counter()
                tell(
                    {
                        "event": "step",
                        "epoch": progress.epoch + 1,
                        "step": progress.step,
                        "steps": steps,
                        "loss": progress.losses[-1],
                    }
                )
        seconds += time.perf_counter() - began
        progress.step, progress.epoch = 0, progress.epoch + 1
        record = {"epoch": progress.epoch, "loss": sum(progress.losses[-steps:]) / steps, "train_seconds": seconds}
        if dev is not None:
            record["dev"] = score(evaluate(stepper, dev, settings.eval_batch))
        progress.history.append(record)
        _keep(progress, stepper, settings, record)
        told = time.perf_counter()
        tell({"event": "epoch", **record})
        saver.when_due(progress)
    if settings.epochs and settings.select == "best" and progress.best_values:
        stepper.set_values(progress.best_values)
    return progress


def _optimizer_step(
    stepper: Stepper, work: Work, settings: Train, seed: int, number: int, total: int
) -> tuple[float, bool]:
    """The step's loss, and whether any worker's node goes away."""
    # dropout depends on where the run is, not on how it got there: a resumed run draws the same masks
    torch.manual_seed(((seed * 1_000_003 + number) * 1_009 + stepper.rank) % (1 << 63))
    learner = stepper.learner
    total_loss = 0.0
    for i, batch in enumerate(work.batches, start=1):
        batch = batch.to(stepper.device)
        loss, _ = learner.readout.loss(stepper.scores(batch), batch)
        loss = loss * (stepper.world / work.weight)
        total_loss += float(loss.detach())
        penalty = learner.method.penalty() if i == work.count else None
        stepper.backward(loss if penalty is None else loss + penalty, last=i == work.count)
    stepper.step(learning_rate(settings, number, total))
    losses, leaving = zip(*stepper.gather((total_loss, stepper.leaving())), strict=True)
    mean = sum(losses) / stepper.world
    if not math.isfinite(mean):
        raise UserError(
            f"train: the loss is {mean} at optimizer step {number + 1}; lower train.lr, or use train.precision=fp32"
        )
    return mean, any(leaving)


def _keep(progress: Progress, stepper: Stepper, settings: Train, record: dict[str, Any]) -> None:
    if "dev" in record and record["dev"] > progress.best_score:
        progress.best_score, progress.best_epoch = record["dev"], record["epoch"]
        if settings.select == "best":
            progress.best_values = stepper.values()
    elif "dev" not in record:
        progress.best_epoch = record["epoch"]


def _out_of_patience(progress: Progress, settings: Train) -> bool:
    scores = [record["dev"] for record in progress.history if "dev" in record]
    if settings.patience is None or len(scores) <= settings.patience:
        return False
    if settings.patience_rule == "best":
        return progress.history[-1]["epoch"] - progress.best_epoch >= settings.patience
    last = scores[-settings.patience - 1 :]
    return all(after <= before for before, after in itertools.pairwise(last))


class _Saver:
    """Keeps Progress as often as the settings say, or as often as costs under a tenth of the time; under half of it, and at once,
    when a node goes away."""

    def __init__(self, stepper: Stepper, settings: Train, save: Callable[[Progress], None] | None) -> None:
        self.stepper, self.every, self.save = stepper, settings.save_every, save
        size = sum(p.numel() for p in stepper.learner.trainable().values())
        self.cost, self.last = 3 * 4 * size / DISK, time.perf_counter()

    def after_step(self, progress: Progress, number: int, leaving: bool) -> None:
        if self.every is not None and number % self.every == 0:
            self._write(progress)
        elif leaving:
            self.when_due(progress, patience=2)
        elif self.every is None and number % LOOK == 0:  # the same step on every rank
            self.when_due(progress)

    def when_due(self, progress: Progress, patience: int = 10) -> None:
        due = time.perf_counter() - self.last >= patience * self.cost
        if self.save is not None and self.stepper.gather(due)[0]:
            self._write(progress)

    def _write(self, progress: Progress) -> None:
        if self.save is None:
            return
        began = time.perf_counter()
        progress.values, progress.optimizer = self.stepper.values(), self.stepper.optimizer_state()
        if self.stepper.rank == 0:
            self.save(progress)
        progress.values, progress.optimizer = {}, {}
        self.last = time.perf_counter()
        self.cost = self.last - began


@torch.no_grad()
def evaluate(stepper: Stepper, rows: Rows, batch_size: int) -> list[Answer]:
    """The answers of all rows, on every rank, in the rows' order; each rank runs its share in equally many batches."""
    stepper.learner.eval()
    own = share(rows.by_length(range(len(rows))), stepper.rank, stepper.world)
    count = math.ceil(math.ceil(len(rows) / stepper.world) / batch_size)
    answers: list[tuple[int, Answer]] = []
    for i in range(count):
        part = own[i * batch_size : (i + 1) * batch_size]
        found = stepper.learner.answer(rows.batch(part).to(stepper.device))
        if part:
            answers += zip(part, found, strict=True)
    by_number = dict(pair for answered in stepper.gather(answers) for pair in answered)
    return [by_number[row] for row in range(len(rows))]

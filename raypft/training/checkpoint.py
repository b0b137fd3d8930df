"""Where a cell stands: all that is needed to go on after a crash, and how often it is written down."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raypft.config.job import Train
from raypft.storage import on_disk, written
from raypft.training.stepper import Stepper

LOOK = 20
"""Steps between looks at whether a state is due."""
DISK = 200e6
"""Bytes a second that a state file is assumed to be written with before one has been: values and two moments, fp32."""


@dataclass
class TrainState:
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
    def load(cls, path: Path) -> TrainState | None:
        """What `save` wrote, or None where there is none."""
        if not path.is_file():
            return None
        with on_disk(path) as file:
            return cls(**torch.load(file, weights_only=True))


class StateWriter:
    """Keeps TrainState as often as the settings say, or as often as costs under a tenth of the time; under half of
    it, and at once, when a node goes away."""

    def __init__(self, stepper: Stepper, settings: Train, save: Callable[[TrainState], None] | None) -> None:
        self.stepper, self.every, self.save = stepper, settings.save_every, save
        size = sum(p.numel() for p in stepper.learner.trainable().values())
        self.cost, self.last = 3 * 4 * size / DISK, time.perf_counter()

    def looks(self, number: int) -> bool:
        """Whether a state may be due after so many steps, the same on every rank."""
        return number % (self.every or LOOK) == 0

    def after_step(self, state: TrainState, number: int, leaving: bool) -> None:
        if self.every is not None and self.looks(number):
            self._write(state)
        elif leaving:
            self.when_due(state, patience=2)
        elif self.looks(number):
            self.when_due(state)

    def when_due(self, state: TrainState, patience: int = 10) -> None:
        due = time.perf_counter() - self.last >= patience * self.cost
        if self.save is not None and self.stepper.gather(due)[0]:
            self._write(state)

    def _write(self, state: TrainState) -> None:
        if self.save is None:
            return
        began = time.perf_counter()
        state.values, state.optimizer = self.stepper.values(), self.stepper.optimizer_state()
        if self.stepper.rank == 0:
            self.save(state)
        state.values, state.optimizer = {}, {}
        self.last = time.perf_counter()
        self.cost = self.last - began

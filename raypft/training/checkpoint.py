"""How often the state of a training is written, and when it counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from raypft import shards
from raypft.config.job import Train
from raypft.errors import UserError, first_line
from raypft.training.kept import Kept, OnDisk, Part, copied, live
from raypft.training.states import States, TrainState
from raypft.training.stepper import Stepper

LOOK = 20
"""Steps between looks at whether a state is due."""
DISK = 200e6
"""Bytes a second that a state file is assumed to be written with before one has been: values and two moments, fp32."""


class StateWriter:
    """Keeps states as often as the settings say, or as often as costs under a tenth of the time; under half of
    it, and at once, when a node goes away. Keeps the best epoch's values: beside the states, or in memory where they
    are small or no states are kept.

    Of what is large this rank's part is copied to a file; while training goes on, a thread brings it to disk or into
    the object store, one at a time. It counts, with those of the other ranks, when all are there and the ranks meet.
    """

    def __init__(self, stepper: Stepper, settings: Train, states: States | None) -> None:
        self.stepper, self.settings, self.states = stepper, settings, states
        size = shards.nbytes(stepper.shapes)
        self.large = states is not None and size > shards.WHOLE
        self.cost, self.last = 3 * size / DISK / (stepper.world if self.large else 1), time.perf_counter()
        self.pool = ThreadPoolExecutor(1)
        self.pending: Future[Part] | None = None
        self.then: Callable[[Sequence[Part]], None] = lambda parts: None

    def looks(self, number: int) -> bool:
        """Whether a state may be due after so many steps, the same on every rank."""
        return number % (self.settings.save_every or LOOK) == 0

    def after_step(self, state: TrainState, number: int, leaving: bool) -> None:
        """Write a state after optimizer step `number`, from 1, where one is due. Every rank calls it."""
        every = self.settings.save_every
        if every is not None and self.looks(number):
            self._write(state)
        elif leaving:
            self._settle()
            if self._is_due(patience=2):
                self.write(state)
        elif every is None and self.looks(number) and self._is_due():
            self._write(state)
        elif number % LOOK == 0:  # the same step on every rank
            self._settle(wait=False)

    def after_epoch(self, state: TrainState, improved: bool) -> None:
        """Keep values that are better than those kept, write a state where one is due. Every rank calls it."""
        self._settle(wait=False)
        due = self._is_due()
        if improved and not self.large:
            state.best = copied(self.stepper.held())
        if due:
            self._write(state, improved)
        elif improved and self.large and state.epoch < self.settings.epochs:  # the last ones are in the model
            self._write_best(state, live(self.stepper.held()))

    def end(self, state: TrainState) -> None:
        """Wait for what is being written, and put the best values into the model. Every rank calls it.

        Raises:
            UserError: they can't be read.
        """
        self._settle()
        self.pool.shutdown()
        if self.settings.select == "best" and state.best is not None and state.best_epoch != state.epoch:
            with state.best.opened(self.stepper.held()) as give:
                self.stepper.put(give)

    def write(self, state: TrainState) -> None:
        """Write a state now, and wait until it counts. Every rank calls it."""
        self._write(state)
        self._settle()

    def _is_due(self, patience: int = 10) -> bool:
        """Whether so many times what a state costs has gone by; not while one is being written."""
        if self.states is None or self.pending is not None:
            return False
        return self.stepper.gather(time.perf_counter() - self.last >= patience * self.cost)[0]

    def _write(self, state: TrainState, improved: bool = False) -> None:
        """Write a state, or begin to.

        Args:
            improved: its values are the best ones.
        """
        if self.states is None:
            return
        began, states = time.perf_counter(), self.states
        state.scaling = self.stepper.scaling()
        if self.large:
            self._settle()
            if state.best is not None and not isinstance(state.best, OnDisk):  # of a state that was one file
                self._write_best(state, state.best)
                self._settle()
            if self.stepper.rank == 0:
                states.tidy(state.best)
            head = state.head()

            def then(parts: Sequence[Part]) -> None:
                if improved:
                    state.best = OnDisk(states.folder, parts)
                if self.stepper.rank == 0:
                    states.conclude(head, parts, state.best)

            self._begin(then)
        else:
            states.save_whole(state, self.stepper)
        self.last = time.perf_counter()
        self.cost = self.last - began

    def _write_best(self, state: TrainState, values: Kept) -> None:
        """Begin to write the best values."""
        self._settle()
        assert self.states is not None
        folder = self.states.folder

        def then(parts: Sequence[Part]) -> None:
            state.best = OnDisk(folder, parts)

        self._begin(then, values)

    def _begin(self, then: Callable[[Sequence[Part]], None], values: Kept | None = None) -> None:
        assert self.states is not None
        self.then = then
        try:
            self.pending = self.states.begin(self.pool, self.stepper, values)
        except (UserError, OSError) as error:
            self.pending = Future()
            self.pending.set_exception(error)

    def _settle(self, wait: bool = True) -> None:
        """Let the parts that are being written count, once those of all ranks are on disk.

        Raises:
            UserError: on every rank, where one of them could not be written.
        """
        if self.pending is None:
            return
        mine = _outcome(self.pending) if wait or self.pending.done() else None
        found = self.stepper.gather(mine)
        failed = [one for one in found if isinstance(one, str)]
        if failed:
            self.pending = None
            raise UserError(failed[0])
        if None not in found:
            self.pending = None
            self.then(found)


def _outcome(future: Future[Part]) -> Part | str:
    """A part that is on disk, or why it is not."""
    try:
        return future.result()
    except UserError as error:
        return str(error)
    except Exception as error:  # of an object store's client
        return f"state: a part can't be written: {first_line(error)}; run again, which goes on from the last state"

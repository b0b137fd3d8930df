"""The queue of cells that a worker group takes from, an actor that outlives it. Its process loads no torch."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from raypft.runs.results import states_kept
from raypft.storage import path_of

MOST_HALVINGS = 10
"""After so many a row alone does not fit."""


class CellQueue:
    """Cells in the order they were put, by number; how far the workers are; failures, counted by cell."""

    def __init__(self) -> None:
        self.cells: list[dict[str, Any] | None] = []
        self.num_finished, self.running, self.started, self.waits = 0, False, False, False
        self.failures, self.last_error = 0, ""
        self.states: set[tuple[str, float]] = set()
        self.halvings, self.halved = 0, False
        self.errors: dict[int, str] = {}
        self.beats: dict[str, tuple[float, str]] = {}
        self.events: list[dict[str, Any]] = []
        self.changed = asyncio.Condition()

    async def put(self, cell: dict[str, Any] | None) -> int:
        """Add a cell, or None as the last; its number."""
        self.cells.append(cell)
        await self._notify()
        return len(self.cells) - 1

    async def wait(self, number: int) -> str | None:
        """When a cell is finished: None, or why it failed."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.num_finished > number)
        return self.errors.get(number)

    async def start(self) -> int:
        """A worker group has started: the number of the cell to go on with."""
        await self._count_failure()
        self.started, self.waits, self.beats = True, False, {}
        return self.num_finished

    async def take(self, number: int) -> dict[str, Any] | None:
        """A cell, as soon as it is there."""
        self.waits = True
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.cells) > number)
        self.running |= number == self.num_finished
        cell = self.cells[number]
        return None if cell is None else {**cell, "halvings": self.halvings}

    async def finish(self, number: int, error: str | None = None) -> None:
        """A cell is done, or has failed with an error that would come again."""
        if number == self.num_finished:
            self.num_finished, self.running, self.failures, self.last_error = number + 1, False, 0, ""
            self.halvings, self.halved = 0, False
            if number:
                self.cells[number - 1] = {}  # all workers have come past it
            if error is not None:
                self.errors[number] = error
            await self._notify()

    async def add_event(self, event: dict[str, Any]) -> None:
        """An event of the running cell."""
        self.events.append(event)

    async def take_events(self) -> list[dict[str, Any]]:
        """The events since this was last called."""
        events, self.events = self.events, []
        return events

    async def beat(self, worker: str, place: str) -> None:
        """A worker lives.

        Args:
            worker: its rank, process and node; place: where in the code it is.
        """
        self.beats[worker] = (time.monotonic(), place)

    async def last_heard(self) -> list[str]:
        """A line about each worker: when it was last heard, and where it was then; the one that is silent longest is
        first."""
        now, beats = time.monotonic(), sorted(self.beats.items(), key=lambda beat: beat[1][0])
        return [f"{worker} was heard {now - then:.0f} s ago in {place}" for worker, (then, place) in beats]

    async def note_error(self, error: str) -> None:
        """What the running cell failed with, this time."""
        self.last_error = error

    async def note_out_of_memory(self, number: int) -> None:
        """Workers, one or several, ran out of memory in a cell: half as many rows go through the model at once in the
        next attempt, which does not count as a failure while that may help."""
        if number == self.num_finished and not self.halved and self.halvings < MOST_HALVINGS:
            self.halvings, self.halved = self.halvings + 1, True

    async def end(self) -> bool:
        """The worker group has ended for good; whether it had started at all."""
        await self._count_failure()
        started, self.started = self.started, False
        return started

    async def _count_failure(self) -> None:
        """The running cell was given up: by a failure, or since a node left or came; or the workers died before they
        asked for the one that waits for them.

        Only those in a row count that brought no new state, so that a cell whose nodes come and go ends, and one that
        kills its workers does too.
        """
        begins = self.started and not self.waits and len(self.cells) > self.num_finished
        cell = self.cells[self.num_finished] if self.running or begins else None
        if cell is None:
            return
        if self.halved:
            self.running, self.halved = False, False
            return
        before, self.states = self.states, states_kept(path_of(cell["folder"]))
        self.running, self.failures = False, 1 if self.states - before else self.failures + 1
        if self.failures > cell["job"]["resources"]["max_failures"]:
            died = f"run: a worker died {self.failures} times in this cell; out of memory? Ray's logs tell"
            await self.finish(self.num_finished, self.last_error or died)
            return
        seed, most = cell["seed"], cell["job"]["resources"]["max_failures"]
        again = f"they start again, time {self.failures} of at most {most} without a new state"
        text = f"seed {seed}: {self.last_error or 'its workers ended early'}; {again}"
        await self.add_event({"event": "note", "run": path_of(cell["folder"]).parent.name, "seed": seed, "text": text})

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()


def last_line(error: Exception | None) -> str:
    """What a failure says at its end."""
    cause = next(iter(getattr(error, "worker_failures", {}).values()), error)
    return (str(cause).strip().splitlines() or ["no reason given"])[-1]

"""The desk of a lane: hands out its cells, one after the other, and counts failures. Its process loads no torch."""

from __future__ import annotations

import asyncio
from typing import Any

from raypft.storage import path_of


class Desk:
    """The cells of a lane in the order they were brought, each a turn, and how far the workers are."""

    def __init__(self) -> None:
        self.cells: list[dict[str, Any] | None] = []
        self.over, self.at_work, self.reached = 0, False, False
        self.failures, self.last, self.state = 0, "", 0.0
        self.errors: dict[int, str] = {}
        self.events: list[dict[str, Any]] = []
        self.changed = asyncio.Condition()

    async def put(self, cell: dict[str, Any] | None) -> int:
        """Bring a cell, or None as the last; its turn."""
        self.cells.append(cell)
        await self._tell()
        return len(self.cells) - 1

    async def outcome(self, turn: int) -> str | None:
        """When a turn is over: None, or why it failed."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.over > turn)
        return self.errors.get(turn)

    async def start(self) -> int:
        """A worker group has started: the turn to go on with."""
        await self._count_failure()
        self.reached = True
        return self.over

    async def take(self, turn: int) -> dict[str, Any] | None:
        """The cell of a turn, as soon as it is there."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.cells) > turn)
        self.at_work |= turn == self.over
        return self.cells[turn]

    async def finish(self, turn: int, error: str | None = None) -> None:
        """A turn is over: done, or for an error that would come again."""
        if turn == self.over:
            self.over, self.at_work, self.failures, self.last = turn + 1, False, 0, ""
            if error is not None:
                self.errors[turn] = error
            await self._tell()

    async def tell(self, event: dict[str, Any]) -> None:
        """An event of the cell at work."""
        self.events.append(event)

    async def heard(self) -> list[dict[str, Any]]:
        """The events since this was last asked."""
        events, self.events = self.events, []
        return events

    async def note(self, error: str) -> None:
        """What the cell at work failed with, this time."""
        self.last = error

    async def died(self) -> bool:
        """The worker group is gone for good; whether it had started at all."""
        await self._count_failure()
        reached, self.reached = self.reached, False
        return reached

    async def _count_failure(self) -> None:
        """The cell at work was given up: by a failure, or since a node left or came. Only those in a row count that brought no new
        state, so that a cell whose nodes come and go ends, and one that kills its workers does too."""
        cell = self.cells[self.over] if self.at_work else None
        if cell is None:
            return
        path = path_of(cell["folder"]) / "state.pt"
        before, self.state = self.state, path.stat().st_mtime if path.exists() else 0.0
        self.at_work, self.failures = False, 1 if self.state > before else self.failures + 1
        if self.failures > cell["job"]["resources"]["max_failures"]:
            await self.finish(
                self.over,
                self.last or f"run: a worker died {self.failures} times in this cell; out of memory? Ray's logs tell",
            )

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

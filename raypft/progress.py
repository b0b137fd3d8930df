"""How far long work is, for whoever listens in this process: fetching, encoding, evaluation. Where nobody listens, as
in workers, it costs a comparison."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")
FIRST, EACH = 1.0, 0.25
"""Seconds of work before it is told how far it is, and between one time and the next."""


@dataclass(frozen=True)
class Far:
    """How far work is.

    what: the work; done, total: in units; left: seconds, None where that can't be foreseen; unit: "rows" or "bytes".
    """

    what: str
    done: float
    total: float
    left: float | None
    unit: str


Listener = Callable[[Far | None], None]
"""Hears how far work is, and None when it ends."""
_listeners: list[Listener] = []
"""The last of them hears."""


@contextmanager
def heard(listener: Listener) -> Iterator[None]:
    """In this context `listener` hears of work, and no other."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class Work:
    """Work that is going on; its end is told where its middle was.

    Args:
        total: units in all.
    """

    def __init__(self, what: str, total: float, unit: str = "rows") -> None:
        self.what, self.total, self.unit = what, total, unit
        self.began = self.told = time.monotonic()
        self.telling = False

    def at(self, done: float) -> None:
        """So many units are done."""
        if not _listeners:
            return
        now = time.monotonic()
        if now - self.told < (EACH if self.telling else FIRST):
            return
        self.told, self.telling = now, True
        left = (now - self.began) / done * (self.total - done) if done > 0 else None
        _listeners[-1](Far(self.what, done, self.total, left, self.unit))

    def end(self) -> None:
        """It is done, or over."""
        if self.telling and _listeners:
            _listeners[-1](None)
        self.telling = False


def counted(what: str, items: Iterable[Item], total: int) -> Iterable[Item]:
    """The items, of each of which it is told that it is done when the next is asked for."""
    return _counted(what, items, total) if _listeners else items


def _counted(what: str, items: Iterable[Item], total: int) -> Iterator[Item]:
    work = Work(what, total)
    try:
        for number, item in enumerate(items, 1):
            yield item
            work.at(number)
    finally:
        work.end()


@contextmanager
def polled(what: str, total: float, done: Callable[[], float]) -> Iterator[None]:
    """Work of a library that does not tell: `done` is asked, in a thread, how many bytes there are by now."""
    if not _listeners:
        yield
        return
    over = threading.Event()

    def ask() -> None:
        work = Work(what, total, "bytes")
        while not over.wait(EACH):
            work.at(min(done(), total))
        work.end()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()

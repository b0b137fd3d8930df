"""A GPU is not waited for: batches are made ahead of it, and what a step tells is read behind it."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from raypft.batch import Batch
from raypft.heap import HEAP
from raypft.training.loader import Step


class Told:
    """Numbers that steps tell, read in their order; those of the last step on a GPU once the next is under way.

    behind: how many steps may be unread while others run, the same on every rank.
    """

    def __init__(self, device: str) -> None:
        self.behind = int(device.startswith("cuda"))
        self._unread = deque[tuple[int, Tensor, torch.cuda.Event | None]]()

    def __len__(self) -> int:
        """How many steps are unread."""
        return len(self._unread)

    def add(self, step: int, numbers: Tensor) -> None:
        """Numbers [n] that a step tells, on the device that makes them."""
        copied = numbers.to("cpu", non_blocking=True)
        event = None
        if numbers.is_cuda:
            event = torch.cuda.Event()
            event.record()
        self._unread.append((step, copied, event))

    def read(self, behind: int = 0) -> Iterator[tuple[int, list[float]]]:
        """The unread steps and what they told, but for the last `behind`."""
        while len(self._unread) > behind:
            step, numbers, event = self._unread.popleft()
            if event is not None:
                event.synchronize()
            yield step, numbers.tolist()


def ahead(works: Iterable[Step], device: str) -> Iterator[Step]:
    """Steps, with their batches on a device."""
    if device.startswith("cuda"):
        yield from made_ahead(works, device)
        return
    for work in works:
        yield replace(work, batches=map(_settled, work.batches))


def _settled(batch: Batch) -> Batch:
    """A batch of a CPU, before which freed memory that has piled up goes back."""
    HEAP.settle()
    return batch


def made_ahead(works: Iterable[Step], device: str) -> Iterator[Step]:
    """Steps, each batch made by a thread while the one before it runs. The next step is asked for in this thread: ranks
    may talk with each other about it."""
    with ThreadPoolExecutor(1) as pool:

        def asked() -> Iterator[tuple[Step, Future[Batch]]]:
            for work in works:
                for _ in range(work.count):
                    yield work, pool.submit(lambda batches: next(batches).pinned(), work.batches)

        def taken() -> Batch:
            _, batch = waiting.popleft()
            waiting.extend(itertools.islice(coming, 1))
            return batch.result().to(device)

        coming = asked()
        waiting = deque(itertools.islice(coming, 1))
        while waiting:
            work = waiting[0][0]
            yield replace(work, batches=(taken() for _ in range(work.count)))

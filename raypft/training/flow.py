"""Flows: prompts that are read and encoded as a run needs them, the same rows for any number of ranks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from raypft.data.streaming import Index, Mix, Reader
from raypft.encoded import Encoded
from raypft.training.encode import Encoder


@dataclass(frozen=True)
class Share:
    """The rows of a rank in an epoch, from an optimizer step on: of each step's rows every world-th.

    batch_size: rows a step over all ranks; rank: from 0 to world - 1.
    """

    seed: int
    epoch: int
    step: int
    batch_size: int
    rank: int
    world: int


class Flow(Protocol):
    """Prompts that come as they are needed; rows: of an epoch."""

    rows: int

    def __call__(self, share: Share) -> Iterator[list[Encoded]]:
        """A rank's prompts, step by step to the end of the epoch; a row's prompts stay together."""
        ...


def steps(reader: Reader, encoder: Encoder, share: Share, count: int | None = None) -> Iterator[list[Encoded]]:
    """The prompts of a rank in `count` steps from the share's, or in all that are left."""
    total = reader.index.rows
    left = range(share.step, -(-total // share.batch_size))
    for step in left if count is None else left[:count]:
        start, stop = step * share.batch_size, min(total, (step + 1) * share.batch_size)
        rows = reader.rows(share.seed, share.epoch, start, stop, share.rank, share.world)
        yield list(itertools.chain.from_iterable(map(encoder, rows)))


class Local:
    """A flow read in this process."""

    def __init__(self, index: Index, mix: Mix, encoder: Encoder) -> None:
        self.reader, self.encoder, self.rows = Reader(index, mix), encoder, index.rows

    def __call__(self, share: Share) -> Iterator[list[Encoded]]:
        return steps(self.reader, self.encoder, share)

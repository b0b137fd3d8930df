"""The in-memory loader: encoded prompts, the order that every rank computes alike, and a rank's share of a step.

The order depends on (seed, epoch) only, so the number of workers and micro-batches never changes what a step learns from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from raypft.batch import Batch, Encoded, collate
from raypft.cache import tokens_of
from raypft.methods.base import BaseMethod


def order(size: int, seed: int, epoch: int) -> list[int]:
    """A permutation of range(size), the same on every rank."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % (1 << 63))
    return torch.randperm(size, generator=generator).tolist()


def share(rows: Sequence[int], rank: int, world: int) -> list[int]:
    """The rows of one rank: every world-th."""
    return list(rows[rank::world])


def micro_batches(rows: Sequence[int], rank: int, world: int, limit: int | None) -> list[list[int]]:
    """A rank's rows of one optimizer step, cut into micro-batches of at most `limit`.

    Every rank gets the same number of micro-batches; one without rows is empty.
    """
    largest = -(-len(rows) // world)
    limit = limit or largest
    own = share(rows, rank, world)
    return [own[start : start + limit] for start in range(0, largest, limit)]


class Rows:
    """Encoded prompts with their method's columns and, where it pays, cached states.

    Args:
        lower: the states below the method's cut by a prompt's tokens, [T, H]; None computes them each time.
    """

    def __init__(self, prompts: Sequence[Encoded], method: BaseMethod, pad: int, lower: Mapping[tuple[int, ...], Tensor] | None = None) -> None:
        self.prompts = list(prompts)
        self.columns = [method.columns(prompt) for prompt in self.prompts]
        self.pad = pad
        self.lower = lower

    def __len__(self) -> int:
        return len(self.prompts)

    def batch(self, rows: Sequence[int], drawn: Mapping[int, Encoded] | None = None) -> Batch:
        """The batch of some rows; of no rows, a filler of weight 0 that keeps a rank in step.

        Args:
            drawn: prompts that stand in for the rows' own.
        """
        chosen, weight = (rows, 1.0) if rows else ([0], 0.0)
        prompts = [(drawn or {}).get(row, self.prompts[row]) for row in chosen]
        columns = [self.columns[row] for row in chosen]
        if self.lower is None:
            return collate(prompts, self.pad, columns, weight)
        return collate(prompts, self.pad, columns, weight, [self.lower[tokens_of(prompt)] for prompt in prompts])

    def by_length(self, rows: Sequence[int]) -> list[int]:
        """The rows ordered by prompt length, so that batches pad little."""
        return sorted(rows, key=lambda row: (len(self.prompts[row].ids), row))

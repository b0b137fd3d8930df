"""The loaders: encoded prompts in memory or from a flow, in an order that every rank computes alike, and a rank's share of a step.

The order depends on (seed, epoch) only, so the number of workers and micro-batches never changes what a step learns from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from raypft.backbones.frozen_states import tokens_of
from raypft.batch import Batch, Encoded, collate
from raypft.config.job import Train
from raypft.methods.base import Method

if TYPE_CHECKING:
    from raypft.training.loop import Stepper


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


@dataclass(frozen=True)
class Work:
    """A rank's part of an optimizer step.

    weight: of the whole step, over all ranks; count: of micro-batches, the same on every rank.
    """

    weight: float
    count: int
    batches: Iterator[Batch]


class Rows:
    """Encoded prompts with their method's columns and, where it pays, cached states.

    Args:
        lower: the states below the method's cut by a prompt's tokens, [T, H]; None computes them each time.
    """

    def __init__(
        self,
        prompts: Sequence[Encoded],
        method: Method,
        pad: int,
        lower: Mapping[tuple[int, ...], Tensor] | None = None,
    ) -> None:
        self.prompts = list(prompts)
        self.columns = [method.columns(prompt) for prompt in self.prompts]
        self.pad = pad
        self.lower = lower

    def __len__(self) -> int:
        return len(self.prompts)

    def steps(self, batch_size: int) -> int:
        """Optimizer steps of an epoch."""
        return -(-len(self) // batch_size)

    def epoch(self, stepper: Stepper, settings: Train, seed: int, epoch: int, step: int) -> Iterator[Work]:
        """A rank's work in an epoch, from an optimizer step on."""
        rows, readout = order(len(self), seed, epoch), stepper.learner.readout
        for start in range(step * settings.batch_size, len(self), settings.batch_size):
            drawn = {
                row: readout.redraw(self.prompts[row], seed, epoch) for row in rows[start : start + settings.batch_size]
            }
            parts = micro_batches(self.by_length(list(drawn)), stepper.rank, stepper.world, settings.micro_batch)
            yield Work(
                sum(map(readout.weight, drawn.values())), len(parts), map(self.batch, parts, [drawn] * len(parts))
            )

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


@dataclass(frozen=True)
class Share:
    """The rows of a rank in an epoch, from an optimizer step on: of each step's rows every world-th."""

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


class Streamed:
    """A flow as a loader. A step has `batch_size` rows, whose prompts may be more.

    Args:
        filler: any prompt; it keeps a rank without rows in step.
    """

    def __init__(self, flow: Flow, filler: Encoded, method: Method, pad: int) -> None:
        self.flow, self.filler, self.method, self.pad = flow, filler, method, pad

    def steps(self, batch_size: int) -> int:
        """Optimizer steps of an epoch."""
        return -(-self.flow.rows // batch_size)

    def epoch(self, stepper: Stepper, settings: Train, seed: int, epoch: int, step: int) -> Iterator[Work]:
        """A rank's work in an epoch, from an optimizer step on."""
        readout = stepper.learner.readout
        for prompts in self.flow(Share(seed, epoch, step, settings.batch_size, stepper.rank, stepper.world)):
            drawn = sorted(
                (readout.redraw(prompt, seed, epoch) for prompt in prompts), key=lambda prompt: len(prompt.ids)
            )
            weights, sizes = zip(*stepper.gather((sum(map(readout.weight, drawn)), len(drawn))), strict=True)
            limit = settings.micro_batch or max(sizes)
            parts = [drawn[start : start + limit] for start in range(0, max(sizes), limit)]
            yield Work(sum(weights), len(parts), map(self.batch, parts))

    def batch(self, prompts: Sequence[Encoded]) -> Batch:
        """The batch of some prompts; of none, the filler with weight 0."""
        chosen = prompts or [self.filler]
        return collate(chosen, self.pad, [self.method.columns(prompt) for prompt in chosen], 1.0 if prompts else 0.0)

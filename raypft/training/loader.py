"""The loaders: encoded prompts in memory or from a flow, in an order all ranks compute, and a rank's share of a step.

The order depends on (seed, epoch) only, so the number of workers and micro-batches never changes what a step learns
from.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from raypft.backbones.frozen_states import Known
from raypft.batch import Batch, Beginning, collate
from raypft.config.job import Train
from raypft.encoded import Encoded, shared_tokens
from raypft.methods.base import Method
from raypft.training.dropout import may_drop
from raypft.training.flow import Flow, Share
from raypft.training.room import room_for
from raypft.training.rows import VIEWS, EncodedRows, asked
from raypft.training.stepper import Stepper

if TYPE_CHECKING:
    from raypft.backbones.base import Backbone

AT_ONCE = 1 << 14
"""Prompts that are evaluated together: of those alike one is answered, and every rank holds their answers."""


def order(size: int, seed: int, epoch: int) -> list[int]:
    """A permutation of range(size), the same on every rank."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % (1 << 63))
    return torch.randperm(size, generator=generator).tolist()


@dataclass(frozen=True)
class Step:
    """A rank's part of an optimizer step.

    weight: of the whole step, over all ranks; count: of micro-batches, the same on every rank; repeats: whether a
    prompt of the step counts more than once.
    """

    weight: float
    count: int
    batches: Iterator[Batch]
    repeats: bool = False


class PromptDataset:
    """Encoded prompts with their method's columns and, where it pays, cached states.

    Args:
        lower: the states below the method's cut; None computes them each time.
    """

    def __init__(
        self,
        prompts: Sequence[Encoded],
        method: Method,
        pad: int,
        lower: Known | None = None,
    ) -> None:
        self.prompts = prompts if isinstance(prompts, EncodedRows) else EncodedRows.of(prompts)
        self.columns = functools.lru_cache(maxsize=VIEWS)(lambda row: method.columns(self.prompts[row]))
        self.pad = pad
        self.lower = lower

    def __len__(self) -> int:
        return len(self.prompts)

    def steps(self, batch_size: int) -> int:
        """Optimizer steps of an epoch."""
        return -(-len(self) // batch_size)

    def epoch(self, stepper: Stepper, settings: Train, seed: int, epoch: int, step: int) -> Iterator[Step]:
        """A rank's work in an epoch, from an optimizer step on."""
        rows, readout = order(len(self), seed, epoch), stepper.learner.readout
        room = room_for(stepper, settings, settings.micro_batch, trains=True)
        alike = settings.batch_size > 1 and repeats_count(stepper, settings)
        for start in range(step * settings.batch_size, len(self), settings.batch_size):
            drawn = {
                row: readout.redraw(self.prompts[row], seed, epoch) for row in rows[start : start + settings.batch_size]
            }
            times = counted(drawn, alike)
            ordered = self.by_length(list(times))
            parts = room.parts(ordered, self.lengths(ordered), stepper.rank, stepper.world)
            made = map(functools.partial(self.batch, drawn=drawn, times=times), parts)
            yield Step(sum(map(readout.weight, drawn.values())), len(parts), made, len(times) < len(drawn))

    def batch(
        self,
        rows: Sequence[int],
        drawn: Mapping[int, Encoded] | None = None,
        beginning: Beginning | None = None,
        times: Mapping[int, float] | None = None,
    ) -> Batch:
        """The batch of some rows; of no rows, a filler of weight 0 that keeps a rank in step.

        Args:
            drawn: prompts that stand in for the rows' own; beginning: what was run of all of them before; times: how
                often each row counts, once where None.
        """
        chosen, weights = (rows, [(times or {}).get(row, 1.0) for row in rows]) if rows else ([0], [0.0])
        prompts = [(drawn or {}).get(row, self.prompts[row]) for row in chosen]
        columns = [self.columns(row) for row in chosen]
        begins = 0 if beginning is None else beginning.length
        lower = [] if self.lower is None else [self.lower.of(prompt, begins) for prompt in prompts]
        return collate([prompt.behind(begins) for prompt in prompts], self.pad, columns, weights, lower, beginning)

    def begin(self, backbone: Backbone, device: str) -> Beginning | None:
        """Run what all prompts begin with; None where they share nothing, or the backbone can't go on behind it."""
        size = self.shared if len(self) > 1 and backbone.takes_beginnings else 0
        if not size or (self.lower is not None and self.lower.begins != size):
            return None
        lower = [] if self.lower is None else [self.lower.before]
        first = collate([self.prompts[0].until(size)], self.pad, [self.columns(0)], lower=lower)
        return backbone.begin(first.to(device))

    @functools.cached_property
    def shared(self) -> int:
        """How many tokens of demonstrations begin all prompts."""
        return shared_tokens(self.prompts) if self.prompts.demo_tokens.any() else 0

    def by_length(self, rows: Sequence[int] | np.ndarray) -> list[int]:
        """The rows ordered by prompt length, so that batches pad little."""
        rows = np.asarray(rows, np.int64)
        return rows[np.lexsort((rows, self.prompts.lengths[rows]))].tolist()

    def lengths(self, rows: Sequence[int]) -> list[int]:
        """Tokens of the prompts of rows."""
        return self.prompts.lengths[np.asarray(rows, np.int64)].tolist()

    def stretches(self) -> list[range]:
        """The prompts that are evaluated together, AT_ONCE and the rest of their last row, stretch by stretch."""
        begins = np.append(np.flatnonzero(self.prompts.numbers == 0), len(self))
        cuts = begins[np.searchsorted(begins, np.arange(0, len(self), AT_ONCE))]
        return list(itertools.starmap(range, itertools.pairwise(np.unique([0, *cuts, len(self)]).tolist())))

    def first_alike(self, some: range) -> np.ndarray:
        """For each prompt of a stretch the first of it whose prompt a model can't tell from its own."""
        alike = self.prompts.asked[some.start : some.stop]
        if len(some) and self.columns(some.start):  # a method with columns of its own may tell languages apart
            alike = np.rec.fromarrays([alike, self.prompts.languages[some.start : some.stop]])
        _, first, which = np.unique(alike, return_index=True, return_inverse=True)
        return first[which] + some.start

    def distinct(self, alike: bool, some: range) -> list[int]:
        """The prompts of a stretch by length; where those alike need be answered once only, without the others."""
        return self.by_length(np.unique(self.first_alike(some)) if alike else some)


def counted(prompts: Mapping[int, Encoded], alike: bool) -> dict[int, float]:
    """The prompts of a step that run, and how often each counts; those whose losses are one run once where `alike`."""
    times: dict[int, float] = {}
    first: dict[Any, int] = {}
    for row, prompt in prompts.items():
        kept = first.setdefault((asked(prompt), *prompt.gold), row) if alike else row
        times[kept] = times.get(kept, 0.0) + 1.0
    return times


def repeats_count(stepper: Stepper, settings: Train) -> bool:
    """Whether a prompt that repeats in a step may run once: nothing draws at random by row."""
    return settings.shortcuts and not may_drop(stepper.learner)


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

    def epoch(self, stepper: Stepper, settings: Train, seed: int, epoch: int, step: int) -> Iterator[Step]:
        """A rank's work in an epoch, from an optimizer step on."""
        readout = stepper.learner.readout
        room, alike = room_for(stepper, settings, settings.micro_batch, trains=True), repeats_count(stepper, settings)
        for prompts in self.flow(Share(seed, epoch, step, settings.batch_size, stepper.rank, stepper.world)):
            drawn = sorted(
                (readout.redraw(prompt, seed, epoch) for prompt in prompts), key=lambda prompt: len(prompt.ids)
            )
            times = counted(dict(enumerate(drawn)), alike)
            rows = list(times)
            cuts = room.cuts([len(drawn[row].ids) for row in rows])
            weights, counts = zip(*stepper.gather_numbers(sum(map(readout.weight, drawn)), len(cuts)), strict=True)
            parts = [rows[run.start : run.stop] for run in cuts]
            parts += [[] for _ in range(int(max(counts)) - len(parts))]
            made = map(functools.partial(self.batch, drawn, times), parts)
            yield Step(sum(weights), len(parts), made, len(times) < len(drawn))

    def batch(self, prompts: Sequence[Encoded], times: Mapping[int, float], rows: Sequence[int]) -> Batch:
        """The batch of some prompts by their numbers, which count so often; of none, the filler with weight 0."""
        chosen = [prompts[row] for row in rows] or [self.filler]
        weights = [times[row] for row in rows] or [0.0]
        return collate(chosen, self.pad, [self.method.columns(prompt) for prompt in chosen], weights)

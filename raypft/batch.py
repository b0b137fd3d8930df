"""What travels to a model: a Batch of encoded prompts (encoded.py), and the legend of shapes.

Axes, used everywhere: B prompts, T tokens, S slots, H hidden, C labels, V vocabulary, W words per label, L layers,
A heads, D head size, P prompt length, E edges.

Padding is always on the right, so that a mark's position in a prompt is its position in the batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raypft.encoded import Encoded


@dataclass(frozen=True)
class Beginning:
    """The tokens that all prompts of a run begin with, run once; a batch that goes on behind them has the others alone.

    length: how many, P; states: after the last block that ran, [1, P, H]; before: module behind a block to the states
    that it got, [1, P, H]; cache: the keys and values of every block, the backbone's.
    """

    length: int
    states: Tensor
    before: Mapping[Any, Tensor]
    cache: Any


@dataclass(frozen=True)
class Batch:
    """Prompts ready for a model; `slots[s] = (prompt, token)` names where answer s is read, those of a prompt in a row.

    names: [B] of the prompts; ids, mask, segments: [B, T]; slots: [S, 2]; gold, wording, weight: [S] (how often a row
    stands in the step; 0 marks one that only fills a rank); soft: [B, P] positions of soft tokens; target: [B, U] what
    a decoder reads; lower: [B, T, H] states below a method's cut, if cached; extra: a method's own columns, one entry
    per prompt; read: [B, R] the slots' tokens prompt by prompt, the first repeated where others have more; number: [S]
    of a slot in its prompt; beginning: what stands before these tokens, all positions count from behind it; pads: False
    where all prompts have T tokens, so that no one need look at the mask.
    """

    names: list[str]
    ids: Tensor
    mask: Tensor
    segments: Tensor
    slots: Tensor
    gold: Tensor
    wording: Tensor
    weight: Tensor
    read: Tensor
    number: Tensor
    soft: Tensor | None = None
    target: Tensor | None = None
    lower: Tensor | None = None
    extra: dict[str, list] = field(default_factory=dict)
    beginning: Beginning | None = None
    pads: bool = True

    @property
    def begins(self) -> int:
        """How many tokens stand before these in every prompt."""
        return 0 if self.beginning is None else self.beginning.length

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`; from pinned memory they are on their way when this returns."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The same batch in memory that a GPU reads by itself; as it is where there is none."""
        return self._each(Tensor.pin_memory) if torch.cuda.is_available() else self

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed = {name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        extra = {}
        for name, values in self.extra.items():
            extra[name] = [change(value) if isinstance(value, Tensor) else value for value in values]
        return replace(self, **changed, extra=extra)


@dataclass(frozen=True)
class Room:
    """What runs at once: at most so many rows, padded tokens, and tokens that only pad, but one row at least; None: any
    number.

    Rows are sorted by length and cut into runs; every rank computes the same cuts, so that all run equally many
    batches.
    """

    rows: int | None = None
    tokens: int | None = None
    padding: int | None = None

    def cuts(self, lengths: Sequence[int], world: int = 1) -> list[range]:
        """Runs of rows with ascending lengths; of each run every rank takes every world-th row."""
        runs, start = list[range](), 0
        for place in range(0, len(lengths), world):
            each, longest = (place - start) // world + 1, max(lengths[place : place + world])
            full = self.rows is not None and each > self.rows
            full |= self.tokens is not None and each * longest > self.tokens
            full |= self.padding is not None and _padding(lengths[start : place + world]) > self.padding * world
            if place > start and full:
                runs.append(range(start, place))
                start = place
        return [*runs, range(start, len(lengths))] if lengths else []

    def parts(self, rows: Sequence[int], lengths: Sequence[int], rank: int = 0, world: int = 1) -> list[list[int]]:
        """What a rank runs of rows with ascending lengths, batch by batch; one without rows is empty."""
        own = [slice(run.start + rank, run.stop, world) for run in self.cuts(lengths, world)]
        return [list(rows[part]) for part in own]


def _padding(lengths: Sequence[int]) -> int:
    """Tokens that fill rows up to the longest."""
    return len(lengths) * max(lengths) - sum(lengths)


def padding_on(device: str) -> int | None:
    """How many tokens may pad a batch, None for any number: so many take a CPU about as long as one more batch takes
    beside its tokens, which is to read the weights. A GPU is glad of large batches."""
    return None if device.startswith("cuda") else 24


def collate(
    prompts: Sequence[Encoded],
    pad: int,
    columns: Sequence[dict] = (),
    weights: Sequence[float] | None = None,
    lower: Sequence[Tensor] = (),
    beginning: Beginning | None = None,
) -> Batch:
    """Pad prompts on the right and stack them.

    Args:
        pad: token id for padding.
        columns: a method's own columns, one dict per prompt.
        weights: of each prompt's slots in the loss; None: 1.
        lower: cached states, [T_i, H] per prompt; beginning: what stands before the prompts' tokens.
    """
    length = max(len(p.ids) for p in prompts)
    ids = np.full((len(prompts), length), pad, np.int64)  # numpy reads lists three times as fast as torch
    mask, segments = np.zeros_like(ids), np.zeros_like(ids)
    slots: list[tuple[int, int]] = []
    gold: list[int] = []
    for row, prompt in enumerate(prompts):
        size = len(prompt.ids)
        ids[row, :size] = prompt.ids
        segments[row, :size] = prompt.segments
        mask[row, :size] = 1
        slots += [(row, position) for position in prompt.marks["slot"]]
        gold += prompt.gold
    owner = [row for row, _ in slots]
    places = [prompt.marks["slot"] for prompt in prompts]
    most = max(2, *map(len, places))  # of a single query transformers lays out the heads in another way
    stacked = None
    if lower:
        stacked = lower[0].new_zeros((len(prompts), length, lower[0].shape[-1]))
        for row, states in enumerate(lower):
            stacked[row, : len(states)] = states
    soft = [p.marks["soft"] for p in prompts] if prompts[0].marks.get("soft") else None
    extra = {}
    for name in columns[0] if columns else ():
        extra[name] = [of_prompt[name] for of_prompt in columns]
    return Batch(
        names=[p.name for p in prompts],
        ids=torch.from_numpy(ids),
        mask=torch.from_numpy(mask),
        segments=torch.from_numpy(segments),
        slots=torch.tensor(slots),
        gold=torch.tensor(gold),
        wording=torch.tensor([prompts[row].wording for row in owner]),
        weight=torch.tensor([1.0 if weights is None else weights[row] for row in owner]),
        read=torch.tensor([at + at[:1] * (most - len(at)) for at in places]),
        number=torch.tensor(list(itertools.chain.from_iterable(map(range, map(len, places))))),
        soft=None if soft is None else torch.tensor(soft),
        target=_padded([p.target for p in prompts], pad) if prompts[0].target else None,
        lower=stacked,
        extra=extra,
        beginning=beginning,
        pads=any(len(p.ids) < length for p in prompts),
    )


def _padded(rows: Sequence[list[int]], pad: int) -> Tensor:
    length = max(map(len, rows))
    return torch.tensor([row + [pad] * (length - len(row)) for row in rows])

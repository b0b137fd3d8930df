"""States of frozen lower layers, computed once per prompt: few-shot training repeats its validation every epoch, and a
sweep over the layer repeats the layers below.

Holds while the blocks below the cut are frozen and without dropout. Same numbers as the uncached path. Demonstrations
that begin all prompts are run and kept once, where the model allows it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from raypft.batch import Batch, Beginning, collate
from raypft.encoded import Encoded, shared_tokens

CHUNK = 8
"""Prompts run together; kept together too, so that a prompt's states do not depend on what ran before."""
Tokens = tuple[int, ...]


def tokens_of(prompt: Encoded) -> Tokens:
    """What a prompt's states depend on; not its name, since splits may repeat each other's ids."""
    return (*prompt.ids, *prompt.segments)


class Lower(Protocol):
    """What `FrozenStates` asks of a backbone."""

    @property
    def pad(self) -> int:
        """The token id that fills batches."""
        ...

    @property
    def takes_beginnings(self) -> bool:
        """Whether what all prompts begin with can be run once."""
        ...

    def lower(self, batch: Batch, layer: int, after: int = 0) -> Tensor:
        """The states after `layer` blocks, [B, T, H]."""
        ...

    def begin(self, batch: Batch, layer: int | None = None, after: int = 0) -> Beginning:
        """What all prompts begin with, after `layer` blocks."""
        ...


@dataclass(frozen=True)
class Known:
    """States of prompts after some blocks.

    begins: how many tokens all prompts begin with; before: their states, [begins, H]; behind: the states of the tokens
    behind them, [T - begins, H], by `tokens_of`.
    """

    begins: int
    before: Tensor
    behind: dict[Tokens, Tensor]

    def of(self, prompt: Encoded, begins: int = 0) -> Tensor:
        """The states of a prompt's tokens, without the first `begins`, none or all that are shared."""
        behind = self.behind[tokens_of(prompt)]
        return behind if begins or not self.begins else torch.cat([self.before, behind])


class FrozenStates:
    """States of prompts after some blocks, in CPU memory, kept with the backbone that computed them: what is asked for
    above a layer that is known goes on from there, so that a sweep up the layers takes one pass over the backbone.

    Args:
        limit: bytes to keep at most; what was not asked for longest goes first.
    """

    def __init__(self, backbone: Lower, limit: int = 4 << 30) -> None:
        self.backbone = backbone
        self.limit = limit
        self._known: OrderedDict[tuple[Tokens, ...], tuple[int, Tensor]] = OrderedDict()

    def fits(self, prompts: Sequence[Encoded], hidden: int) -> bool:
        """Whether the states [T, H] of these prompts stay within the limit (fp32)."""
        begins = self._begins(prompts)
        return 4 * hidden * (begins + sum(len(p.ids) - begins for p in prompts)) <= self.limit

    def after(self, layer: int, prompts: Sequence[Encoded], device: str) -> Known:
        """The states of prompts after `layer` blocks.

        Every rank must call this with equally many prompts that share as much: under ZeRO-3 each chunk gathers
        parameters on all ranks.
        """
        begins = self._begins(prompts)
        first = prompts[0].until(begins) if begins else None
        ordered = sorted(prompts, key=lambda p: (len(p.ids), p.name))
        chunks = dict[tuple[Tokens, ...], list[Encoded]]()
        for start in range(0, len(ordered), CHUNK):
            chunk = ordered[start : start + CHUNK]
            chunks[(begins,), *map(tokens_of, chunk)] = chunk
        depth = self._depth(list(chunks), layer, first)
        begun, before = None, torch.empty(0)
        if first is not None:
            if depth != layer:
                batch = self._collated([first], beginning_key(first, depth) if depth else None)
                begun = self.backbone.begin(batch.to(device), layer, depth)
                self._keep(beginning_key(first, layer), layer, begun.states)
            before = self._known[beginning_key(first, layer)][1][0]
        behind = dict[Tokens, Tensor]()
        for key, chunk in chunks.items():
            if depth != layer:
                batch = self._collated([prompt.behind(begins) for prompt in chunk], key if depth else None, begun)
                self._keep(key, layer, self.backbone.lower(batch.to(device), layer, depth))
            self._known.move_to_end(key)
            states = self._known[key][1]
            for row, prompt in enumerate(chunk):
                behind[tokens_of(prompt)] = states[row, : len(prompt.ids) - begins]
        while sum(states.nbytes for _, states in self._known.values()) > self.limit:
            self._known.popitem(last=False)
        return Known(begins, before, behind)

    def _depth(self, keys: Sequence[tuple[Tokens, ...]], layer: int, first: Encoded | None) -> int:
        """After how many blocks all chunks are known, and what they begin with; 0 where not all are."""
        depths = {self._known[key][0] if key in self._known else 0 for key in keys}
        depth = min(depths)
        if len(depths) > 1 or depth > layer or (first and depth and beginning_key(first, depth) not in self._known):
            return 0
        return depth

    def _begins(self, prompts: Sequence[Encoded]) -> int:
        return shared_tokens(prompts) if self.backbone.takes_beginnings else 0

    def _collated(
        self, prompts: Sequence[Encoded], key: tuple[Tokens, ...] | None, beginning: Beginning | None = None
    ) -> Batch:
        """A batch of prompts, with the states that are known under a key."""
        known = None if key is None else self._known[key][1]
        return replace(collate(prompts, self.backbone.pad, beginning=beginning), lower=known)

    def _keep(self, key: tuple[Tokens, ...], layer: int, states: Tensor) -> None:
        self._known.pop(key, None)
        self._known[key] = (layer, states.cpu())


def beginning_key(first: Encoded, layer: int) -> tuple[Tokens, ...]:
    """Under what a beginning's states after a layer are kept: one split after the other goes up the layers."""
    return (tokens_of(first), (layer,))

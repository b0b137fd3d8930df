"""States of frozen lower layers, computed once per prompt: few-shot training repeats its validation every epoch, and a
sweep over the layer repeats the layers below.

Holds while the blocks below the cut are frozen and without dropout. Same numbers as the uncached path.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from raypft.batch import Batch, collate
from raypft.encoded import Encoded

CHUNK = 8
"""Prompts run together; kept together too, so that a prompt's states do not depend on what ran before."""


def tokens_of(prompt: Encoded) -> tuple[int, ...]:
    """What a prompt's states depend on; not its name, since splits may repeat each other's ids."""
    return (*prompt.ids, *prompt.segments)


class FrozenStates:
    """States of prompts after some blocks, in CPU memory, kept with the backbone that computed them: what is asked for
    above a layer that is known goes on from there, so that a sweep up the layers takes one pass over the backbone.

    Args:
        lower: batch, layer and how many blocks are behind `batch.lower` to the states after `layer` blocks, [B, T, H].
        pad: the token id that fills batches.
        limit: bytes to keep at most; what was not asked for longest goes first.
    """

    def __init__(self, lower: Callable[[Batch, int, int], Tensor], pad: int, limit: int = 4 << 30) -> None:
        self.lower = lower
        self.pad = pad
        self.limit = limit
        self._known: OrderedDict[tuple[tuple[int, ...], ...], tuple[int, Tensor]] = OrderedDict()

    def fits(self, prompts: Sequence[Encoded], hidden: int) -> bool:
        """Whether the states [T, H] of these prompts stay within the limit (fp32)."""
        return 4 * hidden * sum(len(p.ids) for p in prompts) <= self.limit

    def after(self, layer: int, prompts: Sequence[Encoded], device: str) -> dict[tuple[int, ...], Tensor]:
        """The states of prompts after `layer` blocks, [T, H] by `tokens_of`.

        Every rank must call this with equally many prompts: under ZeRO-3 each chunk gathers parameters on all ranks.
        """
        ordered = sorted(prompts, key=lambda p: (len(p.ids), p.name))
        states_by_tokens = {}
        for start in range(0, len(ordered), CHUNK):
            chunk = ordered[start : start + CHUNK]
            states = self._chunk(layer, chunk, device)
            for row, prompt in enumerate(chunk):
                states_by_tokens[tokens_of(prompt)] = states[row, : len(prompt.ids)]
        while sum(states.nbytes for _, states in self._known.values()) > self.limit:
            self._known.popitem(last=False)
        return states_by_tokens

    def _chunk(self, layer: int, chunk: Sequence[Encoded], device: str) -> Tensor:
        """The states of a chunk, [S, T, H]."""
        key = tuple(map(tokens_of, chunk))
        depth, states = self._known.pop(key, (0, None))
        if depth != layer:
            depth, states = (depth, states) if depth < layer else (0, None)
            states = self.lower(replace(collate(chunk, self.pad), lower=states).to(device), layer, depth)
        assert states is not None
        self._known[key] = (layer, states.cpu())
        return self._known[key][1]

"""States of frozen lower layers, computed once per prompt: few-shot training repeats its validation every epoch.

Holds while the blocks below the cut are frozen and without dropout. Same numbers as the uncached path.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from raypft.backbones.base import Backbone
from raypft.batch import Encoded, collate

CHUNK = 8
"""Prompts run together while filling; fixed, so that a prompt's states do not depend on who asks first."""


class LowerStates:
    """A prompt's states after `layer` blocks, [T, H], in CPU memory; found by its tokens, since splits may repeat each other's ids.

    Args:
        limit: bytes to use at most; `fits` says whether prompts would exceed it.
    """

    def __init__(self, backbone: Backbone, layer: int, limit: int = 4 << 30) -> None:
        self.backbone = backbone
        self.layer = layer
        self.limit = limit
        self._states: dict[tuple[int, ...], Tensor] = {}

    def of(self, prompt: Encoded) -> Tensor:
        """What `fill` computed for a prompt, [T, H]."""
        return self._states[(*prompt.ids, *prompt.segments)]

    def fits(self, prompts: Sequence[Encoded]) -> bool:
        """Whether the states of these prompts stay within the limit (fp32)."""
        return 4 * self.backbone.hidden * sum(len(p.ids) for p in prompts) <= self.limit

    def fill(self, prompts: Sequence[Encoded], pad: int, device: str) -> None:
        """Compute and keep, `CHUNK` prompts of like length at a time.

        Every rank must call this with equally many prompts: under ZeRO-3 each chunk gathers parameters on all ranks.
        """
        ordered = sorted(prompts, key=lambda p: (len(p.ids), p.name))
        for start in range(0, len(ordered), CHUNK):
            chunk = ordered[start : start + CHUNK]
            states = self.backbone.lower(collate(chunk, pad).to(device), self.layer).cpu()
            for row, prompt in enumerate(chunk):
                self._states[(*prompt.ids, *prompt.segments)] = states[row, : len(prompt.ids)].clone()

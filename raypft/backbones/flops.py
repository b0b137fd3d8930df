"""Floating-point operations of a training, measured: those of matrix products, convolutions and attention that torch
was asked for, forward and backward, as torch.utils.flop_counter counts them (2 a multiplication with its addition).

What a shortcut, a frozen block or kept states leave out is not asked for and not counted. Looking at every operation
costs time: of each kind of work the first piece is measured, others count by their padded tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

STEPS, STATES = "steps", "states"
"""Kinds of work: optimizer steps, and states that are computed once and kept."""
ATTENTION: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACKWARD: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
LINEAR: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
"""What a CPU runs (see `products.py`), which torch's own registry lacks."""


@dataclass
class Part:
    """Work of one kind: padded tokens of all pieces and of the first, which was measured; operations of that."""

    pieces: int = 0
    tokens: int = 0
    first_tokens: int = 0
    first_flops: int = 0

    @property
    def flops(self) -> float:
        """Operations of all pieces."""
        return self.first_flops * self.tokens / max(1, self.first_tokens)


class Meter:
    """The work of one cell in this process, by kind."""

    def __init__(self) -> None:
        self.parts = {STEPS: Part(), STATES: Part()}

    @contextmanager
    def piece(self, kind: str) -> Iterator[Part]:
        """A piece of work, whose padded tokens are to be added to the part that this gives."""
        part = self.parts[kind]
        if part.pieces:
            yield part
        else:
            with _Count() as count:
                yield part
            part.first_tokens, part.first_flops = part.tokens, count.flops
        part.pieces += 1

    def training(self, steps: int) -> float | None:
        """Operations of a training of so many steps, of which this process may have made the last ones, and of what was
        kept for it; None where it has made none of them."""
        made = self.parts[STEPS]
        if steps and not made.pieces:
            return None
        return made.flops * steps / max(1, made.pieces) + self.parts[STATES].flops


class _Count(TorchDispatchMode):
    """Counts the operations that are asked for while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.flops += _flops(func.overloadpacket, args, kwargs or {}, out)
        return out


def _flops(packet: Any, args: Any, kwargs: Any, out: Any) -> int:
    if packet == ATTENTION:
        return sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
    if packet == ATTENTION_BACKWARD:
        return sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))
    if packet == LINEAR:
        states, weight = args[:2]
        return 2 * states.numel() * weight.shape[0]
    count = flop_registry.get(packet)
    return int(count(*args, **kwargs, out_val=out)) if count is not None else 0

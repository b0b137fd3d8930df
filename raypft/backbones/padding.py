"""Whether a batch has rows that pad, told to transformers: to leave a mask out where it hides nothing, it reads the
mask on the device, and a GPU would be waited for in every forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from torch import Tensor
from transformers import AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

PADS: ContextVar[bool | None] = ContextVar("pads", default=None)
"""Whether rows may pad, in the batch that runs; None: no one knows, transformers looks."""


@contextlib.contextmanager
def padding(pads: bool) -> Iterator[None]:
    """While open, masks are made for a batch whose rows may pad, or all have its length."""
    token = PADS.set(pads)
    try:
        yield
    finally:
        PADS.reset(token)


def _told(make: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    """A mask function of transformers that need not look at a mask of tokens."""

    def mask(**keywords: Any) -> Tensor | None:
        pads = PADS.get()
        if pads is None or keywords.get("attention_mask") is None:
            return make(**keywords)
        if not pads:
            return make(**{**keywords, "attention_mask": None})
        return make(**{**keywords, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})

    return mask


for _kind in ("sdpa", "eager"):
    AttentionMaskInterface.register(_kind, _told(ALL_MASK_ATTENTION_FUNCTIONS[_kind]))

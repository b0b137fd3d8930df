"""What dropout by row and blocks must know of each other: which tokens the rows of a tensor are of, while a block runs
for some of them alone; what drops while a block runs once more."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass
class Reading:
    """Which call of a last block runs (last_block.py).

    positions: of the tokens that it runs for, [B, R]; None while all are looked at; skipped: dropouts met in that call,
    which are met once more.
    """

    positions: Tensor | None
    skipped: int = 0


READING: ContextVar[Reading | None] = ContextVar("reading", default=None)
"""The call of a last block that runs; None where tensors have all tokens, or none."""
AS_NOW: ContextVar[Callable[[], AbstractContextManager[Any]]] = ContextVar("as now", default=contextlib.nullcontext)
"""Gives what a part of the forward pass that begins now must be run in to drop the same once more."""


@contextlib.contextmanager
def reading(call: Reading | None) -> Iterator[None]:
    """While open, this is the call that runs."""
    token = READING.set(call)
    try:
        yield
    finally:
        READING.reset(token)

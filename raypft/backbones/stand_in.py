"""Modules that stand in for a model's blocks while something runs: a model's body goes through its lists as ever."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn


class StandIn(nn.Module):
    """Stands in for a block, which is not registered in it: it is the model's.

    Args:
        block: whose attributes (the kind of its attention, say) a model's body reads.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.__dict__["block"] = block

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)


@contextlib.contextmanager
def standing_in(blocks: nn.ModuleList, others: Mapping[int, nn.Module]) -> Iterator[None]:
    """While open, others stand in for the blocks with these 0-based numbers."""
    own = blocks._modules  # written past nn.Module, which looks through all it has each time
    saved = {str(layer): own[str(layer)] for layer in others}
    own.update({str(layer): other for layer, other in others.items()})
    try:
        yield
    finally:
        own.update(saved)

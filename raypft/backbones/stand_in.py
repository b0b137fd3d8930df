"""Modules that stand in for a model's blocks while something runs: a model's body goes through its lists as ever."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
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
def standing_in(blocks: nn.ModuleList, layers: Sequence[int], make: Callable[[nn.Module], nn.Module]) -> Iterator[None]:
    """While open, what is made of the blocks with these 0-based numbers stands in for them."""
    own = blocks._modules  # written past nn.Module, which looks through all it has each time
    saved = {str(layer): own[str(layer)] for layer in layers}
    own.update({name: make(block) for name, block in saved.items() if block is not None})
    try:
        yield
    finally:
        own.update(saved)

"""Gradient checkpointing: blocks keep their inputs alone, and run again in the backward pass (Chen et al. 2016).

torch's `checkpoint` on the blocks that run, and not transformers' own: that has none where a model is in eval mode, as
frozen ones are here, and knows neither the stand-in of the last block nor what a method does behind a block.
A block that no gradient reaches keeps nothing, and does not run again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from raypft.backbones.reading import AS_NOW
from raypft.backbones.stand_in import StandIn


class Checkpointed(StandIn):
    """Stands in for a block, and gives what it gives.

    Args:
        put: gives what must be entered for the block to find in the backward pass what it finds now.
    """

    def __init__(self, block: nn.Module, put: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__(block)
        self.put = put

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        draws = AS_NOW.get()()

        @contextlib.contextmanager
        def again() -> Iterator[None]:
            with self.put(), draws:
                yield

        return checkpoint(
            self.__dict__["block"],
            *arguments,
            use_reentrant=False,
            context_fn=lambda: (contextlib.nullcontext(), again()),
            **keywords,
        )

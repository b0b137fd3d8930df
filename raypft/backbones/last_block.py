"""The last block for the tokens alone that are read: behind it nothing mixes tokens, so the others are not needed.

Keys and values are made of all tokens; query, output of the attention, feed-forward part and norms of those at slots.
No block is written again for that: the model's own is called twice. The first call stops where the attention has its
queries, keys and values of all tokens; the second runs on the states that are read, and its attention takes the first
call's in place of what it would make of these few.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from raypft.backbones.attention import Attended, KeysKnown, attend_for, find_attention
from raypft.backbones.reading import Reading, reading
from raypft.batch import Batch
from raypft.errors import UserError


class LastBlock(nn.Module):
    """Stands in for a model's last block: states at the slots of a batch, zeros at all other tokens, [B, T, H].

    Args:
        block: whose attributes a model's body reads.
        batch: whose slots are read.
    """

    def __init__(self, block: nn.Module, batch: Batch) -> None:
        super().__init__()
        self.__dict__["block"] = block  # a plain reference: it is the model's
        self.__dict__["attention"] = find_attention(block)
        self.batch = batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        block, attended, rows = self.__dict__["block"], Attended(), self.batch.read
        states = arguments[0] if arguments else keywords["hidden_states"]
        with attend_for(self.__dict__["attention"], attended):
            with reading(Reading(None)), contextlib.suppress(KeysKnown):
                block(*arguments, **keywords)
                raise RuntimeError("the last block's attention did not ask for its function")
            attended.rows = rows
            few = [_few(value, states.shape[:2], rows) for value in arguments]
            few_named = {name: _few(value, states.shape[:2], rows) for name, value in keywords.items()}
            with reading(Reading(rows)):
                output = block(*few, **few_named)
        if isinstance(output, tuple | list):
            return (self._placed(output[0], states), *output[1:])
        return self._placed(output, states)

    def _placed(self, few: Tensor, like: Tensor) -> Tensor:
        """[B, R, H] of the slots' tokens among zeros, [B, T, H]: what follows counts on as many tokens as went in."""
        prompts, places = self.batch.slots.unbind(1)
        return torch.zeros_like(like).index_put((prompts, places), few[prompts, self.batch.number])


def _few(value: Any, shape: torch.Size, rows: Tensor) -> Any:
    """What a block of [B, T] tokens is given, for the tokens [B, R] alone: states, positions, rotations."""
    if isinstance(value, tuple | list):
        return type(value)(_few(one, shape, rows) for one in value)
    if (
        not isinstance(value, Tensor)
        or value.ndim < 2
        or value.shape[1] != shape[1]
        or value.shape[0] not in (1, shape[0])
    ):
        return value
    every = torch.arange(len(rows), device=rows.device).unsqueeze(1)
    return value.expand(shape[0], *value.shape[1:])[every, rows]


def can_attend_for(block: nn.Module) -> bool:
    """Whether a block's attention looks its function up by name, so that it can be given another's queries."""
    try:
        with attend_for(find_attention(block), Attended()):
            return True
    except UserError:
        return False

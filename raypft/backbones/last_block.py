"""The last block for the tokens alone that are read: behind it nothing mixes tokens, so the others are not needed.

Keys and values are made of all tokens; query, output of the attention, feed-forward part and norms of those at slots.
No block is written again for that: the model's own is called twice. The first call stops where the attention has its
queries, keys and values of all tokens; the second runs on the states that are read, and its attention takes the first
call's in place of what it would make of these few.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from raypft.backbones.attention import Attended, KeysKnown, attend_for, find_attention
from raypft.backbones.key_maps import Maps, maps_of, on_states
from raypft.backbones.reading import Reading, reading
from raypft.backbones.stand_in import StandIn
from raypft.batch import Batch
from raypft.errors import UserError


class LastBlock(StandIn):
    """Stands in for a model's last block: states at the slots of a batch, zeros at all other tokens, [B, T, H].

    Args:
        block: whose attributes a model's body reads.
        batch: whose slots are read.
        makes_keys_alone: whether few queries may look at the states instead of keys and values, see `makes_keys_alone`.
    """

    def __init__(self, block: nn.Module, batch: Batch, makes_keys_alone: bool = False) -> None:
        super().__init__(block)
        self.__dict__["attention"] = find_attention(block)
        self.batch, self.makes_keys_alone = batch, makes_keys_alone

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        block, rows = self.__dict__["block"], self.batch.read
        attended = Attended(maps=maps_for(block, self.batch) if self.makes_keys_alone else None)
        if attended.maps is not None and len(self.batch.slots) == len(rows):
            rows = rows[:, :1]  # one each: the heads' layout is ours there
        states = arguments[0] if arguments else keywords["hidden_states"]
        with attend_for(self.__dict__["attention"], attended):
            with reading(Reading(None)), contextlib.suppress(KeysKnown):
                block(*arguments, **keywords)
                raise RuntimeError("the last block's attention did not ask for its function")
            attended.rows = rows
            every = torch.arange(len(rows), device=rows.device).unsqueeze(1)
            few = [_few(value, states.shape[:2], (every, rows)) for value in arguments]
            few_named = {name: _few(value, states.shape[:2], (every, rows)) for name, value in keywords.items()}
            with reading(Reading(rows)):
                output = block(*few, **few_named)
        if isinstance(output, tuple | list):
            return (self._placed(output[0], states), *output[1:])
        return self._placed(output, states)

    def _placed(self, few: Tensor, like: Tensor) -> Tensor:
        """[B, R, H] of the slots' tokens among zeros, [B, T, H]: what follows counts on as many tokens as went in."""
        prompts, places = self.batch.slots.unbind(1)
        return torch.zeros_like(like).index_put_((prompts, places), few[prompts, self.batch.number])


def _few(value: Any, shape: torch.Size, at: tuple[Tensor, Tensor]) -> Any:
    """What a block of [B, T] tokens is given, for those at [B, 1] and [B, R] alone: states, positions, rotations."""
    if isinstance(value, tuple | list):
        return type(value)(_few(one, shape, at) for one in value)
    if (
        not isinstance(value, Tensor)
        or value.ndim < 2
        or value.shape[1] != shape[1]
        or value.shape[0] not in (1, shape[0])
    ):
        return value
    return value.expand(shape[0], *value.shape[1:])[at]


def maps_for(block: nn.Module, batch: Batch) -> Maps | None:
    """How a block makes keys and values, where a batch reads so few tokens that these are more work than none; None
    where a method has a part in its attention."""
    attention = find_attention(block)
    config = cast(Any, attention.config)
    maps = maps_of(attention) if config._attn_implementation == "sdpa" else None
    few = maps is not None and 2 * batch.read.shape[1] * config.num_attention_heads <= len(maps[0][0])
    return maps if few else None


def makes_keys_alone(block: nn.Module, run: Callable[[], Any]) -> bool:
    """Whether a block's keys and values are those of `maps_of`: no positions are turned in them, no norm is behind.

    Args:
        run: runs the model, this block among others.
    """
    attention, attended, given = find_attention(block), Attended(), list[Tensor]()
    maps = maps_of(attention)
    if maps is None:
        return False
    hook = on_states(attention, given.append)
    try:
        with attend_for(attention, attended), contextlib.suppress(KeysKnown):
            run()
    finally:
        hook.remove()
    for made, (weight, bias) in zip((attended.key, attended.value), maps, strict=True):
        own = functional.linear(given[0], weight, bias)
        if made is None or made.shape[1] * made.shape[3] != own.shape[2]:
            return False
        heads = own.view(*own.shape[:2], made.shape[1], -1).transpose(1, 2)
        if float((heads - made).abs().max()) > 1e-5 * float(made.abs().max()):
            return False
    assert attended.query is not None
    assert attended.key is not None
    return attended.query.shape[1] == attended.key.shape[1]


def can_attend_for(block: nn.Module) -> bool:
    """Whether a block's attention looks its function up by name, so that it can be given another's queries."""
    try:
        with attend_for(find_attention(block), Attended()):
            return True
    except UserError:
        return False

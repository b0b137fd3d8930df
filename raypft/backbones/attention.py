"""Attention with keys and values put before a layer's own, or with its own scaled, the same way for every family.

transformers looks attention functions up by name. `take_keys` selects a name under which its own function (SDPA or
eager) is wrapped: the wrapper asks the attention module for keys and values, puts them first and opens the mask for
them; `scale_keys` likewise for what the own ones are multiplied by; `attend_for` asks for the queries of some tokens;
`watch` shows the weights of each call.
Only the module's own projections see positions, so rotary embeddings, grouped heads and sliding windows need no care
here.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from raypft.backbones.key_maps import Maps, attend_to_states, on_states
from raypft.backbones.reading import reading
from raypft.errors import UserError

KINDS = ("sdpa", "eager")
PREFIX = "keys_first_"
GIVES_KEYS = "gives_keys"
SCALES_KEYS = "scales_keys"
ATTENDS_FOR = "attends_for"
WATCHED = "watched"

Keys = tuple[Tensor, Tensor]
"""Keys and values, [B, A, P, D] each, B = 1 where all prompts get the same; A is the number of key heads."""
See = Callable[[Tensor, Tensor, Tensor], None]
"""Is shown the weights of a call, [B, A, T, K], the values that they weight, [B, A or fewer heads, K, D], and what
comes of it, [B, T, A, D]; K counts keys of a method, which come first, and the tokens' own."""


def take_keys(attention: nn.Module, give: Callable[[], Keys]) -> None:
    """From now on `attention` puts what `give()` returns before its own keys and values; every token sees them.

    Raises:
        UserError: see `_listen`.
    """
    _listen(attention)
    attention.__dict__[GIVES_KEYS] = give


def scale_keys(attention: nn.Module, give: Callable[[], Keys]) -> None:
    """From now on `attention` multiplies its own keys and values by what `give()` returns, [A, 1, D] each; keys as
    attention sees them, behind rotary positions.

    Raises:
        UserError: see `_listen`.
    """
    _listen(attention)
    attention.__dict__[SCALES_KEYS] = give


@dataclass
class Attended:
    """What an attention has of all tokens, kept at its first call: queries, keys and values, mask, or the states of
    which keys and values are made; and then the tokens to attend for, [B, R].

    maps: how keys and values are made of states, where that call is to end with the states.
    """

    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    mask: Tensor | None = None
    rows: Tensor | None = None
    states: Tensor | None = None
    maps: Maps | None = None

    def few(self, is_causal: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries of `rows`, keys and values of all, the mask of those queries."""
        assert self.query is not None
        assert self.key is not None
        assert self.value is not None
        assert self.rows is not None
        size, heads, length, width = self.query.shape
        query = self.query.gather(2, self.rows.view(size, 1, -1, 1).expand(-1, heads, -1, width))
        return query, self.key, self.value, self._mask_of_rows(self.mask, length, self.key.shape[2], is_causal)

    def of_states(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **keywords: Any) -> Tensor:
        """What is attended to by the queries of `rows`, [B, R, A, D]; of `key` and `value` what was known before."""
        assert self.states is not None
        assert self.maps is not None
        length, known = self.states.shape[1], key.shape[2] - query.shape[2]
        mask = self._mask_of_rows(mask, length, known + length, keywords.pop("is_causal"))
        before = (key[:, :, :known], value[:, :, :known]) if known else None
        return attend_to_states(query, self.states, self.maps, mask, before, **keywords).transpose(1, 2)

    def _mask_of_rows(self, mask: Tensor | None, length: int, keys: int, is_causal: bool) -> Tensor | None:
        """Which keys the queries of `rows` see, of a mask for the queries of `length` tokens."""
        assert self.rows is not None
        at = self.rows.view(len(self.rows), 1, -1, 1)
        if mask is None and is_causal:
            # the keys behind a query's own are what was known before
            return torch.arange(keys, device=at.device) <= at + (keys - length)
        if mask is not None and mask.shape[2] == length:
            mask = mask.expand(len(at), -1, -1, -1)
            return mask.gather(2, at.expand(-1, mask.shape[1], -1, mask.shape[3]))
        return mask


class KeysKnown(Exception):
    """An attention has its queries, keys and values; no error, it ends a call of which only these were wanted."""


@contextlib.contextmanager
def attend_for(attention: nn.Module, attended: Attended) -> Iterator[None]:
    """While open, the first call of `attention` ends in KeysKnown, the next ones attend for `attended.rows`.

    Raises:
        UserError: see `_listen`.
    """
    config = cast(Any, attention.config)
    before = config._attn_implementation
    _listen(attention)
    attention.__dict__[ATTENDS_FOR] = attended
    hooks = [] if attended.maps is None else [on_states(attention, functools.partial(_keep_states, attended))]
    try:
        yield
    finally:
        del attention.__dict__[ATTENDS_FOR]
        config._attn_implementation = before
        for hook in hooks:
            hook.remove()


def _keep_states(attended: Attended, states: Tensor) -> None:
    if attended.rows is None:
        attended.states = states
        raise KeysKnown


@contextlib.contextmanager
def watch(attention: nn.Module, see: See) -> Iterator[None]:
    """While open, `attention` uses its eager function, and `see` is shown the weights of each call.

    Raises:
        UserError: see `_listen`.
    """
    config = cast(Any, attention.config)
    before = config._attn_implementation
    _listen(attention)
    config._attn_implementation = PREFIX + "eager"
    attention.__dict__[WATCHED] = see
    try:
        yield
    finally:
        del attention.__dict__[WATCHED]
        config._attn_implementation = before


def _listen(attention: nn.Module) -> None:
    """Let an attention ask for what methods give it.

    Raises:
        UserError: the model does not look its attention function up by name, or uses another kind than SDPA and eager.
    """
    config = cast(Any, attention.config)  # an encoder and a decoder have one each
    kind = (config._attn_implementation or "eager").removeprefix(PREFIX)
    home = sys.modules[type(attention).__module__]
    if kind not in KINDS or not hasattr(home, "ALL_ATTENTION_FUNCTIONS"):
        raise UserError(
            f"backbone: {config.model_type} with {kind} attention can't take keys of a method; "
            "expected a model with sdpa or eager attention"
        )
    config._attn_implementation = PREFIX + kind


def leave_keys(model: nn.Module) -> None:
    """Undo every `take_keys` and `scale_keys`."""
    for module in model.modules():
        asked = [vars(module).pop(key, None) for key in (GIVES_KEYS, SCALES_KEYS)]
        if any(asked):
            module.config._attn_implementation = module.config._attn_implementation.removeprefix(PREFIX)  # type: ignore[union-attr]


def gives_keys(model: nn.Module) -> bool:
    """Whether an attention of a model is given keys or scales."""
    return any(not {GIVES_KEYS, SCALES_KEYS}.isdisjoint(vars(module)) for module in model.modules())


def find_attention(block: nn.Module) -> nn.Module:
    """The self-attention of a block: its first module that knows whether it is causal.

    Raises:
        UserError: there is none.
    """
    for module in block.modules():
        if hasattr(module, "is_causal"):
            return module
    raise UserError(
        f"backbone: {type(block).__name__} has no attention that can take keys of a method; choose another backbone"
    )


def _wrapped(kind: str) -> Callable:
    # the names are transformers': some models give them by name
    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **keywords):
        # every model file has its own eager function (gemma2's caps its scores)
        inner = (
            ALL_ATTENTION_FUNCTIONS["sdpa"]
            if kind == "sdpa"
            else sys.modules[type(module).__module__].eager_attention_forward
        )
        scale, give, attended = (vars(module).get(name) for name in (SCALES_KEYS, GIVES_KEYS, ATTENDS_FOR))
        if attended is not None:
            if attended.rows is None:
                attended.query, attended.key, attended.value, attended.mask = query, key, value, attention_mask
                raise KeysKnown
            is_causal = keywords.get("is_causal")
            is_causal = bool(kind == "sdpa" and (module.is_causal if is_causal is None else is_causal))
            if attended.states is not None:
                scale, rate = keywords.get("scaling"), keywords.get("dropout", 0.0)
                made = attended.of_states(
                    query, key, value, attention_mask, is_causal=is_causal, scale=scale, dropout=rate
                )
                return made, None
            query, key, value, attention_mask = attended.few(is_causal)
            keywords["is_causal"] = False  # the mask says it
        if scale is not None:
            with reading(None):
                of_key, of_value = scale()
            _expect_shape(module, (key, value), (of_key, of_value))
            key, value = key * of_key.to(key), value * of_value.to(value)
        if give is not None:
            with reading(None):  # what a method gives has no rows of tokens
                given = give()
            first_key, first_value = (first.to(key).expand(len(key), -1, -1, -1) for first in given)
            _expect_shape(module, (key, value), (first_key, first_value))
            width = first_key.shape[2]
            key, value = torch.cat([first_key, key], dim=2), torch.cat([first_value, value], dim=2)
            if attention_mask is not None:  # [B, 1, T, T] -> [B, 1, T, P + T]
                opened = 1 if attention_mask.dtype == torch.bool else 0
                attention_mask = functional.pad(attention_mask, (width, 0), value=opened)
            if keywords.get("position_bias") is not None:
                keywords["position_bias"] = functional.pad(keywords["position_bias"], (width, 0))
            keywords["is_causal"] = False  # the mask says it; without one every token sees all
        output = inner(module, query, key, value, attention_mask, **keywords)
        see = vars(module).get(WATCHED)
        if see is not None:
            see(output[1], value, output[0])
        return output

    return attend


def _expect_shape(module: nn.Module, own: Keys, given: Keys) -> None:
    """Raise a UserError unless both have as many heads of the same size: some models make keys of another size than
    values, or share them between all heads."""
    shapes = [[tensor.shape[-3], tensor.shape[-1]] for tensor in (*own, *given)]
    if shapes[:2] != shapes[2:]:
        raise UserError(
            f"backbone: the keys and values of {type(module).__name__} have the heads and sizes {shapes[0]} and "
            f"{shapes[1]}; expected {shapes[2]} of both, as config.json says; this method can't reach them, choose "
            "another"
        )


def _mask(kind: str) -> Callable:
    def make(**keywords) -> Tensor | None:
        # a causal mask left to the kernel could not be opened for the keys in front
        return ALL_MASK_ATTENTION_FUNCTIONS[kind](**{**keywords, "allow_is_causal_skip": False})

    return make


for _kind in KINDS:
    AttentionInterface.register(PREFIX + _kind, _wrapped(_kind))
    AttentionMaskInterface.register(PREFIX + _kind, _mask(_kind))

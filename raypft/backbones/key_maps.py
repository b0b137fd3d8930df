"""Attention of few queries to many tokens, without the keys and values of these.

A key is k = K x + b of a token's state x, so q k = (q K) x + q b; and with the probabilities p, sum_t p_t (V x_t + c) =
V (sum_t p_t x_t) + c sum_t p_t. For few queries these are fewer operations than keys and values of all tokens: the
matrices meet queries instead of tokens (as DeepSeek-AI 2024, section 2.1, absorbs the matrices of latent attention).
It holds where keys and values are nothing but linear layers of the states, in which no positions are turned.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from raypft.backbones.products import PLAIN

Map = tuple[Tensor, Tensor | None]
"""Weight [A D, H] and bias [A D] of a linear layer."""
Maps = tuple[Map, Map]
"""From states to keys, and to values."""
PAIRS = (("k_proj", "v_proj"), ("key", "value"), ("k_lin", "v_lin"))
"""What the two layers are called in transformers, where queries have one of their own."""
FUSED = "c_attn"
"""GPT-2's layer of queries, keys and values."""


def maps_of(attention: nn.Module) -> Maps | None:
    """The layers of an attention; None where they are no plain ones now (LoRA's, ZeRO-3's, those of sparse entries), or
    other code listens."""
    names = next((pair for pair in PAIRS if hasattr(attention, pair[0])), (FUSED,))
    layers: list[Any] = [getattr(attention, name, None) for name in names]
    for layer in layers:
        if type(layer) not in PLAIN or not isinstance(layer.weight, Tensor) or layer.weight.ndim != 2:
            return None
        if layer._forward_hooks or layer._forward_pre_hooks:
            return None
    if len(layers) == 1:
        (_, *weights), (_, *biases) = layers[0].weight.T.chunk(3), layers[0].bias.chunk(3)
        return (weights[0], biases[0]), (weights[1], biases[1])
    key, value = layers
    return (key.weight, key.bias), (value.weight, value.bias)


def on_states(attention: nn.Module, tell: Callable[[Tensor], None]) -> RemovableHandle:
    """Tell the states, [B, T, H], with which an attention is called."""

    def hook(_module: nn.Module, arguments: tuple, keywords: dict) -> None:
        tell(arguments[0] if arguments else keywords["hidden_states"])

    return attention.register_forward_pre_hook(hook, with_kwargs=True)


def attend_to_states(
    query: Tensor,
    states: Tensor,
    maps: Maps,
    mask: Tensor | None,
    before: tuple[Tensor, Tensor] | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(Q K^T scale + mask) V, [B, A, R, D].

    Args:
        query: [B, A, R, D]; states: of which the keys and values are made, [B, T, H].
        mask: as of torch's attention, for the keys of `before` and then those of the states, [B, 1, R, P + T].
        before: keys and values that stand before them, [B, A, P, D]; dropout: the rate for the probabilities.
    """
    size, heads, rows, width = query.shape
    query = query * (1 / math.sqrt(width) if scale is None else scale)
    (of_key, key_bias), (of_value, value_bias) = maps
    turned = query.transpose(0, 1).reshape(heads, -1, width) @ of_key.view(heads, width, -1)  # [A, B R, H]
    turned = turned.view(heads, size, rows, -1).transpose(0, 1).reshape(size, heads * rows, -1)
    scores = (turned @ states.transpose(1, 2)).view(size, heads, rows, -1)
    if key_bias is not None:
        scores = scores + query @ key_bias.view(heads, width, 1)
    if before is not None:
        scores = torch.cat([query @ before[0].transpose(2, 3), scores], dim=3)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    shares = torch._safe_softmax(scores, -1).to(query.dtype)  # 0 where a token sees none, as torch has it
    if dropout:
        shares = functional.dropout(shares, dropout)
    own = shares[..., -states.shape[1] :]
    summed = own.reshape(size, heads * rows, -1) @ states  # [B, A R, H]
    summed = summed.view(size, heads, rows, -1).transpose(0, 1).reshape(heads, size * rows, -1)
    made = summed @ of_value.view(heads, width, -1).transpose(1, 2)  # [A, B R, D]
    made = made.view(heads, size, rows, width).transpose(0, 1)
    if value_bias is not None:
        made = made + own.sum(-1, keepdim=True) * value_bias.view(heads, 1, width)
    return made if before is None else made + shares[..., : before[1].shape[2]] @ before[1]

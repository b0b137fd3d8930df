"""GELU's tanh form on a CPU by the sigmoid, which torch computes in a sixth of the time of its tanh.

With u = 2 sqrt(2 / pi) (x + 0.044715 x^3) it is x sigmoid(u), since (1 + tanh(u / 2)) / 2 = sigmoid(u); and what the
gradient is multiplied by, s + s (1 - s) x u' with s = sigmoid(u) and x u' = 3 u - 4 sqrt(2 / pi) x, needs nothing more.
So it is made beside the value, and kept instead of x. The same function to 1e-6.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.activations import FastGELUActivation, GELUTanh, NewGELUActivation

LINEAR = 2 * math.sqrt(2 / math.pi)
CUBIC = 0.044715 * LINEAR
"""u = LINEAR x + CUBIC x^3."""
LEAST, MOST = 1 << 15, 1 << 21
"""How many numbers it pays to go over more than once: of fewer the calls are the work, more do not fit a cache."""


def _exponent(x: Tensor) -> Tensor:
    return (x * x).mul_(CUBIC).add_(LINEAR).mul_(x)


class _BySigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        exponent = _exponent(x)
        share = exponent.sigmoid()
        turned = exponent.mul_(3).add_(x, alpha=-2 * LINEAR)  # x u'
        ctx.save_for_backward(torch.ops.aten.sigmoid_backward(turned, share).add_(share))
        return share.mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (slope,) = ctx.saved_tensors
        return gradient * slope


class TanhGelu(nn.GELU):
    """torch's tanh form of GELU; of fp32 numbers on a CPU by the sigmoid, where these are many and fit a cache.

    by_sigmoid: False for comparison.
    """

    by_sigmoid = True

    def __init__(self) -> None:
        super().__init__("tanh")

    def forward(self, input: Tensor) -> Tensor:
        takes = self.by_sigmoid and input.device.type == "cpu" and input.dtype == torch.float32
        if not takes or not LEAST <= input.numel() <= MOST or torch.is_autocast_enabled("cpu"):
            return functional.gelu(input, approximate="tanh")
        if torch.is_grad_enabled() and input.requires_grad:
            return _BySigmoid.apply(input)  # pyright: ignore[reportReturnType]
        return _exponent(input).sigmoid_().mul_(input)


def exchange_gelu(model: nn.Module, on: bool) -> None:
    """Let the modules of a model that compute GELU's tanh form, or write it out, be `TanhGelu`, by the sigmoid where
    `on`."""
    for module in model.modules():
        for name, child in module.named_children():
            is_torchs = type(child) is nn.GELU and child.approximate == "tanh"
            if is_torchs or type(child) in (NewGELUActivation, FastGELUActivation, GELUTanh):
                child = TanhGelu()
                setattr(module, name, child)
            if isinstance(child, TanhGelu):
                child.by_sigmoid = on

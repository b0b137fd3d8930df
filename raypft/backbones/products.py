"""Matrix products of frozen linear layers on a CPU, by oneDNN instead of BLAS: the same to the rounding of sums, in 5
to 15 % less time (benchmarks/layers.py), and the weights stay as they lie.

torch gives oneDNN half precision alone; for fp32 its operator is what `torch.compile` uses. It has no gradient: that of
the input is written here, and where a weight or a bias trains the layer does what it always does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

LEAST = 1 << 22
"""Multiplications from which on it pays: the first product of each shape makes a kernel, 1 to 2 ms."""
FEW = 8
"""Rows up to which reading the weights is all the work."""


def _product(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """states [..., I], weight [O, I] and bias [O] to [..., O]."""
    return torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return _product(states, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _product(gradient, ctx.weight.t(), None), None, None


def _takes(states: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a product may be oneDNN's, and is worth it."""
    if states.device.type != "cpu" or not states.dtype == weight.dtype == torch.float32:
        return False
    rows = states.numel() // states.shape[-1]
    if rows <= FEW or rows * weight.numel() < LEAST or torch.is_autocast_enabled("cpu") or hasattr(weight, "ds_id"):
        return False
    return not (torch.is_grad_enabled() and (weight.requires_grad or (bias is not None and bias.requires_grad)))


def _multiply(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if torch.is_grad_enabled() and states.requires_grad:
        return _Product.apply(states, weight, bias)  # pyright: ignore[reportReturnType]
    return _product(states, weight, bias)


class FrozenLinear(nn.Linear):
    """torch's linear layer, by oneDNN where it is frozen."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias  # once: a weight of ZeRO-3 may be gathered where it is read
        if _takes(input, weight, bias):
            return _multiply(input, weight, bias)
        return functional.linear(input, weight, bias)


class FrozenConv1D(Conv1D):
    """GPT-2's linear layer, whose weight is [I, O], by oneDNN where it is frozen."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if _takes(x, weight, bias):
            return _multiply(x, weight.t(), bias)
        return torch.addmm(bias, x.view(-1, x.size(-1)), weight).view(*x.shape[:-1], self.nf)


FROZEN: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: FrozenLinear, Conv1D: FrozenConv1D}
PLAIN = (*FROZEN, *FROZEN.values())
"""Types of linear layers that are nothing more."""


def exchange_linear(model: nn.Module, on: bool) -> None:
    """Let a model's plain linear layers use oneDNN where torch has it, or what they used before."""
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    of = FROZEN if on and there else {frozen: plain for plain, frozen in FROZEN.items()}
    for module in model.modules():
        module.__class__ = of.get(type(module), type(module))

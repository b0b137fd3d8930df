"""A parameter of which only some entries train: a frozen weight, and a flat trainable vector with the active values.

The values are written into the weight for the forward pass and their gradient is gathered from the weight's, so frozen
entries stay bit-identical under any optimizer, and optimizer and checkpoint need memory for the K active entries only.
Masking gradients would do neither: weight decay moves what is masked. The dense gradient lives for one layer at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Written(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, base: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        # through .data: a second use in the same step writes the same numbers, which autograd must not take for a
        # change
        base.data.view(-1).index_copy_(0, index.long(), values)
        return base.data

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return gradients[0].reshape(-1).index_select(0, index), None, None


class Sparse(nn.Module):
    """Stands where a parameter stood, in every module that shares it; called, it gives the weight with the values in
    place.

    The frozen weight is a buffer: ZeRO-3 replicates it on every worker.

    Args:
        weight: the pretrained parameter.
        indices: flat positions of the active entries, [K], ascending.
    """

    base: Tensor
    index: Tensor

    def __init__(self, weight: nn.Parameter, indices: Tensor) -> None:
        super().__init__()
        index = indices.to(weight.device, torch.int32 if weight.numel() < 2**31 else torch.long)
        self.parameter = [weight]  # in a list: not a parameter of this module
        self.loaded = weight.detach().view(-1).index_select(0, index)
        self.values = nn.Parameter(self.loaded.clone())
        self.register_buffer("base", weight.detach(), persistent=False)
        self.register_buffer("index", index, persistent=False)
        self.owners: list[tuple[nn.Module, str]] = []

    def forward(self) -> Tensor:
        """() -> the weight, in its own shape."""
        # DeepSpeed casts parameters to half precision and, on stage 3, leaves buffers
        if self.base.dtype != self.values.dtype:
            self.base = self.base.to(self.values.dtype)
        return _Written.apply(self.values, self.base, self.index)

    def stand_in(self, model: nn.Module) -> None:
        """Take the parameter's place in every module that has it: tied uses share the values, and add up in their
        gradient."""
        weight = self.parameter[0]
        for module in model.modules():
            names = [name for name, parameter in module._parameters.items() if parameter is weight]
            self.owners += [(module, name) for name in names]
        for module, name in self.owners:
            module._parameters[name] = None  # the entry stays, and with it the order of the parameters
            module._modules[name] = self

    def put(self) -> None:
        """Give the owners the weight with the values in place, until `take`; some models read it past the module that
        holds it."""
        for module, name in self.owners:
            module.__dict__[name] = self()

    def placed(self) -> list[tuple[nn.Module, str, Tensor]]:
        """The owners, between `put` and `take`, with the name and the weight that each has."""
        return [(module, name, vars(module)[name]) for module, name in self.owners]

    def take(self) -> None:
        """Undo `put`."""
        for module, name in self.owners:
            module.__dict__.pop(name, None)

    @torch.no_grad()
    def undo(self) -> None:
        """Put the pretrained parameter back, bit for bit."""
        base = self.base
        base.view(-1).index_copy_(0, self.index.long(), self.loaded.to(base.device))
        weight = self.parameter[0]
        weight.data = base
        for module, name in self.owners:
            del module._modules[name]
            module._parameters[name] = weight

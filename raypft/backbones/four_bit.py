"""Frozen linear layers whose weights are held in 4 bits, and are themselves again where they multiply.

Source: Dettmers et al. 2023 (QLoRA), section 3, NF4: of each 64 weights in a row of memory the largest magnitude, in
fp32, and one of 16 values a weight. The scales are not quantized a second time. bitsandbytes packs and unpacks.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from raypft.backbones.anatomy import blocks_of
from raypft.errors import UserError

NF4 = "nf4"
BLOCK = 64
"""Weights that have a scale in common."""
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of kernels that nothing here asks for


class _Product(torch.autograd.Function):
    """Keeps the layer for the backward pass, not its weight, which is unpacked again."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, bias: Tensor | None, layer: FourBit) -> Tensor:
        ctx.layer = layer
        return functional.linear(states, layer.unpacked(states.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient @ ctx.layer.unpacked(gradient.dtype), None, None


class FourBit(nn.Module):
    """What linear layers of either kind have in 4 bits; made by `quantize` of a layer that is there."""

    codes: Tensor
    """Two weights a byte, of whole blocks, [32 ceil(O I / 64), 1]."""
    scales: Tensor
    """The bits of the fp32 scales, [ceil(O I / 64)], as integers, which no cast of a model changes."""
    like: Tensor
    """Nothing, of the type that the weight has for who asks for it: a cast of the model changes that."""
    shape: torch.Size
    """Of the weight, as a linear layer has it, [O, I]."""
    bias: nn.Parameter | None

    def pack(self) -> None:
        """Put codes and scales in the place of the layer's weight."""
        weight = cast(nn.Parameter, self._parameters.pop("weight")).detach()
        weight = weight.t() if isinstance(self, Conv1D) else weight
        self.shape, blocks = weight.shape, -(-weight.numel() // BLOCK)
        if weight.is_meta:
            codes = weight.new_empty(blocks * BLOCK // 2, 1, dtype=torch.uint8)
            scales = weight.new_empty(blocks, dtype=torch.int32)
        else:
            flat = functional.pad(weight.float().flatten(), (0, -weight.numel() % BLOCK))
            codes, state = _library().quantize_4bit(flat, blocksize=BLOCK, quant_type=NF4)
            scales = state.absmax.view(torch.int32)
        like = torch.empty(0, device=weight.device, dtype=torch.float32)
        for name, value in (("codes", codes), ("scales", scales), ("like", like)):
            self.register_buffer(name, value, persistent=False)

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The weight, [O, I]."""
        if self.codes.is_meta:
            return torch.empty(self.shape, dtype=dtype, device="meta")
        scales, library = self.scales.view(torch.float32), _library()
        # a row a block: where blocks go on in the next row, 0.50.2 takes the scale of another block on CPUs
        rows = torch.Size((len(scales), BLOCK))
        state = library.QuantState(scales, shape=rows, dtype=dtype, blocksize=BLOCK, quant_type=NF4)
        return library.dequantize_4bit(self.codes, state).flatten()[: self.shape.numel()].view(self.shape)

    @property
    def nbytes(self) -> int:
        """Of codes and scales."""
        return self.codes.nbytes + self.scales.nbytes

    @property
    def weight(self) -> Tensor:
        """The weight as the layer had it, for code that looks at it or multiplies by itself."""
        weight = self.unpacked(self.like.dtype)
        return weight.t() if isinstance(self, Conv1D) else weight

    def multiply(self, states: Tensor) -> Tensor:
        """[..., I] to [..., O], in the states' type or that of autocast."""
        bias, kind = self.bias, states.device.type
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            states, bias = states.to(dtype), None if bias is None else bias.to(dtype)
        return cast(Tensor, _Product.apply(states, bias, self))


class FourBitLinear(FourBit, nn.Linear):  # pyright: ignore[reportIncompatibleVariableOverride]  # no parameter
    """torch's linear layer in 4 bits."""

    def forward(self, input: Tensor) -> Tensor:
        return self.multiply(input)


class FourBitConv1D(FourBit, Conv1D):
    """GPT-2's linear layer in 4 bits, its weight packed as torch's would be."""

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x)


KINDS: dict[type[nn.Module], type[FourBit]] = {nn.Linear: FourBitLinear, Conv1D: FourBitConv1D}


def quantize(model: nn.Module) -> None:
    """Hold the linear layers of a model's blocks in 4 bits, one after the other.

    Raises:
        UserError: bitsandbytes is not installed, where there are weights; the blocks have no such layers.
    """
    for layer in [*itertools.chain.from_iterable(block.modules() for block in blocks_of(model))]:
        kind = KINDS.get(type(layer))
        if kind is not None:
            layer.__class__ = kind
            cast(FourBit, layer).pack()
    if not layers(model):
        raise UserError(
            "train.quantize: found nf4; the blocks of this model have no linear layers of their own; leave it out, or "
            "choose another backbone"
        )


def layers(model: nn.Module) -> list[FourBit]:
    """The layers of a model that are held in 4 bits."""
    return [module for module in model.modules() if isinstance(module, FourBit)]


def check_package() -> None:
    """Raise a UserError where bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "train.quantize: nf4 needs the package bitsandbytes; pip install 'raypft[quantize]', or leave "
            "train.quantize out"
        )


def _library() -> Any:
    check_package()
    # an extra, which takes a second to import
    from bitsandbytes import functional as library  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    return library

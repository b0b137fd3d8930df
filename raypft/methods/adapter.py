"""Adapters: small bottlenecks inside a frozen model, one or two a block.

Source: Houlsby et al. 2019, section 2.1; Pfeiffer et al. 2021, as `seq_bn` of the adapters library; Yuan et al. 2024
(GNNavi), row Adapter (pfeiffer, reduction 16, ReLU).
Formula: x <- x + U f(D x + c) + b, D in R^{r x H}, U in R^{H x r}, r = H / reduction; weights start near 0, so the
model starts almost unchanged. x is
    houlsby:  the output of a block's attention and of its feed-forward part, each before its residual connection;
    pfeiffer: the output of the whole block (the feed-forward part's with the residual stream).
Parameters: L (2 H r + r + H), twice that for houlsby.

Differs: where a layer norm ends the block (BERT, XLM-R), seq_bn applies it once more to the sum; ours does not. Houlsby
also trains the layer norms; ours keeps them frozen. GNNavi's Llama row trained a new language-model head; ours keeps
the pretrained one.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from torch import Tensor, nn

from raypft.batch import Batch
from raypft.methods import base

if TYPE_CHECKING:
    from raypft.backbones.base import Backbone

NONLINEARITIES = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "silu": nn.SiLU}
STD = {"houlsby": 0.01, "pfeiffer": 0.02}
"""Standard deviation of the first weights: Houlsby's, and seq_bn's."""


class Config(base.Config):
    """placement: two (houlsby) or one (pfeiffer) a block; reduction: H / r; nonlinearity: f."""

    placement: Literal["houlsby", "pfeiffer"] = "pfeiffer"
    reduction: int = Field(default=16, ge=1)
    nonlinearity: Literal["relu", "gelu", "tanh", "silu"] = "relu"


class Bottleneck(nn.Module):
    """x + U f(D x + c) + b.

    Shapes: states [B, T, H] -> [B, T, H].
    """

    def __init__(self, config: Config, hidden: int) -> None:
        super().__init__()
        size = bottleneck_size(hidden, config.reduction)
        self.down, self.up = nn.Linear(hidden, size), nn.Linear(size, hidden)
        self.nonlinearity = NONLINEARITIES[config.nonlinearity]()
        std = STD[config.placement]
        for linear in (self.down, self.up):
            nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.zeros_(linear.bias)

    def forward(self, states: Tensor, batch: Batch | None = None) -> Tensor:
        return states + self.up(self.nonlinearity(self.down(states)))


class Followed(nn.Module):
    """A frozen linear layer and the adapter on its output; the adapter is the method's, here is a plain reference."""

    adapter: Bottleneck

    def __init__(self, linear: nn.Module, adapter: Bottleneck) -> None:
        super().__init__()
        self.linear = linear
        self.__dict__["adapter"] = adapter

    def forward(self, states: Tensor) -> Tensor:
        return self.adapter(self.linear(states))


def bottleneck_size(hidden: int, reduction: int) -> int:
    """The width r of the bottleneck, at least 1."""
    return max(1, hidden // reduction)


class Adapter(base.Method):
    """Adapters in every block; only they train."""

    Config = Config
    families = ("masked", "causal")

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        per_block = 2 if config.placement == "houlsby" else 1
        adapters = [Bottleneck(config, backbone.hidden) for _ in range(per_block * backbone.num_layers)]
        self.adapters = nn.ModuleList(adapters)
        if config.placement == "pfeiffer":
            for layer, adapter in enumerate(adapters, start=1):
                backbone.on_layer(layer, adapter)
            return
        names = itertools.chain.from_iterable(backbone.output_names())
        for name, adapter in zip(names, adapters, strict=True):
            backbone.wrap(name, lambda linear, adapter=adapter: Followed(linear, adapter))

    def predicted_parameters(self) -> int:
        hidden, size = self.backbone.hidden, bottleneck_size(self.backbone.hidden, self.config.reduction)
        return len(self.adapters) * (2 * hidden * size + size + hidden)


Method = Adapter

"""Prefix: trained keys and values before those of every layer; the model stays frozen (prefix and deep prompt tuning).

Source: Li & Liang 2021, prefix tuning, with `mlp`; Liu et al. 2022 (P-tuning v2) and Tu et al. 2022 (deep prompt tuning
of multilingual models), without; Yuan et al. 2024 (GNNavi), row Prefix.
Formula: attention of layer l = softmax(Q [K_l; K]^T / sqrt(D)) [V_l; V], every token sees all of
K_l, V_l in R^{A x P x D}.

    mlp false: K_l, V_l are trained, drawn from N(0, std²)                                  2 L P A D parameters
    mlp true:  (K_l, V_l)_i = W_l tanh(U e_i + c) + b_l, e_i in R^H, U in R^{M x H}      P H + M H + M + (M + 1) 2 L A D

Differs: dropout of the frozen model is off while the prefix trains. `shift_positions: false` lets the text's positions
start where they would without a prefix; the official codes shift them by P.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from raypft.batch import Batch
from raypft.methods import base

if TYPE_CHECKING:
    from raypft.backbones.base import Backbone


class Config(base.Config):
    """length: P; mlp: reparameterise; hidden: its size M; dropout: on keys and values; shift_positions: text starts at
    P; std: of the first keys and values without mlp (1 in the official codes; where the model's own are much smaller it
    drowns them)."""

    length: int = Field(default=16, ge=1)
    mlp: bool = False
    hidden: int = Field(default=512, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    shift_positions: bool = True
    std: float = Field(default=1.0, gt=0)

    @property
    def positions_taken(self) -> int:
        return self.length if self.shift_positions else 0


class Trunk(nn.Module):
    """The part of the MLP that all layers share.

    Shapes: () -> [P, M].
    """

    def __init__(self, length: int, width: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(length, width))
        self.linear = nn.Linear(width, hidden)

    def forward(self) -> Tensor:
        return self.linear(self.embedding).tanh()


class LayerPrefix(nn.Module):
    """Keys and values of one layer.

    Shapes: batch of B prompts -> keys, values [B, A, P, D] each, [1, A, P, D] where all prompts get the same.
    """

    trunk: Trunk | None

    def __init__(self, config: Config, heads: int, size: int, trunk: Trunk | None) -> None:
        super().__init__()
        self.shape = (config.length, 2, heads, size)
        self.table = nn.Parameter(config.std * torch.randn(self.shape)) if trunk is None else None
        self.linear = nn.Linear(config.hidden, 2 * heads * size) if trunk is not None else None
        self.dropout = nn.Dropout(config.dropout)
        self.__dict__["trunk"] = trunk  # a plain reference: it is the method's, not one layer's

    def keys_and_values(self) -> Tensor:
        """[2, A, P, D]."""
        table = self.table
        if self.linear is not None and self.trunk is not None:
            table = self.linear(self.trunk()).view(self.shape)
        assert table is not None
        return table.permute(1, 2, 0, 3)  # [P, 2, A, D] -> [2, A, P, D]

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        table = self.keys_and_values().unsqueeze(0)
        if self.training and self.dropout.p:
            table = self.dropout(table.expand(len(batch.ids), -1, -1, -1, -1))
        return table[:, 0], table[:, 1]


class Prefix(base.Method):
    """A prefix at every attention of the backbone."""

    Config = Config

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.num_attentions = len(backbone.attentions)
        self.trunk = Trunk(config.length, backbone.hidden, config.hidden) if config.mlp else None
        self.layers = nn.ModuleList(
            LayerPrefix(config, *backbone.key_shape, self.trunk) for _ in range(self.num_attentions)
        )
        for layer, module in enumerate(self.layers, start=1):
            backbone.on_keys(layer, module)
        backbone.take_positions(config.positions_taken)

    def parts(self) -> dict[str, Tensor]:
        """keys, values: [L, A, P, D] each."""
        both = torch.stack([cast(LayerPrefix, layer).keys_and_values() for layer in self.layers])
        return {"keys": both[:, 0], "values": both[:, 1]}

    def predicted_parameters(self) -> int:
        heads, size = self.backbone.key_shape
        length, hidden, width = self.config.length, self.config.hidden, 2 * self.num_attentions * heads * size
        if not self.config.mlp:
            return length * width
        return length * self.backbone.hidden + hidden * (self.backbone.hidden + 1) + (hidden + 1) * width


Method = Prefix

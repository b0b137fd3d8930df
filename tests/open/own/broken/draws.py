"""Adds noise that is no row's dropout: which noise a row gets depends on what it is computed with."""

import torch

from raypft.backbones.base import Backbone
from raypft.batch import Batch
from raypft.methods import base


class Draws(base.Method):
    """Query biases train; the states get noise in training."""

    def __init__(self, config: base.Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        backbone.open("*.query.bias")

    def forward(self, batch: Batch) -> torch.Tensor:
        states = super().forward(batch)
        return states + 0.01 * torch.randn_like(states) if self.training else states

    def predicted_parameters(self) -> int:
        return self.backbone.num_layers * self.backbone.hidden


Method = Draws

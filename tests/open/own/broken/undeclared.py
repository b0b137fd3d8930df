"""Trains biases of values too and does not say so in `predicted_parameters`."""

from raypft.backbones.base import Backbone
from raypft.methods import base


class Undeclared(base.Method):
    """Query biases declared, value biases not."""

    def __init__(self, config: base.Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.size = sum(p.numel() for p in backbone.open("*query.bias"))
        backbone.open("*value.bias")

    def predicted_parameters(self) -> int:
        return self.size


Method = Undeclared

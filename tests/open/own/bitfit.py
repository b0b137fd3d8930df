"""BitFit: of the pretrained model only bias terms train.

Source: Ben Zaken et al. 2022, section 3.
Formula: of every layer y = W x + b and every norm y = g * n(x) + b the b train; W and g stay.
"""

from pydantic import Field

from raypft.backbones.base import Backbone
from raypft.methods import base


class Config(base.Config):
    """biases: which ones, a glob pattern over parameter names; the paper's smaller choice is "*query.bias"."""

    biases: str = Field(default="*.bias", pattern=r"bias$")


class BitFit(base.Method):
    """Biases of the backbone, opened."""

    Config = Config
    families = ("masked", "causal")

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        # counted now: ZeRO-3 takes the shapes away
        self.size = sum(bias.numel() for bias in backbone.open(config.biases))

    def predicted_parameters(self) -> int:
        return self.size


Method = BitFit

"""Every weight of the pretrained model trains: vanilla fine-tuning, ProFiT, DP, FPFT, told apart by pattern and
readout.

Source: Ma et al. 2023 (ProFiT), section 3; Zhao & Schuetze 2021 (FT, DP); Yuan et al. 2024 (FPFT).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raypft.methods import base

if TYPE_CHECKING:
    from raypft.backbones.base import Backbone


class FullFineTuning(base.Method):
    """theta <- theta - lr * grad for all of theta, the tied output embedding included."""

    def __init__(self, config: base.Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        backbone.open("*")

    def predicted_parameters(self) -> int:
        return sum(p.numel() for p in self.backbone.model.parameters())


Method = FullFineTuning

"""Nothing trains: prompting the pretrained model as it is (Direct, majority vote), in-context learning with
demonstrations.

Source: Ma et al. 2023 (ProFiT), rows Direct and MAJ; Brown et al. 2020 for in-context learning; Yuan et al. 2024,
row ICL.
"""

from __future__ import annotations

from raypft.methods import base


class Frozen(base.Method):
    """Zero epochs; the forward pass of the backbone."""

    trains = False

    def predicted_parameters(self) -> int:
        return 0


Method = Frozen

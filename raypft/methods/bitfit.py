"""BitFit: the bias vectors of the pretrained model train, everything else is frozen.

Source: Ben Zaken et al. 2022 (BitFit), section 3.
Formula: y = W x + b, b trains; all biases of the body and of the language-model head, those of normalisations too.
Differs: none known. A model without biases in its body (Llama) has nothing to train and is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raypft.errors import UserError
from raypft.methods import base

if TYPE_CHECKING:
    from raypft.backbones.base import Backbone


class BitFit(base.Method):
    """Only biases train."""

    families = ("masked", "causal")

    def __init__(self, config: base.Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        named = (name for name, _ in backbone.model.named_parameters() if name not in backbone.fixed)
        names = [name for name in named if name.rpartition(".")[2].endswith("bias")]
        if not any(name.startswith(f"{backbone.model.base_model_prefix}.") for name in names):
            raise UserError(
                f"method: bitfit trains biases; the body of {backbone.config.model_type} models has none; use "
                "method=ia3 or method=lora"
            )
        self.size = sum(backbone.open(name)[0].numel() for name in names)

    def predicted_parameters(self) -> int:
        return self.size


Method = BitFit

"""LoRA: a trained matrix of low rank beside frozen linear layers, by peft's own layers.

Source: Hu et al. 2022, section 4.1; defaults: Yuan et al. 2024 (GNNavi), row LoRA.
Formula: y = W x + (alpha / r) B A dropout(x), A in R^{r x in}, B in R^{out x r}; B starts at 0, so the model starts
unchanged.
Differs: `targets` are peft's default for the model type (GPT-2: the fused query, key, value; most others: query and
value), and where peft has none the model's query and value, fused where the model has them fused; dropout of the frozen
model is off, only LoRA's own is active.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from pydantic import Field

from raypft.methods import base

if TYPE_CHECKING:
    from raypft.backbones.base import Backbone


class Config(base.Config):
    """rank: r; alpha; dropout: on the layers' input; targets: ends of the names of linear layers, None takes
    query and value."""

    rank: int = Field(default=8, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    targets: list[str] | None = Field(default=None, min_length=1)


class LoRA(base.Method):
    """LoRA layers in the backbone; the pretrained weights stay."""

    Config = Config

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        settings = {
            "peft_type": "LORA",
            "r": config.rank,
            "lora_alpha": config.alpha,
            "lora_dropout": config.dropout,
            "target_modules": config.targets or backbone.query_and_value(),
        }
        injected: list[Any] = [*backbone.inject(settings, "method.targets")]
        self.dropouts = [layer.lora_dropout for layer in injected]
        # in + out of every target, read now: ZeRO-3 takes the shapes away
        self.sizes = [sum(layer.get_base_layer().weight.shape) for layer in injected]

    @property
    def backbone_moves(self) -> bool:
        return False

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for dropout in self.dropouts:
            dropout.train(mode)
        return self

    def predicted_parameters(self) -> int:
        return self.config.rank * sum(self.sizes)


Method = LoRA

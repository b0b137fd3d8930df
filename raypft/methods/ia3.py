"""IA3: trained vectors scale keys, values and the inner activations of the feed-forward parts; the model is frozen.

Source: Liu et al. 2022 (T-Few), section 3.3.
Formula: attention = softmax(Q (l_k * K)^T / sqrt(D)) (l_v * V); feed-forward = W_2 (l_ff * f(W_1 x)); l_k, l_v in
R^{A x D}, l_ff in R^F, all begin at 1, so the model starts unchanged.
Parameters: L (2 A D + F), of a text-to-text model over encoder and decoder.
Differs: with rotary positions keys are scaled behind the rotation, where peft scales them before it; the attention of a
decoder to the encoder is not scaled; dropout of the frozen model is off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from raypft.backbones.anatomy import input_width
from raypft.methods import base

if TYPE_CHECKING:
    from raypft.backbones.base import Backbone


class KeyScale(nn.Module):
    """l_k and l_v of one attention.

    Shapes: () -> keys, values [A, 1, D] each.
    """

    def __init__(self, heads: int, size: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.ones(heads, 1, size))
        self.values = nn.Parameter(torch.ones(heads, 1, size))

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


class InnerScale(nn.Module):
    """l_ff of one feed-forward part.

    Shapes: [B, T, F] -> [B, T, F].
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, states: Tensor) -> Tensor:
        return states * self.scale.to(states)


class Scaled(nn.Module):
    """A frozen linear layer behind a scale; the scale is the method's, here is a plain reference."""

    scale: InnerScale

    def __init__(self, linear: nn.Module, scale: InnerScale) -> None:
        super().__init__()
        self.linear = linear
        self.__dict__["scale"] = scale

    @property
    def weight(self) -> Any:
        """The linear layer's: T5 looks at its type."""
        return self.linear.weight

    def forward(self, states: Tensor) -> Tensor:
        return self.linear(self.scale(states))


class IA3(base.Method):
    """Scales at every attention and feed-forward part."""

    def __init__(self, config: base.Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.attentions = nn.ModuleList(KeyScale(*backbone.key_shape) for _ in backbone.attentions)
        for layer, module in enumerate(self.attentions, start=1):
            backbone.scale_keys(layer, module)
        names = [feed_forward for _, feed_forward in backbone.output_names()]
        self.widths = [input_width(backbone.model.get_submodule(name)) for name in names]
        scales = [InnerScale(width) for width in self.widths]
        self.feed_forward = nn.ModuleList(scales)
        for name, scale in zip(names, scales, strict=True):
            backbone.wrap(name, lambda linear, scale=scale: Scaled(linear, scale))

    def predicted_parameters(self) -> int:
        heads, size = self.backbone.key_shape
        return len(self.attentions) * 2 * heads * size + sum(self.widths)


Method = IA3

"""GNNavi: one graph layer inside a frozen causal model; only the layer trains.

Source: Yuan et al. 2024 (GNNavi), sections on the GNN layer and experimental set-up; formulas and defaults of the
official code. Nodes are the tokens. Edges: aggregation, every earlier token i < p to each label word p of the
demonstrations; distribution, each p to the last token t. Both go through one layer in a single pass, whose output
replaces the states of all tokens.

    gcn:  out_i = b + sum_{j in N(i) + i} W x_j / sqrt(deg_i deg_j),  deg_i = 1 + in-degree(i)     (norm: sym)
          out_i = b + mean_{j in N(i) + i} W x_j                                                   (norm: mean)
    sage: out_i = W_l mean_{j in N(i)} x_j + b + W_r x_i

Differs: label words are found by marks recorded while rendering, where the official code searches the tokens and also
catches look-alikes in the query; any batch size works. `norm`, `activation`, `residual` follow the official code by
default (the slides show a mean and an activation). Dropout of the frozen model is off: GPT-2's own, 0.1, is active in
the official code, but the states below the layer could then not be kept.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from raypft.batch import Batch
from raypft.encoded import Encoded
from raypft.methods import base

if TYPE_CHECKING:
    from raypft.backbones.base import Backbone

ACTIVATIONS = {"none": nn.Identity, "relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


class Config(base.Config):
    """layer: blocks below the cut, by default L // 8 * 7; conv, norm (gcn only), activation, residual; paths to
    keep."""

    layer: int | None = None
    conv: Literal["gcn", "sage"] = "gcn"
    norm: Literal["sym", "mean"] = "sym"
    activation: Literal["none", "relu", "gelu", "tanh"] = "none"
    residual: bool = False
    aggregation: bool = True
    distribution: bool = True


class Gcn(nn.Module):
    """A graph convolution whose sums over neighbours are made already: weight and bias, as PyG's GCNConv draws them."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.lin = nn.Linear(hidden, hidden, bias=False)
        nn.init.xavier_uniform_(self.lin.weight)
        self.bias = nn.Parameter(torch.zeros(hidden))

    def forward(self, states: Tensor, at: tuple[Tensor, Tensor], mixed: Tensor) -> Tensor:
        """states [B, T, H], of which those at `at` are replaced by `mixed`, [N, H], as weighted with their neighbours'.

        Nodes without neighbours are weighted with 1, so that the states are theirs.
        """
        return self.lin(states.index_put(at, mixed)) + self.bias


class Sage(nn.Module):
    """GraphSAGE's convolution whose means over neighbours are made already, as PyG's SAGEConv draws its weights."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.lin_l = nn.Linear(hidden, hidden)
        self.lin_r = nn.Linear(hidden, hidden, bias=False)
        for linear in (self.lin_l, self.lin_r):  # PyG draws twice
            linear.reset_parameters()

    def forward(self, states: Tensor, at: tuple[Tensor, Tensor], mixed: Tensor) -> Tensor:
        """states [B, T, H]; the neighbours of those at `at` have the means `mixed`, [N, H], of others it is 0."""
        bias, *_ = given = self.lin_l(torch.cat([torch.zeros_like(states[:1, 0]), mixed]))
        return (self.lin_r(states) + bias).index_put(at, given[1:] - bias, accumulate=True)


class GraphLayer(nn.Module):
    """A graph convolution over the tokens of a padded batch.

    Few nodes have neighbours: the label words and the last token. `batch.extra` says of each prompt which ("targets",
    [N]) and how its tokens are weighted there ("mix", [N, T]); the sums are small products of matrices.

    Shapes: states [B, T, H] -> [B, T, H].
    """

    behind_a_beginning = True

    def __init__(self, config: Config, hidden: int) -> None:
        super().__init__()
        self.conv = Sage(hidden) if config.conv == "sage" else Gcn(hidden)
        self.activation = ACTIVATIONS[config.activation]()
        self.residual = config.residual

    def forward(self, states: Tensor, batch: Batch) -> Tensor:
        places, mixed = list[tuple[int, int]](), list[Tensor]()
        begins, length = batch.begins, states.shape[1]
        known = None if batch.beginning is None else batch.beginning.before[self][0]
        for row, (targets, mix) in enumerate(zip(batch.extra["targets"], batch.extra["mix"], strict=True)):
            here = slice(bisect_left(targets, begins), bisect_left(targets, begins + length))
            weights, size = mix[here].to(states.dtype), min(mix.shape[1] - begins, length)
            sums = weights[:, begins : begins + size] @ states[row, :size]
            mixed.append((sums if known is None else sums + weights[:, :begins] @ known.to(states)).to(states))
            places += [(row, target - begins) for target in targets[here]]
        at = torch.tensor(places, dtype=torch.long).view(-1, 2).to(states.device, non_blocking=True)
        out = self.activation(self.conv(states, at.unbind(1), torch.cat(mixed)))
        return states + out if self.residual else out


class GNNavi(base.Method):
    """The graph layer after `layer` blocks; everything else stays frozen and, below the layer, constant."""

    Config = Config
    families = ("causal",)
    kinds = ("choice",)  # demonstrations are of classes
    marks = ("demo_label",)

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        layer = config.layer if config.layer is not None else max(1, backbone.num_layers // 8 * 7)
        backbone.check_layer(layer, "method.layer")
        self.graph = GraphLayer(config, backbone.hidden)
        backbone.on_layer(layer, self.graph)
        self.constant_below = layer

    def columns(self, prompt: Encoded) -> dict[str, Any]:
        """Which tokens have neighbours, "targets", N numbers that ascend, and the weight of every token there, "mix"
        [N, T]."""
        sources, ends = self.edges(prompt)
        degree = torch.bincount(ends, minlength=len(prompt.ids))
        targets = degree.nonzero().flatten()
        mix = torch.zeros(len(prompt.ids), len(prompt.ids))
        mix[ends, sources] = 1.0
        if self.config.conv == "sage":
            return {"targets": targets.tolist(), "mix": mix[targets] / degree[targets].unsqueeze(1)}
        mix[targets, targets] = 1.0
        inverse = 1.0 / (1.0 + degree)
        if self.config.norm == "mean":
            return {"targets": targets.tolist(), "mix": mix[targets] * inverse[targets].unsqueeze(1)}
        both = inverse.sqrt()[targets].unsqueeze(1) * inverse.sqrt()
        return {"targets": targets.tolist(), "mix": mix[targets] * both}

    def edges(self, prompt: Encoded) -> Tensor:
        """The prompt's edges, source and target token positions, [2, E]."""
        target = prompt.marks["slot"][-1]
        pairs = []
        for anchor in prompt.marks["demo_label"]:
            if self.config.aggregation:
                pairs += [(token, anchor) for token in range(anchor)]
            if self.config.distribution:
                pairs.append((anchor, target))
        return torch.tensor(pairs, dtype=torch.long).view(-1, 2).T.contiguous()

    def predicted_parameters(self) -> int:
        h = self.backbone.hidden
        return (2 if self.config.conv == "sage" else 1) * h * h + h


Method = GNNavi

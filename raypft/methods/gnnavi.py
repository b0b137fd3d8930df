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

from typing import Literal

import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, SAGEConv

from raypft.backbones.base import Backbone
from raypft.batch import Batch
from raypft.encoded import Encoded
from raypft.methods import base

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


class GraphLayer(nn.Module):
    """A PyG convolution over the tokens of a padded batch.

    Shapes: states [B, T, H], `batch.extra["edges"]` B tensors [2, E_b] with token positions -> [B, T, H].
    """

    def __init__(self, config: Config, hidden: int) -> None:
        super().__init__()
        self.symmetric = config.norm == "sym"
        self.conv = (
            SAGEConv(hidden, hidden) if config.conv == "sage" else GCNConv(hidden, hidden, normalize=self.symmetric)
        )
        self.is_mean_gcn = config.conv == "gcn" and not self.symmetric
        self.activation = ACTIVATIONS[config.activation]()
        self.residual = config.residual

    def forward(self, states: Tensor, batch: Batch) -> Tensor:
        size, length, hidden = states.shape
        edges = torch.cat([edges + row * length for row, edges in enumerate(batch.extra["edges"])], dim=1)
        nodes = states.reshape(size * length, hidden)
        if self.is_mean_gcn:
            loops = torch.arange(len(nodes), device=nodes.device)
            edges = torch.cat([edges, loops.expand(2, -1)], dim=1)
            weight = 1.0 / torch.bincount(edges[1], minlength=len(nodes)).to(nodes.dtype)
            out = self.conv(nodes, edges, weight[edges[1]])
        else:
            out = self.conv(nodes, edges)
        out = self.activation(out).view(size, length, hidden)
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

    def columns(self, prompt: Encoded) -> dict[str, Tensor]:
        """The prompt's edges, source and target token positions, [2, E]."""
        target = prompt.marks["slot"][-1]
        pairs = []
        for anchor in prompt.marks["demo_label"]:
            if self.config.aggregation:
                pairs += [(token, anchor) for token in range(anchor)]
            if self.config.distribution:
                pairs.append((anchor, target))
        return {"edges": torch.tensor(pairs, dtype=torch.long).view(-1, 2).T.contiguous()}

    def predicted_parameters(self) -> int:
        h = self.backbone.hidden
        return (2 if self.config.conv == "sage" else 1) * h * h + h


Method = GNNavi

"""GNNavi: the graph layer against its formula written with loops, edges from marks, sizes and default layers of the
paper's models."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch_geometric.nn import GCNConv, SAGEConv
from transformers import GPT2Config, LlamaConfig

from raypft.backbones.load import backbone_from_config
from raypft.batch import collate
from raypft.contract import tiny
from raypft.encoded import Encoded
from raypft.errors import UserError
from raypft.methods.gnnavi import Config, GNNavi, GraphLayer
from raypft.tasks.load import load_task
from raypft.tasks.prompts import render
from raypft.tasks.query import Demonstration

FORMULAS = [{"conv": "gcn"}, {"conv": "gcn", "norm": "mean"}, {"conv": "sage"}]
SIZES = {
    "gpt2-xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25),
    "llama2-7b": LlamaConfig(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=11008, vocab_size=32000
    ),
    "smollm2-135m": LlamaConfig(
        hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536
    ),
}


def prompt(key: str, size: int, anchors: list[int]) -> Encoded:
    """A prompt of random tokens whose demonstrations' label words stand at `anchors`."""
    ids = torch.randint(2, 36, (size,), generator=torch.Generator().manual_seed(size)).tolist()
    return Encoded(key, "en", ids, [0] * size, {"demo_label": anchors, "slot": [size - 1]})


def method(**config) -> GNNavi:
    """GNNavi on a tiny GPT-2, with a bias that is not zero."""
    made = GNNavi(Config(layer=2, **config), tiny.backbone("gpt2")).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.graph.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return made


def by_hand(layer: GraphLayer, config: Config, states: torch.Tensor, anchors: list[int]) -> torch.Tensor:
    """The formulas in gnnavi.py's head, node by node: [T, H] -> [T, H]."""
    conv, size = cast(Any, layer.conv), len(states)
    sources: list[list[int]] = [[] for _ in range(size)]
    for anchor in anchors:
        sources[anchor] += range(anchor)
        sources[size - 1].append(anchor)
    degree = [1 + len(own) for own in sources]
    out = []
    for node, own in enumerate(sources):
        if config.conv == "sage":
            mean = sum((states[j] for j in own), torch.zeros(states.shape[1])) / max(1, len(own))
            out.append(conv.lin_l.weight @ mean + conv.lin_l.bias + conv.lin_r.weight @ states[node])
            continue
        share = {
            j: 1 / (math.sqrt(degree[node] * degree[j]) if config.norm == "sym" else degree[node]) for j in [*own, node]
        }
        out.append(conv.bias + sum(conv.lin.weight @ states[j] * weight for j, weight in share.items()))
    return torch.stack(out)


@pytest.mark.parametrize("config", FORMULAS)
@torch.no_grad()
def test_layer_equals_the_formula(config):
    """A padded batch of two prompts, each as if alone: an anchor that feeds a later one, a target next to an anchor."""
    made = method(**config)
    prompts = [prompt("a", 9, [2, 5]), prompt("b", 5, [1, 3])]
    batch = collate(prompts, 1, [made.columns(p) for p in prompts])
    states = torch.randn(2, 9, tiny.HIDDEN, generator=torch.Generator().manual_seed(4))
    out = made.graph(states, batch)
    for row, own in enumerate(prompts):
        size = len(own.ids)
        expected = by_hand(made.graph, made.config, states[row, :size], own.marks["demo_label"])
        assert torch.allclose(out[row, :size], expected, atol=1e-5)


@pytest.mark.parametrize("config", FORMULAS)
@torch.no_grad()
def test_activation_then_residual(config):
    """states + activation(layer); both off by default."""
    plain, both = method(**config), method(**config, activation="relu", residual=True)
    own = prompt("a", 9, [2, 5])
    batch = collate([own], 1, [plain.columns(own)])
    states = torch.randn(1, 9, tiny.HIDDEN, generator=torch.Generator().manual_seed(4))
    assert torch.allclose(both.graph(states, batch), states + plain.graph(states, batch).clamp(min=0), atol=1e-6)


@pytest.mark.parametrize("config", FORMULAS)
@torch.no_grad()
def test_states_of_a_prompt_do_not_depend_on_its_batch(config):
    """Through the whole model: prompts of unequal length, together and alone."""
    made = method(**config)
    prompts = [prompt("a", 9, [2, 5]), prompt("b", 5, [1, 3])]
    columns = [made.columns(p) for p in prompts]
    together = made(collate(prompts, 1, columns))
    for row, own in enumerate(prompts):
        assert torch.allclose(together[row], made(collate([own], 1, [columns[row]]))[0], atol=1e-5)


@pytest.mark.parametrize("paths", [("aggregation", "distribution"), ("aggregation",), ("distribution",), ()])
def test_edges_come_from_marks(paths):
    """sum(p) and C edges, each kind removable; a query that looks like a demonstration adds none."""
    backbone = tiny.backbone("gpt2")
    task = load_task("sentiment")
    pattern = task.pattern("gnnavi")
    demos = [
        Demonstration({"text": "a bad film"}, "negative", "en"),
        Demonstration({"text": "great film it is"}, "positive", "en"),
    ]
    made = backbone.text.encode(render(task, pattern, {"text": "it was : Positive"}, "en", demos=demos))
    tokens = backbone.text.tokenizer.convert_ids_to_tokens(made.ids)
    first, second = tokens.index("Negative"), tokens.index("Positive")
    assert made.marks["demo_label"] == [first, second]
    assert tokens.count("Positive") == 2
    config = Config(layer=1, aggregation="aggregation" in paths, distribution="distribution" in paths)
    edges = GNNavi(config, backbone).edges(made)
    expected = []
    for anchor in (first, second):
        expected += [(token, anchor) for token in range(anchor)] if "aggregation" in paths else []
    expected += [(first, len(tokens) - 1), (second, len(tokens) - 1)] if "distribution" in paths else []
    assert edges.shape == (2, (first + second) * ("aggregation" in paths) + 2 * ("distribution" in paths))
    assert sorted(map(tuple, edges.T.tolist())) == sorted(expected)


@pytest.mark.parametrize(
    ("model", "conv", "expected"),
    [
        ("gpt2-xl", "gcn", 2_561_600),
        ("gpt2-xl", "sage", 5_121_600),
        ("llama2-7b", "gcn", 16_781_312),
        ("llama2-7b", "sage", 33_558_528),
    ],
)
def test_parameter_counts_of_the_paper(model, conv, expected):
    """Fact sheet, section 1.5: predicted and counted, on the real shapes."""
    with torch.device("meta"):
        made = GNNavi(Config(conv=conv), backbone_from_config(SIZES[model]))
    assert made.predicted_parameters() == expected
    assert sum(p.numel() for p in made.trainable().values()) == expected


@pytest.mark.parametrize(("model", "expected"), [("gpt2-xl", 42), ("llama2-7b", 28), ("smollm2-135m", 21)])
def test_default_layer(model, expected):
    """Blocks below the cut: seven eighths, as the official code rounds."""
    with torch.device("meta"):
        made = GNNavi(Config(), backbone_from_config(SIZES[model]))
    assert made.constant_below == expected


@pytest.mark.parametrize("layer", [0, 4])
def test_layer_out_of_range_is_refused(layer):
    """The official code would then never apply the layer."""
    with pytest.raises(UserError, match=f"method.layer: found {layer}; expected 1 to 3"):
        GNNavi(Config(layer=layer), tiny.backbone("gpt2"))


@pytest.mark.parametrize("config", FORMULAS)
def test_the_layer_is_pygs_with_the_same_seed(config):
    """The same first values, bit for bit, and the same output: what the official code calls."""
    torch.manual_seed(5)
    made = GraphLayer(Config(**config), tiny.HIDDEN)
    torch.manual_seed(5)
    if config["conv"] == "sage":
        theirs = SAGEConv(tiny.HIDDEN, tiny.HIDDEN)
    else:
        theirs = GCNConv(tiny.HIDDEN, tiny.HIDDEN, normalize=config.get("norm") != "mean")
    ours, expected = dict(made.conv.state_dict()), dict(theirs.state_dict())
    assert set(ours) == set(expected)
    assert all(torch.equal(ours[name], expected[name]) for name in ours)
    assert torch.rand(1) == torch.rand(1, generator=_generator_after(config))
    states, own = torch.randn(1, 9, tiny.HIDDEN), prompt("a", 9, [2, 5])
    method_of = GNNavi(Config(layer=2, **config), tiny.backbone("gpt2"))
    edges, weight = method_of.edges(own), None
    if config.get("norm") == "mean":
        edges = torch.cat([edges, torch.arange(9).expand(2, -1)], dim=1)
        weight = (1.0 / torch.bincount(edges[1], minlength=9))[edges[1]]
    out = theirs(states[0], edges) if weight is None else theirs(states[0], edges, weight)
    found = made(states, collate([own], 1, [method_of.columns(own)]))
    assert torch.allclose(found[0], out, atol=1e-6)


def _generator_after(config) -> torch.Generator:
    """Where PyG's layer leaves torch's generator."""
    torch.manual_seed(5)
    (SAGEConv if config["conv"] == "sage" else GCNConv)(tiny.HIDDEN, tiny.HIDDEN)
    generator = torch.Generator()
    generator.set_state(torch.get_rng_state())
    torch.manual_seed(5)
    GraphLayer(Config(**config), tiny.HIDDEN)
    return generator

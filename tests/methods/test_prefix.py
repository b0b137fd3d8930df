"""Prefix: equal to past_key_values, the formula by hand, every family and attention function, counts, errors."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from test_backbones import ALL, OTHERS, Mix, pair, prompts
from torch import nn
from transformers import BloomConfig, DynamicCache, GPT2Config, LlamaConfig, XLMRobertaConfig

from raypft.backbones.load import backbone_from_config
from raypft.batch import collate
from raypft.contract import tiny
from raypft.errors import UserError
from raypft.methods.prefix import Config, LayerPrefix, Prefix, Trunk

P = 5
CAUSAL = [kind for kind in ALL if kind not in tiny.FAMILIES["masked"]]
# gemma2's windows let transformers' own cache forget the prefix
CACHED = [kind for kind in CAUSAL if kind != "gemma2"]


def made(kind: str, **config) -> tuple[Prefix, nn.Module]:
    """A prefix on a backbone with spread weights, and the untouched model with the same ones."""
    backbone, plain = pair(kind)
    torch.manual_seed(3)
    return Prefix(Config(length=P, **config), backbone).eval(), plain


@pytest.mark.parametrize("kind", CACHED)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_equal_to_past_key_values(kind, attention):
    """A padded batch gives each prompt the states transformers computes after a cache of P positions, grouped heads
    included."""
    backbone, plain = pair(kind)
    backbone.config._attn_implementation = plain.config._attn_implementation = attention
    method = Prefix(Config(length=P), backbone).eval()
    states = method(collate(prompts(kind), 1))
    batch = collate(prompts(kind)[:1], 1)
    for row, prompt in enumerate(prompts(kind)):
        cache = DynamicCache()
        for layer, module in enumerate(method.layers):
            cache.update(*module(batch), layer)
        mask = torch.ones(1, P + len(prompt.ids))
        found = plain(
            input_ids=torch.tensor([prompt.ids]), attention_mask=mask, past_key_values=cache, output_hidden_states=True
        )
        torch.testing.assert_close(states[row], found.hidden_states[-1][0, -1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", tiny.FAMILIES["masked"])
@torch.no_grad()
def test_masked_attention_by_hand(kind):
    """softmax(Q [K_l; K] / sqrt(D)) [V_l; V], token by token and head by head; padding is seen by nobody."""
    method, _ = made(kind)
    attention = cast(Any, method.backbone.attentions[1])
    seen: list = []
    attention.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output[0])))
    batch = collate(prompts(kind), 1)
    method(batch)
    first_keys, first_values = method.layers[1](batch)
    heads, size = method.backbone.key_shape
    for row, prompt in enumerate(prompts(kind)):
        states = seen[0][0][row, : len(prompt.ids)]
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            query, key, value = (linear(states)[:, own] for linear in (attention.query, attention.key, attention.value))
            key, value = torch.cat([first_keys[0, head], key]), torch.cat([first_values[0, head], value])
            expected = torch.stack([((key @ one) / size**0.5).softmax(0) @ value for one in query])
            torch.testing.assert_close(seen[0][1][row, : len(prompt.ids), own], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ALL)
@torch.no_grad()
def test_eager_attention_gives_the_same_states(kind):
    method, _ = made(kind)
    batch = collate(prompts(kind), 1)
    states = method(batch)
    backbone = method.backbone
    backbone.forget_seams()
    backbone.config._attn_implementation = "eager"
    for layer, module in enumerate(method.layers, start=1):
        backbone.on_keys(layer, module)
    backbone.take_positions(P)
    torch.testing.assert_close(method(batch), states, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("mlp", [False, True])
def test_every_layer_learns_and_the_backbone_stays_frozen(kind, mlp):
    method, _ = made(kind, mlp=mlp)
    method(collate(prompts(kind), 1))[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.trainable().values())
    assert not any(p.requires_grad for p in method.backbone.parameters())
    assert sum(p.numel() for p in method.trainable().values()) == method.predicted_parameters()


@pytest.mark.parametrize("kind", ALL)
@torch.no_grad()
def test_reset_takes_it_off(kind):
    """Bit for bit the states of before, the name of the attention function and the positions too."""
    backbone, _ = pair(kind)
    backbone._pristine = backbone.checksum()
    batch, before, name = (
        collate(prompts(kind), 1),
        backbone(collate(prompts(kind), 1)),
        backbone.config._attn_implementation,
    )
    method = Prefix(Config(length=P), backbone).eval()
    assert not torch.allclose(method(batch), before, atol=1e-2)
    backbone.reset()
    assert torch.equal(backbone(batch), before)
    assert backbone.config._attn_implementation == name
    assert not any("gives_keys" in vars(module) for module in backbone.modules())


POSITIONS = {
    "bert": ("embeddings.position_embeddings", 0),
    "xlmr": ("embeddings.position_embeddings", 2),
    "gpt2": ("wpe", 0),
}


@pytest.mark.parametrize("kind", POSITIONS)
@pytest.mark.parametrize("shift", [False, True])
@torch.no_grad()
def test_the_text_starts_after_the_prefix_if_asked(kind, shift):
    method, _ = made(kind, shift_positions=shift)
    name, first = POSITIONS[kind]
    seen: list = []
    method.backbone.model.base_model.get_submodule(name).register_forward_hook(
        lambda _, inputs, __: seen.append(inputs[0])
    )
    method(collate(prompts(kind)[:1], 1))
    start = first + (P if shift else 0)
    assert seen[0][0].tolist() == list(range(start, start + 9))
    assert method.config.positions_taken == (P if shift else 0)


@pytest.mark.parametrize("kind", ALL)
@torch.no_grad()
def test_states_below_a_cut_include_the_prefix(kind):
    """Going on from `lower` equals the whole pass, with a prefix below and above the cut and a seam at it."""
    method, _ = made(kind)
    backbone = method.backbone
    backbone.on_layer(2, Mix())
    batch = collate(prompts(kind), 1)
    whole, kept = method(batch), backbone.lower(batch, 2)
    cached = collate(prompts(kind), 1, lower=[kept[row, : len(p.ids)] for row, p in enumerate(prompts(kind))])
    torch.testing.assert_close(method(cached), whole, rtol=0, atol=1e-5)
    assert torch.equal(method(batch), whole)


@torch.no_grad()
def test_mlp_by_hand():
    """(K, V) of token i in layer l: W_l tanh(U e_i + c) + b_l, the first half keys, head after head."""
    method, _ = made("llama", mlp=True, hidden=7)
    layer, trunk = cast(Any, method.layers[2]), cast(Trunk, method.trunk)
    keys, values = layer(collate(prompts("llama"), 1))
    assert keys.shape == values.shape == (1, 2, P, 8)
    for token in range(P):
        inner = (trunk.linear.weight @ trunk.embedding[token] + trunk.linear.bias).tanh()
        both = layer.linear.weight @ inner + layer.linear.bias
        expected = torch.cat([keys[0, 0, token], keys[0, 1, token], values[0, 0, token], values[0, 1, token]])
        torch.testing.assert_close(both, expected)
    assert method.predicted_parameters() == P * 32 + 7 * 32 + 7 + 3 * (7 + 1) * 2 * 2 * 8


def test_dropout_is_drawn_for_every_prompt_while_training():
    method, _ = made("gpt2", dropout=0.5)
    batch = collate(prompts("gpt2"), 1)
    table = cast(Any, method.layers[0]).table[:, 0].permute(1, 0, 2)  # [P, A, D] -> [A, P, D]
    keys, _ = method.train().layers[0](batch)
    assert not torch.equal(keys[0], keys[1])
    assert torch.equal(keys[0][keys[0] != 0], 2 * table[keys[0] != 0])
    keys, values = method.eval().layers[0](batch)
    assert torch.equal(keys[0], table)
    assert keys.shape == values.shape


GPT2_XL = GPT2Config(n_embd=1600, n_layer=48, n_head=25, architectures=["GPT2LMHeadModel"])
LLAMA_2_7B = LlamaConfig(architectures=["LlamaForCausalLM"])
XLMR_LARGE = XLMRobertaConfig(
    vocab_size=250002,
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    architectures=["XLMRobertaForMaskedLM"],
)
SIZES = [(GPT2_XL, 40, 6_144_000), (LLAMA_2_7B, 150, 39_321_600), (XLMR_LARGE, 1, 49_152)]


@pytest.mark.parametrize(("config", "length", "expected"), SIZES, ids=["gpt2-xl", "llama-2-7b", "xlmr-large"])
def test_parameter_counts_of_the_papers(config, length, expected):
    with torch.device("meta"):
        method = Prefix(Config(length=length), backbone_from_config(config))
    assert sum(p.numel() for p in method.trainable().values()) == method.predicted_parameters() == expected


def test_attention_that_takes_no_keys_is_refused():
    bloom = BloomConfig(vocab_size=40, hidden_size=32, n_layer=2, n_head=4, architectures=["BloomForCausalLM"])
    with pytest.raises(UserError, match="BloomBlock has no attention that can take keys"):
        Prefix(Config(), backbone_from_config(bloom))
    backbone = tiny.backbone("gpt2")
    backbone.config._attn_implementation = "flex_attention"
    with pytest.raises(UserError, match="gpt2 with flex_attention attention can't take keys"):
        Prefix(Config(), backbone)


def test_layers_are_counted_from_one():
    for layer in (0, 4):
        with pytest.raises(UserError, match="expected 1 to 3"):
            tiny.backbone("bert").on_keys(layer, nn.Identity())


@pytest.mark.parametrize(("kind", "expected"), [("bert", 160), ("xlmr", 158), ("gpt2", 160), ("qwen2", 160)])
def test_positions_a_text_can_take(kind, expected):
    """RoBERTa's first two rows of the table are no positions: a text of all positions runs, one token more does not
    fit."""
    backbone = backbone_from_config(OTHERS[kind]) if kind in OTHERS else tiny.backbone(kind)
    assert backbone.num_positions == expected
    if kind in tiny.FAMILIES["masked"]:
        for size, fits in ((expected, True), (expected + 1, False)):
            ids = torch.full((1, size), 7)
            try:
                backbone.model(ids, attention_mask=torch.ones_like(ids), token_type_ids=torch.zeros_like(ids))
            except (IndexError, RuntimeError):
                assert not fits
            else:
                assert fits


def test_the_first_keys_and_values_are_spread_as_asked():
    backbone, _ = pair("llama")
    small = Prefix(Config(length=64, std=0.1), backbone).parts()
    assert float(small["keys"].detach().std()) == pytest.approx(0.1, rel=0.05)
    assert float(small["values"].detach().std()) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize(("training", "dropout", "each"), [(True, 0.5, 3), (True, 0.0, 1), (False, 0.5, 1)])
def test_every_prompt_has_keys_of_its_own_only_where_they_are_dropped(training, dropout, each):
    layer = LayerPrefix(Config(length=P, dropout=dropout), 2, 4, None).train(training)
    batch: Any = type("Batch", (), {"ids": torch.zeros(3, 7)})
    keys, values = layer(batch)
    assert keys.shape == values.shape == (each, 2, P, 4)
    assert bool((keys == 0).any()) == (each > 1)
    whole = layer.keys_and_values()
    kept = keys != 0
    assert torch.allclose(keys[kept], (whole[0].expand_as(keys) / (1 - dropout * (each > 1)))[kept])
    assert (Config(length=P).positions_taken, Config(length=P, shift_positions=False).positions_taken) == (P, 0)


def test_its_parts_are_keys_and_values_of_every_layer():
    method, _ = made("gpt2")
    parts = method.parts()
    for number, layer in enumerate(method.layers):
        keys, values = cast(LayerPrefix, layer).keys_and_values()
        assert torch.equal(parts["keys"][number], keys)
        assert torch.equal(parts["values"][number], values)

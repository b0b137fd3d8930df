"""Adapters: the formula at both placements, the paper's counts, a start near identity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from test_backbones import ALL, pair, prompts
from test_prefix import GPT2_XL, LLAMA_2_7B
from torch import nn

from raypft.backbones.load import backbone_from_config
from raypft.batch import collate
from raypft.contract import tiny
from raypft.errors import UserError
from raypft.methods.adapter import Adapter, Bottleneck, Config, bottleneck_size

PLACEMENTS = ["houlsby", "pfeiffer"]


def spread_adapters(method: Adapter) -> None:
    """Adapter weights far from 0."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in method.trainable().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)


@pytest.mark.parametrize(
    ("config", "expected"), [(GPT2_XL, 15_441_600), (LLAMA_2_7B, 67_248_128)], ids=["gpt2-xl", "llama-2-7b"]
)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_parameter_counts_of_the_paper(config, expected, placement):
    """The paper's row is pfeiffer; houlsby has twice as many."""
    with torch.device("meta"):
        method = Adapter(Config(placement=placement), backbone_from_config(config))
    factor = 2 if placement == "houlsby" else 1
    assert sum(p.numel() for p in method.trainable().values()) == method.predicted_parameters() == factor * expected


@pytest.mark.parametrize(("placement", "std"), [("houlsby", 0.01), ("pfeiffer", 0.02)])
def test_the_first_weights_are_drawn_from_a_normal_that_is_cut_at_two_deviations(placement, std):
    """Its deviation is 0.88 of that of the whole."""
    torch.manual_seed(0)
    made = Bottleneck(Config(placement=placement, reduction=2), 200)
    for linear in (made.down, made.up):
        assert float(linear.weight.detach().std()) == pytest.approx(0.88 * std, rel=0.02)
        assert -2 * std <= float(linear.weight.detach().min()) < -1.95 * std
        assert 1.95 * std < float(linear.weight.detach().max()) <= 2 * std
        assert not linear.bias.any()


def test_the_bottleneck_is_rounded_down_and_never_nothing():
    assert [bottleneck_size(hidden, 8) for hidden in (7, 8, 15, 16, 23)] == [1, 1, 1, 2, 2]


@torch.no_grad()
def test_formula_by_hand():
    """x + U f(D x + c) + b, with r = H / reduction."""
    for name, function in {
        "relu": lambda x: x.clamp(min=0),
        "tanh": torch.tanh,
        "silu": lambda x: x * x.sigmoid(),
    }.items():
        method = Adapter(Config.model_validate({"reduction": 8, "nonlinearity": name}), tiny.backbone("gpt2"))
        spread_adapters(method)
        adapter, states = cast(Bottleneck, method.adapters[1]), torch.randn(2, 3, tiny.HIDDEN)
        assert adapter.down.weight.shape == (4, tiny.HIDDEN)
        for row in range(2):
            for token in range(3):
                x = states[row, token]
                expected = (
                    x + adapter.up.weight @ function(adapter.down.weight @ x + adapter.down.bias) + adapter.up.bias
                )
                torch.testing.assert_close(adapter(states)[row, token], expected)


def seen_by(module: nn.Module, run: Callable[[], object]) -> tuple[tuple, torch.Tensor]:
    """The inputs and the output of a module while something runs, the output as it leaves (after a backbone's
    seams)."""
    seen: list = []
    handle = module.register_forward_hook(
        lambda _, inputs, output: seen.append((inputs, output[0] if isinstance(output, tuple) else output))
    )
    run()
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "gemma"])
@pytest.mark.parametrize("placement", PLACEMENTS)
@torch.no_grad()
def test_causal_blocks_by_hand(kind, placement):
    """houlsby: x + A(attention), x + A(feed-forward); pfeiffer: A(x + feed-forward)."""
    backbone, plain = pair(kind)
    method = Adapter(Config(placement=placement), backbone).eval()
    spread_adapters(method)
    batch = collate(prompts(kind)[:1], 1)
    block = (plain.transformer.h if kind == "gpt2" else plain.model.layers)[1]
    attention, norm = (block.attn, block.ln_2) if kind == "gpt2" else (block.self_attn, block.post_attention_layernorm)
    (states, *_), found = seen_by(backbone.blocks[1], lambda: method(batch))
    block.register_forward_pre_hook(lambda _, inputs: (states, *inputs[1:]))  # the same states into the untouched block
    _, attended = seen_by(attention, lambda: plain(input_ids=batch.ids, attention_mask=batch.mask))
    if placement == "houlsby":
        middle = states + method.adapters[2](attended)
        expected = middle + method.adapters[3](block.mlp(norm(middle)))
    else:
        middle = states + attended
        expected = method.adapters[1](middle + block.mlp(norm(middle)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", tiny.FAMILIES["masked"])
@torch.no_grad()
def test_masked_blocks_by_hand(kind):
    """houlsby: norm(x + A(output)) at attention and feed-forward part."""
    backbone, plain = pair(kind)
    method = Adapter(Config(placement="houlsby"), backbone).eval()
    spread_adapters(method)
    own, blank = (cast(Any, model.base_model).encoder.layer[1] for model in (backbone.model, plain))
    states, hidden = torch.randn(1, 4, tiny.HIDDEN), torch.randn(1, 4, 64)
    expected = blank.output.LayerNorm(states + method.adapters[3](blank.output.dense(hidden)))
    torch.testing.assert_close(own.output(hidden, states), expected)
    expected = blank.attention.output.LayerNorm(states + method.adapters[2](blank.attention.output.dense(states)))
    torch.testing.assert_close(own.attention.output(states, states), expected)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_starts_near_identity_and_trains_alone(kind, placement):
    """States move by less than 5 % of their size at first; all adapters and nothing else get gradients; reset takes
    them off."""
    backbone, _ = pair(kind)
    backbone._pristine = backbone.checksum()
    batch = collate(prompts(kind), 1)
    with torch.no_grad():
        before = backbone(batch)
    method = Adapter(Config(placement=placement, reduction=2), backbone).eval()
    states = method(batch)
    assert 0 < (states - before).norm() < 0.05 * before.norm()
    states[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.trainable().values())
    assert all(name.startswith("adapters.") for name in method.trainable())
    assert len(method.adapters) == (6 if placement == "houlsby" else 3)
    backbone.reset()
    with torch.no_grad():
        assert torch.equal(backbone(batch), before)


def test_blocks_of_unknown_names_are_refused():
    with pytest.raises(UserError, match=r"the blocks of gpt_oss do not end in linear layers that a method could find"):
        Adapter(Config(placement="houlsby"), tiny.backbone("gpt-oss"))

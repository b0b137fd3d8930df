"""IA3 and BitFit: what they scale and open, beside peft's IA3 and by hand."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from peft import IA3Config, get_peft_model

from raypft.backbones import guard
from raypft.batch import collate
from raypft.contract import tiny
from raypft.errors import UserError
from raypft.methods.base import Config
from raypft.methods.bitfit import BitFit
from raypft.methods.ia3 import IA3

PLACES = {
    "bert": (r".*self\.(key|value)|.*layer\.\d+\.output\.dense", r".*layer\.\d+\.output\.dense"),
    "t5": (r".*SelfAttention\.(k|v)|.*DenseReluDense\.wo", r".*DenseReluDense\.wo"),
}
"""Where peft is to put its scales: keys, values and the layer whose input is scaled. T5 and BERT do not rotate keys."""


def spread(method) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in method.trainable().values():
            parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))


@pytest.mark.parametrize("kind", ["bert", "t5"])
@torch.no_grad()
def test_it_is_pefts(kind):
    backbone, plain = tiny.backbone(kind), tiny.backbone(kind)
    method = IA3(Config(), backbone).eval()
    spread(method)
    target, feed_forward = cast(Any, PLACES[kind])
    settings = IA3Config(target_modules=target, feedforward_modules=feed_forward)
    peft = get_peft_model(plain.model, settings).eval()
    scales = [p for name, p in peft.named_parameters() if "ia3_l" in name]
    ours: list[torch.Tensor] = []
    for attention, inner in zip(cast(Any, method.attentions), cast(Any, method.feed_forward), strict=True):
        ours += [attention.keys.flatten(), attention.values.flatten(), inner.scale]
    assert len(scales) == len(ours)
    for theirs, own in zip(scales, ours, strict=True):
        theirs.copy_(own.view(theirs.shape))
    batch = collate(guard.prompts(backbone), 1)
    more = {"decoder_input_ids": batch.target} if kind == "t5" else {"token_type_ids": batch.segments}
    expected = peft(input_ids=batch.ids, attention_mask=batch.mask, **more).logits
    found = backbone.vocabulary_scores(method(batch))
    torch.testing.assert_close(found, expected[batch.slots[:, 0], batch.slots[:, 1]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt-neox", "modernbert"])
@torch.no_grad()
def test_keys_values_and_inner_activations_are_scaled_and_nothing_else(kind):
    """Scales of 1 change nothing; of 0 on values and inside, only biases are left of its halves."""
    backbone, plain = tiny.backbone(kind), tiny.backbone(kind)
    batch = collate(guard.prompts(backbone), 1)
    method = IA3(Config(), backbone).eval()
    torch.testing.assert_close(method(batch), plain(batch), rtol=0, atol=1e-6)
    seen: list[torch.Tensor] = []
    block = backbone.blocks[1]
    block.register_forward_hook(lambda _, inputs, output: seen.extend(cast(Any, [inputs[0], output])), prepend=True)
    for name, parameter in backbone.model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
    for attention in cast(Any, method.attentions):
        attention.values.zero_()
    for inner in cast(Any, method.feed_forward):
        inner.scale.zero_()
    method(batch)
    states = seen[1][0] if isinstance(seen[1], tuple) else seen[1]
    torch.testing.assert_close(states, seen[0], rtol=0, atol=1e-6)


def test_counts_and_what_trains():
    backbone = tiny.backbone("llama")
    method = IA3(Config(), backbone)
    assert method.predicted_parameters() == 3 * (2 * 2 * 8 + 64) == sum(p.numel() for p in method.trainable().values())
    backbone.reset()
    with pytest.raises(UserError, match="the body of llama models has none; use method=ia3 or method=lora"):
        BitFit(Config(), backbone)
    bert = tiny.backbone("bert")
    bitfit = BitFit(Config(), bert)
    assert all(name.endswith("bias") for name in bitfit.trainable())
    assert len(bitfit.trainable()) == len([name for name, _ in bert.model.named_parameters() if name.endswith("bias")])

"""LoRA: peft's layers by their formula, the papers' counts, a clean reset, adapters that plain peft loads."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from peft import PeftModel
from test_backbones import ALL, OTHERS, pair, prompts
from test_prefix import GPT2_XL, LLAMA_2_7B
from torch import nn
from transformers import CamembertConfig

from raypft.backbones.export import save_peft
from raypft.backbones.load import backbone_from_config
from raypft.batch import collate
from raypft.contract import tiny
from raypft.errors import UserError
from raypft.methods.full import FullFineTuning
from raypft.methods.lora import Config, LoRA


def trained(kind: str, **config) -> tuple[LoRA, nn.Module]:
    """LoRA with both matrices away from their start, and the untouched model."""
    backbone, plain = pair(kind)
    backbone._pristine = backbone.checksum()
    method = LoRA(Config(**config), backbone).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in method.trainable().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
    return method, plain


@pytest.mark.parametrize(
    ("config", "expected"), [(GPT2_XL, 2_457_600), (LLAMA_2_7B, 4_194_304)], ids=["gpt2-xl", "llama-2-7b"]
)
def test_parameter_counts_of_the_paper(config, expected):
    with torch.device("meta"):
        method = LoRA(Config(), backbone_from_config(config))
    assert sum(p.numel() for p in method.trainable().values()) == method.predicted_parameters() == expected


@torch.no_grad()
def test_formula_by_hand():
    """W x + (alpha / r) B A x, on GPT-2's transposed layers too."""
    for kind, name in (("gpt2", "transformer.h.1.attn.c_attn"), ("bert", "bert.encoder.layer.1.attention.self.query")):
        method, plain = trained(kind, rank=4, alpha=10)
        layer, states = cast(Any, method.backbone.model.get_submodule(name)), torch.randn(6, tiny.HIDDEN)
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert down.shape == (4, tiny.HIDDEN)
        torch.testing.assert_close(layer(states), plain.get_submodule(name)(states) + 10 / 4 * states @ down.T @ up.T)


@pytest.mark.parametrize("kind", ALL)
def test_starts_unchanged_and_trains_alone(kind):
    """B = 0: bit for bit the states of before; only LoRA's matrices train, by their names below the method."""
    backbone, _ = pair(kind)
    backbone.shortcuts = False  # LoRA's maps are no plain ones, which a shortcut of the last block asks for
    batch = collate(prompts(kind), 1)
    with torch.no_grad():
        before = backbone(batch)
    method = LoRA(Config(), backbone).eval()
    states = method(batch)
    assert torch.equal(states, before)
    states[:, 0].sum().backward()
    assert all("lora_" in name for name in method.trainable())
    raised = [p.grad for name, p in method.trainable().items() if "lora_B" in name]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in raised)
    assert len(method.trainable()) == 2 * 3 * (1 if kind == "gpt2" else 2)


@pytest.mark.parametrize("kind", ALL)
@torch.no_grad()
def test_reset_takes_it_off(kind):
    """The states of before bit for bit, no module or attribute of peft left, and other methods count as ever."""
    method, plain = trained(kind)
    backbone, batch = method.backbone, collate(prompts(kind), 1)
    changed = method(batch)
    backbone.reset()
    fresh = tiny.backbone(kind) if kind in tiny.KINDS else backbone_from_config(copy.deepcopy(OTHERS[kind])).eval()
    fresh.model.load_state_dict(plain.state_dict())
    assert torch.equal(backbone(batch), fresh(batch))
    assert not torch.allclose(backbone(batch), changed, atol=1e-3)
    assert [name for name, _ in backbone.model.named_modules()] == [name for name, _ in plain.named_modules()]
    assert not hasattr(backbone.model, "peft_config")
    assert sum(p.numel() for p in FullFineTuning(FullFineTuning.Config(), backbone).trainable().values()) == sum(
        p.numel() for p in plain.parameters()
    )


@pytest.mark.parametrize("kind", ALL)
@torch.no_grad()
def test_plain_peft_loads_what_was_saved(kind, tmp_path):
    """PeftModel.from_pretrained on the untouched model gives our logits."""
    method, plain = trained(kind)
    save_peft(method.backbone, tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
    }
    loaded = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    states = method(collate(prompts(kind), 1))
    scores = method.backbone.vocabulary_scores(states)
    for row, prompt in enumerate(prompts(kind)):
        ids, segments = torch.tensor([prompt.ids]), {"token_type_ids": torch.tensor([prompt.segments])}
        found = loaded(
            input_ids=ids, attention_mask=torch.ones_like(ids), **(segments if kind in tiny.FAMILIES["masked"] else {})
        )
        torch.testing.assert_close(found.logits[0, prompt.marks["slot"][0]], scores[row], rtol=0, atol=1e-4)


def test_only_the_dropout_of_lora_is_active():
    """While training: its own layers drop, the frozen model's do not."""
    method = LoRA(Config(dropout=0.5), tiny.backbone("gpt2", dropout=0.5)).train()
    active = {name for name, m in method.named_modules() if isinstance(m, nn.Dropout) and m.training}
    assert active
    assert all("lora_dropout" in name for name in active)
    assert not any(m.training for m in method.eval().modules() if isinstance(m, nn.Dropout))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "mt5"])
def test_around_the_output_embedding_it_has_its_part_in_every_score(kind):
    """Of all columns and of some, with and without the model's code around that layer; each of its parts trains."""
    backbone = tiny.backbone(kind)
    (name,) = [name for name, module in backbone.model.named_modules() if module is backbone.decoder]
    before = backbone.vocabulary_scores(states := torch.randn(3, backbone.state_size))
    method = LoRA(Config(targets=[name.rpartition(".")[2]]), backbone).eval()
    for parameter in method.trainable().values():
        nn.init.normal_(parameter)
    columns = torch.tensor([7, 3, 11])
    for backbone.shortcuts in (True, False):
        whole, some = backbone.vocabulary_scores(states), backbone.vocabulary_scores(states, columns)
        assert not torch.allclose(whole, before, atol=1e-2)
        torch.testing.assert_close(some, whole[:, columns])
        some.sum().backward()
        assert all(parameter.grad is not None for parameter in method.trainable().values())


def test_targets_are_checked():
    method = LoRA(Config(targets=["mlp.c_fc"]), tiny.backbone("gpt2"))
    assert all(".mlp.c_fc." in name for name in method.trainable())
    backbone = tiny.backbone("gpt2")
    with pytest.raises(
        UserError,
        match=r"method.targets: found \['q_proj'\]; expected some of this model's linear layers: c_attn, c_proj",
    ):
        LoRA(Config(targets=["q_proj"]), backbone)
    assert not hasattr(backbone.model, "peft_config")
    backbone.reset()
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    unknown = backbone_from_config(CamembertConfig(vocab_size=40, **sizes, architectures=["CamembertForMaskedLM"]))
    named = [name for name in LoRA(Config(), unknown).trainable() if "lora_A" in name]
    assert [name.split(".")[-4] for name in named] == ["query", "value"] * 2, "peft has no default for camembert"


def test_nothing_injected_nothing_saved(tmp_path):
    with pytest.raises(UserError, match="no layers of peft; expected method=lora"):
        save_peft(backbone_from_config(OTHERS["qwen2"]), tmp_path)

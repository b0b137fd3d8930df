"""Model types beyond the table: right, or one line, and that in check where shapes alone say it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from raypft.backbones import guard
from raypft.backbones.load import backbone_from_config, load_backbone, load_skeleton
from raypft.batch import collate
from raypft.contract import cases, tiny
from raypft.errors import UserError
from raypft.runs.prepare import try_shapes

SIZES: dict[str, Any] = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 160,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
GPT = {"vocab_size": tiny.VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 160}
LATENT: dict[str, Any] = {
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 3,
}
MIXTURE = {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, "num_key_value_heads": 2}


def made(name: str, **settings: Any) -> Any:
    """A random model of a configuration's class, its weights spread."""
    config = getattr(transformers, name)(**settings)
    auto = AutoModelForMaskedLM if "is_decoder" not in settings and name in MASKED else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


MASKED = ("EsmConfig", "FNetConfig", "MraConfig", "NystromformerConfig", "IBertConfig", "BertConfig")


def written(folder: Path, model: Any, masked: bool) -> str:
    model.save_pretrained(folder)
    tiny.tokenizer(masked).save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def test_a_head_that_needs_all_columns_gives_the_chosen_ones(tmp_path):
    """ESM adds a bias of the whole vocabulary behind its output layer."""
    model = made("EsmConfig", **SIZES, mask_token_id=4, position_embedding_type="rotary")
    backbone = load_backbone(written(tmp_path, model, masked=True))
    states = backbone(collate(guard.prompts(backbone), backbone.pad))
    columns = torch.tensor([7, 3, 11])
    expected = backbone.vocabulary_scores(states)[:, columns]
    torch.testing.assert_close(backbone.vocabulary_scores(states, columns), expected, rtol=0, atol=1e-6)


def test_a_masked_model_without_an_attention_mask_is_refused_in_check(tmp_path):
    model = made("FNetConfig", **{k: v for k, v in SIZES.items() if k != "num_attention_heads"})
    with pytest.raises(UserError, match="fnet is not supported: it has no attention mask"):
        load_skeleton(written(tmp_path, model, masked=True))


def test_a_model_whose_attention_does_nothing_is_refused(tmp_path):
    """As MRA's does without its kernel."""
    folder = written(tmp_path, made("MraConfig", **SIZES), masked=True)
    with pytest.raises(UserError, match="do not change with the words beside it"):
        load_backbone(folder)


def test_a_model_that_fails_on_short_texts_is_one_line(tmp_path):
    folder = written(tmp_path, made("NystromformerConfig", **SIZES, segment_means_seq_len=160, num_landmarks=8), True)
    with pytest.raises(UserError, match="can't score three short texts") as raised:
        load_backbone(folder)
    assert "\n" not in str(raised.value)


def test_nothing_is_put_behind_an_embedding_that_gives_more_than_states():
    config = transformers.IBertConfig(**SIZES)
    backbone = backbone_from_config(config, tiny.tokenizer(True))
    with pytest.raises(UserError, match="gives no plain states"):
        cases.cell("soft_prompt", backbone)


def test_a_head_of_a_decoder_whose_classifier_reads_the_first_token_is_refused():
    backbone = backbone_from_config(transformers.BertConfig(**SIZES, is_decoder=True), tiny.tokenizer(False))
    assert backbone.family == "causal"
    with pytest.raises(UserError, match="BertForSequenceClassification is no linear layer on the last token"):
        backbone.head(2)


def test_keys_of_another_shape_than_the_configuration_says_are_told_in_check():
    """DeepSeek's keys are longer than head_dim, which counts their rotated part alone."""
    config = transformers.DeepseekV2Config(**SIZES, **LATENT)
    with torch.device("meta"):
        skeleton = backbone_from_config(config, tiny.tokenizer(False))
    cell = cases.cell("prefix", skeleton)
    with pytest.raises(UserError, match=r"have the heads and sizes \[4, 8\] and \[4, 8\]; expected \[4, 4\]"):
        try_shapes(cell.learner.method, cell.prompts[:1])


def test_terms_that_a_router_keeps_for_itself_are_no_biases_to_train(tmp_path):
    model = made("Ernie4_5_MoeConfig", **SIZES, **MIXTURE)
    backbone = load_backbone(written(tmp_path, model, masked=False))
    assert any("e_score_correction_bias" in name for name in backbone.fixed)
    with pytest.raises(UserError, match="bitfit trains biases"):
        cases.cell("bitfit", backbone)


@torch.no_grad()
def test_blocks_that_give_lists_take_layers_between_them(tmp_path):
    """GPT, the first: states below a cut give what the whole pass gives."""
    model = made("OpenAIGPTConfig", **GPT)
    backbone = load_backbone(written(tmp_path, model, masked=False))
    batch = collate(guard.prompts(backbone), backbone.pad)
    whole, below = backbone.body(batch), backbone.lower(batch, 2)
    again = backbone.body(collate(guard.prompts(backbone), backbone.pad, lower=_rows(below)), 2)
    torch.testing.assert_close(again[batch.mask == 1], whole[batch.mask == 1], rtol=0, atol=1e-6)


def _rows(below: torch.Tensor) -> list[torch.Tensor]:
    return [row[:length] for row, length in zip(below, guard.LENGTHS, strict=True)]


@pytest.mark.parametrize("labels", [2, 5])
@pytest.mark.parametrize(
    ("kind", "auto"),
    [
        ("bert", AutoModelForSequenceClassification),
        ("bert", AutoModelForTokenClassification),
        ("roberta", AutoModelForSequenceClassification),
        ("modernbert", AutoModelForSequenceClassification),
    ],
)
def test_the_head_of_another_task_is_not_taken_over(kind, auto, labels, tmp_path):
    """Neither one of the same shape nor one of another; what belongs to pretraining is (pooler, transform)."""
    config = tiny.config(kind)
    config.num_labels = labels
    torch.manual_seed(0)
    model = auto.from_config(config)
    with torch.no_grad():
        for name, child in model.named_children():
            if name != model.base_model_prefix:
                for parameter in child.parameters():
                    parameter.fill_(0.5)
    folder = written(tmp_path, model, masked=True)
    backbone = load_backbone(folder)
    torch.manual_seed(1)
    head = cast(torch.nn.Module, backbone.head(2))
    for name, value in head.named_parameters():
        taken = kind == "modernbert" and name.startswith("head.")
        assert bool((value == 0.5).all()) == taken, name
    last = [value for name, value in head.named_parameters() if value.ndim == 2][-1]
    assert tuple(last.shape) == (2, 32)
    assert 0 < float(last.detach().std()) < 0.3

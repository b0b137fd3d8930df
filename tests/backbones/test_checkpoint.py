"""A model folder is read strictly: what is not whole, or not of one model, is one line in check, before it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, ByT5Tokenizer, Gemma3Config

from raypft.backbones import guard
from raypft.backbones.fetch import locate
from raypft.backbones.load import backbone_from_config, load_backbone, load_skeleton
from raypft.backbones.text_load import family_of
from raypft.batch import collate
from raypft.contract import tiny
from raypft.errors import UserError
from raypft.tasks.query import Piece, Query

WEIGHTS = "model.safetensors"


def saved(folder: Path, kind: str) -> Any:
    """The folder of a tiny model, and the model."""
    made = tiny.backbone(kind)
    made.model.save_pretrained(folder)
    made.text.tokenizer.save_pretrained(folder)
    return made


def change(folder: Path, **values: Any) -> None:
    """Give keys of config.json other values."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def tensors(folder: Path, edit) -> None:
    """Rewrite the weights as `edit` changes them."""
    values = load_file(folder / WEIGHTS)
    edit(values)
    save_file(values, folder / WEIGHTS, {"format": "pt"})


def lose(name: str):
    return lambda folder: tensors(folder, lambda values: values.pop(name))


def cut_short(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def add_word(folder: Path) -> None:
    tokenizer = tiny.tokenizer(special=False)
    tokenizer.add_tokens(["brandnew"])
    tokenizer.save_pretrained(folder)


def reshape(folder: Path) -> None:
    tensors(folder, lambda values: values.update({"model.norm.weight": torch.ones(7)}))


def remove_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def tear(name: str):
    return lambda folder: (folder / name).write_text((folder / name).read_text()[:40])


BROKEN = {
    "a tensor of the body lost": (lose("model.layers.1.mlp.up_proj.weight"), r"lacks 1 .*layers\.1\.mlp\.up_proj"),
    "a norm lost": (lose("model.norm.weight"), r"lacks 1 .*model\.norm\.weight"),
    "fewer layers than the file has": (lambda folder: change(folder, num_hidden_layers=2), "holds 9 tensors of blocks"),
    "more layers than the file has": (lambda folder: change(folder, num_hidden_layers=4), "lacks 9 of the model's"),
    "biases the configuration does not know": (
        lambda folder: tensors(folder, lambda v: v.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)})),
        "holds 1 tensors of blocks",
    ),
    "another shape": (reshape, r"model\.norm\.weight has the shape \[7\], config.json makes it \[32\]"),
    "weights cut short": (cut_short, "can't be read"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "can't be read: .*no file named"),
    "a word more than embeddings": (add_word, 'gives "brandnew" the id 41, the model has embeddings for 0 to 40'),
    "no tokenizer": (remove_tokenizer, "holds no tokenizer"),
    "a torn tokenizer": (tear("tokenizer.json"), "the tokenizer can't be read"),
    "a torn configuration": (tear("config.json"), "config.json is damaged"),
    "quantized": (
        lambda folder: change(folder, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 32}),
        r"holds quantized weights \(gptq\)",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_one_line_with_and_without_weights(name, tmp_path):
    breaks, message = BROKEN[name]
    saved(tmp_path, "llama")
    load_skeleton(str(tmp_path))
    breaks(tmp_path)
    for load in (load_skeleton, load_backbone):
        with pytest.raises(UserError, match=message) as raised:
            load(str(tmp_path))
        assert "\n" not in str(raised.value)
        assert str(tmp_path) in str(raised.value)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    saved(tmp_path, "llama")
    tensors(tmp_path, lambda values: values["model.layers.2.mlp.down_proj.weight"].fill_(torch.nan))
    with pytest.raises(UserError, match="its weights hold values that are not finite"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("kind", ["bert", "xlmr", "modernbert", "distilbert"])
def test_a_checkpoint_without_language_model_head_serves_heads_only(kind, tmp_path):
    """Never with values drawn at random: the same twice, and no vocabulary scores."""
    made = saved(tmp_path, kind)
    body = f"{made.model.base_model_prefix}."
    tensors(tmp_path, lambda v: [v.pop(name) for name in list(v) if not name.startswith(body)])
    skeleton, first, second = load_skeleton(str(tmp_path)), load_backbone(str(tmp_path)), load_backbone(str(tmp_path))
    assert skeleton.lacks == first.lacks != ()
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    batch = collate(guard.prompts(first), 1)
    with torch.no_grad():
        torch.testing.assert_close(first(batch), made(batch), rtol=0, atol=1e-6)
        with pytest.raises(UserError, match=r"lacks .* tensors of the language-model head"):
            first.vocabulary_scores(first(batch))


def test_the_head_of_deberta_is_found_in_its_file_though_the_configuration_names_the_old_one(tmp_path):
    """As mDeBERTa lies on the hub: no key `legacy`, tensors lm_predictions.*, a mask_predictions.* nobody reads."""
    made = saved(tmp_path, "mdeberta")
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("legacy")
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors(tmp_path, lambda values: values.update({"mask_predictions.dense.weight": torch.ones(3, 3)}))
    loaded = load_backbone(str(tmp_path))
    assert loaded.lacks == load_skeleton(str(tmp_path)).lacks == ()
    batch = collate(guard.prompts(made), 1)
    with torch.no_grad():
        expected = made.model(input_ids=batch.ids, attention_mask=batch.mask).logits
        rows, places = batch.slots.T
        torch.testing.assert_close(loaded.vocabulary_scores(loaded(batch)), expected[rows, places], rtol=0, atol=1e-5)


def test_the_text_model_inside_a_multimodal_one_is_taken(tmp_path):
    """Its tensors only, equal to the whole model's scores of a text without an image."""
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 28,
        "patch_size": 14,
    }
    inner = tiny.config("gemma3").to_dict()
    whole = AutoModelForCausalLM.from_config(
        Gemma3Config(text_config=inner, vision_config=vision, mm_tokens_per_image=4)
    ).eval()
    whole.save_pretrained(tmp_path)
    tiny.tokenizer(special=False).save_pretrained(tmp_path)
    loaded = load_backbone(str(tmp_path))
    assert (loaded.family, loaded.num_layers, type(loaded.model).__name__) == ("causal", 3, "Gemma3ForCausalLM")
    assert load_skeleton(str(tmp_path)).num_layers == 3
    ids = torch.tensor([[6, 9, 12, 20]])
    with torch.no_grad():
        expected = whole(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        torch.testing.assert_close(loaded.model(input_ids=ids).logits, expected, rtol=0, atol=1e-5)
    head: Any = loaded.head(2)
    assert tuple(head.weight.shape) == (2, tiny.HIDDEN)


def test_a_masked_model_is_not_taken_for_a_causal_one():
    """XLM's one class stands in both lists of transformers; BERT as a decoder is one only where it says so."""
    assert family_of(tiny.config("xlm")) == "masked"
    bert = tiny.config("bert")
    bert.architectures = ["BertLMHeadModel"]
    with pytest.raises(UserError, match="without is_decoder: true a bert reads in both directions"):
        family_of(bert)
    bert.is_decoder = True
    assert family_of(bert) == "causal"


def test_a_decoder_whose_beginning_depends_on_its_end_is_refused():
    backbone = tiny.backbone("llama")
    for layer in backbone.model.model.layers:
        layer.self_attn.is_causal = False
    ids, mask = guard.prompts(backbone)[0].ids, torch.zeros(1, 1, 9, 9)
    own = backbone.model.forward

    def both_ways(input_ids, attention_mask=None, **more):
        size = input_ids.shape[1]
        return own(input_ids=input_ids, attention_mask=mask[..., :size, :size], **more)

    backbone.model.forward = both_ways
    assert len(ids) == 9
    assert guard.differences(backbone)["a beginning"] > 1e-3


def test_a_model_whose_scores_depend_on_its_neighbours_is_refused():
    """By the guard where a model mixes the rows of a batch, by name where it is known to read the padding."""
    backbone = tiny.backbone("bert")
    guard.check_scores(backbone)

    class Mixing(nn.Module):
        def forward(self, states, batch):
            return states + states.roll(1, dims=0)

    backbone.on_layer(2, Mixing())
    with pytest.raises(UserError, match="scored in a batch is off by"):
        guard.check_scores(backbone)
    config = tiny.config("bert")
    config.model_type = "convbert"
    with pytest.raises(UserError, match="it reads the padding too"):
        family_of(config)


def test_a_file_that_is_no_gguf_or_a_damaged_one_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYPFT_CACHE", str(tmp_path / "cache"))
    for content, message in ((b"not a model", "is no GGUF file"), (b"GGUF" + bytes(40), "can't be converted")):
        (tmp_path / "x.gguf").write_bytes(content)
        with pytest.raises(UserError, match=message) as raised:
            locate(str(tmp_path / "x.gguf"))
        assert "\n" not in str(raised.value)


def test_an_old_file_with_buffers_and_a_pooler_is_read(tmp_path):
    """What the code of today computes, or a language model does not use, may lie in the file."""
    made = saved(tmp_path, "bert")
    more = {"bert.embeddings.position_ids": torch.arange(160)[None], "bert.pooler.dense.weight": torch.ones(32, 32)}
    tensors(tmp_path, lambda values: values.update(more))
    loaded = load_backbone(str(tmp_path))
    assert loaded.checksum() == made.checksum()
    assert isinstance(loaded.model, type(AutoModelForMaskedLM.from_config(tiny.config("bert"))))


def test_models_made_in_memory_have_no_place_to_read_a_head_from():
    assert backbone_from_config(tiny.config("bert")).head(2) is not None


def test_a_tokenizer_that_transformers_would_rebuild_otherwise_is_that_of_its_file(tmp_path):
    """A Qwen2 with another tokenizer than Qwen's: transformers makes byte pairs of it and loses every word."""
    made = saved(tmp_path, "qwen2")
    text = load_backbone(str(tmp_path)).text
    assert text.tokenize("the film was good") == made.text.tokenize("the film was good")
    assert len(text.tokenize("the film was good")) == 4


def test_a_tokenizer_that_is_a_sentencepiece_model_and_weights_that_are_a_pickle_are_read(tmp_path):
    """As mT5 lies on the hub."""
    words = ["the film was good", "a bad film it is", "maybe fine or terrible", "yes no one two three"]
    made = tiny.backbone("mt5")
    made.model.save_pretrained(tmp_path)
    torch.save(load_file(tmp_path / WEIGHTS), tmp_path / "pytorch_model.bin")
    (tmp_path / WEIGHTS).unlink()
    settings = {"vocab_size": 28, "model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(words * 20),
        model_prefix=str(tmp_path / "spiece"),
        user_defined_symbols=["<extra_id_0>"],
        minloglevel=2,
        **settings,
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))
    loaded = load_backbone(str(tmp_path))
    assert loaded.lacks == ()
    assert loaded.checksum() == made.checksum()
    ids = loaded.text.tokenize("the film was good")
    assert loaded.text.tokenizer.decode(ids) == "the film was good"
    assert 2 not in ids


def test_a_tokenizer_of_bytes_is_read(tmp_path):
    """ByT5: no vocabulary file, its sentinel one token, every letter another."""
    config = tiny.config("t5")
    config.vocab_size, config.pad_token_id, config.eos_token_id = 384, 0, 1
    backbone_from_config(config).model.save_pretrained(tmp_path)
    ByT5Tokenizer().save_pretrained(tmp_path)
    text: Any = load_backbone(str(tmp_path)).text
    assert text.tokenize("hé") == [byte + 3 for byte in "hé".encode()]
    assert text.answer_texts([text.answer_ids("bad")]) == ["bad"]
    made = text.encode(Query((), (Piece("text", "ab"), Piece("slot", mark="slot"))))
    assert made.ids == [ord("a") + 3, ord("b") + 3, 259, 1]
    with pytest.raises(UserError, match="does not say which characters"):
        text.offsets("ab")


@pytest.mark.parametrize(("error", "said"), [(MemoryError(), "MemoryError"), (OSError("\n torn \n more"), "torn;")])
def test_what_another_library_says_is_one_line_even_where_it_says_nothing(error, said, tmp_path, monkeypatch):
    saved(tmp_path, "llama")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(UserError, match=f"can't be read: {said}") as raised:
        load_backbone(str(tmp_path))
    assert "\n" not in str(raised.value)


def test_code_that_comes_with_a_model_is_not_run_nor_asked_about(tmp_path, monkeypatch):
    """Nor does a pickle run what it holds."""
    import pickle

    class Planted:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    saved(tmp_path / "m", "gpt2")
    (tmp_path / "m" / "own.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')\nclass Own: pass\n")
    own = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", None]}
    change(tmp_path / "m", model_type="own", auto_map=own)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    with pytest.raises(UserError) as caught:
        load_skeleton(str(tmp_path / "m"))
    assert "\n" not in str(caught.value)
    change(tmp_path / "m", model_type="gpt2", auto_map=own)
    (tmp_path / "m" / WEIGHTS).unlink()
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(pickle.dumps({"transformer.wte.weight": Planted()}))
    with pytest.raises(UserError):
        load_backbone(str(tmp_path / "m"))
    assert not (tmp_path / "owned").exists()

"""Tiny models in the files that the catalogue's models have on the hub: their tokenizer's kind, their weights' format,
and beside them what other libraries read."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from raypft.backbones.load import backbone_from_config
from raypft.contract import tiny

TEXTS = [
    "The film was good . All in all, it was great .",
    "a bad film it is, all in all terrible ? yes no",
    "Review: maybe fine\nSentiment: Negative Positive",
]
WEIGHTS = "model.safetensors"


def mbert(folder: Path) -> None:
    """WordPiece; weights in several formats."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # pyright: ignore[reportCallIssue]
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=160, special_tokens=special))
    words = sorted(inner.get_vocab(), key=inner.get_vocab().__getitem__)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    settings = {"do_lower_case": False, "model_max_length": 512, "tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    AutoTokenizer.from_pretrained(_with_config(folder, "bert")).backend_tokenizer.save(str(folder / "tokenizer.json"))
    save(folder, "bert", len(words), pad_token_id=0)
    beside(folder, "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack")


def xlmr(folder: Path) -> None:
    """A sentencepiece model whose ids are shifted by one, and the same as tokenizer.json."""
    train(folder / "sentencepiece.bpe.model", bos_id=1, eos_id=2, unk_id=0, pad_id=-1)
    settings = {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    made = AutoTokenizer.from_pretrained(_with_config(folder, "xlmr"))
    made.backend_tokenizer.save(str(folder / "tokenizer.json"))
    save(folder, "xlmr", len(made))
    beside(folder, "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "onnx/model.onnx", "onnx/tokenizer.json")


def gpt2(folder: Path) -> None:
    """Byte-level pairs; tensors without the body's prefix, buffers of older code among them."""
    made = pairs(folder, "<|endoftext|>")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 1024}))
    end = made.token_to_id("<|endoftext|>")
    save(folder, "gpt2", made.get_vocab_size(), bos_token_id=end, eos_token_id=end, pad_token_id=None)
    values = {name.removeprefix("transformer."): value for name, value in load_file(folder / WEIGHTS).items()}
    values |= {f"h.{i}.attn.bias": torch.ones(1, 1, 160, 160) for i in range(tiny.LAYERS)}
    save_file(values, folder / WEIGHTS, {"format": "pt"})
    beside(folder, "pytorch_model.bin", "rust_model.ot", "64.tflite", "onnx/decoder_model.onnx", "onnx/config.json")


def smollm2(folder: Path) -> None:
    """Byte-level pairs of a Llama; bf16."""
    made = pairs(folder, "<|endoftext|>", "<|im_start|>", "<|im_end|>")
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "unk_token": "<|endoftext|>"}))
    save(folder, "llama", made.get_vocab_size(), bos_token_id=1, eos_token_id=2, pad_token_id=2)
    values = {name: value.to(torch.bfloat16) for name, value in load_file(folder / WEIGHTS).items()}
    save_file(values, folder / WEIGHTS, {"format": "pt"})
    beside(folder, "onnx/model.onnx", "runs/events.out", "training_args.bin")


def llama2(folder: Path) -> None:
    """A sentencepiece model with bytes, as tokenizer.json, too; weights in two parts, and the same as pickles."""
    train(
        folder / "tokenizer.model",
        model_type="bpe",
        byte_fallback=True,
        vocab_size=393,
        bos_id=1,
        eos_id=2,
        unk_id=0,
        pad_id=-1,
    )
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False}
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | special))
    made = AutoTokenizer.from_pretrained(_with_config(folder, "llama"))
    made.backend_tokenizer.save(str(folder / "tokenizer.json"))
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, "tie_word_embeddings": False}
    save(folder, "llama", len(made), parts="60KB", **ids)
    beside(folder, "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "original/consolidated.00.pth")


def mt5(folder: Path) -> None:
    """A sentencepiece model alone, and weights that are a pickle."""
    train(folder / "spiece.model", "▁<extra_id_0>", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "additional_special_tokens": None}
    ends = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **ends}))
    (folder / "special_tokens_map.json").write_text(json.dumps(ends))
    save(folder, "mt5", 128, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    beside(folder, "tf_model.h5", "flax_model.msgpack")


LAYOUTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "mbert": (mbert, "config.json model.safetensors tokenizer.json tokenizer_config.json vocab.txt"),
    "xlmr-base": (xlmr, "config.json model.safetensors sentencepiece.bpe.model tokenizer.json tokenizer_config.json"),
    "xlmr-large": (xlmr, "config.json model.safetensors sentencepiece.bpe.model tokenizer.json tokenizer_config.json"),
    "gpt2": (gpt2, "config.json merges.txt model.safetensors tokenizer.json tokenizer_config.json vocab.json"),
    "gpt2-xl": (gpt2, "config.json merges.txt model.safetensors tokenizer.json tokenizer_config.json vocab.json"),
    "mt5-base": (mt5, "config.json pytorch_model.bin special_tokens_map.json spiece.model tokenizer_config.json"),
    "llama2-7b": (llama2, "config.json SHARDS tokenizer.json tokenizer.model tokenizer_config.json"),
    "smollm2-135m": (
        smollm2,
        "config.json merges.txt model.safetensors tokenizer.json tokenizer_config.json vocab.json",
    ),
}
"""Alias to what writes a tiny model in its layout, and the files of it that are needed."""


@functools.cache
def files(alias: str) -> dict[str, bytes]:
    """A tiny model in an alias' layout: path to content."""
    with tempfile.TemporaryDirectory() as name:
        LAYOUTS[alias][0](Path(name))
        found = {p.relative_to(name).as_posix(): p.read_bytes() for p in Path(name).rglob("*") if p.is_file()}
    return {"README.md": b"---\nlicense: other\n---\n", ".gitattributes": b"", **found}


def save(folder: Path, kind: str, vocabulary: int, parts: str = "1GB", **settings: Any) -> None:
    """A tiny model of a kind with a vocabulary of this size: config.json and its weights."""
    made = tiny.config(kind)
    for key, value in {"vocab_size": vocabulary, **settings}.items():
        setattr(made, key, value)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        backbone_from_config(made).model.save_pretrained(folder, max_shard_size=parts)
    (folder / "generation_config.json").unlink(missing_ok=True)


def beside(folder: Path, *names: str) -> None:
    """Files that only other libraries read; whoever fetches or reads them is wrong."""
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"for another library")


def train(path: Path, *more: str, vocab_size: int = 96, **ids: Any) -> None:
    """Write a sentencepiece model of the texts."""
    with tempfile.TemporaryDirectory() as name:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(TEXTS * 20),
            user_defined_symbols=["▁terrible", "▁great", *more],
            model_prefix=f"{name}/model",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            minloglevel=2,
            **ids,
        )
        path.write_bytes(Path(f"{name}/model.model").read_bytes())


def pairs(folder: Path, *special: str) -> Tokenizer:
    """Write byte-level pairs of the texts: tokenizer.json, vocab.json, merges.txt."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    made.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=list(special), initial_alphabet=letters)  # pyright: ignore[reportCallIssue]
    made.train_from_iterator(TEXTS * 5, trainer)
    made.save(str(folder / "tokenizer.json"))
    made.model.save(str(folder))
    return made


def _with_config(folder: Path, kind: str) -> Path:
    """The folder, with a configuration that says which tokenizer is its own."""
    tiny.config(kind).save_pretrained(folder)
    return folder

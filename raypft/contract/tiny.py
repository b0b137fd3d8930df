"""Two-layer random models of each family with a word-level tokenizer, made in memory in milliseconds."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MT5Config,
    PreTrainedTokenizerFast,
    T5Config,
    XLMRobertaConfig,
)

from raypft.backbones.base import Backbone
from raypft.backbones.load import backbone_from_config

WORDS = [
    "the",
    "a",
    "film",
    "was",
    "is",
    "good",
    "bad",
    "great",
    "terrible",
    "fine",
    "it",
    "Yes",
    "No",
    "Maybe",
    "right",
    "wrong",
    "maybe",
    "Negative",
    "Positive",
    "Review",
    "Sentiment",
    ":",
    ".",
    "?",
    ",",
    "yes",
    "no",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
]
HIDDEN, LAYERS = 32, 3


def tokenizer(special: bool, segments: bool = False, sentinel: bool = False) -> PreTrainedTokenizerFast:
    """A word-level tokenizer; with `special`, pairs read <s> A </s> </s> B </s>."""
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", "\n", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Punctuation()]
    )
    if special:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    more = ["<extra_id_0>"] if sentinel else []
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        cls_token="<s>",
        unk_token="<unk>",
        mask_token="<mask>",
        additional_special_tokens=more,
        model_input_names=["input_ids", "attention_mask", *(["token_type_ids"] if segments else [])],
    )


def config(kind: str, dropout: float = 0.0) -> Any:
    """The configuration of a tiny model: bert, xlmr, gpt2, llama, t5, mt5."""
    vocab = 6 + len(WORDS)
    if kind in ("t5", "mt5"):
        made = T5Config if kind == "t5" else MT5Config
        more: dict[str, Any] = {"decoder_start_token_id": 1}
        if kind == "mt5":
            more |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
        return made(
            vocab_size=vocab + 1,
            d_model=HIDDEN,
            num_layers=LAYERS,
            num_heads=4,
            d_kv=8,
            d_ff=64,
            dropout_rate=dropout,
            pad_token_id=1,
            eos_token_id=2,
            architectures=["XForConditionalGeneration"],
            **more,
        )
    if kind in ("bert", "xlmr"):
        made = BertConfig if kind == "bert" else XLMRobertaConfig
        return made(
            vocab_size=vocab,
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=160,
            pad_token_id=1,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            architectures=["XForMaskedLM"],
        )
    if kind == "gpt2":
        return GPT2Config(
            vocab_size=vocab,
            n_embd=HIDDEN,
            n_layer=LAYERS,
            n_head=4,
            n_positions=160,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            pad_token_id=1,
            eos_token_id=2,
            bos_token_id=0,
            architectures=["GPT2LMHeadModel"],
        )
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=160,
        pad_token_id=1,
        eos_token_id=2,
        bos_token_id=0,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
    )


FAMILIES = {"masked": ["bert", "xlmr"], "causal": ["gpt2", "llama"], "seq2seq": ["t5", "mt5"]}
KINDS = [*FAMILIES["masked"], *FAMILIES["causal"]]
"""Models of one stack of blocks."""


def backbone(kind: str, seed: int = 0, dropout: float = 0.0) -> Backbone:
    """A tiny random backbone, the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return backbone_from_config(
            config(kind, dropout), tokenizer(kind in FAMILIES["masked"], kind == "bert", kind in FAMILIES["seq2seq"])
        )

"""Three-layer random models of each family with a word-level tokenizer, made in memory in milliseconds."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from raypft.backbones.base import Backbone
from raypft.backbones.load import backbone_from_config, set_dropout

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


VOCABULARY = 6 + len(WORDS)
_IDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 160,
}
_GROUPED = {**_SIZES, **_IDS, "num_key_value_heads": 2}
_SLIDING = {**_GROUPED, "head_dim": 8, "sliding_window": 8}
_DEBERTA = {
    **_SIZES,
    "pad_token_id": 1,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
_DEBERTA_V2 = {**_DEBERTA, "position_buckets": 16, "norm_rel_ebd": "layer_norm", "share_att_key": True}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "n_positions": 160, **_IDS}
_OPT = {**_SIZES, **_IDS, "ffn_dim": 64, "word_embed_proj_dim": HIDDEN}
_T5 = {
    "vocab_size": VOCABULARY + 1,
    "d_model": HIDDEN,
    "num_layers": LAYERS,
    "num_heads": 4,
    "d_kv": 8,
    "d_ff": 64,
    "decoder_start_token_id": 1,
    "pad_token_id": 1,
    "eos_token_id": 2,
}
_T5_TODAY = {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
_FALCON = {
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
    "lm_head_multiplier": 0.5,
    "embedding_multiplier": 1.7,
}
_DIM = {"dim": HIDDEN, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 160}
_XLM = {
    "emb_dim": HIDDEN,
    "n_layers": LAYERS,
    "n_heads": 4,
    "max_position_embeddings": 160,
    "pad_index": 1,
    "n_langs": 1,
}
_XGLM = {"d_model": HIDDEN, "num_layers": LAYERS, "attention_heads": 4, "ffn_dim": 64, "max_position_embeddings": 160}
_PADDED = {**_SIZES, "pad_token_id": 1}

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("masked", "BertConfig", _PADDED),
    "xlmr": ("masked", "XLMRobertaConfig", _PADDED),
    "roberta": ("masked", "RobertaConfig", _PADDED),
    "xlmr-xl": ("masked", "XLMRobertaXLConfig", _PADDED),
    "deberta": ("masked", "DebertaConfig", _DEBERTA),
    "deberta-v2": ("masked", "DebertaV2Config", {**_DEBERTA_V2, "conv_kernel_size": 3}),
    "mdeberta": ("masked", "DebertaV2Config", {**_DEBERTA_V2, "legacy": False}),
    "modernbert": (
        "masked",
        "ModernBertConfig",
        {**_PADDED, "global_attn_every_n_layers": 2, "local_attention": 8, "cls_token_id": 0, "sep_token_id": 2},
    ),
    "eurobert": ("masked", "EuroBertConfig", _GROUPED),
    "electra": ("masked", "ElectraConfig", {**_PADDED, "embedding_size": 16}),
    "distilbert": ("masked", "DistilBertConfig", {"vocab_size": VOCABULARY, "pad_token_id": 1, **_DIM}),
    "rembert": ("masked", "RemBertConfig", {**_PADDED, "input_embedding_size": 16, "output_embedding_size": 24}),
    "xlm": ("masked", "XLMConfig", {"vocab_size": VOCABULARY, "pad_token_id": 1, **_XLM}),
    "albert": ("masked", "AlbertConfig", {**_PADDED, "embedding_size": 16}),
    "gpt2": ("causal", "GPT2Config", _GPT2),
    "llama": ("causal", "LlamaConfig", {**_GROUPED, "tie_word_embeddings": True}),
    "mistral": ("causal", "MistralConfig", {**_GROUPED, "sliding_window": 8}),
    "qwen2": ("causal", "Qwen2Config", _GROUPED),
    "qwen3": ("causal", "Qwen3Config", {**_GROUPED, "head_dim": 16}),
    "gemma2": ("causal", "Gemma2Config", _SLIDING),
    "gemma3": ("causal", "Gemma3TextConfig", _SLIDING),
    "phi": ("causal", "PhiConfig", {**_SIZES, **_IDS}),
    "phi3": ("causal", "Phi3Config", {**_SIZES, **_IDS}),
    "olmo2": ("causal", "Olmo2Config", _GROUPED),
    "smollm3": ("causal", "SmolLM3Config", _GROUPED),
    "gpt-neox": ("causal", "GPTNeoXConfig", {**_SIZES, **_IDS}),
    "opt": ("causal", "OPTConfig", _OPT),
    "opt-350m": ("causal", "OPTConfig", {**_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "bloom": (
        "causal",
        "BloomConfig",
        {**_IDS, "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": 4},
    ),
    "xglm": ("causal", "XGLMConfig", {"vocab_size": VOCABULARY, **_IDS, **_XGLM}),
    "gpt-oss": ("causal", "GptOssConfig", {**_SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "falcon-h1": ("causal", "FalconH1Config", {**_GROUPED, **_FALCON}),
    "t5": ("seq2seq", "T5Config", _T5),
    "mt5": ("seq2seq", "MT5Config", _T5_TODAY),
    "umt5": ("seq2seq", "UMT5Config", _T5_TODAY),
}
"""Kind of tiny model to its family, its configuration's class in transformers and what that is made with. The first two
of each family are those of the contract; a test sees that every method works on all, or says why not."""


def config(kind: str, dropout: float = 0.0) -> Any:
    """The configuration of a tiny model, a key of MODELS."""
    family, name, settings = MODELS[kind]
    made = getattr(transformers, name)(**settings)
    set_dropout(made, dropout)
    classes = {"masked": MODEL_FOR_MASKED_LM_MAPPING_NAMES, "causal": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    known = classes.get(family, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
    made.architectures = [known[made.model_type]]
    return made


def of_family(family: str) -> list[str]:
    """The kinds of tiny models of a family."""
    return [kind for kind, (of, _, _) in MODELS.items() if of == family]


FAMILIES = {family: of_family(family)[:2] for family in ("masked", "causal")} | {"seq2seq": ["t5", "mt5"]}
KINDS = [*FAMILIES["masked"], *FAMILIES["causal"]]
"""Models of one stack of blocks."""


def backbone(kind: str, seed: int = 0, dropout: float = 0.0) -> Backbone:
    """A tiny random backbone, the same for the same seed."""
    family, made = MODELS[kind][0], config(kind, dropout)
    segments = getattr(made, "type_vocab_size", 0) > 1
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return backbone_from_config(made, tokenizer(family == "masked", segments, family == "seq2seq"))

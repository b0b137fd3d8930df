"""`load_text`: the text side of a model, from a hub id, a local folder, a GGUF file or an alias. Loads no model code:
a process that encodes starts in half the time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging

from raypft.backbones.fetch import Found, locate
from raypft.backbones.text import PromptTokenizer
from raypft.backbones.text_causal import CausalTokenizer
from raypft.backbones.text_masked import MaskedTokenizer
from raypft.backbones.text_seq2seq import Seq2SeqTokenizer
from raypft.errors import UserError, first_line

logging.set_verbosity_error()
logging.disable_progress_bar()

TEXTS: dict[str, type[PromptTokenizer]] = {
    text.family: text for text in (MaskedTokenizer, CausalTokenizer, Seq2SeqTokenizer)
}
TEXT_TO_TEXT = ("t5", "mt5", "umt5")
"""Model types of the family seq2seq."""
SEES_PADDING = ("convbert", "squeezebert", "funnel", "xlnet")
"""Masked model types whose scores of a text depend on what stands beside it in a batch."""
TOKENIZERS = ("tokenizer*", "*.model", "vocab*", "*.tiktoken")
"""Files that a tokenizer is read from."""


def load_text(name: str) -> PromptTokenizer:
    """The text side alone, for a process that only encodes.

    Raises:
        UserError: see `load_backbone`, but for the weights.
    """
    found = locate(name)
    return text_of(found, read_config(found.folder))


def text_of(found: Found, config: Any) -> PromptTokenizer:
    """The text side of what was found, and of its configuration."""
    tokenizer = read_tokenizer(found.folder, config)
    return TEXTS[family_of(config)](tokenizer, config, str(found.folder), found.revision, found.hub)


def family_of(config) -> str:
    """ "masked", "causal" or "seq2seq", from the architecture the configuration names.

    Raises:
        UserError: none of them.
    """
    kind, architecture = config.model_type, (config.architectures or [""])[0]
    if kind in SEES_PADDING:
        raise UserError(
            f"backbone: model type {kind} is not supported: it reads the padding too, so that the scores of a text "
            "depend on the texts beside it in a batch; choose another backbone"
        )
    if kind in TEXT_TO_TEXT:
        return "seq2seq"
    masked, causal = MODEL_FOR_MASKED_LM_MAPPING_NAMES.get(kind), MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    if not config.is_encoder_decoder and (masked or causal):
        is_decoder = getattr(config, "is_decoder", False) or getattr(config, "causal", False)
        if masked is None or (is_decoder and causal):
            return "causal"
        if architecture != masked and architecture == causal:
            raise UserError(
                f"backbone: config.json names {architecture}, but without is_decoder: true a {kind} reads in both "
                "directions; set it for a model that was trained as a decoder, or name its masked class"
            )
        return "masked"
    raise UserError(
        f"backbone: model type {kind} is neither masked nor causal nor T5's (other encoder-decoders are not supported)"
    )


def read_config(folder: Path) -> Any:
    """The configuration of a model folder; of a multimodal one that of the language model in it.

    Raises:
        UserError: it can't be read; transformers does not know the model type; the weights are quantized.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever a damaged file makes transformers raise
        raise UserError(
            f"backbone: {folder}: the model type is neither masked nor causal, or config.json is damaged: "
            f"{first_line(error)}"
        ) from None
    quantized = getattr(config, "quantization_config", None)
    if quantized:
        how = quantized.get("quant_method") if isinstance(quantized, dict) else getattr(quantized, "quant_method", None)
        raise UserError(
            f"backbone: {folder} holds quantized weights ({how or 'see quantization_config in config.json'}); expected "
            "weights in fp32, fp16 or bf16; give the model's unquantized files"
        )
    inner = config.get_text_config()
    if inner is not config and not config.is_encoder_decoder:
        inner.architectures = None  # those of the whole
        return inner
    return config


def read_tokenizer(folder: Path, config: Any) -> Any:
    """The tokenizer of a model folder.

    Raises:
        UserError: there is none, it can't be read, or it has tokens that the model has no embedding for.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        if any(list(folder.glob(pattern)) for pattern in TOKENIZERS):
            raise UserError(
                f"backbone: {folder}: the tokenizer can't be read: {first_line(error)}; expected the files that belong "
                "to the model, e.g. tokenizer.json"
            ) from None
        raise UserError(_no_tokenizer(folder, {"tokenizer.json"})) from None
    files = set(getattr(tokenizer, "vocab_files_names", {}).values())
    # transformers makes an empty tokenizer of a folder that has none
    if files and not any((folder / name).is_file() for name in {"tokenizer.json", *files}):
        raise UserError(_no_tokenizer(folder, {"tokenizer.json", *files}))
    if (folder / "tokenizer.json").is_file():
        tokenizer = _as_in_file(tokenizer, folder)
    last, rows = max(tokenizer.get_vocab().items(), key=lambda pair: pair[1], default=("", -1)), config.vocab_size
    if last[1] >= rows:
        raise UserError(
            f'backbone: {folder}: the tokenizer gives "{last[0]}" the id {last[1]}, the model has embeddings for 0 to '
            f"{rows - 1}; expected a tokenizer and weights of one model; give those that were saved together"
        )
    return tokenizer


def _no_tokenizer(folder: Path, files: set[str]) -> str:
    return (
        f"backbone: {folder} holds no tokenizer; expected {' or '.join(sorted(files))}; copy the files that belong "
        "to the model there"
    )


def _as_in_file(tokenizer: Any, folder: Path) -> Any:
    """The tokenizer, or that of tokenizer.json where transformers rebuilt it by its model type's rules (Qwen2's, say)
    and lost the text in doing so."""
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    some = sorted(own.get_vocab(with_added_tokens=False).values())[-40::5]
    text = own.decode(some)
    as_written = _letters(own.decode(own.encode(text, add_special_tokens=False).ids))
    as_loaded = _letters(tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)))
    if as_written == _letters(text) != as_loaded:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text)).casefold()

"""`load_backbone`: from a hub id, a local folder, a GGUF file or an alias of the small catalogue to a frozen
Backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging

from raypft.backbones.base import Backbone
from raypft.backbones.causal import CausalBackbone, CausalTokenizer
from raypft.backbones.fetch import locate, revision
from raypft.backbones.masked import MaskedBackbone, MaskedTokenizer
from raypft.backbones.seq2seq import Seq2SeqBackbone, Seq2SeqTokenizer
from raypft.backbones.text import PromptTokenizer
from raypft.errors import UserError

logging.set_verbosity_error()
logging.disable_progress_bar()


class Family(NamedTuple):
    """The classes of a family: text side, model side, and what transformers reads the model with."""

    text: type[PromptTokenizer]
    backbone: type[Backbone]
    auto: Any


FAMILIES = {
    "masked": Family(MaskedTokenizer, MaskedBackbone, AutoModelForMaskedLM),
    "causal": Family(CausalTokenizer, CausalBackbone, AutoModelForCausalLM),
    "seq2seq": Family(Seq2SeqTokenizer, Seq2SeqBackbone, AutoModelForSeq2SeqLM),
}
_TEXT_TO_TEXT = ("t5", "mt5")
_DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "attention_dropout",
    "hidden_dropout",
    "dropout_rate",
)


def family_of(config) -> str:
    """ "masked", "causal" or "seq2seq", from the architecture the configuration names.

    Raises:
        UserError: none of them.
    """
    if config.model_type in _TEXT_TO_TEXT:
        return "seq2seq"
    architecture = (config.architectures or [""])[0]
    unsupported = config.is_encoder_decoder or hasattr(config, "logit_scale") or hasattr(config, "logits_scaling")
    if not unsupported and architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return "causal"
    if not unsupported and config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "masked"
    if not unsupported and config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "causal"
    raise UserError(
        f"backbone: model type {config.model_type} is neither masked nor causal nor T5's (other encoder-decoders "
        "and models with scaled scores are not supported)"
    )


def read_config(folder: Path):
    """The configuration of a model folder.

    Raises:
        UserError: transformers does not know the model type.
    """
    try:
        return AutoConfig.from_pretrained(folder)
    except (ValueError, OSError) as error:
        raise UserError(
            f"backbone: {folder}: the model type is neither masked nor causal: {str(error).splitlines()[0]}"
        ) from None


def load_backbone(name: str, dropout: float | None = None) -> Backbone:
    """Load a pretrained model, frozen, in fp32.

    Args:
        dropout: replaces every dropout rate of the model's configuration; None keeps them.

    Raises:
        UserError: see `locate`; or the model's family is not supported.
    """
    folder = locate(name)
    config = read_config(folder)
    if dropout is not None:
        for key in _DROPOUTS:
            if getattr(config, key, None) is not None:
                setattr(config, key, dropout)
    family = FAMILIES[family_of(config)]
    model = family.auto.from_pretrained(folder, config=config, dtype=torch.float32)
    return family.backbone(model, _text(folder, config)).eval()


def load_skeleton(name: str) -> Backbone:
    """The backbone without weights (meta device): family, shapes and the text side, for checking.

    Raises:
        UserError: see `load_backbone`.
    """
    folder = locate(name)
    config = read_config(folder)
    family = FAMILIES[family_of(config)]
    with torch.device("meta"):
        model = family.auto.from_config(config)
    return family.backbone(model, _text(folder, config)).eval()


def load_text(name: str) -> PromptTokenizer:
    """The text side alone, for a process that only encodes.

    Raises:
        UserError: see `load_backbone`.
    """
    folder = locate(name)
    return _text(folder, read_config(folder))


def _text(folder: Path, config) -> PromptTokenizer:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return FAMILIES[family_of(config)].text(tokenizer, config, str(folder), revision(folder))


def backbone_from_config(config, tokenizer=None) -> Backbone:
    """A randomly initialised backbone made from a configuration, for tests and (under `torch.device("meta")`) for
    counting; without a tokenizer it has no text side."""
    family = FAMILIES[family_of(config)]
    text = None if tokenizer is None else family.text(tokenizer, config)
    return family.backbone(family.auto.from_config(config, dtype=torch.float32), text).eval()

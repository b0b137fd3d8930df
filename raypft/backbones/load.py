"""`load_backbone`: from a hub id, a local folder, a GGUF file or an alias of the small catalogue to a frozen Backbone."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging

from raypft.backbones.base import Backbone
from raypft.backbones.causal import CausalBackbone
from raypft.backbones.fetch import locate, revision
from raypft.backbones.masked import MaskedBackbone
from raypft.backbones.seq2seq import Seq2SeqBackbone
from raypft.errors import UserError

logging.set_verbosity_error()
logging.disable_progress_bar()

FAMILIES = {
    "masked": (MaskedBackbone, AutoModelForMaskedLM),
    "causal": (CausalBackbone, AutoModelForCausalLM),
    "seq2seq": (Seq2SeqBackbone, AutoModelForSeq2SeqLM),
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
        f"backbone: model type {config.model_type} is neither masked nor causal nor T5's (other encoder-decoders and models with scaled scores are not supported)"
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
    backbone_class, auto = FAMILIES[family_of(config)]
    model = auto.from_pretrained(folder, config=config, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    backbone = backbone_class(model, tokenizer, str(folder), revision(folder))
    return backbone.eval()


def load_skeleton(name: str) -> Backbone:
    """The backbone without weights (meta device): tokenizer, family and shapes, for checking and encoding.

    Raises:
        UserError: see `load_backbone`.
    """
    folder = locate(name)
    config = read_config(folder)
    backbone_class, auto = FAMILIES[family_of(config)]
    with torch.device("meta"):
        model = auto.from_config(config)
    return backbone_class(model, AutoTokenizer.from_pretrained(folder), str(folder), revision(folder)).eval()


def backbone_from_config(config, tokenizer=None) -> Backbone:
    """A randomly initialised backbone made from a configuration, for tests and (under `torch.device("meta")`) for counting."""
    backbone_class, auto = FAMILIES[family_of(config)]
    return backbone_class(auto.from_config(config, dtype=torch.float32), tokenizer).eval()

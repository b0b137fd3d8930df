"""`load_backbone`: from a hub id, a local folder, a GGUF file or an alias of the small catalogue to a frozen
Backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging

from raypft.backbones.base import Backbone, Known
from raypft.backbones.causal import CausalBackbone, CausalTokenizer
from raypft.backbones.checkpoint import in_fp32, map_weights, read, read_config, read_tokenizer, settle
from raypft.backbones.fetch import Found, locate
from raypft.backbones.guard import check_scores
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
TEXT_TO_TEXT = ("t5", "mt5", "umt5")
"""Model types of the family seq2seq."""
SEES_PADDING = ("convbert", "squeezebert", "funnel", "xlnet")
"""Masked model types whose scores of a text depend on what stands beside it in a batch."""


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


def load_backbone(name: str, dropout: float | None = None, as_stored: bool = False) -> Backbone:
    """Load a pretrained model, frozen, in fp32, and see that its scores are its own.

    Args:
        dropout: replaces every dropout rate of the model's configuration; None keeps them.
        as_stored: leave the weights in the files' pages and type, for who shares them out or casts them, once.

    Raises:
        UserError: see `locate`; the model's family is not supported; its files are not whole or not of one model.
    """
    found = locate(name)
    folder, config = found.folder, read_config(found.folder)
    if dropout is not None:
        set_dropout(config, dropout)
    family = FAMILIES[family_of(config)]
    text = _text(found, config)
    model, lacks = read(family.auto, folder, config)
    stored = {name: parameter.data for name, parameter in model.named_parameters(remove_duplicate=False)}
    if not as_stored:
        for parameter in model.parameters():
            parameter.data = parameter.data.float()
    with in_fp32(model):
        backbone = family.backbone(model, text).eval()
        backbone.lacks = lacks
        check_scores(backbone)
    backbone.lies_in(stored, as_stored)
    return backbone


def load_again(known: Known) -> Backbone:
    """A backbone as `load_backbone(..., as_stored=True)` gave it, of the same files; nothing is measured again.

    Raises:
        UserError: the files are not the same any more.
    """
    family, text = FAMILIES[known.text.family], known.text
    folder = Path(str(text.source))
    found = Found(folder, text.hub, None if text.hub is None else text.revision).revision
    if found != text.revision:
        raise UserError(
            f"backbone: the files in {folder} have changed since the last cell, from revision {text.revision} to "
            f"{found}; restore them, a model must stay as it is while it is trained"
        )
    model = map_weights(family.auto, folder, text.config, known.lacks, known.fixed)
    backbone = family.backbone(model, known.text, known).eval()
    backbone.lacks = known.lacks
    stored = {name: parameter.data for name, parameter in model.named_parameters(remove_duplicate=False)}
    backbone.lies_in(stored, as_stored=True)
    return backbone


def load_skeleton(name: str) -> Backbone:
    """The backbone without weights (meta device): family, shapes and the text side, for checking; the folder's weights
    are looked at, not read.

    Raises:
        UserError: see `load_backbone`, but for the scores.
    """
    found = locate(name)
    folder, config = found.folder, read_config(found.folder)
    family = FAMILIES[family_of(config)]
    text = _text(found, config)
    lacks = settle(family.auto, folder, config)
    with torch.device("meta"):
        model = family.auto.from_config(config)
    backbone = family.backbone(model, text).eval()
    backbone.lacks = lacks
    return backbone


def load_text(name: str) -> PromptTokenizer:
    """The text side alone, for a process that only encodes.

    Raises:
        UserError: see `load_backbone`, but for the weights.
    """
    found = locate(name)
    return _text(found, read_config(found.folder))


def set_dropout(config: Any, rate: float) -> None:
    """Replace every dropout rate of a configuration; blocks are no longer left out at random either."""
    for key, value in config.to_dict().items():
        if "drop" in key and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(config, key, 0.0 if "layer" in key else rate)


def _text(found: Found, config) -> PromptTokenizer:
    family = FAMILIES[family_of(config)]
    return family.text(read_tokenizer(found.folder, config), config, str(found.folder), found.revision, found.hub)


def backbone_from_config(config, tokenizer=None) -> Backbone:
    """A randomly initialised backbone made from a configuration, for tests and (under `torch.device("meta")`) for
    counting; without a tokenizer it has no text side."""
    family = FAMILIES[family_of(config)]
    text = None if tokenizer is None else family.text(tokenizer, config)
    return family.backbone(family.auto.from_config(config, dtype=torch.float32), text).eval()

"""`load_backbone`: from a hub id, a local folder, a GGUF file or an alias of the small catalogue to a frozen
Backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from raypft.backbones.base import Backbone, Known
from raypft.backbones.causal import CausalBackbone
from raypft.backbones.checkpoint import in_fp32, map_weights, read, settle
from raypft.backbones.fetch import Found, locate
from raypft.backbones.four_bit import quantize
from raypft.backbones.guard import check_scores
from raypft.backbones.masked import MaskedBackbone
from raypft.backbones.seq2seq import Seq2SeqBackbone
from raypft.backbones.text_load import TEXTS, family_of, read_config, text_of
from raypft.errors import UserError
from raypft.heap import HEAP


class Family(NamedTuple):
    """The classes of a family: ours, and what transformers reads the model with."""

    backbone: type[Backbone]
    auto: Any


FAMILIES = {
    "masked": Family(MaskedBackbone, AutoModelForMaskedLM),
    "causal": Family(CausalBackbone, AutoModelForCausalLM),
    "seq2seq": Family(Seq2SeqBackbone, AutoModelForSeq2SeqLM),
}


def load_backbone(
    name: str, dropout: float | None = None, as_stored: bool = False, quantized: str | None = None
) -> Backbone:
    """Load a pretrained model, frozen, in fp32, and see that its scores are its own.

    Args:
        dropout: replaces every dropout rate of the model's configuration; None keeps them.
        as_stored: leave the weights in the files' pages and type, for who shares them out or casts them, once.
        quantized: "nf4" holds the linear layers of the blocks in 4 bits, for methods that train none of them.

    Raises:
        UserError: see `locate`; the model's family is not supported; its files are not whole or not of one model.
    """
    HEAP.keep(False)  # what opening a model holds for a moment goes at once
    found = locate(name)
    folder, config = found.folder, read_config(found.folder)
    if dropout is not None:
        set_dropout(config, dropout)
    family = FAMILIES[family_of(config)]
    text = text_of(found, config)
    model, lacks = read(family.auto, folder, config)
    if quantized:
        quantize(model)
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
    HEAP.keep(False)
    family, text = FAMILIES[known.text.family], known.text
    folder = Path(str(text.source))
    found = Found(folder, text.hub, None if text.hub is None else text.revision).revision
    if found != text.revision:
        raise UserError(
            f"backbone: the files in {folder} have changed since the last cell, from revision {text.revision} to "
            f"{found}; restore them, a model must stay as it is while it is trained"
        )
    model = map_weights(family.auto, folder, text.config, known.lacks, known.fixed)
    if known.quantized:
        quantize(model)
    backbone = family.backbone(model, known.text, known).eval()
    backbone.lacks = known.lacks
    stored = {name: parameter.data for name, parameter in model.named_parameters(remove_duplicate=False)}
    backbone.lies_in(stored, as_stored=True)
    return backbone


def load_skeleton(name: str, quantized: str | None = None) -> Backbone:
    """The backbone without weights (meta device): family, shapes and the text side, for checking; the folder's weights
    are looked at, not read.

    Raises:
        UserError: see `load_backbone`, but for the scores.
    """
    found = locate(name)
    folder, config = found.folder, read_config(found.folder)
    family = FAMILIES[family_of(config)]
    text = text_of(found, config)
    lacks = settle(family.auto, folder, config)
    with torch.device("meta"):
        model = family.auto.from_config(config)
    if quantized:
        quantize(model)
    backbone = family.backbone(model, text).eval()
    backbone.lacks = lacks
    return backbone


def set_dropout(config: Any, rate: float) -> None:
    """Replace every dropout rate of a configuration; blocks are no longer left out at random either."""
    for key, value in config.to_dict().items():
        if "drop" in key and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(config, key, 0.0 if "layer" in key else rate)


def backbone_from_config(config, tokenizer=None) -> Backbone:
    """A randomly initialised backbone made from a configuration, for tests and (under `torch.device("meta")`) for
    counting; without a tokenizer it has no text side."""
    family = FAMILIES[family_of(config)]
    text = None if tokenizer is None else TEXTS[family_of(config)](tokenizer, config)
    return family.backbone(family.auto.from_config(config, dtype=torch.float32), text).eval()

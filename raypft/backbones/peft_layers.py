"""peft's own layers in a model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from peft import get_peft_config, inject_adapter_in_model
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from raypft.errors import UserError

QUERY_AND_VALUE = (
    ("query", "value"),
    ("q_proj", "v_proj"),
    ("query_proj", "value_proj"),
    ("q_lin", "v_lin"),
    ("q", "v"),
    ("Wqkv",),
    ("qkv_proj",),
    ("query_key_value",),
)
"""What model types call the linear layers that make query and value."""


def inject_layers(
    model: PreTrainedModel, settings: Mapping[str, Any], key: str
) -> list[tuple[nn.Module, str, nn.Module]]:
    """Let peft replace modules of `model`; what was replaced: parent, attribute, old module.

    Args:
        settings: fields of a peft configuration, `peft_type` among them.
        key: what an error about the modules to replace begins with.

    Raises:
        UserError: peft finds no such module, or knows no default for this model type.
    """
    before = dict(model.named_modules())
    config = get_peft_config({"task_type": None, **settings})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft sets fan_in_fan_out for GPT-2 by itself and says so
            inject_adapter_in_model(config, model)
    except ValueError:
        vars(model).pop("peft_config", None)
        model_type = model.config.model_type
        targets = settings.get("target_modules")
        found = f"found {targets}" if targets else f"peft has no default for {model_type}"
        raise UserError(
            f"{key}: {found}; expected some of this model's linear layers: {', '.join(linear_layers(model))}"
        ) from None
    replaced = []
    for name, old in before.items():
        parent_name, _, attribute = name.rpartition(".")
        parent = before.get(parent_name)
        if parent is not None and name and getattr(parent, attribute, None) is not old:
            replaced.append((parent, attribute, old))
    return replaced


def linear_layers(model: PreTrainedModel) -> list[str]:
    """The last parts of the names of the linear layers of a model's body, each once, in the model's order."""
    kinds = (nn.Linear, Conv1D)
    names = [name.rpartition(".")[2] for name, module in model.base_model.named_modules() if isinstance(module, kinds)]
    return list(dict.fromkeys(names))


def query_and_value(model: PreTrainedModel) -> list[str] | None:
    """The ends of the names of the linear layers that make query and value; None where peft knows the model type, or no
    names of the table fit."""
    if model.config.model_type in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
        return None
    known = linear_layers(model)
    return next((list(names) for names in QUERY_AND_VALUE if set(names) <= set(known)), None)

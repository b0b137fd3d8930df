"""peft's own layers in a model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from peft import get_peft_config, inject_adapter_in_model
from torch import nn
from transformers import PreTrainedModel

from raypft.errors import UserError


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
    except ValueError as error:
        vars(model).pop("peft_config", None)
        model_type = model.config.model_type
        targets = settings.get("target_modules") or f"peft's default for {model_type}"
        raise UserError(
            f"{key}: found {targets}; expected names of linear layers of this model: {str(error).splitlines()[0]}"
        ) from None
    replaced = []
    for name, old in before.items():
        parent_name, _, attribute = name.rpartition(".")
        parent = before.get(parent_name)
        if parent is not None and name and getattr(parent, attribute, None) is not old:
            replaced.append((parent, attribute, old))
    return replaced

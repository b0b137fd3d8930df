"""peft's own layers in a backbone, and what they learned in peft's own layout."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import get_peft_config, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save_file
from torch import nn

from raypft.backbones.base import Backbone
from raypft.backbones.export import Head, auto_class, head_places
from raypft.errors import UserError

PREFIX = "base_model.model."


def inject_layers(model: nn.Module, settings: Mapping[str, Any]) -> list[tuple[nn.Module, str, nn.Module]]:
    """Let peft replace modules of `model`; what was replaced: parent, attribute, old module.

    Args:
        settings: fields of a peft configuration, `peft_type` among them.

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
        model_type = model.config.model_type  # type: ignore[union-attr]
        found = settings.get("target_modules") or f"peft's default for {model_type}"
        raise UserError(
            f"method.targets: found {found}; expected names of linear layers of this model: {str(error).splitlines()[0]}"
        ) from None
    replaced = []
    for name, old in before.items():
        parent_name, _, attribute = name.rpartition(".")
        parent = before.get(parent_name)
        if parent is not None and name and getattr(parent, attribute, None) is not old:
            replaced.append((parent, attribute, old))
    return replaced


def save_peft(backbone: Backbone, folder: Path, head: Head | None = None, labels: Sequence[str] = ()) -> None:
    """Write the injected layers so that `peft.PeftModel.from_pretrained(base, folder)` computes the same.

    Writes adapter_model.safetensors and adapter_config.json. With a head, `base` is the transformers model that has one.

    Raises:
        UserError: nothing was injected; or transformers gives the model with this head no weights of the language model.
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
                f"export: {kind} does not load the language model that the adapter was trained on; no adapter can be written; use raypft predict"
            )
        values |= {
            f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()
        }
        config.modules_to_save = [name.rpartition(".")[2] for name in modules]
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {PREFIX + name: value.detach().cpu().contiguous() for name, value in values.items()},
        folder / "adapter_model.safetensors",
        {"format": "pt"},
    )
    config.base_model_name_or_path = backbone.source
    config.inference_mode = True
    config.save_pretrained(str(folder))

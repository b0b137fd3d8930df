"""Reading a pretrained model, strictly: what a folder lacks, has too much of or has in another shape is told, never
drawn at random."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, core_model_loading

from raypft.backbones.anatomy import blocks_of
from raypft.errors import UserError, first_line

INNER = {r"^(model\.)?language_model\.(model\.)?": "model.", r"^language_model\.lm_head": "lm_head"}
"""Names of the language model's tensors inside a multimodal model to those it has alone."""
BUFFER = re.compile(r"(rotary_emb\.inv_freq|position_ids|masked_bias|\.attn\.bias|\.attention\.bias|_float_tensor)$")
"""Tensors of older files that the code computes today."""


class Read(NamedTuple):
    """A model, and the names of the tensors of its language-model head that the folder has not."""

    model: Any
    lacks: tuple[str, ...]


def settle(auto: Any, folder: Path, config: Any) -> tuple[str, ...]:
    """Compare a folder's tensors with a configuration, without reading them; may correct the configuration where the
    file shows how it was meant. The names of tensors of the language-model head that the folder has not.

    Args:
        auto: the transformers class that the model is read with.

    Raises:
        UserError: no weights, damaged ones; or a tensor of the body is missing, in another shape, or one too many.
    """
    model, info = _read(auto, folder, config, device_map="meta")
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    old_head = config.model_type == "deberta-v2" and config.legacy
    if old_head and missing and any(name.startswith("lm_predictions.") for name in unexpected):
        config.legacy = False  # the files of DeBERTa v2 and v3 have this head, their configuration does not say so
        return settle(auto, folder, config)
    if info["mismatched_keys"]:
        name, found, expected = sorted(info["mismatched_keys"])[0]
        raise UserError(
            f"backbone: {folder}: {name} has the shape {list(found)}, config.json makes it {list(expected)}; expected "
            "weights and config.json of one model"
        )
    lost = [name for name in missing if not _is_of_head(model, name)]
    if lost:
        raise UserError(
            f"backbone: {folder} lacks {len(lost)} of the model's tensors ({_some(lost)}); expected the weights of a "
            f"whole {config.model_type} of {config.num_hidden_layers} layers"
        )
    surplus = [name for name in unexpected if _is_of_blocks(model, name) and not BUFFER.search(name)]
    if surplus:
        raise UserError(
            f"backbone: {folder} holds {len(surplus)} tensors of blocks that config.json does not know "
            f"({_some(surplus)}); expected weights and config.json of one model"
        )
    return tuple(missing)


def read(auto: Any, folder: Path, config: Any) -> Read:
    """A model with the weights of a folder, see `map_weights`.

    Raises:
        UserError: see `settle`.
    """
    lacks = settle(auto, folder, config)
    with torch.device("meta"):
        fresh = auto.from_config(config)
    # reading opens what the model's code says never to train
    fixed = [name for name, parameter in fresh.named_parameters() if not parameter.requires_grad]
    return Read(map_weights(auto, folder, config, lacks, fixed), lacks)


@torch.no_grad()
def map_weights(auto: Any, folder: Path, config: Any, lacks: Collection[str], fixed: Iterable[str]) -> Any:
    """A model whose weights are pages of the folder's files, of the type they have there: the processes of a machine
    share them, none has a copy until it writes. Buffers are fp32.

    Args:
        lacks: tensors of the language-model head that the folder has not; they are 0; fixed: parameters that never
            train.
    """
    with as_stored():
        model, _ = _read(auto, folder, config)
    for module in model.modules():
        floats = {
            name: value for name, value in module._buffers.items() if value is not None and value.is_floating_point()
        }
        module._buffers.update({name: value.float() for name, value in floats.items()})
    for name in fixed:
        model.get_parameter(name).requires_grad_(False)
    named = dict(model.named_parameters(remove_duplicate=False))
    for name in named.keys() & lacks:
        named[name].zero_()
    return model


@contextmanager
def as_stored() -> Iterator[None]:
    """While open, transformers reads tensors in the type they have in their files, where they lie; it would give all
    one type, and so copy them."""
    own = core_model_loading._materialize_copy
    core_model_loading._materialize_copy = lambda tensor, *_: tensor[...]
    try:
        yield
    finally:
        core_model_loading._materialize_copy = own


@contextmanager
def in_fp32(model: torch.nn.Module) -> Iterator[None]:
    """While open, weights of another type are fp32: those of a block while it runs, all others throughout, and those
    of the last block, which the probes look at. To ask a model something without a copy of it."""
    stored = {parameter: parameter.data for parameter in model.parameters() if parameter.dtype != torch.float32}

    def widen(parameters: Iterable[torch.nn.Parameter]) -> None:
        for parameter in parameters:
            parameter.data = stored[parameter].float()

    def narrow(parameters: Iterable[torch.nn.Parameter]) -> None:
        for parameter in parameters:
            parameter.data = stored[parameter]

    with ExitStack() as stack:
        rest = dict.fromkeys(stored)
        for block in [*blocks_of(model)][:-1] if stored else ():
            own = [parameter for parameter in block.parameters() if rest.pop(parameter, 0) is None]
            before = block.register_forward_pre_hook(lambda *_, own=own: widen(own))
            after = block.register_forward_hook(lambda *_, own=own: narrow(own), always_call=True)
            stack.callback(before.remove)
            stack.callback(after.remove)
        widen(rest)
        stack.callback(narrow, rest)
        yield


def keys_of(folder: Path, config: Any) -> dict[str, str] | None:
    """How the folder's tensors are renamed for a configuration: those of a language model inside a multimodal one."""
    whole = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return None if whole.model_type == config.model_type else INNER


def _read(auto: Any, folder: Path, config: Any, **keywords: Any) -> tuple[Any, dict[str, Any]]:
    try:
        return auto.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            key_mapping=keys_of(folder, config),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported instead
            trust_remote_code=False,
            **keywords,
        )
    except Exception as error:  # whatever a damaged file makes transformers, safetensors or pickle raise
        raise UserError(
            f"backbone: the weights in {folder} can't be read: {first_line(error)}; expected whole model.safetensors "
            "or pytorch_model.bin; fetch or copy them again"
        ) from None


def _is_of_head(model: Any, name: str) -> bool:
    """Whether a tensor is outside the body, and so used for vocabulary scores only."""
    if model.config.is_encoder_decoder:
        return name.startswith("lm_head.")
    return not name.startswith(f"{model.base_model_prefix}.")


def _is_of_blocks(model: Any, name: str) -> bool:
    """Whether a tensor is one of the body's blocks, by its name with or without the body's."""
    body = model.base_model
    lists = [path for path, module in body.named_modules() if isinstance(module, torch.nn.ModuleList)]
    starts = tuple(f"{path}." for path in lists)
    return name.removeprefix(f"{model.base_model_prefix}.").startswith(starts)


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]}, ..."

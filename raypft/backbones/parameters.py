"""Where in a model its parameters are: which block, body or head, normalisation or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from raypft.errors import UserError

if TYPE_CHECKING:
    from raypft.backbones.base import Backbone

THIRDS = ("lower", "middle", "higher")


@dataclass(frozen=True)
class ParameterInfo:
    """layer: number of the block, from 1, None outside the blocks; in_body: not in the head; is_norm: of a
    normalisation layer."""

    layer: int | None
    in_body: bool
    is_norm: bool


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises: layer norms and their kin, whatever a model calls them."""
    return type(module).__name__.endswith("Norm")


def parameter_infos(backbone: Backbone) -> dict[str, ParameterInfo]:
    """Name of every parameter of the model, once each, to its place in it (no layers where `has_blocks` is False);
    one that body and head share goes by its body's name."""
    model, blocks = backbone.model, backbone.blocks if backbone.has_blocks else None
    start = next((name for name, module in model.named_modules() if module is blocks), "no blocks") + "."
    body = f"{model.base_model_prefix}."
    norms = {name for name, module in model.named_modules() if is_norm(module)}
    # body first: XLM-R registers its head before the body, and named_parameters would call the embedding by the head's
    # name
    named = sorted(model.named_parameters(remove_duplicate=False), key=lambda pair: not pair[0].startswith(body))
    infos, seen = {}, set()
    for name, parameter in named:
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        layer = int(name.removeprefix(start).split(".")[0]) + 1 if name.startswith(start) else None
        infos[name] = ParameterInfo(layer, name.startswith(body), name.rpartition(".")[0] in norms)
    return infos


def segment_layers(segment: str, num_layers: int, key: str = "segment") -> range:
    """The layers of a segment: all, lower, middle, higher (thirds of the model) or FIRST-LAST.

    Args:
        key: what an error begins with.

    Raises:
        UserError: it reaches outside the model.
    """
    if segment == "all":
        return range(1, num_layers + 1)
    if segment in THIRDS:
        third = THIRDS.index(segment)
        return range(round(num_layers * third / 3) + 1, round(num_layers * (third + 1) / 3) + 1)
    first, last = (int(number) for number in segment.split("-"))
    if not 1 <= first <= last <= num_layers:
        raise UserError(
            f"{key}: found {segment}; expected layers FIRST-LAST from 1 to {num_layers}, first not after last, "
            f"e.g. 1-{num_layers}"
        )
    return range(first, last + 1)

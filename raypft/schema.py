"""YAML files and their strict models: reading, dotted overrides, and one line out of what does not fit."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from raypft.errors import UserError, closest, nearest, without_secrets

NUMBERS = (int, float, int | None, float | None)
"""The types of keys that take a number."""
OWN_KEYS = {"task": {"kind"}, "job": {"from", "recipe", "method"}, "campaign": {"rows"}}
"""What a YAML file is of, by keys that no other kind of file has."""


class Strict(BaseModel):
    """Unknown keys are errors, numbers are finite and no truth values, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic takes true for 1: of `shots: yes` one row a class would be drawn."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in NUMBERS:
            raise ValueError("expected a number")
        return value


def find_yaml(name: str, folder: Path, part: str, missing: str) -> tuple[Path, str]:
    """The file of a name in a catalogue's folder or of a path, and how messages call it.

    Args:
        part: what the folder holds, "task"; missing: the message for a path without a file, which `{}` stands for.

    Raises:
        UserError: no such file, or no such name (nearest named).
    """
    is_path = name.endswith((".yaml", ".yml"))
    path = Path(os.path.expanduser(name)) if is_path else folder / f"{name}.yaml"
    if not os.path.isfile(path):  # unlike Path's, not raised for a name that is too long
        if is_path:
            raise UserError(missing.format(path))
        raise UserError(f'{part}: "{name}" is unknown; {nearest(name, yaml_names(folder))}')
    return path, f"{folder.name}/{path.name}" if path.parent == folder else str(path)


def yaml_names(folder: Path) -> list[str]:
    """The names in a catalogue's folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def read_yaml(path: Path, where: str) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Args:
        where: how messages call the file.

    Raises:
        UserError: not readable, or no mapping.
    """
    return copy.deepcopy(_parsed(path.absolute(), path.stat().st_mtime_ns, where))


def file_of(values: Mapping[str, Any]) -> str | None:
    """Whether a YAML file is a task, a job or a campaign, by keys that it alone has, to tell whoever gives it for
    another; None where it has those of none or of several."""
    found = [part for part, keys in OWN_KEYS.items() if keys & values.keys()]
    return found[0] if len(found) == 1 else None


@functools.lru_cache(maxsize=256)
def _parsed(path: Path, changed: int, where: str) -> dict[str, Any]:
    """A campaign asks for the same few files thousands of times; `changed` makes an edited file another one."""
    values = load_yaml(path, where)
    if _holds_itself(values, set(), set()):
        raise UserError(f"{where}: an alias (*name) stands inside what it names; write the values out")
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a mapping of keys, found {type(values).__name__}")
    if odd := [key for key in values if not isinstance(key, str)]:
        raise UserError(f"{where}: found the key {odd[0]!r}, which is no text; expected a name, in quotes if need be")
    return values


def _holds_itself(value: Any, around: set[int], seen: set[int]) -> bool:
    """Whether nested values stand inside themselves; `around`: those that this one is in, `seen`: those looked at."""
    if not isinstance(value, dict | list) or id(value) in seen:
        return id(value) in around
    seen.add(id(value))
    below = list(value.values()) if isinstance(value, dict) else value
    return any(_holds_itself(one, around | {id(value)}, seen) for one in below)


class _Loader(yaml.SafeLoader):
    """YAML whose mappings have each key once, as YAML 1.2 (section 3.2.1.3) asks; PyYAML lets the last one win."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                line = key_node.start_mark.line + 1
                raise UserError(f'key "{key}" stands twice in one mapping, again in line {line}; keep one of them')
            seen.update([key] if isinstance(key, Hashable) else [])
        return super().construct_mapping(node, deep)


def load_yaml(path: Path, where: str) -> Any:
    """The one document of a YAML file.

    Args:
        where: how messages call the file.

    Raises:
        UserError: not readable, or a key that stands twice in a mapping (key and line named).
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none is a ValueError
        raise UserError(f"{where}: not readable as YAML: {' '.join(str(error).split())}") from None


def split_override(override: str) -> tuple[str, Any]:
    """`train.lr=1e-4` as key and value.

    Raises:
        UserError: no key=value, or a value that is no YAML.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f'override "{override}": expected key=value, e.g. train.lr=1e-4')
    try:
        value = yaml.load(text, _Loader)
        # " #" begins no comment in a word of a command line: a folder may be called "run #2"
        return key, text.strip() if isinstance(value, str) and text[:1] not in "\"'" else value
    except UserError as error:
        raise UserError(f'override "{override}": {error}') from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f'override "{override}": the value is not readable as YAML; quote it') from None


def set_key(values: dict[str, Any], key: str, value: Any, told: str = "") -> None:
    """Put a value at a dotted key of nested values; messages call it `told`.

    Raises:
        UserError: a part of the key is no group of keys.
    """
    *groups, last = key.split(".")
    level = values
    for group in groups:
        below = level.get(group, {})
        # `method: gnnavi` is short for `method: {name: gnnavi}`
        below = {"name": below} if isinstance(below, str) else below
        if not isinstance(below, dict):
            raise UserError(f'override "{told or key}": {group} is not a group of keys')
        level[group] = dict(below)
        level = level[group]
    level[last] = number(value) if isinstance(value, str) else value


def at_key(values: dict[str, Any], key: str) -> Any:
    """What nested values hold at a dotted key, None where they hold nothing."""
    group, _, rest = key.partition(".")
    below = values.get(group)
    return at_key(below, rest) if rest and isinstance(below, dict) else None if rest else below


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested job keys as dotted ones. A method or readout given with its name replaces the one before as a whole.

    Raises:
        UserError: a key stands there twice, nested and dotted; or there are no keys but something else.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"found {shortened(values)}; expected keys of jobs, e.g. {{train.lr: 1e-4}}")
    dotted: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping) and "name" not in value
        more = flat(value, f"{prefix}{key}.") if nested else {prefix + str(key): value}
        if twice := dotted.keys() & more.keys():
            raise UserError(f'key "{min(twice)}" is given twice, nested and dotted; keep one of them')
        dotted |= more
    return dotted


def secrets(values: Mapping[str, Any]) -> Iterator[str]:
    """A line for each URI among values by dotted keys that holds a password or is signed."""
    for key, value in values.items():
        if isinstance(value, str) and "://" in value and (shown := without_secrets(value)) != value:
            yield (
                f"{key}: {shown} holds a key or password, which would stand in files and logs; leave it out, and give "
                "it in the environment variables of the store's client"
            )


def number(text: str) -> str | float:
    """YAML 1.1 reads 1e-4 as text; researchers do not."""
    try:
        return float(text) if "e" in text.lower() and text[:1] in "0123456789.-+" else text
    except ValueError:
        return text


def digest(values: dict[str, Any]) -> str:
    """Hash of values that JSON can hold, whatever their order: 16 hex digits."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


Model = TypeVar("Model", bound=BaseModel)
_ROOTS: dict[str, type[BaseModel]] = {}


def validation_root(model: type[Model]) -> type[Model]:
    """Class decorator: lets `validation_line` name the known keys at any depth below this model."""
    _ROOTS[model.__name__] = model
    return model


def validation_line(where: str, error: Exception, values: object) -> str:
    """One line out of a pydantic error, the first of `validation_lines`."""
    return validation_lines(where, error, values)[0]


def validation_lines(where: str, error: Exception, values: object) -> list[str]:
    """A line for each key of a pydantic error: where, key, found, expected; unknown keys first, with the nearest named.

    A key that is missing because it is misspelt is told once.
    """
    if not isinstance(error, ValidationError):
        return [f"{where}: {error}"]
    errors = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    meant: set[tuple[int | str, ...]] = set()
    lines: dict[str, str] = {}
    for one in errors:
        location = one["loc"]
        if one["type"] == "extra_forbidden":
            known = keys_at(error.title, location[:-1])
            meant.add((*location[:-1], SYNONYMS.get(str(location[-1])) or closest(str(location[-1]), known) or ""))
        if one["type"] == "missing" and location in meant:
            continue
        # pydantic ends the place in a union with the type it tried
        if location and str(location[-1]) in ("str", "list[str]", "dict[str,str]"):
            location = location[:-1]
        key = ".".join(map(str, location))
        lines.setdefault(key, f"{where}: {_fault(key, one, error.title)}")
    return list(lines.values())


def _fault(key: str, one: Any, title: str) -> str:
    """What is wrong with a key, of one of pydantic's errors."""
    if one["type"] == "extra_forbidden":
        return unknown_key(key, keys_at(title, one["loc"][:-1]), _dotted(_ROOTS.get(title)))
    if one["type"] == "missing":
        return f'key "{key}" is missing'
    if one["type"] == "list_type" and isinstance(one["input"], str):
        return f"{key}: found {shortened(one['input'])}; expected a list, e.g. [{one['input'][:20]}]"
    quoted = "; write it in quotes" if one["type"] == "string_type" and not isinstance(one["input"], dict) else ""
    return f"{key}: found {shortened(one['input'])}; {one['msg'][0].lower()}{one['msg'][1:]}{quoted}"


SYNONYMS = {"learning_rate": "lr", "num_epochs": "epochs", "bs": "batch_size", "max_length": "max_tokens"}
"""What other libraries call some keys, to ours; nearness of letters would name others."""


def unknown_key(key: str, known: Iterable[str], elsewhere: Iterable[str] = ()) -> str:
    """`unknown key "x.y"; did you mean "z"? known: …`, also where there are none.

    Args:
        known: the keys at its place; elsewhere: dotted keys below others, meant if they end alike.
    """
    known, last = sorted(known), key.rpartition(".")[2]
    if not known:
        return f'unknown key "{key}"; there are no keys here; leave it out'
    ours = SYNONYMS.get(last, last)
    meant = ours if ours in known else next((dotted for dotted in elsewhere if dotted.endswith(f".{ours}")), None)
    if meant:
        return f'unknown key "{key}"; did you mean "{meant}"? known: {", ".join(known)}'
    return f'unknown key "{key}"; {nearest(last, known)}'


def _dotted(model: object, prefix: str = "") -> Iterator[str]:
    """The keys below the groups of keys of a model."""
    for name, field in getattr(model, "model_fields", {}).items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from (f"{prefix}{name}.{key}" for key in field.annotation.model_fields)
            yield from _dotted(field.annotation, f"{prefix}{name}.")


def shortened(value: object) -> str:
    """A value for a message: on one line, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}…"


def keys_at(title: str, location: tuple[int | str, ...]) -> list[str]:
    """The keys of the model at a place below the root called `title`."""
    model: object = _ROOTS.get(title)
    for part in location:
        fields = getattr(model, "model_fields", None)
        if fields and part in fields:
            model = fields[part].annotation
            # a map's own keys may be called as fields of its values are: sources.hub
            if getattr(model, "__origin__", None) is dict:
                continue
        # the model inside an Annotated
        arguments = [getattr(argument, "__origin__", argument) for argument in getattr(model, "__args__", ())]
        models = [argument for argument in arguments if isinstance(argument, type) and issubclass(argument, BaseModel)]
        if models:
            model = models[0]
    return [*getattr(model, "model_fields", {}), *getattr(model, "short_forms", ())]

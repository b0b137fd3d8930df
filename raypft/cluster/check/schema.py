"""Values against a JSON Schema, misfits told as raypft tells them; that of Kubernetes is manifests.schema.yaml."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from raypft.errors import nearest

SCHEMA = Path(__file__).parent / "manifests.schema.yaml"


def schema_lines(schema: dict[str, Any], values: Any) -> list[str]:
    """Every misfit as `key: found …; expected …`."""
    misfits = jsonschema.Draft202012Validator(schema).iter_errors(values)
    return [_line(error) for error in sorted(misfits, key=_path)]


def _path(error: Any) -> list[str]:
    return [str(part) for part in error.absolute_path]


def _line(error: Any) -> str:
    key = ".".join(_path(error))
    rule, value = error.validator, error.validator_value
    if rule == "additionalProperties" and value is False:
        known = error.schema.get("properties", {})
        unknown = next(name for name in error.instance if name not in known)
        return f'unknown key "{key}{"." if key else ""}{unknown}"; {nearest(unknown, known)}'
    if rule == "required":
        missing = next(name for name in value if name not in error.instance)
        return f'key "{key}{"." if key else ""}{missing}" is missing'
    expected = {
        "type": lambda: f"of type {value if isinstance(value, str) else ' or '.join(value)}",
        "enum": lambda: f"one of {', '.join(map(str, value))}",
        "const": lambda: str(value),
        "pattern": lambda: f"text like {value}",
        "minimum": lambda: f"{value} or more",
        "maximum": lambda: f"{value} or less",
    }.get(rule, lambda: error.message)()
    return f"{key}: found {error.instance!r}; expected {expected}"


@cache
def manifest_schemas() -> dict[str, dict[str, Any]]:
    """Kind of a Kubernetes object to its schema."""
    loaded = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    parts = loaded["$defs"]
    made = {}
    for kind, given in loaded["kinds"].items():
        properties = {
            "apiVersion": {"const": given["apiVersion"]},
            "kind": {"const": kind},
            "metadata": {"$ref": "#/$defs/metadata"},
            "spec": given["spec"],
        }
        made[kind] = _closed(
            {"$defs": parts, "required": ["apiVersion", "kind", "metadata", "spec"], "properties": properties}
        )
    return made


def _closed(schema: Any) -> Any:
    """The schema with every object that names its keys refusing others."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _closed(part) for key, part in schema.items()}
    # a map of keys may itself hold a key called properties; only a schema's own is a mapping of schemas
    if isinstance(made.get("properties"), dict) and "additionalProperties" not in made:
        made |= {"type": "object", "additionalProperties": False}
    return made

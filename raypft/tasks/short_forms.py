"""A task as people write it: the short forms of its YAML, written out before anything else looks at it.

    fields: [message]                  fields: {message: message}
    label: topic                       label: {column: topic}
    labels: [billing, bug]             label: {names: [billing, bug]}
    languages: de                      languages: [de]
    files: support.csv                 sources: {files: {files: support.csv, root: .}}; columns and format go along
    patterns: {ask: "{message} <slot>"}   patterns: {ask: {text: …, verbalizer: {billing: billing, bug: bug}}}

Without `metric` the kind's usual one is taken. What is of another type than a short form is left as it is, for the
model of a task to refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raypft.errors import UserError
from raypft.tasks.kinds import KINDS

OF_FILES = ("files", "columns", "format")
"""Keys of a source that may stand at the task's top: it is called files, and its files lie beside the YAML."""
TEXTS = {"type": "array", "items": {"type": "string"}}
SCHEMA: dict[str, dict[str, Any]] = {
    "fields": {"anyOf": [{"type": "string"}, TEXTS, {"type": "object", "additionalProperties": {"type": "string"}}]},
    "label": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Label"}]},
    "labels": TEXTS,
    "languages": {"anyOf": [{"type": "string"}, TEXTS]},
    "files": {"$ref": "#/$defs/Source/properties/files"},
    "columns": {"$ref": "#/$defs/Source/properties/columns"},
    "format": {"$ref": "#/$defs/Source/properties/format"},
    "patterns": {
        "type": "object",
        "additionalProperties": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Pattern"}]},
    },
}
"""The JSON Schema of the keys that have a short form, below that of `Task`."""


def written_out(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a task's YAML without short forms.

    Raises:
        UserError: a key stands there in both forms.
    """
    full = dict(values)
    if isinstance(full.get("fields"), str):
        full["fields"] = [full["fields"]]
    if _is_texts(full.get("fields")):
        full["fields"] = {name: name for name in full["fields"]}
    if isinstance(full.get("languages"), str):
        full["languages"] = [full["languages"]]
    _label(full)
    _source(full)
    names = full["label"].get("names") if isinstance(full.get("label"), Mapping) else None
    if isinstance(full.get("patterns"), Mapping):
        full["patterns"] = {name: _pattern(pattern, names) for name, pattern in full["patterns"].items()}
    _metric(full, names if isinstance(names, list) and _is_texts(names) else [])
    return full


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _label(full: dict[str, Any]) -> None:
    if isinstance(full.get("label"), str):
        full["label"] = {"column": full["label"]}
    if "labels" not in full:
        return
    label = full.setdefault("label", {})
    if isinstance(label, Mapping):
        if "names" in label:
            raise UserError("labels: found beside label.names; keep one of them")
        full["label"] = {**label, "names": full.pop("labels")}


def _source(full: dict[str, Any]) -> None:
    source = {key: full.pop(key) for key in OF_FILES if key in full}
    if not source:
        return
    if "files" not in source:
        raise UserError(f"{next(iter(source))}: found without files; give it to a source, or name files beside it")
    others = full.get("sources", {})
    if not isinstance(others, Mapping):
        return
    if "files" in others:
        raise UserError("files: found beside sources.files; keep one of them")
    full["sources"] = {"files": {"root": ".", **source}, **others}


def _pattern(pattern: Any, names: Any) -> Any:
    """A pattern with its text under `text`; a <slot> without label words is answered by the label names."""
    full = {"text": pattern} if isinstance(pattern, str) else pattern
    if not isinstance(full, Mapping) or not isinstance(full.get("text"), str):
        return full
    if "<slot>" in full["text"] and "verbalizer" not in full and _is_texts(names):
        return {**full, "verbalizer": {name: name for name in names}}
    return full


def _metric(full: dict[str, Any], names: list[str]) -> None:
    """`metric` where it is left out."""
    kind, metrics = full.get("kind"), full.get("metrics")
    if "metric" not in full and isinstance(metrics, list) and metrics:
        full["metric"] = metrics[0]
    if "metric" not in full and isinstance(kind, str) and kind in KINDS:
        full["metric"] = KINDS[kind].usual_metric(names)

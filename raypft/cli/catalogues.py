"""What `raypft list` prints. Nothing here needs a model, so nothing here loads torch, but for what goes with what."""

from __future__ import annotations

import json
from collections.abc import Callable

from raypft.analysis import ANALYSES
from raypft.backbones.aliases import ALIASES
from raypft.catalogue import Catalogue
from raypft.config.load import recipe_names, recipe_source
from raypft.errors import UserError, nearest
from raypft.methods import METHODS
from raypft.readouts import READOUTS
from raypft.tasks.load import load_task, task_names


def catalogue(what: str, kind: str | None = None) -> list[str]:
    """One line per entry of a catalogue.

    Args:
        kind: of `schema`, the kind of file.

    Raises:
        UserError: no such catalogue.
    """
    if what == "schema":
        return _schema(kind or "job")
    if what not in CATALOGUES:
        raise UserError(f'list: "{what}" is unknown; {nearest(what, [*CATALOGUES, "schema"])}')
    if kind is not None:
        raise UserError(f'list: found "{kind}" after {what}; only schema has kinds: job, task, campaign')
    return CATALOGUES[what]()


def _tasks() -> list[str]:
    lines = []
    for name in task_names():
        task = load_task(name)
        languages, labels, patterns = len(task.languages), ", ".join(task.label.names), ", ".join(task.patterns)
        lines.append(f"{name:16} {task.about}; {languages} languages, labels: {labels}; patterns: {patterns}")
    return lines


def _methods() -> list[str]:
    lines = []
    for name in METHODS.names():
        families = METHODS.declared(name, "families") or METHODS.declared("base", "families")
        lines.append(f"{_about(METHODS, name)}  families: {', '.join(families)}")
    return lines


def _about(plug_ins: Catalogue, name: str) -> str:
    return f"{name:12} {plug_ins.about(name)}"


def _backbones() -> list[str]:
    lines = []
    for name, alias in ALIASES.items():
        lines.append(f"{name:14} {alias.hub}: {alias.about}" + (" (gated)" if alias.gated else ""))
    return lines


def _matrix() -> list[str]:
    from raypft.config.compatibility import matrix  # noqa: PLC0415  (reads the classes, which need torch)

    return [matrix()]


def _schema(kind: str) -> list[str]:
    from raypft.cli.schemas import schema  # noqa: PLC0415  (reads the classes, which need torch)

    return [json.dumps(schema(kind), indent=1)]


CATALOGUES: dict[str, Callable[[], list[str]]] = {
    "tasks": _tasks,
    "methods": _methods,
    "readouts": lambda: [_about(READOUTS, name) for name in READOUTS.names()],
    "analyses": lambda: [_about(ANALYSES, name) for name in ANALYSES.names()],
    "backbones": _backbones,
    "recipes": lambda: [f"{name:12} {recipe_source(name)}" for name in recipe_names()],
    "matrix": _matrix,
}

"""The pages of the reference about how raypft is called: its commands, its Python API, its exit codes."""

from __future__ import annotations

import importlib
import inspect
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from writing import code, inline, prose, table

import raypft
from raypft.analysis.base import Analysis
from raypft.campaigns.results import CampaignResults
from raypft.errors import UserError
from raypft.runs.predict import Trained
from raypft.runs.results import RunResults

COMMANDS = importlib.import_module("raypft.cli.app")
CODED = ("raypft.cluster.client", "raypft.cluster.check.preflight", "raypft.scale.resources")
"""Where errors with an exit code of their own are."""
CLUSTERS = Path(__file__).parents[1] / "cluster" / "README.md"


def of_group(command: Any, path: str) -> Iterator[str]:
    """A command's help, and that of the commands below it."""
    if hasattr(command, "commands"):
        yield prose(command.help)
        yield from options(command)
        for name in sorted(command.commands):
            below = command.commands[name]
            if not below.hidden:
                yield f"{'#' * len(f'{path} {name}'.split())} {path} {name}"
                yield from of_group(below, f"{path} {name}")
        return
    arguments = [param.metavar or param.name.upper() for param in command.params if param.param_type_name == "argument"]
    yield code(" ".join([path, "[OPTIONS]" if len(command.params) > len(arguments) else "", *arguments]), "text")
    yield prose(command.help)
    yield from options(command)


def options(command: Any) -> Iterator[str]:
    """The table of what a command takes."""
    rows = []
    for param in command.params:
        names = (
            param.opts + param.secondary_opts if param.param_type_name == "option" else [param.metavar or param.name]
        )
        value = param.metavar if param.param_type_name == "option" and param.metavar else ""
        rows.append([", ".join(inline(f"{name} {value}".strip()) for name in names), prose(getattr(param, "help", ""))])
    if rows:
        yield table(["option or argument", ""], rows)


def python() -> Iterator[str]:
    """The Python API, from its docstrings; the examples are those that a test runs."""
    _, _, rest = inspect.cleandoc(raypft.__doc__ or "").rpartition("\n\n")
    yield f"{rest} In the examples `MODEL` is a model's folder or name."
    for name in raypft.__all__:
        function = getattr(raypft, name)
        if inspect.isfunction(function):
            yield f"## raypft.{name}"
            yield code(f"raypft.{name}{signature(function)}", "python")
            yield from documented(function.__doc__)
    for result in (RunResults, Trained, CampaignResults, Analysis):
        yield f"## {result.__name__}\n\n{prose(result.__doc__)}"
        rows = []
        for name, member in vars(result).items():
            if not name.startswith("_") and (isinstance(member, property) or inspect.isfunction(member)):
                shown = name if isinstance(member, property) else f"{name}{signature(member)}".replace("(self, ", "(")
                about = prose((member.__doc__ or "").split("\n\n")[0])
                rows.append([inline(shown.replace("(self)", "()")), about])
        if rows:
            yield table(["gives", ""], rows)


def signature(function: Any) -> str:
    """A function's arguments, without their types; these are in the code and for type checkers."""
    given = inspect.signature(function)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in given.parameters.values()]
    return str(given.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def documented(text: str | None) -> Iterator[str]:
    """A docstring as Markdown: its arguments and errors as lists, its example as code."""
    for part in inspect.cleandoc(text or "").split("\n\n"):
        head, _, below = part.partition("\n")
        if head in ("Args:", "Raises:"):
            entries = " ".join(inspect.cleandoc(below).split())
            yield f"*{'Arguments' if head == 'Args:' else 'Raises'}*: {prose(entries)}"
        elif part.startswith(">>>"):
            yield code(part, "pycon")
        else:
            yield prose(part)


def exit_codes() -> Iterator[str]:
    """What each exit code means, for scripts."""
    yield prose((COMMANDS.__doc__ or "").split("\n\n")[1])
    yield "Errors with a code of their own, of any command:"
    rows = []
    for member in itertools.chain.from_iterable(vars(importlib.import_module(name)).values() for name in CODED):
        if isinstance(member, type) and issubclass(member, UserError) and "code" in vars(member):
            rows.append((str(member.code), prose(member.__doc__)))
    yield table(["code", "meaning"], [row for row in sorted(set(rows)) if row[0] != str(UserError.code)])
    text = CLUSTERS.read_text(encoding="utf-8")
    yield "## raypft submit"
    yield text[text.index("| code | meaning |") :].split("\n\n")[0]

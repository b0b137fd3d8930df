"""`raypft init`: a task out of someone's data file."""

from __future__ import annotations

import json
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raypft.cli.jobs import check
from raypft.cli.shown import Json, console
from raypft.errors import UserError, nearest, visible

if TYPE_CHECKING:
    from raypft.data.guess import Guess

KEYS = ("text", "label", "language", "id", "kind", "names", "languages", "format", "backbone")
RECIPES = {"choice": ("vanilla", "profit", "lora"), "tags": ("vanilla_tags",), "span": ("vanilla_qa",)}
"""What is run next, by the kind of task."""
BACKBONE = "xlmr-base"
"""Of the commands that are printed, where none is given."""
FEW = 2000
"""Rows below which the commands ask for more epochs of smaller steps than the recipes', which are for full data."""
SPLITS = 3
"""Train, dev and test: so many rows a label has at least, to stand in each."""
SHOWN = 20
"""Labels and columns that are listed."""


def init(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="A file of rows, or a folder with files called train, dev and test.")
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE...]",
            help="Where the guess is another: text=COLUMN (or text=A,B), label=, language=, id=, "
            "kind=choice|tags|span, names=NAME,NAME for labels in their order, languages=de for rows that don't say "
            "theirs, format=words|panx; backbone=MODEL to check at once.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The YAML to write; beside the data by default.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write a task from a data file: columns guessed, labels counted, a pattern proposed; then what to run next."""
    from raypft.data.draft import drafted, files_at, write  # noqa: PLC0415  (loaded only where it is used)

    given = _given(words or [])
    files = files_at(data, given.get("format"))
    to = out or Path("" if "://" in files.root else files.root or ".", f"{files.stem}.yaml")
    if to.suffix not in (".yaml", ".yml"):
        raise UserError(f"init: found --out {to}; expected a file that ends in .yaml")
    if to.exists() and not force:
        raise UserError(f"init: {to} is there already; --force writes over it, --out FILE writes another")
    found, rows = drafted(files, given, _choose)
    splits = write(found, files, to, given.get("format"))
    commands = _commands(found, to, given.get("backbone"), rows)
    if as_json:
        told = {"task": str(to), "kind": found.kind, "columns": dict(_columns(found)), "labels": found.labels}
        print(json.dumps({**told, "languages": found.languages, "next": commands}, ensure_ascii=False))
    else:
        for line in [*_lines(found, files.first, rows), *splits, f"written to {to}; next:", *commands]:
            console.print(visible(line), highlight=False, soft_wrap=True)
    if "backbone" in given:
        check(shlex.split(commands[0])[2:], as_json)


def _given(words: Sequence[str]) -> dict[str, str]:
    given = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in KEYS:
            raise UserError(f'init: found "{word}"; {nearest(key, KEYS)}')
        if not equals or not value:
            raise UserError(f'init: found "{word}"; expected {key}=VALUE')
        given[key] = value
    if "," in given.get("languages", ""):
        raise UserError(
            f"init: found languages={given['languages']}; expected one, that of all rows; several need a column that "
            "says each row's: language=COLUMN"
        )
    return given


def _choose(role: str, columns: Sequence[str]) -> str:
    """Ask which column has a role.

    Raises:
        UserError: there is no one to ask.
    """
    named = ", ".join(columns)
    if not (console.is_terminal and sys.stdin.isatty()):
        both = f", or {role}={columns[0]},{columns[1]} for both" if role == "text" else ""
        raise UserError(f"init: {named} may each be the {role}; say which: {role}={columns[0]}{both}")
    several = " (two with a comma between are a pair)" if role == "text" else ""
    while True:
        told = typer.prompt(f"Which column is the {role}?{several} {visible(named)}", default=columns[0]).strip()
        if set(map(str.strip, [told] if told in columns else told.split(","))) <= set(columns):
            return told


def _columns(found: Guess) -> Iterator[tuple[str, str]]:
    """Role to column."""
    yield "words" if found.kind == "tags" else "text", ",".join(found.texts)
    yield "label", found.label
    for role, column in (("language", found.language), ("id", found.id)):
        if column is not None:
            yield role, column


def _lines(found: Guess, first: str, rows: int) -> Iterator[str]:
    roles = "; ".join(f"{role}: {column}" for role, column in _columns(found))
    unused = f"; not used: {', '.join(found.unused[:SHOWN])}" if found.unused else ""
    yield f"{first}: {rows} rows, kind {found.kind}; {roles}{unused}"
    if found.labels:
        counted = [f"{name} {count}" for name, count in list(found.labels.items())[:SHOWN]]
        counted += ["…"] if len(found.labels) > SHOWN else []
        what = "tags, words" if found.kind == "tags" else "labels, rows"
        yield f"{len(found.labels)} {what} of each: {', '.join(counted)}"
    for names in _alike(found.labels):
        told = " and ".join(map(repr, names))
        yield f"{told} differ in blanks or capitals alone and are labels of their own; write alike what is one"
    rare = [name for name, count in found.labels.items() if count < SPLITS]
    if found.kind == "choice" and rare:
        yield f"too few rows to be trained on, chosen by and tested: {', '.join(rare[:SHOWN])}; add some, or drop them"
    if found.labels and all(name.lstrip("-").isdecimal() for name in found.labels):
        order = ", ".join(list(found.labels)[:SHOWN])
        lacking = "by which no entities are counted" if found.kind == "tags" else "which say nothing to a model"
        yield f"the labels are numbers, {lacking}; names=NAME,… calls them, in the order {order}"
    if found.language is None:
        spoken = next(iter(found.languages))
        yield f"no column says the language: all rows are taken for {spoken}; languages=CODE says another"
    else:
        yield f"languages: {', '.join(list(found.languages)[:SHOWN])}"
    if found.repeated:
        yield f"{found.repeated} rows repeat the text of another; of one file those stay in one split"
    if found.kind == "choice":
        yield "pattern ask, for masked and causal models; its words are the labels' names: edit them at will"


def _alike(labels: Iterable[str]) -> list[list[str]]:
    """Labels that a reader may take for one."""
    alike = defaultdict[str, list[str]](list)
    for name in labels:
        alike[" ".join(name.casefold().split())].append(name)
    return [names for names in alike.values() if len(names) > 1]


def _commands(found: Guess, to: Path, backbone: str | None, rows: int) -> list[str]:
    """`raypft check …` and `raypft run …`."""
    words = [*RECIPES[found.kind], f"task={to}", f"backbone={backbone or BACKBONE}", "protocol=fixed"]
    if "lora" in words:
        words += ["demos=0", "train.max_tokens=128"]  # its paper shows some, in prompts that masked models can't hold
    if len(found.languages) > 1 and "en" not in found.languages:
        words.append(f"train.languages=[{next(iter(found.languages))}]")
    few = ["train.epochs=20", "train.batch_size=8"] if rows < FEW else []
    return [shlex.join(["raypft", "check", *words]), shlex.join(["raypft", "run", *words, *few, "seeds=3"])]

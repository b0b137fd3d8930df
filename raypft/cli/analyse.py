"""`raypft analyse`: what finished runs show beside their scores, as tables and figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from raypft.cli.shown import Json, console
from raypft.errors import UserError
from raypft.storage import path_of

Words = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN... [KEY=VALUE...]",
        help="Folders of finished runs, then keys of the analysis, and where the runs' files lie now: backbone=, "
        "task=, method.ticket=, data.root=.",
    ),
]


def analyse(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="Of raypft list analyses, or a path.py with one.")],
    words: Words,
    out: Annotated[
        Path | None,
        typer.Option(parser=path_of, help="Below which folder analysis-KIND is written; the first run's by default."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Look into finished runs: information flow, tickets, boundaries, errors, transfer, demonstrations."""
    from raypft.analysis import ANALYSES  # noqa: PLC0415

    made = ANALYSES.load(kind)  # an unknown kind is told before a run is looked for
    from raypft.analysis._runs import ROOT, open_runs  # noqa: PLC0415
    from raypft.analysis._write import write  # noqa: PLC0415

    folders = [path_of(word) for word in words if "=" not in word]
    if len(folders) < made.fewest or len(folders) > (made.most or len(folders)):
        expected = f"{made.fewest}" if made.most == made.fewest else f"{made.fewest} or more"
        raise UserError(f"analyse {kind}: found {len(folders)} runs; expected {expected}, folders such as runs/icl-…")
    options, moved = _keys(kind, made, [word for word in words if "=" in word], ROOT)
    runs = open_runs(folders, moved)
    found = made().compute(runs, options)
    place = write(found, runs, folders[0] if out is None else out)
    if as_json:
        print(json.dumps({"analysis": found.name, "folder": str(place), "tables": list(found.tables)}))
        return
    console.print(f"{found.title}: {found.how}", highlight=False, soft_wrap=True)
    for note in found.notes:
        console.print(f"- {note}", highlight=False, soft_wrap=True)
    sizes = [f"{name}.csv ({len(rows)} rows)" for name, rows in found.tables.items()]
    console.print(f"written to {place}: {', '.join([*sizes, *found.figures])}", highlight=False, soft_wrap=True)


def _keys(kind: str, made: Any, words: list[str], root: str) -> tuple[Any, dict[str, str]]:
    """The options that words give, and where runs' files lie now."""
    from pydantic import ValidationError  # noqa: PLC0415

    from raypft.runs.predict import PLACES  # noqa: PLC0415  (needs torch)
    from raypft.schema import set_key, split_override, validation_lines, validation_root  # noqa: PLC0415

    moved = dict(word.split("=", 1) for word in words if word.partition("=")[0] in (*PLACES, root))
    values: dict[str, Any] = {}
    for word in words:
        if word.partition("=")[0] not in moved:
            set_key(values, *split_override(word), told=word)
    validation_root(made.Options)
    try:
        return made.Options(**values), moved
    except ValidationError as error:
        raise UserError("\n".join(validation_lines(f"analyse {kind}", error, values))) from None

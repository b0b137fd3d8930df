"""`raypft analyse`: what finished runs show beside their scores, as tables and figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from raypft.cli import completion
from raypft.cli.shown import Json, console
from raypft.schema import split_override
from raypft.storage import path_of

Words = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN...|CAMPAIGN... [KEY=VALUE...]",
        help="Folders of finished runs, or of campaigns, whose shown runs are meant; then keys of the analysis, and "
        "where the runs' files lie now: backbone=, task=, method.ticket=, data.root=.",
    ),
]


def analyse(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND", help="Of raypft list analyses, or a path.py with one.", autocompletion=completion.analyses
        ),
    ],
    words: Words,
    out: Annotated[
        Path | None,
        typer.Option(parser=path_of, help="Below which folder analysis-KIND is written; the first of them by default."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Look into finished runs: information flow, tickets, boundaries, errors, transfer, demonstrations."""
    from raypft.campaigns.finished import analyse as analysed  # noqa: PLC0415  (loaded only where it is used)

    keys: dict[str, Any] = {}
    for word in words:
        if "=" in word:
            key, value = split_override(word)
            keys[key] = value
    folders = [path_of(word) for word in words if "=" not in word]
    found, place = analysed(kind, folders, keys, out, lambda line: print(line, file=sys.stderr))
    if as_json:
        print(json.dumps({"analysis": found.name, "folder": str(place), "tables": list(found.tables)}))
        return
    console.print(f"{found.title}: {found.how}", highlight=False, soft_wrap=True)
    for note in found.notes:
        console.print(f"- {note}", highlight=False, soft_wrap=True)
    sizes = [f"{name}.csv ({len(rows)} rows)" for name, rows in found.tables.items()]
    console.print(f"written to {place}: {', '.join([*sizes, *found.figures])}", highlight=False, soft_wrap=True)

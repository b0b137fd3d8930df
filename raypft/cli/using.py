"""`raypft predict`, and how a command names a finished run and where its files lie now."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raypft.cli.shown import Json, console, print_table
from raypft.errors import UserError
from raypft.storage import path_of

Run = Annotated[Path, typer.Argument(metavar="RUN", parser=path_of, help="The folder of a finished run.")]
Moved = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=PATH...]", help="Where the run's files lie now: backbone=, task=, method.ticket=."),
]
Seed = Annotated[int | None, typer.Option(help="Which seed of the run; the first finished one by default.")]


def moved(words: list[str] | None) -> dict[str, str]:
    """Where what a run was made with lies now."""
    for word in words or []:
        if "=" not in word:
            raise UserError(f'run: found "{word}"; expected KEY=PATH, where what the run was made with lies now')
    return dict(word.split("=", 1) for word in words or [])


def predict(
    folder: Run,
    words: Moved = None,
    data: Annotated[
        str | None, typer.Option(help="A file with the task's columns, - for JSON lines; labels are not looked at.")
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="One row: a text, or field=text for each field, split at blanks into words; - for lines."),
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Of rows that do not say theirs; the training language by default.")
    ] = None,
    seed: Seed = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=path_of, help="A .csv, .tsv, .jsonl or .parquet file instead of the terminal."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Score new rows with a finished run: labels with probabilities, a tag a word, or answer texts."""
    if (data is None) == (not text):
        found = "both --data and --text" if text else "neither --data nor --text"
        file = next((word for word in words or () if "=" not in word), "FILE")
        raise UserError(f"predict: found {found}; expected rows with --data {file}, or one row with --text")
    from raypft.runs import answers  # noqa: PLC0415
    from raypft.runs import predict as using  # noqa: PLC0415

    if out is not None:
        answers.check_out(out)
    trained = using.load_trained(folder, seed, moved(words))
    found = answers.answered(trained, answers.given(trained, data, text or [], language), language)
    if out is not None:
        answers.write(found, out)
        console.print(f"{len(found)} rows in {out}", highlight=False, soft_wrap=True)
    elif as_json or not console.is_terminal:
        for line in answers.lines_of(found):
            print(line)
    else:
        print_table(answers.shown(f"{trained.folder.name}, seed {trained.seed}", found))

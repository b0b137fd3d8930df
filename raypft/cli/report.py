"""`raypft report`: the tables and pages of finished runs and campaigns."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from raypft.cli.shown import Json, print_table
from raypft.errors import UserError
from raypft.storage import path_of


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...|CAMPAIGN...", parser=path_of, help="Folders of runs of one task, or of campaigns."
        ),
    ],
    as_json: Json = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            parser=path_of,
            help="Write a whole report of one campaign, or of runs, into a folder or behind a URI: a page with "
            "intervals, tests and figures (index.html), and its tables as Markdown, LaTeX and CSV.",
        ),
    ] = None,
    mix: Annotated[
        bool,
        typer.Option("--mix", help="Let numbers stand in one table that don't compare; the table then says so."),
    ] = False,
    metric: Annotated[
        str | None, typer.Option(help="With --out: the metric that leads, instead of the task's first.")
    ] = None,
) -> None:
    """The table of one or more runs, as Markdown when not on a terminal; the tables of campaigns, written anew from
    what is finished. With --out a page and its files."""
    if out is not None:
        write_report_folder(folders, out, as_json, mix, metric)
        return
    if metric is not None:
        raise UserError("report: --metric is for --out FOLDER; the tables without it have every metric")
    from raypft.report.mixing import Mixing  # noqa: PLC0415
    from raypft.runs.table import run_table  # noqa: PLC0415

    if (folders[0] / "campaign.yaml").is_file():
        for folder in folders:
            report_campaign(folder, as_json, mix)
        return
    table = run_table(folders, Mixing(mix))
    if as_json:
        print(json.dumps(vars(table)))
    else:
        print_table(table)


def report_campaign(folder: Path, as_json: bool, mix: bool = False) -> None:
    """Write a campaign's tables from its finished cells and print them."""
    from raypft.campaigns.state import CampaignState, reopened  # noqa: PLC0415
    from raypft.report.campaign import write_tables  # noqa: PLC0415

    campaign = reopened(folder)
    state = CampaignState(campaign, lambda line: print(line, file=sys.stderr))
    table = write_tables(campaign, state.rows(), folder, mix)
    if as_json:
        print(json.dumps({"folder": str(folder), "table": str(table)}))
    else:
        print(table.read_text(encoding="utf-8"), end="")


def write_report_folder(folders: list[Path], out: Path, as_json: bool, mix: bool, metric: str | None) -> None:
    """Write the report of a campaign or of runs into a folder and say where it is."""
    from raypft.campaigns import finished  # noqa: PLC0415

    files = finished.report(folders, out, mix, metric, lambda line: print(line, file=sys.stderr))
    if as_json:
        print(json.dumps({"folder": str(out), "files": [str(file) for file in files]}))
    else:
        print(f"written to {files[0]}, and beside it {', '.join(file.name for file in files[1:])}")

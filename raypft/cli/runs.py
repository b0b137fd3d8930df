"""`raypft runs`: the runs and campaigns of a storage, listed, compared and removed."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from raypft.cli import completion
from raypft.cli.shown import Json, console, print_table
from raypft.errors import UserError, visible

VERBS = ("compare", "remove")


def runs(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STORAGE|RUN...] | compare RUN RUN | remove RUN|CAMPAIGN...",
            autocompletion=completion.verbs,
            help="Storages or runs to list, the folder runs by default; or what to do, and with which. A run may be "
            "called by its folder's name alone.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Of remove: do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """List what lies in a storage: scores, seeds, sizes, states; compare two runs; remove runs and campaigns."""
    from raypft.campaigns import stored  # noqa: PLC0415  (loaded only where it is used)

    verb, *names = words or [""]
    if verb not in VERBS:
        _list([stored.place(name) for name in words or [stored.default_storage()]], as_json)
        return
    folders = [stored.place(name) for name in names]
    if verb == "compare":
        if len(folders) != 2:
            raise UserError(f"runs compare: found {len(folders)} runs; expected two")
        tables = stored.compared(*folders)
        for table in tables:
            print(json.dumps(vars(table), ensure_ascii=False)) if as_json else print_table(table)
        return
    if not folders:
        raise UserError("runs remove: found no run; name one or more, see raypft runs")
    stored.check_removable(folders)
    if not yes:
        _ask(folders)
    stored.remove_all(folders)
    for folder in folders:
        if as_json:
            print(json.dumps({"removed": str(folder)}))
        else:
            console.print(visible(f"removed {folder}"), highlight=False, soft_wrap=True)


def _list(places: Sequence[Path], as_json: bool) -> None:
    from raypft.campaigns.stored import Stored, stored  # noqa: PLC0415
    from raypft.hub import in_bytes  # noqa: PLC0415
    from raypft.report.table import Table  # noqa: PLC0415

    found: list[Stored] = []
    for place in places:
        found += stored(place)
    if as_json:
        for one in found:
            values: dict[str, Any] = {
                key: None if isinstance(value, float) and math.isnan(value) else value
                for key, value in vars(one).items()
            }
            print(json.dumps({**values, "folder": str(one.folder)}, ensure_ascii=False))
        return
    columns = ["run or campaign", "recipe", "task", "backbone", "done", "score", "when", "size", "state"]
    table = Table(f"{', '.join(map(str, places))}: {len(found)} runs and campaigns", columns)
    for one in found:
        score = "" if math.isnan(one.mean) else f"{one.mean:.1f}"
        score += "" if math.isnan(one.std) else f" ± {one.std:.1f}"
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.when)) if one.when else ""
        cells = [one.folder.name, one.recipe, one.task, Path(one.backbone).name, f"{one.done}/{one.asked}"]
        table.rows.append([*cells, f"{score} {one.metric}".strip(), when, in_bytes(one.size), one.state])
    table.notes += [f"{one.folder.name}: {one.why}" for one in found if one.why]
    if not found:
        table.notes.append("nothing there yet; raypft run … puts its runs into the folder runs, or into storage=…")
    print_table(table)


def _ask(folders: Sequence[Path]) -> None:
    """Ask whether folders shall go.

    Raises:
        UserError: there is no one to ask, or the answer is no.
    """
    named = ", ".join(map(str, folders))
    if not (console.is_terminal and sys.stdin.isatty()):
        raise UserError(f"runs remove: {named} would go for good; say --yes where no one can be asked")
    if not typer.confirm(visible(f"Remove {named}, with all that is in it, for good?")):
        raise UserError("runs remove: nothing was removed")

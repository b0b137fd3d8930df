"""What is made of finished runs and campaigns, named by their folders: a report, an analysis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raypft.analysis import ANALYSES
from raypft.analysis._runs import ROOT, Run, open_runs
from raypft.analysis._write import write
from raypft.analysis.base import Analysis
from raypft.campaigns.state import CampaignState, reopened
from raypft.errors import UserError
from raypft.report.folder import write_report
from raypft.report.groups import Cells
from raypft.runs.comparison import compared
from raypft.schema import set_key, validation_lines, validation_root
from raypft.storage import check_writable

Say = Callable[[str], None]
"""Hears a line where a ledger was damaged."""
NAMED = 4
"""Runs that a message names."""


def _silent(line: str) -> None:
    """Hears a line and says nothing."""


def is_campaign(folder: Path) -> bool:
    """Whether a folder is a campaign's."""
    return (folder / "campaign.yaml").is_file()


def report(folders: Sequence[Path], out: Path, mix: bool, metric: str | None, say: Say = _silent) -> list[Path]:
    """Write the report of one campaign, or of runs, into a folder; its files, the page first.

    Raises:
        UserError: a folder is neither, or several with a campaign among them; what `write_report` refuses; `out` can't
            be written.
    """
    campaigns = list(filter(is_campaign, folders))
    if campaigns and len(folders) > 1:
        raise UserError(f"report: --out takes one campaign, or runs; found {len(folders)} folders with {campaigns[0]}")
    if campaigns:
        campaign: Any = reopened(campaigns[0])
        rows = CampaignState(campaign, say).rows()
    else:
        campaign, rows = compared(folders)
    if not out.is_file():  # which `write_report` tells
        check_writable(out, "report")
    return write_report(campaign, rows, out, mix, metric)


def runs_of(folder: Path, say: Say = _silent) -> list[Path]:
    """The runs that a campaign's tables show, of a search what dev has chosen, in the order of the tables; those with a
    tested seed.

    Raises:
        UserError: the folder is no campaign's, nothing of it is tested yet, or its numbers don't compare.
    """
    campaign = reopened(folder)
    cells, found = Cells(campaign, CampaignState(campaign, say).rows()), dict[Path, None]()
    for chosen in cells.chosen.values():
        group = chosen.best
        found |= {place.parent: None for seed, place in group.folders.items() if "scores" in group.results[seed]}
    if not found:
        raise UserError(f"analyse: {folder} has no tested run yet; raypft watch {folder} shows how far it is")
    return list(found)


def analyse(
    kind: str, folders: Sequence[Path], keys: Mapping[str, Any], out: Path | None, say: Say = _silent
) -> tuple[Analysis, Path]:
    """An analysis of runs, and of those that campaigns show; it, and the folder that it is written to.

    Args:
        keys: of the analysis, and where the runs' files lie now, dotted; out: below which folder it is written, the
            first of `folders` where None.

    Raises:
        UserError: an unknown kind or key, a folder that is no run or campaign, too few runs or too many, a run that
            can't be looked at so.
    """
    made = ANALYSES.load(kind)  # an unknown kind is told before a run is looked for
    runs = list[Path]()
    for folder in folders:
        runs += runs_of(folder, say) if is_campaign(folder) else [folder]
    if len(runs) < made.fewest or len(runs) > (made.most or len(runs)):
        expected = f"{made.fewest}" if made.most == made.fewest else f"{made.fewest} or more"
        shown = ", ".join([*map(str, runs[:NAMED]), *(["…"] if len(runs) > NAMED else [])])
        there = f" ({shown})" if any(map(is_campaign, folders)) else ""
        raise UserError(
            f"analyse {kind}: found {len(runs)} runs{there}; expected {expected}, folders such as runs/icl-…"
        )
    options, moved = _options(kind, made, keys)
    opened: list[Run] = open_runs(runs, moved)
    analysis = made().compute(opened, options)
    return analysis, write(analysis, opened, folders[0] if out is None else out)


def _options(kind: str, made: Any, keys: Mapping[str, Any]) -> tuple[Any, dict[str, str]]:
    """The options that keys give, and where runs' files lie now."""
    from pydantic import ValidationError  # noqa: PLC0415

    from raypft.runs.predict import PLACES  # noqa: PLC0415  (needs torch)

    moved = {key: str(value) for key, value in keys.items() if key in (*PLACES, ROOT)}
    values: dict[str, Any] = {}
    for key, value in keys.items():
        if key not in moved:
            set_key(values, key, value)
    validation_root(made.Options)
    try:
        return made.Options(**values), moved
    except ValidationError as error:
        raise UserError("\n".join(validation_lines(f"analyse {kind}", error, values))) from None

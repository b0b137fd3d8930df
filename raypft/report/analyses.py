"""Analyses (`raypft analyse`) that lie beside what a report shows, as parts of its page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raypft.records import read
from raypft.report.table import Number, Table

FACTS = "analysis.json"
MOST = 500
"""Rows of a table that the page has; its CSV has all."""


@dataclass(frozen=True)
class Shown:
    """An analysis: tables with a link to all rows where the page has not all, figures as SVG files."""

    title: str
    about: str
    notes: list[str]
    tables: list[tuple[Table, Path, int]]
    figures: list[tuple[str, Path]]


def analyses(folders: Iterable[Path]) -> Iterator[Shown]:
    """The analyses in some folders: below a run's, a campaign's or the report's own."""
    places: dict[Path, None] = {}
    for folder in folders:
        places |= dict.fromkeys(path.parent for path in sorted(folder.glob(f"analysis-*/{FACTS}")))
    for place in places:
        facts = _read(place / FACTS)
        names = ", ".join(run["name"] for run in facts["runs"])
        tables = []
        for name, rows in facts["tables"].items():
            if rows:
                tables.append((_table(f"{facts['title']}: {name}", rows), place / f"{name}.csv", len(rows)))
        figures = [(f"{facts['title']}: {name}", place / f"{name}.svg") for name in facts["figures"]]
        yield Shown(f"{facts['title']} ({names})", facts["how"], facts["notes"], tables, figures)


def _read(path: Path) -> dict[str, Any]:
    """The facts of an analysis.

    Raises:
        Damaged: they are not what was written.
    """
    kinds = {"title": str, "how": str, "notes": list, "tables": dict, "figures": list}
    facts = read(path, runs=list, **kinds)
    assert facts is not None, "it was found"
    return facts


def _table(title: str, rows: list[Mapping[str, Any]]) -> Table:
    return Table(title, list(rows[0]), [list(map(_cell, row.values())) for row in rows[:MOST]])


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    cell = Number(f"{value:.4g}")
    cell.value = value
    return cell

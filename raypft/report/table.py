"""A table that prints as Markdown, and how a number over seeds is written."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from raypft.errors import visible

WIDEST = 10
"""A table with more columns is turned: languages become rows."""


class Number(str):
    """A cell that stands for a number: its text, and what a report tells of it beside.

    value: what it sorts by, nan where there is none; interval: its 95 % limits; best: a test says that no other row of
    its column is as good; runs: ids of the sections of a page that tell how it came about.
    """

    value: float = math.nan
    interval: tuple[float, float] | None = None
    best: bool = False
    runs: tuple[str, ...] = ()

    @property
    def limits(self) -> str:
        """`[80.1, 82.3]`, empty without an interval."""
        return "[{:.1f}, {:.1f}]".format(*self.interval) if self.interval else ""


@dataclass
class Table:
    """A table that prints as Markdown; every cell is text, some of them a `Number`, every row has as many as there are
    columns."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def turned(self) -> Table:
        """Rows as columns, for tables that would be too wide: [rows, columns] -> [columns - 1, rows + 1]."""
        columns = ["", *(row[0] for row in self.rows)]
        flipped = map(list, zip(self.columns, *self.rows, strict=True))
        return Table(self.title, columns, list(flipped)[1:], self.notes)

    def markdown(self) -> str:
        """GitHub Markdown with the notes below."""
        lines = [f"**{plain(self.title)}**", "", _line(self.columns), "|" + "---|" * len(self.columns)]
        lines += map(_line, self.rows)
        return "\n".join([*lines, "", *(f"- {plain(note)}" for note in self.notes)]) + "\n"


def plain(text: str) -> str:
    """Text that Markdown prints as it is: no tag, no emphasis, no end of a cell."""
    return re.sub(r"[\\|<*`]|&(?=#?\w+;)", r"\\\g<0>", visible(text)).replace("\n", " ")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(cell: str) -> str:
    shown = plain(cell)
    if not isinstance(cell, Number):
        return shown
    return f"{f'**{shown}**' if cell.best else shown} {cell.limits}".rstrip()


def mean_std(values: Sequence[float]) -> str:
    """`81.2 ± 0.4`: mean and sample standard deviation of one value or more; a single one is marked `(n=1)`."""
    if len(values) == 1:
        return f"{values[0]:.1f} (n=1)"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"

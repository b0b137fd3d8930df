"""A table that prints as Markdown, and how a number over seeds is written."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

WIDEST = 10
"""A table with more columns is turned: languages become rows."""


@dataclass
class Table:
    """A table that prints as Markdown; every cell is text, every row has as many as there are columns."""

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
        lines = [f"**{self.title}**", "", _line(self.columns), "|" + "---|" * len(self.columns)]
        lines += map(_line, self.rows)
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)]) + "\n"


def _line(cells: Sequence[str]) -> str:
    """A row of Markdown; a bar within a cell would begin another."""
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def mean_std(values: Sequence[float]) -> str:
    """`81.2 ± 0.4`: mean and sample standard deviation of one value or more; a single one is marked `(n=1)`."""
    if len(values) == 1:
        return f"{values[0]:.1f} (n=1)"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"

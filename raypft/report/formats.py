"""Tables as LaTeX (booktabs) and CSV; durations as text."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from raypft.errors import visible
from raypft.report.table import Number

if TYPE_CHECKING:
    from raypft.report.table import Table

ESCAPES = (
    {"\\": r"\textbackslash{}", "±": r"$\pm$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "–": "--", "×": r"$\times$"}
    | {"[": "{[}", "]": "{]}"}  # behind the end of a line [ begins an option
    | {c: "\\" + c for c in "&%$#_{}"}
)


def metric_name(metric: str) -> str:
    """`accuracy` for accuracy@1: titles tell a metric's version where there is more than one."""
    return re.sub(r"@1(?![0-9a-f])", "", metric)  # a user's own has a hash for a version


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(ESCAPES.get(character, character) for character in visible(text).replace("\n", " "))


def latex(table: Table, labels: int) -> str:
    """A booktabs table; the first `labels` columns are text, a rule stands where the first of them changes.

    Needs `\\usepackage{booktabs}`.
    """
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{escaped(table.title)}}}"]
    lines += [
        rf"\begin{{tabular}}{{{'l' * labels}{'r' * (len(table.columns) - labels)}}}",
        r"\toprule",
        _line(table.columns),
        r"\midrule",
    ]
    for i, row in enumerate(table.rows):
        if i and labels > 1 and row[0] != table.rows[i - 1][0]:
            lines.append(r"\midrule")
        lines.append(_line(row))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return " & ".join(map(_cell, cells)) + r" \\"


def _cell(cell: str) -> str:
    shown = escaped(cell)
    if not isinstance(cell, Number):
        return shown
    limits = r" \interval{{{:.1f}}}{{{:.1f}}}".format(*cell.interval) if cell.interval else ""
    return (rf"\textbf{{{shown}}}" if cell.best else shown) + limits


def csv_text(rows: Iterable[Sequence[str]]) -> str:
    """Rows, the head among them, as CSV with \\n at the ends of lines, on every system."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def duration(seconds: float) -> str:
    """`40 s`, `5 min`, `3.2 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

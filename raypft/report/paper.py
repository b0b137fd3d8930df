"""The paper's numbers beside ours, and whether they agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from raypft.report.groups import Score, text

ROUNDING = 0.005 + 1e-9
"""Of a number printed with two digits, and of floats."""
RULE = (
    "inside: the paper's number is within 2 standard deviations of our mean (the paper's deviation where it gives one, "
    "else ours over seeds; 0 for MAJ) plus 0.005 for its rounding; no verdict on a single seed"
)


class Paper:
    """The numbers of a campaign's `paper` block; a scaled-down campaign differs in every row.

    Args:
        campaign: a `raypft.campaigns.campaign.Campaign`.
    """

    def __init__(self, campaign: Any) -> None:
        paper = campaign.paper
        self.values, self.stds = (paper.values, paper.std) if paper else ({}, {})
        self.notes: list[str] = paper.notes if paper else []
        self.differs: dict[str, str] = dict(paper.differs) if paper else {}
        if campaign.scale:
            self.differs |= dict.fromkeys(
                self.values, f"scale {campaign.scale}: other models, fewer rows or seeds than the paper"
            )

    def value(self, row: str, point: Sequence[Any], column: str) -> float | None:
        """The paper's number of a row at a point of the further axes, None where it has none."""
        return _find(self.values.get(row), point, column)

    def verdict(self, row: str, point: Sequence[Any], column: str, score: Score) -> str:
        """`inside`, `outside`, `one seed`, `protocol differs` (see RULE), or nothing where nothing can be compared."""
        value = self.value(row, point, column)
        if value is None or not score.values:
            return ""
        if row in self.differs:
            return "protocol differs"
        theirs = _find(self.stds.get(row), point, column)
        spread = theirs if theirs is not None else score.std
        if spread is None:
            return "one seed"
        return "inside" if abs(value - score.mean) <= 2 * spread + ROUNDING else "outside"


def _find(level: Any, point: Sequence[Any], column: str) -> float | None:
    """Row -> [axis value ->] column -> number; a row without an axis, such as MAJ, stands at every point of it."""
    for value in point:
        if value is None or not isinstance(level, Mapping):
            continue
        known = {text(key): below for key, below in level.items()}
        level = known.get(text(value), level)
    if not isinstance(level, Mapping):
        return None
    number = {str(key): below for key, below in level.items()}.get(column)
    return float(number) if isinstance(number, int | float) and not math.isnan(number) else None

"""Which methods differ: every pair of rows of a table, tested in every column."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raypft.report.evidence import Evidence
from raypft.report.groups import Score
from raypft.report.layout import Section
from raypft.report.significance import LARGEST, LEVEL, Difference, benjamini_hochberg, differ, holm, visible

ALPHA = 1 - LEVEL


@dataclass(frozen=True)
class Pair:
    """Two rows in one column. p: as it stands after Holm over pairs and, of a language (task, axis value), Benjamini-
    Hochberg over those; None where it can't be told. won, of: (language x seed) pairs that the first won, and all.
    """

    first: str
    second: str
    column: str
    difference: Difference
    p: float | None
    won: int
    of: int

    @property
    def shown(self) -> bool:
        """Whether the two differ by the test."""
        return self.p is not None and self.p < ALPHA


@dataclass
class Compared:
    """The tests of a table at one point of its axes.

    best: for each column the row that is better than every other by the test, empty where none is.
    """

    pairs: list[Pair] = field(default_factory=list)
    best: list[str] = field(default_factory=list)


def compare(
    section: Section, point: tuple[Any, ...], scores: dict[str, list[Score]], evidence: Evidence | None
) -> Compared:
    """Test every pair of a table's rows.

    Args:
        scores: row to its score in each column; evidence: None where nothing may be tested, as numbers don't compare.
    """
    methods = [row for row, of_row in scores.items() if not of_row[0].exact]
    names = section.names
    if evidence is None or len(methods) < 2:
        return Compared([], [""] * len(names))
    singles = [number for number, is_mean in enumerate(section.summaries) if not is_mean]
    pairs: dict[tuple[int, str, str], Pair] = {}
    for number, columns in enumerate(section.parts):
        parts = {row: evidence.parts(row, point, columns) for row in methods}
        found: dict[tuple[str, str], Difference] = {}
        for first, second in itertools.combinations(methods, 2):
            ours, theirs = _shared(scores[first][number], scores[second][number])
            if ours:
                found[first, second] = differ(ours, theirs, evidence.differences(parts[first], parts[second]))
        adjusted = holm([difference.p for difference in found.values()])
        for ((first, second), difference), p in zip(found.items(), adjusted, strict=True):
            won = _won(scores[first], scores[second], singles)
            pairs[number, first, second] = Pair(first, second, names[number], difference, p, *won)
    for first, second in itertools.combinations(methods, 2):
        keys = [(number, first, second) for number in singles if (number, first, second) in pairs]
        over = benjamini_hochberg([pairs[key].p for key in keys])
        pairs |= {key: replace(pairs[key], p=p) for key, p in zip(keys, over, strict=True)}
    best = []
    for number in range(len(names)):
        best.append(_best(number, scores, [pair for (column, _, _), pair in pairs.items() if column == number]))
    return Compared(list(pairs.values()), best)


def _shared(first: Score, second: Score) -> tuple[list[float], list[float]]:
    """The values of the seeds that both have, in one order."""
    ours, theirs = (dict(zip(score.seeds, score.values, strict=True)) for score in (first, second))
    seeds = [seed for seed in ours if seed in theirs]
    return [ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]


def _won(first: Sequence[Score], second: Sequence[Score], numbers: Sequence[int]) -> tuple[int, int]:
    won = of = 0
    for number in numbers:
        ours, theirs = _shared(first[number], second[number])
        won, of = won + sum(map(float.__gt__, ours, theirs)), of + len(ours)
    return won, of


def _best(number: int, scores: dict[str, list[Score]], pairs: list[Pair]) -> str:
    """The row with the highest mean in a column, if it differs from every other there; of MAJ the number is exact."""
    having = {row: of_row[number].mean for row, of_row in scores.items() if of_row[number].values}
    top = max(having, key=lambda row: having[row], default="")
    others = [row for row in having if row != top and not scores[row][number].exact]
    differs = {frozenset((pair.first, pair.second)) for pair in pairs if pair.shown}
    sure = bool(others) and all(frozenset((top, other)) in differs for other in others)
    return top if sure and not scores[top][number].exact else ""


def power(seeds: int, pairs: int) -> str:
    """What so many seeds can show, in a plain sentence."""
    if seeds < 2:
        return (
            "one seed: rows can tell these trained models apart, but nothing can be said about the methods; "
            "run more seeds"
        )
    least = visible(seeds, pairs)
    among = f" and {pairs} pairs" if pairs > 1 else ""
    size = f"more than {LARGEST:.0f}" if least >= LARGEST else f"at least {least:.1f}"
    line = (
        f"{seeds} seeds{among}: a difference is seen (four times in five) only where it is {size} times "
        "its own standard deviation over seeds"
    )
    return f"{line}; so few seeds show next to nothing here, run more" if least > 3 else line

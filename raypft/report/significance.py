"""Intervals of scores and tests between methods, by scipy and statsmodels. What each is and why: docs/reports.md.

A score varies over seeds, which are few, and over test rows, which are many. Over seeds Student's t is used: a
bootstrap over five seeds covers some 82 % where it says 95 %. Over rows it is the bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95
RESAMPLES = 2000
"""Bootstrap draws of an interval over rows."""
FEW = 50
"""Rows on which two methods differ, up to which signs are flipped; above it is Student's t of as many rows."""
DRAWN = 10**7
"""Values that are drawn at once for the bootstrap."""
HIGHEST = 100.0
"""Percent that a row can have."""
LARGEST = 10.0
TINY = 1e-9
"""Points that are rounding."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """What a score is made of: the test rows of one language, each with its share of the score.

    ids: names of rows [N]; translations of a row have one name; values: percent a row, mean over seeds [N]; their mean
    is the score.
    """

    ids: NDArray[np.str_]
    values: Floats


Parts = Mapping[Any, tuple[float, Rows]]
"""Languages, or (task, language), each with its weight in the score; the weights add up to 1."""


@dataclass(frozen=True)
class Interval:
    """A 95 % interval; over: what was varied for it, `seeds and rows`, `seeds` or `rows`."""

    low: float
    high: float
    over: str


@dataclass(frozen=True)
class Difference:
    """Whether two methods differ in one score.

    points: first minus second; each: of each seed; by_seeds, by_rows: two-sided p, None where it can't be told;
    effect: the difference in standard deviations over seeds (Cohen's d of pairs).
    """

    points: float
    each: tuple[float, ...]
    by_seeds: float | None
    by_rows: float | None
    effect: float | None

    @property
    def seeds(self) -> int:
        """How many both have."""
        return len(self.each)

    @property
    def p(self) -> float | None:
        """A difference counts where seeds and rows both show it: the larger of the two. None without two seeds, which
        say nothing about the method, however sure the rows are about these two models."""
        if self.by_seeds is None:
            return None
        return self.by_seeds if self.by_rows is None else max(self.by_seeds, self.by_rows)


def interval(values: Sequence[float], parts: Parts | None, lowest: float = 0.0) -> Interval | None:
    """The interval of a score: the intervals over seeds and over rows, combined as independent (MOVER: the distances of
    their limits from the mean add up as squares; Zou & Donner 2008).

    Args:
        values: the score of each seed; parts: its rows, None where the score is no mean over rows or they are not
            there; lowest: the least that a row can have, -100 of a difference.

    Returns:
        None where there is nothing to tell how far it moves: one seed, or seeds that are all equal, and no rows.
    """
    center = float(np.mean(values))
    sides = [over_seeds(values)] if len(values) > 1 else []
    if parts is not None:
        sides.append(over_rows(parts, lowest))
    if parts is None and _alike(values):
        return None
    below, above = (math.hypot(*distances) for distances in zip(*sides, strict=True))
    over = " and ".join(["seeds"] * (len(values) > 1) + ["rows"] * (parts is not None))
    return Interval(center - below, center + above, over)


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """How far the limits of Student's t interval lie below and above the mean of two values or more."""
    _, quantile = stats.t.interval(LEVEL, len(values) - 1)
    half = float(quantile * stats.sem(values))
    return half, half


def over_rows(parts: Parts, lowest: float = 0.0) -> tuple[float, float]:
    """How far the limits of the bootstrap interval over rows lie below and above the score; translations of a row are
    drawn together.

    Where all rows are alike (all right, say) there is nothing to draw: so many rows without another kind leave room for
    a share of it up to Clopper and Pearson's limit.
    """
    moves = _by_id({key: (weight, Rows(r.ids, r.values - r.values.mean())) for key, (weight, r) in parts.items()})
    if _alike(moves):
        center = sum(weight * float(rows.values.mean()) for weight, rows in parts.values())
        room = HIGHEST * float(stats.binomtest(0, len(moves)).proportion_ci(LEVEL).high)
        return min(room, center - lowest), min(room, HIGHEST - center)
    found = stats.bootstrap(
        (moves,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, DRAWN // len(moves)),
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    # a mean of draws lies on either side of the mean often enough: no distance is below 0
    return -float(found.low), float(found.high)


def _alike(values: Sequence[float] | Floats) -> bool:
    """Whether values, one or more, differ by rounding at most."""
    return bool(np.ptp(values) < TINY)


def _by_id(parts: Parts) -> Floats:
    """What each row id adds to the score, times the number of ids, so that their mean is the score: [ids]."""
    names = np.concatenate([rows.ids for _, rows in parts.values()])
    shares = [weight / len(rows.values) * rows.values for weight, rows in parts.values()]
    _, places = np.unique(names, return_inverse=True)
    return np.bincount(places, weights=np.concatenate(shares)) * (places.max() + 1)


def differ(first: Sequence[float], second: Sequence[float], parts: Parts | None) -> Difference:
    """Test two methods on the seeds that both have.

    Args:
        first, second: the score of each seed, in one order; parts: rows with the differences (first minus second) as
            values, None where they are not there.
    """
    difference = np.asarray(first, float) - np.asarray(second, float)
    points, each = float(difference.mean()), tuple(map(float, difference))
    by_rows = None if parts is None else _rows_differ(_by_id(parts))
    if len(each) < 2:
        return Difference(points, each, None, by_rows, None)
    if _alike(difference):  # t knows no spread of 0: how often would signs fall so by chance?
        return Difference(points, each, 1.0 if _alike([points, 0.0]) else 2.0 ** (1 - len(each)), by_rows, None)
    return Difference(points, each, _p(stats.ttest_rel(first, second)), by_rows, points / float(difference.std(ddof=1)))


def _rows_differ(differences: Floats) -> float:
    """Two-sided p that rows of a difference of mean 0 give theirs: signs flipped where few rows differ (McNemar's exact
    test where each is right or wrong), Student's t else."""
    moved = differences[np.abs(differences) > TINY]
    if not len(moved):
        return 1.0
    if len(moved) > FEW:
        return 0.0 if _alike(differences) else _p(stats.ttest_1samp(differences, 0.0))
    if len(moved) == 1:
        return 1.0
    rng = np.random.default_rng(0)
    return _p(stats.permutation_test((moved,), np.mean, permutation_type="samples", rng=rng))


def _p(found: Any) -> float:
    return float(found.pvalue)


def holm(found: Sequence[float | None]) -> list[float | None]:
    """p-values of one family made larger so that the chance of any false one stays at its level (Holm 1979)."""
    return _adjusted(found, "holm")


def benjamini_hochberg(found: Sequence[float | None]) -> list[float | None]:
    """p-values of one family made larger so that the share of false ones stays at its level (Benjamini & Hochberg)."""
    return _adjusted(found, "fdr_bh")


def _adjusted(found: Sequence[float | None], method: str) -> list[float | None]:
    from statsmodels.stats.multitest import multipletests  # noqa: PLC0415  (a second, and only where there are tests)

    known = [p for p in found if p is not None]
    corrected: Any = multipletests(known, method=method)[1] if known else []
    adjusted = iter(corrected)
    return [None if p is None else float(next(adjusted)) for p in found]


def visible(seeds: int, comparisons: int) -> float:
    """The smallest effect (in standard deviations of the difference over seeds) that two seeds or more show four times
    in five, among so many comparisons; LARGEST stands for that and more, where the search for it ends."""
    from statsmodels.stats.power import TTestPower  # noqa: PLC0415  (a second, and only where there are tests)

    alpha = (1 - LEVEL) / max(1, comparisons)
    found = float(TTestPower().solve_power(nobs=seeds, alpha=alpha, power=0.8))
    return min(found, LARGEST)

"""Which methods differ in which column, by hand: pairs, corrections, wins, the best, and what seeds can show."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from raypft.report import comparing
from raypft.report.comparing import compare, power
from raypft.report.groups import Score
from raypft.report.significance import differ

SECTION: Any = SimpleNamespace(
    names=["en", "de", "mean"], summaries=[False, False, True], parts=[["en"], ["de"], ["en", "de"]]
)
EVIDENCE: Any = SimpleNamespace(parts=lambda row, point, columns: None, differences=lambda first, second: None)
"""Of which no rows are known: seeds alone are compared."""
VALUES = {
    "A": [[90.0, 91.0, 92.5, 90.5], [70.0, 71.0, 69.0, 70.0], [80.0, 81.0, 80.8, 80.2]],
    "B": [[80.0, 82.0, 81.0, 80.5], [70.5, 70.0, 69.5, 70.4], [75.0, 76.0, 75.2, 75.5]],
    "C": [[60.0, 61.0, 60.5, 60.9], [50.0, 55.0, 52.0, 50.5], [55.0, 58.0, 56.2, 55.7]],
}
SEEDS = (0, 1, 2, 3)


def scored(values=VALUES, **more: list[Score]) -> dict[str, list[Score]]:
    return {row: [Score(tuple(of), SEEDS[: len(of)]) for of in columns] for row, columns in values.items()} | more


def p_of(first: list[float], second: list[float]) -> float:
    found: Any = stats.ttest_rel(first, second)
    return float(found.pvalue)


def test_every_pair_is_tested_in_every_column_and_corrected():
    """By Holm over the pairs of a column, then by Benjamini and Hochberg over the columns that are no mean."""
    majority = [Score((95.0,), exact=True)] * 3
    found = compare(SECTION, (), scored(MAJ=majority), EVIDENCE)
    names = [("A", "B"), ("A", "C"), ("B", "C")]
    assert [(pair.column, pair.first, pair.second) for pair in found.pairs] == [
        (column, *pair) for column in SECTION.names for pair in names
    ]
    by_column: list[Any] = []
    for number in range(3):
        raw = [p_of(VALUES[first][number], VALUES[second][number]) for first, second in names]
        by_column.append(multipletests(raw, method="holm")[1])
    both: Any = [multipletests([by_column[0][pair], by_column[1][pair]], method="fdr_bh")[1] for pair in range(3)]
    expected = [[pair[0] for pair in both], [pair[1] for pair in both], by_column[2]]
    assert [pair.p for pair in found.pairs] == pytest.approx([p for column in expected for p in column])
    won = {(pair.first, pair.second): (pair.won, pair.of) for pair in found.pairs}
    assert won == {("A", "B"): (5, 8), ("A", "C"): (8, 8), ("B", "C"): (8, 8)}, "of languages and seeds, not of means"
    shown = [(pair.column, pair.first, pair.second) for pair in found.pairs if not pair.shown]
    assert shown == [("de", "A", "B")]
    assert found.pairs[0].difference.points == pytest.approx(10.125)
    assert found.best == ["", "", ""], "the majority class stands above them, and no test knows it"
    assert compare(SECTION, (), scored(), EVIDENCE).best == ["A", "", "A"]
    low = [Score((5.0,), exact=True)] * 3
    assert compare(SECTION, (), scored(MAJ=low), EVIDENCE).best == ["A", "", "A"]


def test_seeds_that_both_have_are_compared():
    values = {"A": VALUES["A"], "B": [of[:3] for of in VALUES["B"]]}
    scores = scored(values)
    scores["B"] = [Score(score.values, (3, 1, 0)) for score in scores["B"]]
    found = compare(SECTION, (), scores, EVIDENCE).pairs[0]
    assert found.difference.each == pytest.approx((90.0 - 81.0, 91.0 - 82.0, 90.5 - 80.0))
    assert (found.won, found.of) == (5, 6), "70, 71 and 70 against 69.5, 70 and 70.5"


def test_nothing_is_compared_without_evidence_or_another_method():
    assert compare(SECTION, (), scored(), None) == comparing.Compared([], ["", "", ""])
    alone = {"A": scored()["A"], "MAJ": [Score((5.0,), exact=True)] * 3}
    assert compare(SECTION, (), alone, EVIDENCE) == comparing.Compared([], ["", "", ""])
    assert len(compare(SECTION, (), {row: scored()[row] for row in "AB"}, EVIDENCE).pairs) == 3
    empty = scored() | {"C": [Score()] * 3}
    found = compare(SECTION, (), empty, EVIDENCE)
    assert {(pair.first, pair.second) for pair in found.pairs} == {("A", "B")}
    assert found.best == ["A", "", "A"], "of those that have a number"
    nothing = {row: [of_row[0], Score(), Score()] for row, of_row in scored().items()}
    found = compare(SECTION, (), nothing, EVIDENCE)
    assert {pair.column for pair in found.pairs} == {"en"}
    assert found.best == ["A", "", ""], "of columns without any number none"
    one = {row: [Score(score.values[:1], (0,)) for score in scored()[row]] for row in "AB"}
    found = compare(SECTION, (), one, EVIDENCE)
    assert {pair.p for pair in found.pairs} == {None}
    assert found.best == ["", "", ""]
    assert not any(pair.shown for pair in found.pairs)


@pytest.mark.parametrize(
    ("least", "size", "few"),
    [
        (3.0, "at least 3.0", False),
        (3.1, "at least 3.1", True),
        (9.9, "at least 9.9", True),
        (10.0, "more than 10", True),
    ],
)
def test_what_seeds_can_show_is_said_in_plain_words(least, size, few, monkeypatch):
    asked = list[tuple[int, int]]()
    monkeypatch.setattr(comparing, "visible", lambda seeds, pairs: asked.append((seeds, pairs)) or least)
    line = power(2, 3)
    assert line.startswith("2 seeds and 3 pairs: a difference is seen (four times in five) only where it is ")
    assert f" {size} times its own standard deviation" in line
    assert line.endswith("so few seeds show next to nothing here, run more") == few
    assert power(4, 2).startswith("4 seeds and 2 pairs: a difference")
    assert power(4, 1).startswith("4 seeds: a difference")
    assert asked == [(2, 3), (4, 2), (4, 1)]
    assert power(1, 3).startswith("one seed: ")


@pytest.mark.parametrize(("p", "shown"), [(0.049, True), (comparing.ALPHA, False), (0.051, False), (None, False)])
def test_two_rows_differ_where_p_is_below_five_percent(p, shown):
    assert comparing.Pair("A", "B", "en", differ([1.0], [0.0], None), p, 1, 1).shown == shown

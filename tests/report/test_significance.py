"""Intervals and tests: equal to scipy and statsmodels called directly; they cover and err at the stated rate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from raypft.report import significance
from raypft.report.comparing import power
from raypft.report.significance import Rows, benjamini_hochberg, differ, holm, interval, over_rows, visible

WORLDS = 500
"""Repetitions; so many false positives at 5 % lie below 36 with 98.5 % (binomial)."""
MOST = int(stats.binom.ppf(0.985, WORLDS, 0.05))


def rows(values, names=None):
    """Rows of one language with these values."""
    values = np.asarray(values, float)
    return Rows(np.array(names if names is not None else [f"{i:05}" for i in range(len(values))]), values)


def alone(values):
    return {"en": (1.0, rows(values))}


def world(rng, seeds=5, count=200, spread=0.04, gain=0.0, languages=1):
    """Percent right by method, seed, language and row: rows are easy or hard for all, a seed moves a method in every
    language."""
    easy = np.clip(rng.normal(0.65, 0.2, size=count), 0, 1)
    moved = rng.normal(0, spread, size=(2, seeds, 1, 1)) + np.array([gain, 0.0]).reshape(2, 1, 1, 1)
    return 100.0 * (rng.random((2, seeds, languages, count)) < np.clip(easy + moved, 0, 1))


def compared(answers):
    """The comparison of a world's two methods on the mean over languages."""
    first, second = answers.mean(axis=(2, 3))
    each = (answers[0] - answers[1]).mean(axis=0)
    parts = {number: (1 / len(each), rows(values)) for number, values in enumerate(each)}
    return differ(first, second, parts)


def test_one_seed_is_the_bootstrap_over_rows_of_scipy():
    values = 100.0 * np.random.default_rng(1).random(300)
    found = interval([values.mean()], alone(values))
    draws = {"n_resamples": significance.RESAMPLES, "method": "percentile", "rng": np.random.default_rng(0)}
    theirs = stats.bootstrap((values,), np.mean, **draws).confidence_interval
    assert found is not None
    assert (found.low, found.high) == pytest.approx(tuple(theirs))
    assert found.over == "rows"


def test_without_rows_it_is_students_t_over_seeds():
    values = [70.0, 74.0, 71.0, 79.0]
    found = interval(values, None)
    assert found is not None
    assert (found.low, found.high) == pytest.approx(tuple(stats.ttest_1samp(values, 0).confidence_interval()))
    assert found.over == "seeds"
    assert interval([70.0], None) is None
    for seeds, parts, over in ((2, None, "seeds"), (2, alone([1.0, 0.0]), "seeds and rows")):
        of_two = interval(values[:seeds], parts)
        assert of_two is not None
        assert of_two.over == over


def test_translations_of_a_row_are_drawn_together():
    """Two languages that are right on the same rows are as uncertain as one; on other rows they are less so."""
    values = 100.0 * (np.random.default_rng(2).random(400) < 0.6)
    one = np.hypot(*over_rows(alone(values)))
    twice = {"en": (0.5, rows(values)), "de": (0.5, rows(values))}
    apart = {"en": (0.5, rows(values)), "de": (0.5, rows(values, [f"de{i:05}" for i in range(400)]))}
    assert np.hypot(*over_rows(twice)) == pytest.approx(one, rel=1e-9)
    assert np.hypot(*over_rows(apart)) == pytest.approx(one / np.sqrt(2), rel=0.1)


@pytest.mark.parametrize(("seeds", "count", "spread"), [(5, 200, 0.05), (3, 100, 0.1), (5, 300, 0.0)])
def test_intervals_cover_at_the_stated_rate(seeds, count, spread):
    """At least 95 % of them hold the mean that new seeds and rows would have."""
    rng = np.random.default_rng(3)
    truth = 100.0 * np.clip(rng.normal(0.65, 0.2, size=10**6) + rng.normal(0, spread, size=10**6), 0, 1).mean()
    held = 0
    for _ in range(WORLDS):
        answers = world(rng, seeds, count, spread)[0, :, 0]
        found = interval(answers.mean(axis=1), alone(answers.mean(axis=0)))
        held += found is not None and found.low <= truth <= found.high
    assert held >= WORLDS - MOST


def test_a_bootstrap_over_five_seeds_would_cover_too_little():
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(WORLDS):
        values = rng.normal(0, 1, size=5)
        found = stats.bootstrap((values,), np.mean, n_resamples=500, method="percentile", rng=rng).confidence_interval
        held += found.low <= 0 <= found.high
    assert held < 0.88 * WORLDS


@pytest.mark.parametrize(("seeds", "spread", "languages"), [(5, 0.05, 1), (3, 0.03, 1), (5, 0.05, 6), (5, 0.0, 1)])
def test_methods_that_are_alike_differ_at_most_at_the_stated_rate(seeds, spread, languages):
    rng = np.random.default_rng(5)
    false = 0
    for _ in range(WORLDS):
        p = compared(world(rng, seeds, 150, spread, languages=languages)).p
        false += p is not None and p < 0.05
    assert false <= MOST


def test_tests_over_language_and_seed_as_if_they_were_apart_would_err_far_more():
    """Why the languages of a seed are averaged first: they share one trained model."""
    rng = np.random.default_rng(6)
    naive = 0
    for _ in range(100):
        first, second = world(rng, 5, 150, 0.05, languages=6).mean(axis=3)
        found: Any = stats.wilcoxon((first - second).ravel())
        naive += found.pvalue < 0.05
    assert naive > 25


def test_an_effect_that_is_there_is_found():
    rng = np.random.default_rng(7)
    found = [compared(world(rng, 5, 500, 0.02, gain=0.1)) for _ in range(50)]
    assert sum(one.p is not None and one.p < 0.05 for one in found) >= 45
    assert np.mean([one.points for one in found]) == pytest.approx(8.5, abs=1.5)


def test_a_pair_equals_scipy_called_directly():
    answers = world(np.random.default_rng(8), 5, 300, 0.03, gain=0.03)
    first, second = answers.mean(axis=(2, 3))
    each = (answers[0] - answers[1]).mean(axis=(0, 1))
    found = compared(answers)
    seeds: Any = stats.ttest_rel(first, second)
    over: Any = stats.ttest_1samp(each, 0)
    assert found.by_seeds == pytest.approx(seeds.pvalue)
    assert found.by_rows == pytest.approx(over.pvalue)
    assert found.p == pytest.approx(max(seeds.pvalue, over.pvalue))
    assert found.effect == pytest.approx(seeds.statistic / np.sqrt(5))


@pytest.mark.parametrize(("wins", "losses"), [(9, 1), (6, 3), (4, 0), (12, 2), (30, 20), (1, 0), (0, 0)])
def test_one_seed_of_right_and_wrong_answers_is_mcnemars_exact_test(wins, losses):
    first = np.array([100.0] * wins + [0.0] * losses + [100.0] * 40)
    second = np.array([0.0] * wins + [100.0] * losses + [100.0] * 40)
    found = differ([first.mean()], [second.mean()], alone(first - second))
    exact: Any = mcnemar([[40, wins], [losses, 0]], exact=True)
    assert found.by_rows == pytest.approx(exact.pvalue, abs=0.01)
    assert found.p is None, "one seed says nothing about a method"
    assert found.effect is None
    assert found.by_rows == differ([first.mean()], [second.mean()], alone(first - second)).by_rows, "drawn alike"


def test_of_more_rows_that_differ_than_fifty_it_is_students_t():
    values = np.array([100.0] * 31 + [-100.0] * 20 + [0.0] * 40)
    over: Any = stats.ttest_1samp(values, 0)
    assert differ([1.0], [0.0], alone(values)).by_rows == pytest.approx(over.pvalue)
    assert differ([1.0], [0.0], alone(np.full(51, 100.0))).by_rows == 0.0, "of which all are alike"


def test_p_is_the_larger_of_seeds_and_rows():
    seeds, rows = ([5.0, 5.1, 5.2], [0.0, 0.0, 0.0]), np.array([100.0, -100.0, 50.0, -20.0, 7.0, 0.0])
    sure = differ(*seeds, alone(rows))
    assert sure.by_seeds is not None
    assert sure.by_rows is not None
    assert sure.by_seeds < 0.001 < 0.5 < sure.by_rows == sure.p
    unsure = differ([5.0, -1.0, 0.5], [0.0, 0.0, 0.0], alone(np.arange(1.0, 13.0)))
    assert unsure.by_rows is not None
    assert unsure.by_rows < 0.01 < 0.4 < (unsure.by_seeds or 0.0)
    assert unsure.p == unsure.by_seeds
    assert differ(*seeds, None).p == sure.by_seeds
    assert sure.each == (5.0, 5.1, 5.2)
    assert (sure.seeds, differ([1.0], [0.5], None).points) == (3, 0.5)


def test_two_rows_are_drawn_from_and_one_is_not():
    """Of two the mean is that of both, or of one of them in one of two draws; of one there is nothing to draw."""
    assert over_rows(alone([0.0, 100.0])) == (50.0, 50.0)
    assert over_rows(alone([80.0])) == pytest.approx((80.0, 20.0)), "all that there is room for"
    assert over_rows(alone([80.0] * 2), lowest=70.0) == pytest.approx((10.0, 20.0))


def test_rounding_is_no_difference_and_a_billionth_of_a_point_is_one():
    for least, is_one in ((1e-9, True), (0.9e-9, False)):
        assert (interval([0.0, least], None) is not None) is is_one
        assert (differ([0.0, least], [0.0, 0.0], None).effect is not None) is is_one
        assert (differ([least] * 3, [0.0] * 3, None).by_seeds == 0.25) is is_one
    assert differ([1.0] * 2, [0.5] * 2, alone([1e-10, 2e-10])).by_rows == 1.0, "no row differs"
    assert differ([1.0] * 2, [0.5] * 2, alone([1e-9, 1e-9, 1e-9, 1.0])).by_rows == 1.0, "one row does"


def test_of_many_rows_some_are_drawn_at_a_time(monkeypatch):
    """With the numbers of all at once."""
    sizes, bootstrap, values = list[int](), stats.bootstrap, np.random.default_rng(1).random(50)
    whole = over_rows(alone(values))

    def seen(*given, batch, **more):
        sizes.append(batch)
        return bootstrap(*given, batch=batch, **more)

    monkeypatch.setattr(significance.stats, "bootstrap", seen)
    for drawn in (significance.DRAWN, 500, 30):
        monkeypatch.setattr(significance, "DRAWN", drawn)
        assert over_rows(alone(values)) == whole
    assert sizes == [200_000, 10, 1]


def test_seeds_that_all_differ_by_the_same_are_counted_not_divided_by_zero():
    assert differ([1.0, 2.0, 3.0], [0.0, 1.0, 2.0], None).by_seeds == 0.25
    assert differ([1.0, 2.0], [1.0, 2.0], None).by_seeds == 1.0


def test_corrections_are_those_of_statsmodels_and_leave_out_what_is_not_known():
    given = [0.01, None, 0.04, 0.03, 0.5]
    known = [0.01, 0.04, 0.03, 0.5]
    for ours, method in ((holm, "holm"), (benjamini_hochberg, "fdr_bh")):
        found = ours(given)
        assert found[1] is None
        assert [p for p in found if p is not None] == pytest.approx(multipletests(known, method=method)[1])
    assert holm([None]) == [None]


def test_what_so_few_seeds_can_show_is_said():
    least = TTestPower().solve_power(effect_size=None, nobs=5, alpha=0.05 / 3, power=0.8)
    assert visible(5, 3) == pytest.approx(least)
    alone = TTestPower().solve_power(effect_size=None, nobs=5, alpha=0.05, power=0.8)
    assert visible(5, 1) == visible(5, 0) == pytest.approx(alone)
    assert visible(2, 10) == 10.0, "that and more"
    assert f"at least {least:.1f} times its own standard deviation" in power(5, 3)
    assert "so few seeds show next to nothing" in power(2, 1)
    assert "nothing can be said about the methods" in power(1, 3)


@pytest.mark.parametrize(("right", "low", "high"), [(100.0, 96.38, 100.0), (0.0, 0.0, 3.62)])
def test_rows_that_are_all_alike_leave_room_for_others(right, low, high):
    """Clopper and Pearson's limits of 100 of 100, and of none."""
    rows = Rows(np.array([f"row {number}" for number in range(100)]), np.full(100, right))
    found = interval([right] * 3, {"en": (1.0, rows)})
    assert found is not None
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.005)
    exact = stats.binomtest(int(right), 100).proportion_ci(0.95)
    assert (found.low, found.high) == pytest.approx((100 * exact.low, 100 * exact.high))


def test_methods_that_answer_alike_may_differ_elsewhere():
    rows = Rows(np.array([f"row {number}" for number in range(100)]), np.zeros(100))
    found = interval([0.0] * 3, {"en": (1.0, rows)}, lowest=-100.0)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((-3.62, 3.62), abs=0.005)


def test_equal_seeds_without_rows_have_no_interval():
    assert interval([12.0, 12.0, 12.0], None) is None
    assert interval([12.0], None) is None

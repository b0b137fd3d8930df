"""What a search looks through: what a dimension may be, its values and draws, combinations, and their order."""

from __future__ import annotations

import math
import random
import re
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from raypft.campaigns.search_space import Dimension, Search, draw


@pytest.mark.parametrize(
    ("told", "listed", "size"),
    [
        ([3, 1, 2], [3, 1, 2], 3),
        ([{"a": 1}, [1], None], [{"a": 1}, [1], None], 3),
        ([1, 1, 2], [1, 1, 2], 2),
        ({"range": [1, 3]}, [1, 2, 3], 3),
        ({"range": [1, 6, 2]}, [1, 3, 5], 3),
        ({"range": [4, 4]}, [4], 1),
        ({"uniform": [0.0, 1.0]}, None, math.inf),
        ({"log": [1e-5, 1.0]}, None, math.inf),
    ],
)
def test_values_of_a_dimension(told, listed, size):
    dimension = Dimension.model_validate(told)
    assert (dimension.listed, dimension.size) == (listed, size)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, "expected a list, or one of"),
        ({"uniform": [0, 1], "log": [1, 2]}, "expected a list, or one of"),
        ([], "an empty choice"),
        ({"range": [1]}, "expected .lowest, highest. or"),
        ({"range": [1, 2, 3, 4]}, "expected .lowest, highest. or"),
        ({"range": [2, 1]}, "expected .lowest, highest. or"),
        ({"range": [1, 2, 0]}, "expected .lowest, highest. or"),
        ({"uniform": [1, 1]}, r"expected \[lowest, highest\]$"),
        ({"uniform": [2, 1]}, r"expected \[lowest, highest\]$"),
        ({"log": [2, 1]}, r"expected \[lowest, highest\] above 0$"),
        ({"log": [0, 1]}, r"expected \[lowest, highest\] above 0$"),
        ({"log": [-1, 1]}, r"expected \[lowest, highest\] above 0$"),
    ],
)
def test_what_is_no_dimension_says_what_is(told, expected):
    with pytest.raises(ValidationError) as caught:
        Dimension.model_validate(told)
    (error,) = caught.value.errors()
    assert re.search(expected, error["msg"])


def test_an_interval_may_begin_at_zero_or_below_unless_it_is_logarithmic():
    assert Dimension.model_validate({"uniform": [0, 1]}).uniform == (0.0, 1.0)
    assert Dimension.model_validate({"uniform": [-2, -1]}).uniform == (-2.0, -1.0)


def test_draws_are_of_the_list_the_interval_or_its_logarithm():
    half: Any = SimpleNamespace(
        random=lambda: 0.5, uniform=lambda low, high: (low + high) / 2, choice=lambda of: of[-1]
    )
    assert draw(Dimension(values=[7, 8, 9]), half) == 9
    assert draw(Dimension(range=[1, 6, 2]), half) == 5
    assert draw(Dimension(uniform=(1.0, 2.0)), half) == 1.5
    assert draw(Dimension(log=(1e-4, 1e-2)), half) == pytest.approx(1e-3)


def space(**more: Any) -> Search:
    return Search.model_validate({"space": {"a": [3, 1], "b": {"range": [1, 2]}}, **more})


def test_a_grid_has_every_combination_the_last_key_fastest():
    assert space().grid() == [{"a": 3, "b": 1}, {"a": 3, "b": 2}, {"a": 1, "b": 1}, {"a": 1, "b": 2}]
    assert Search.model_validate({"space": {"a": [1], "b": {"uniform": [0, 1]}}}).grid() == []


def test_a_sample_holds_none_twice_and_a_larger_one_goes_on():
    three = space(trials=3).sampled("study")
    assert len({str(values) for values in three}) == len(three) == 3
    assert all(values in space().grid() for values in three)
    every = space(trials=9).sampled("study")
    assert (every[:3], len(every)) == (three, 4)
    assert space().sampled("study") == []
    assert [space(trials=4).sampled(study) for study in ("study", "study")] == [every, every]
    assert len({str(space(trials=4).sampled(str(number))) for number in range(6)}) > 1
    assert len(Search.model_validate({"space": {"a": {"log": [1, 2]}}, "trials": 5}).sampled("x")) == 5
    first = random.Random("study/0")
    assert three[0] == space().drawn(first)


def test_configurations_are_ordered_as_the_file_lists_values_and_drawn_ones_by_size():
    search = Search.model_validate({"space": {"a": [3, 1], "b": {"uniform": [0, 9]}}})
    given = [{"a": 1, "b": 2.0}, {"a": 3, "b": 5.0}, {"a": 1, "b": 1.0}, {"a": 3, "b": 0.5}]
    assert sorted(given, key=search.order) == [given[3], given[1], given[2], given[0]]
    assert search.order({"a": 8, "b": 0.5}) == [8, 0.5], "of an earlier space"


def test_a_rows_own_keys_are_laid_over_those_of_all():
    search = space(rows={"A": {"b": [9], "c": [1]}, "B": {}}, trials=3)
    assert {key: found.listed for key, found in search.of("A").space.items()} == {"a": [3, 1], "b": [9], "c": [1]}
    assert search.of("B").space == search.of("C").space == search.space
    assert search.of("A").trials == 3
    assert space(rows=["A"]).rows == {"A": {}}
    assert space().of("A").space == space().space

"""Boundaries: toys whose angles and accuracies are known, and a run whose translations are the same text."""

from __future__ import annotations

import math

import numpy
import pytest
from test_analyse import read

from raypft.analysis.boundaries import compare

FAST = {"epochs": 2, "lr": 1e-2, "batch_size": 8, "max_tokens": 64}


def turned(degrees: float, count: int = 4000, width: int = 5) -> tuple[dict[str, numpy.ndarray], numpy.ndarray]:
    """States whose label is the side of a plane: in `en` across the first axis, in `xx` across one that is turned so
    far from it; the sentences of `same` are English ones."""
    random = numpy.random.default_rng(0)
    english = random.standard_normal((count, width))
    labels = (english[:, 0] > 0).astype(int)
    angle = math.radians(degrees)
    other = english.copy()
    other[:, 0] = math.cos(angle) * english[:, 0] - math.sin(angle) * english[:, 1]
    other[:, 1] = math.sin(angle) * english[:, 0] + math.cos(angle) * english[:, 1]
    return {"en": english, "xx": other, "same": english}, labels


@pytest.mark.parametrize("degrees", [0, 30, 60, 90, 180])
def test_a_turned_boundary_is_found(degrees):
    """Of two planes at an angle a the one's sides are the other's for 1 - a / 180 of the points; the mean cosine of a
    point and the point turned in two of five axes is 3/5 + 2/5 cos a."""
    states, labels = turned(degrees)
    rows = {row["language"]: row for row in compare(states, labels, "en")}
    assert rows["xx"]["angle"] == pytest.approx(degrees, abs=2.5)
    assert rows["xx"]["accuracy"] == pytest.approx(100 * (1 - degrees / 180), abs=2.5)
    assert rows["xx"]["accuracy of own"] > 98
    assert rows["xx"]["cosine"] == pytest.approx(0.6 + 0.4 * math.cos(math.radians(degrees)), abs=0.02)
    assert abs(rows["xx"]["cosine of unrelated"]) < 0.02
    assert rows["same"]["angle"] < 1e-4
    assert rows["same"]["cosine"] == pytest.approx(1)
    assert rows["en"]["accuracy"] == rows["same"]["accuracy"] > 98


def test_of_three_labels_boundaries_lie_between_pairs():
    """Three clusters whose places two languages exchange: a and b; the boundaries of c with both are then 60 degrees
    off, that of a with b is 180."""
    random = numpy.random.default_rng(0)
    labels = numpy.arange(3000) // 2 % 3
    corners = numpy.array([[math.cos(k * 2 * math.pi / 3), math.sin(k * 2 * math.pi / 3)] for k in range(3)])
    noise = random.standard_normal((3000, 2)) / 20
    states = {"en": corners[labels] + noise, "xx": corners[numpy.array([1, 0, 2])[labels]] + noise}
    row = compare(states, labels, "en")[1]
    assert row["angle"] == pytest.approx((180 + 60 + 60) / 3, abs=3)
    assert row["accuracy"] == pytest.approx(100 / 3, abs=1)
    assert row["accuracy of own"] > 99


def test_a_run_whose_languages_have_the_same_texts(ran, finish, tmp_path):
    """Cosines are 1, angles 0 and accuracies equal, before and after; points of both languages coincide."""
    run = ran("dp", "full", "xlmr", train=FAST)
    assert finish("analyse", "boundaries", run, "--out", tmp_path)[0] == 0
    rows = read(tmp_path / "analysis-boundaries" / "boundaries.csv")
    assert [(row["stage"], row["language"]) for row in rows] == [
        (stage, language) for stage in ("before training", "after training") for language in ("en", "de")
    ]
    for row in rows:
        assert float(row["cosine"]) == pytest.approx(1)
        assert float(row["angle"]) == pytest.approx(0, abs=0.1)
        assert row["sentences"] == "12"
    assert rows[0]["cosine of unrelated"] != rows[2]["cosine of unrelated"], "training moved the states"
    points = read(tmp_path / "analysis-boundaries" / "points.csv")
    assert len(points) == 2 * 2 * 12
    english, german = ([float(p["x"]) for p in points if p["language"] == name] for name in ("en", "de"))
    assert english == pytest.approx(german, abs=1e-5)
    assert sum(english) == pytest.approx(0, abs=1e-4)


BAD = {
    "one language": (
        {"test": {"languages": ["en"]}},
        "has 12 test rows with one id and label in all of en; expected 10",
    ),
    "few rows": ({"test": {"limit": 4}}, "has 4 test rows with one id and label in all of en, de; expected 10 or more"),
}


@pytest.mark.parametrize("case", BAD)
def test_rows_that_are_no_translations_are_refused(case, ran, finish):
    more, told = BAD[case]
    code, out, err = finish("analyse", "boundaries", ran("dp", "full", "xlmr", train=FAST, **more))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err


def test_a_task_without_labels_is_refused(place, ran, finish):
    text = {"task": f"{place}/text.yaml", "pattern": "vanilla", "readout": "mlm", "protocol": "ticket_search"}
    run = ran("mlm", "full", "xlmr", train=FAST, **text)
    code, _, err = finish("analyse", "boundaries", run)
    assert code == 2
    assert "is of task text, whose rows have no label each; expected a task of choice" in err

"""The dev score that a result tells, and the epoch it is of."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from test_cli import place, words  # noqa: F401  (a fixture)

from raypft.config.load import load_job
from raypft.runs import cell
from raypft.runs.prepare import prepare
from raypft.scale.run import run_jobs


def result(place: Path, *more: str) -> dict[str, Any]:  # noqa: F811
    """Of one seed."""
    ((found,),) = run_jobs([prepare(load_job(*_job(words(place, "seeds=1", *more))))])
    return found


def _job(said: list[str]) -> tuple[str, list[str]]:
    return said[0], said[1:]


def test_dev_is_the_mean_over_languages_and_not_over_rows(place, monkeypatch):  # noqa: F811
    """Of 24 rows in English and 8 in German; English rows are called right, German ones wrong."""
    by_row = cell.by_row

    def answered(*told: Any) -> list[Any]:
        found = by_row(*told)
        for row in found:
            wrong = next(name for name in ("negative", "positive") if name != row.gold)
            object.__setattr__(row, "answer", row.gold if row.language == "en" else wrong)
        return found

    monkeypatch.setattr(cell, "by_row", answered)
    found = result(place, "train.languages=[en,de]", "train.epochs=1")
    assert found["sizes"]["dev"] == 32
    assert found["dev"] == found["history"][0]["dev"] == 50


@pytest.mark.parametrize(("select", "dev", "epoch"), [("best", 90.0, 2), ("last", 70.0, 3)])
def test_dev_is_that_of_the_epoch_that_is_kept(select, dev, epoch, place, monkeypatch):  # noqa: F811
    scores = chain([60.0, 90.0, 70.0])
    monkeypatch.setattr(cell, "mean_score", lambda *told: next(scores))
    found = result(place, f"train.select={select}")
    assert [one["dev"] for one in found["history"]] == [60.0, 90.0, 70.0]
    assert (found["dev"], found["best_epoch"]) == (dev, epoch)

"""Cells share a worker group and nothing else; a dead worker, a dead trial or a failing cell costs only itself."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from test_cli import place, words  # noqa: F401  (a fixture)
from test_ray import ours
from test_tune import drive, session, write  # noqa: F401  (a fixture)

from raypft.config.load import load_job
from raypft.errors import UserError
from raypft.runs.cell import Cell
from raypft.runs.prepare import prepare
from raypft.scale.data import encode_on_ray
from raypft.scale.executor import RayExecutor

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.timeout(600)]


def cell(place: Path, storage: str, *more: str, recipe: str = "profit") -> Cell:  # noqa: F811
    """The one cell of a job with a worker, its prompts encoded."""
    common = [
        "seeds=1",
        "train.dropout=0.0",
        "resources.workers=1",
        "resources.cpus_per_worker=0.25",
        "zero.stage=1",
        f"storage={place}/{storage}",
    ]
    name, *overrides = words(place, *common, *more, recipe=recipe)
    (made,) = prepare(load_job(name, overrides)).cells()
    encode_on_ray([made])
    return made


def result(of: Cell) -> dict:
    return json.loads((of.folder / "result.json").read_text())


def ended(of: Cell) -> float:
    """When a cell told its result."""
    return json.loads((of.folder / "events.jsonl").read_text().splitlines()[-1])["time"]


def attempts(storage: Path) -> int:
    """How many times a worker group was asked for."""
    return len(list((storage / ".ray").glob("attempt-*")))


def test_cells_of_a_worker_group_know_nothing_of_each_other(place, session):  # noqa: F811
    first, other, again = cell(place, "a"), cell(place, "a", "pattern=soft", recipe="sp"), cell(place, "c")
    bad, after, last = (
        cell(place, "a", "train.lr=1e30"),
        cell(place, "a", "train.lr=1e-3"),
        cell(place, "a", "train.lr=2e-3"),
    )
    with closing(RayExecutor()) as executor:
        for one in (first, other, again):
            executor.run(one, print)
        assert result(again)["losses"] == result(first)["losses"], "A, B, A"
        assert result(other)["losses"] != result(first)["losses"]
        with pytest.raises(UserError, match=r"^scores are nan, first for row en/\d+;"):
            executor.run(bad, print)
        executor.run(after, print)
        os.kill(ours("RayTrainWorker")[-1], signal.SIGKILL)  # while it waits for a cell
        executor.run(last, print)
        assert not (bad.folder / "result.json").exists()
        assert all("scores" in result(one) for one in (after, last))
        assert ended(first) < ended(other)
    assert attempts(place / "a") == 1, "the worker group was given up"


def test_a_cell_that_kills_its_workers_has_its_own_budget(place, session):  # noqa: F811
    slow = ["train.epochs=400", "train.patience=null", "train.batch_size=1", "train.save_every=10000"]
    deadly, kind = cell(place, "a", *slow, "resources.max_failures=1"), cell(place, "a", "resources.max_failures=1")
    events, over, killed = deadly.folder / "events.jsonl", threading.Event(), 0

    def kill() -> None:
        """Each worker as soon as it has begun: one that had time for a state is not counted with those before it."""
        nonlocal killed
        while not over.wait(0.01):
            if events.is_file() and events.read_text().count('"epochs"') > killed:
                os.kill(ours("RayTrainWorker")[-1], signal.SIGKILL)
                killed += 1

    thread = threading.Thread(target=kill, daemon=True)
    with closing(RayExecutor()) as executor:
        thread.start()
        with pytest.raises(UserError, match=r"^run: a worker died 2 times in this cell; out of memory\?"):
            executor.run(deadly, print)
        over.set()
        thread.join()
        executor.run(kind, print)
    assert "scores" in result(kind)


def test_a_campaign_has_the_same_numbers_with_lanes_and_without(place, session):  # noqa: F811
    rows = {"Slow": {"recipe": "profit"}, "Fast": {"recipe": "profit", "set": {"train.lr": 0.01}}}
    group = {"resources.workers": 1, "seeds": [0]}
    scores = {}
    for lanes in (True, False):
        path = Path(write(place, f"lanes-{lanes}", rows, **group))
        path.write_text(path.read_text() + f"lanes: {str(lanes).lower()}\n")
        scores[lanes] = drive(str(path))
    assert scores[True] == scores[False]
    assert (attempts(place / "lanes-True"), attempts(place / "lanes-False")) == (1, 2)


def test_a_killed_trial_costs_only_its_running_cell(place, session):  # noqa: F811
    rows, group = (
        {"Plain": {"recipe": "profit"}},
        {"resources.workers": 1, "seeds": [0, 1], "train.epochs": 30, "train.patience": None, "train.save_every": 5},
    )
    whole, killed = drive(write(place, "whole", rows, **group)), list[int]()

    def kill() -> None:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and not killed:
            if list(place.glob("broken/*/seed-1/state.pt")):
                killed.extend(ours("ray::ResourceTrainable")[:1])  # what Tune calls a trial
                os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.02)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    broken = drive(write(place, "broken", rows, **group))
    thread.join()
    assert killed, "no trial was killed"
    assert broken == whole
    events = [path.read_text() for path in sorted(place.glob("broken/*/seed-*/events.jsonl"))]
    assert [text.count('"start"') + text.count('"resume"') for text in events] == [1, 2], "a finished cell ran again"

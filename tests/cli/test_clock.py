"""A clock that is set back by an hour between two cells makes no time of a report absurd."""

from __future__ import annotations

import json
import time

from test_cli import place, words  # noqa: F401  (a fixture)

import raypft
from raypft.config.load import load_job
from raypft.runs.prepare import prepare
from raypft.runs.table import run_table
from raypft.scale.run import run_jobs


def test_a_clock_that_is_set_back_between_two_cells_changes_no_seconds(place, monkeypatch):  # noqa: F811
    clock, back = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: clock() - back[0])

    def tell(event: dict) -> None:
        back[0] += 3600.0 * (event["event"] == "result")

    name, *overrides = words(place)
    began = time.perf_counter()
    results = run_jobs([prepare(load_job(name, overrides))], tell)[0]
    took = time.perf_counter() - began
    (folder,) = place.glob("runs/*")
    told = [
        json.loads(path.read_text().splitlines()[-1])["time"] for path in sorted(folder.glob("seed-*/events.jsonl"))
    ]
    assert told[1] < told[0] - 3000, "the clock was set back"
    seconds = [result[key] for result in results for key in ("seconds", "train_seconds", "cpu_seconds")]
    assert all(0 <= one < took + 1 for one in seconds[::3])
    assert min(seconds) >= 0
    table = run_table([folder])
    assert 0 <= int(table.rows[0][table.columns.index("seconds")]) <= took + 1
    assert raypft.write_report(folder, out=place / "page").exists()

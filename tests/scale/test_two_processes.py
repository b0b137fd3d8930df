"""Two processes on one cache, one campaign: each has what it would have alone, or says in a line that it must wait. (On
one run: tests/cli/test_refusals.py; on one cache of states: tests/backbones/test_frozen_states.py.)"""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
from test_campaign import small
from test_cli import call, place, words  # noqa: F401  (a fixture)

from raypft.campaigns.load import load_campaign
from raypft.config.load import load_job
from raypft.runs.cell import Cell
from raypft.runs.prepare import prepare
from raypft.scale import data
from raypft.scale.data import encode_on_ray, encoded_folder, read_encoded
from raypft.storage import locked

TIMES = 12


def cells(place: Path, storage: str) -> list[Cell]:  # noqa: F811
    """Those of a job with a worker, which reads encoded rows."""
    name, *overrides = words(place, "resources.workers=1", f"storage={place}/{storage}")
    return prepare(load_job(name, overrides)).cells()


def prompts(of: Cell) -> dict[str, Any]:
    return {role: [prompt.ids for prompt in rows] for role, rows in read_encoded(encoded_folder(of)).items()}


def encodes(some: list[Cell], together: Any, expected: dict[str, Any]) -> None:
    """What a process does below: it encodes though all is there, and reads while the other writes."""
    data._is_encoded = lambda folder: False
    together.wait()
    for _ in range(TIMES):
        encode_on_ray(some)
        assert prompts(some[0]) == expected


def test_processes_that_encode_the_same_rows_at_once_do_not_disturb_each_other(place):  # noqa: F811
    (alone, *_), some = cells(place, "alone"), cells(place, "both")
    encode_on_ray([alone])
    expected = prompts(alone)
    context = multiprocessing.get_context("fork")
    together = context.Barrier(2)
    both = [context.Process(target=encodes, args=(some, together, expected)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert prompts(some[0]) == expected
    assert not list((place / "both").rglob("*.partial*"))


@pytest.mark.parametrize("more", [(), ("--fresh",)])
def test_a_campaign_another_process_is_at_work_on_is_left_alone(place, more, monkeypatch, capsys):  # noqa: F811
    """Also where it was to begin anew: the ledger of the other is not removed."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path = small(place, search=None)
    folder = load_campaign(path).folder
    with locked(folder):
        (folder / "ledger.jsonl").write_text("")
        before = {file: os.stat(file).st_mtime_ns for file in folder.rglob("ledger*")}
        assert call(monkeypatch, "tune", path, *more) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line == f"raypft: run: another process is at work on {folder}; wait for it, or choose another storage="
        assert {file: os.stat(file).st_mtime_ns for file in folder.rglob("ledger*")} == before
    assert not list(place.rglob("seed-*"))

"""Runs that several earlier versions left, one finished and one killed at work: what a version can't go on with it
refuses in a line that says what to do; all of it can be reported and used."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pa_parquet
import pytest
from test_legacy import call, folder  # noqa: F401  (a fixture)

from raypft.cli import main

VERSIONS = Path(__file__).parent / "versions"
FINISHED, KILLED = "gnnavi_gcn-review-4shot-llama-bf5c0348", "gnnavi_gcn-review-4shot-llama-c1fa7351"
COMMON = (
    "gnnavi_gcn task=review.yaml data.root=data protocol=fixed train.languages=[en] backbone=models/llama shots=4 "
    "train.lr=1e-2 train.batch_size=4 train.max_tokens=64 seeds=1"
)
SAME_NUMBERS = {"0ce7c2d": False, "c08aefe": True}
"""Version to whether this one makes the same numbers: its cells have the same keys."""


@pytest.fixture(params=SAME_NUMBERS)
def version(request, folder):  # noqa: F811
    """The name of a version, with its runs in the working directory's storage."""
    shutil.rmtree("runs")
    shutil.copytree(VERSIONS / request.param, "runs")
    return request.param


def refused(monkeypatch, capsys, *words: str) -> str:
    """The line of a command that is refused."""
    monkeypatch.setattr(sys, "argv", ["raypft", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_every_version_that_is_kept_is_tried():
    assert {path.name for path in VERSIONS.iterdir()} == set(SAME_NUMBERS)


def test_a_finished_run_is_reported_and_predicts_what_it_predicted(version, monkeypatch, capsys):
    assert f"6 to 16 test rows a language; {FINISHED}" in call(monkeypatch, capsys, "report", f"runs/{FINISHED}")
    words = ["predict", f"runs/{FINISHED}", "--data", "data/test.jsonl", "--out", "new.parquet"]
    if not SAME_NUMBERS[version]:
        line = refused(monkeypatch, capsys, *words)
        assert "was trained with another model, task, method version" in line
        assert line.endswith("restore them, or run the job again")
        return
    call(monkeypatch, capsys, *words)
    stored = pa_parquet.read_table(f"runs/{FINISHED}/seed-0/predictions.parquet")
    assert pa_parquet.read_table("new.parquet")["answer"].to_pylist() == stored["answer"].to_pylist()


def test_a_finished_run_is_reused_or_refused_with_what_helps(version, monkeypatch, capsys):
    words, result = [*COMMON.split(), "train.epochs=2"], Path(f"runs/{FINISHED}/seed-0/result.json")
    before = result.read_bytes()
    if SAME_NUMBERS[version]:
        assert "finished before, reused" in call(monkeypatch, capsys, "run", *words)
    else:
        line = refused(monkeypatch, capsys, "run", *words)
        assert line.startswith(
            f"raypft: run: runs/{FINISHED} seed 0 was begun with other data, model or method version"
        )
        assert line.endswith("use --fresh to start over, or another storage=")
    assert result.read_bytes() == before


def test_a_killed_run_goes_on_or_is_refused_with_what_helps(version, monkeypatch, capsys):
    words = [*COMMON.split(), "train.epochs=9", "train.save_every=1"]
    if not SAME_NUMBERS[version]:
        assert "use --fresh to start over" in refused(monkeypatch, capsys, "run", *words)
        return
    assert "goes on at epoch" in call(monkeypatch, capsys, "run", *words)
    found = json.loads(Path(f"runs/{KILLED}/seed-0/result.json").read_text())
    call(monkeypatch, capsys, "run", *words, "--fresh")
    alone = json.loads(Path(f"runs/{KILLED}/seed-0/result.json").read_text())
    assert found["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    assert found["scores"] == alone["scores"]

"""Folders written by an earlier commit with the same numbers are reused, gone on with and computed again: to the
rounding of sums that are taken in another order (README.md beside this)."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pa_parquet
import pytest
import torch
from safetensors.torch import load_file

from raypft.cli import main

FOLDER = Path(__file__).parent / "folder"
COMMON = "task=review.yaml data.root=data protocol=fixed seeds=2 train.languages=[en]"
SEARCH = "ticket_search-words-all-bert-42dcfbd3"
RUNS = {
    "sp-review-all-bert-b17ca040": (
        f"sp {COMMON} backbone=models/bert train.epochs=3 train.lr=1e-3 train.batch_size=4 train.max_tokens=32"
    ),
    "gnnavi_gcn-review-4shot-llama-3c84aff0": (
        f"gnnavi_gcn {COMMON} backbone=models/llama shots=4 "
        "train.epochs=3 train.lr=1e-2 train.batch_size=4 train.max_tokens=64"
    ),
    "vanilla_mt5-review-all-mt5-95a9d3d7": (
        f"vanilla_mt5 {COMMON} backbone=models/mt5 pattern=asked readout.longest=3 "
        "train.epochs=3 train.lr=1e-2 train.batch_size=4 train.max_tokens=32"
    ),
    SEARCH: (
        "ticket_search task=words.yaml data.root=data backbone=models/bert "
        "train.epochs=2 train.lr=1e-3 train.batch_size=4 train.max_tokens=32"
    ),
    "ltp-review-all-bert-490c5da8": (
        f"ltp {COMMON} backbone=models/bert method.ticket=runs/{SEARCH} method.ratio=0.3 "
        "train.epochs=2 train.lr=1e-3 train.batch_size=4 train.max_tokens=32"
    ),
}
STOPPED = "sp-review-all-bert-2429387b"
SAME_MACHINE = torch.backends.cpu.get_cpu_capability() == "AVX512"
"""Whether floats add up in the order in which they did; elsewhere only nearly."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the folder, and the working directory in it."""
    copy = tmp_path / "folder"
    shutil.copytree(FOLDER, copy)
    for path in [path for ending in ("yaml", "json", "jsonl") for path in copy.rglob(f"*.{ending}")]:
        path.write_text(path.read_text().replace("HERE", str(copy)))
    monkeypatch.chdir(copy)
    return copy


def call(monkeypatch, capsys, *words: str) -> str:
    """What a command prints; it must end well."""
    monkeypatch.setattr(sys, "argv", ["raypft", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    return capsys.readouterr().out


def numbers(column: Any) -> Any:
    """All numbers of a column of numbers or lists of them."""
    return np.concatenate([np.ravel(value) for value in column.to_pylist()])


def seeds_of(run: str) -> list[str]:
    return sorted(path.name for path in (FOLDER / "runs" / run).glob("seed-*"))


@pytest.mark.parametrize("run", RUNS)
def test_finished_seeds_are_reused(run, folder, monkeypatch, capsys):
    files = [path for path in (folder / "runs" / run).glob("seed-*/*") if path.name != "demos.parquet"]
    before = [path.stat().st_mtime_ns for path in files]
    out = call(monkeypatch, capsys, "run", *RUNS[run].split())
    assert out.count("finished before, reused") == len(seeds_of(run))
    assert before == [path.stat().st_mtime_ns for path in files]
    assert sorted(path.name for path in folder.joinpath("runs").iterdir()) == sorted(
        path.name for path in FOLDER.joinpath("runs").iterdir()
    )


@pytest.mark.parametrize("run", RUNS)
def test_numbers_are_the_stored_ones(run, folder, monkeypatch, capsys):
    call(monkeypatch, capsys, "run", *RUNS[run].split(), "--fresh")
    for seed in seeds_of(run):
        made, stored = (root / "runs" / run / seed for root in (folder, FOLDER))
        ours, theirs = (json.loads((place / "result.json").read_text()) for place in (made, stored))
        assert [key for key in ours if key in theirs] == list(theirs)  # later versions tell more
        same = [key for key in theirs if "seconds" not in key and key not in ("history", "losses", "peak_memory_mb")]
        assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5 if SAME_MACHINE else 1e-4)
        assert (
            pa_parquet.read_table(made / "predictions.parquet").schema
            == pa_parquet.read_table(stored / "predictions.parquet").schema
        )
        for file in stored.glob("*.safetensors"):
            values, expected = load_file(made / file.name), load_file(file)
            assert list(values) == list(expected)
            # of all together: Adam makes steps of the rounding in gradients that are none (a bias of keys)
            ours_flat, theirs_flat = (
                torch.cat([of[name].float().flatten() for name in expected]) for of in (values, expected)
            )
            assert not SAME_MACHINE or (ours_flat - theirs_flat).norm() <= 1e-2 * theirs_flat.norm()
        if SAME_MACHINE:
            found, expected = (pa_parquet.read_table(place / "predictions.parquet") for place in (made, stored))
            for name in found.column_names:
                if name == "scores" or name.startswith("p("):
                    ours, theirs = numbers(found[name]), numbers(expected[name])
                    np.testing.assert_allclose(ours, theirs, atol=1e-4)
                else:
                    assert found[name] == expected[name]


def test_a_run_stopped_before_goes_on_to_the_numbers_of_one_left_alone(folder, monkeypatch, capsys):
    words = (
        f"sp {COMMON} seeds=1 backbone=models/bert train.epochs=4 train.lr=2e-3 "
        "train.batch_size=4 train.max_tokens=32 train.save_every=3"
    )
    out = call(monkeypatch, capsys, "run", *words.split())
    assert "goes on at epoch 2, step 3" in out
    result = json.loads((folder / "runs" / STOPPED / "seed-0" / "result.json").read_text())
    expected = json.loads((FOLDER / "uninterrupted.json").read_text())
    assert result["losses"] == pytest.approx(expected["losses"], rel=1e-5 if SAME_MACHINE else 1e-4)
    assert result["scores"] == expected["scores"]


def test_a_ledger_is_read_and_nothing_of_its_campaign_runs_again(folder, monkeypatch, capsys):
    (campaign,) = folder.glob("runs/layers-*")
    ledger, table = (campaign / "ledger.jsonl").read_bytes(), (campaign / "table.csv").read_text()
    assert "cells: 8 done, 0 to do" in call(monkeypatch, capsys, "plan", "layers.yaml")
    (campaign / "table.csv").unlink()
    call(monkeypatch, capsys, "tune", "layers.yaml")
    assert (campaign / "ledger.jsonl").read_bytes() == ledger
    assert (campaign / "table.csv").read_text() == table
    (campaign / "table.csv").unlink()
    call(monkeypatch, capsys, "report", str(campaign.relative_to(folder)))
    assert (campaign / "table.csv").read_text() == table


def test_a_trained_folder_predicts_what_it_predicted(folder, monkeypatch, capsys):
    run = "ltp-review-all-bert-490c5da8"
    stored = pa_parquet.read_table(FOLDER / "runs" / run / "seed-0" / "predictions.parquet")
    call(monkeypatch, capsys, "predict", f"runs/{run}", "--data", "data/test.jsonl", "--out", "new.parquet")
    assert pa_parquet.read_table("new.parquet")["answer"].to_pylist() == stored["answer"].to_pylist()

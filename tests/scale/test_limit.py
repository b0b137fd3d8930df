"""What does not fit a worker in one piece is trained, gone on with, tested and exported in parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import limit
import pytest
import torch
from limit import SMALL, UNTIL, ran
from memory import Case, config_of, write_model
from safetensors.torch import load_file

from raypft import shards

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]


def case(engine: str, workers: int = 1) -> Case:
    return Case("50M", "fp32", "full", engine, workers)


def result(runs: Path) -> dict[str, Any]:
    (file,) = runs.glob("*/seed-0/result.json")
    return json.loads(file.read_text())


def test_four_workers_do_what_one_has_no_memory_for(tmp_path, monkeypatch):
    model, runs, exported = tmp_path / "model", tmp_path / "runs", tmp_path / "exported"
    write_model(model, config_of(**SMALL), "fp32")
    for engine in ("torch", "zero0"):
        assert not ran(case(engine), model, tmp_path / engine)
    assert ran(case("zero3", 4), model, runs, until=UNTIL)
    (cell,) = runs.glob("*/seed-0")
    assert len(json.loads(max(cell.glob("state/*.json")).read_text())["parts"]) == 4
    assert ran(case("zero3", 4), model, runs)
    told = [json.loads(line)["event"] for line in (cell / "told.jsonl").read_text().splitlines()]
    events = [event for event in told if event != "steps"]
    assert events == ["start", *["epoch"] * UNTIL, "resume", *["epoch"] * (events.count("epoch") - UNTIL)]
    assert ran(case("zero3"), model, runs, export=str(exported))
    written = load_file(exported / "model.safetensors")
    with shards.Saved(cell / "trained.safetensors") as trained:
        for name in trained.names:
            assert torch.equal(trained[name], written[name.removeprefix("method.backbone.model.")])
    monkeypatch.setattr(limit, "ALLOWED", 100)
    assert ran(case("torch"), model, tmp_path / "free")
    found, expected = result(runs), result(tmp_path / "free")
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    assert found["scores"] == expected["scores"]

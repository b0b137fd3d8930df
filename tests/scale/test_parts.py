"""A state in parts on Ray's workers: a model of 100 MB goes on from four workers under ZeRO-3 on two, and from these on
one under ZeRO-1, whose workers write what no file holds whole."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from test_cli import place  # noqa: F401  (a fixture)
from test_ray import ours, run, session  # noqa: F401  (a fixture)
from transformers import AutoModelForMaskedLM

from raypft import shards
from raypft.contract import tiny
from raypft.errors import UserError

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.timeout(1800)]

LEGS = ((4, 3), (2, 3), (1, 1))
"""Workers and ZeRO stage, each from the state that the one before left behind."""


def widen(folder: Path) -> None:
    """Write a model over a tiny one that counts as large when all of it trains."""
    config = tiny.config("bert", dropout=0.1)
    config.update({"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8})
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config)
    assert 4 * model.num_parameters() > shards.WHOLE
    model.save_pretrained(folder)


def kill_behind(pattern: str, place: Path, count: int) -> threading.Thread:  # noqa: F811
    """Kill all workers as soon as so many new manifests have been seen; started."""
    known, seen = set(place.glob(pattern)), set[Path]()

    def kill() -> None:
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline:
            seen.update(place.glob(pattern))
            if len(seen - known) >= count:
                for worker in ours("RayTrainWorker"):
                    os.kill(worker, signal.SIGKILL)
                return
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_parts_go_on_with_other_workers_and_under_another_stage(place, session):  # noqa: F811
    widen(place / "bert")
    common = ["seeds=1", "train.epochs=3", "train.save_every=2", "train.lr=1e-4", "train.patience=null"]
    common += ["resources.cpus_per_worker=0.25", "resources.max_failures=0"]
    (expected,), _ = run(place, *common, "resources.workers=0", "resources.cpus_per_worker=null", f"storage={place}/a")
    *left, last = (
        [*common, f"resources.workers={n}", f"zero.stage={stage}", f"storage={place}/b"] for n, stage in LEGS
    )
    for words, (workers, _) in zip(left, LEGS, strict=False):
        thread = kill_behind("b/*/seed-0/state/*.json", place, 2)
        with pytest.raises(UserError):
            run(place, *words)
        thread.join()
        (cell,) = place.glob("b/*/seed-0")
        manifest = json.loads(max(cell.glob("state/*.json")).read_text())
        assert len(manifest["parts"]) == workers
        assert sum(part["bytes"] for part in manifest["parts"]) > 3 * shards.WHOLE
        assert not (cell / "state.pt").exists()
    (result,), events = run(place, *last)
    assert [event["event"] for event in events if event["event"] in ("start", "resume")] == ["resume"]
    assert result["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    assert result["scores"] == expected["scores"]
    assert result["best_epoch"] == expected["best_epoch"]

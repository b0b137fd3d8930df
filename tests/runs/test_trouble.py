"""A disk that takes nothing more and memory that does not suffice: one line, nothing lost; half as much at once."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_every_file import folder, job, made, scores  # noqa: F401  (a fixture)

from raypft.backbones import load
from raypft.config.job import Train
from raypft.errors import UserError
from raypft.runs import executor
from raypft.runs.predict import load_trained
from raypft.runs.results import read_run
from raypft.scale.run import run_jobs
from raypft.training.stepper import TorchStepper


@pytest.fixture
def place(made, tmp_path, monkeypatch) -> Path:  # noqa: F811
    """A copy of the finished and the stopped run, which is the working directory."""
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("trouble", [errno.ENOSPC, errno.EROFS, errno.EMFILE, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", [0, 2, 5, 7])
def test_a_disk_that_takes_nothing_more_is_one_line_and_nothing_is_lost(place, trouble, call, monkeypatch):
    """From some file on nothing is written; when there is room again the run goes on to the same numbers."""
    run, calls = folder(place, "stopped"), iter(range(1 << 30))
    before = (run / "seed-0" / "result.json").read_bytes()
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if next(calls) >= call:
            raise OSError(trouble, os.strerror(trouble), str(target))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(UserError) as caught:
            run_jobs([job("storage=stopped")])
    assert "\n" not in str(caught.value)
    assert os.strerror(trouble) in str(caught.value)
    assert "stopped/" in str(caught.value)
    assert not list(place.rglob("*.partial*"))
    assert (run / "seed-0" / "result.json").read_bytes() == before
    run_jobs([job("storage=stopped")])
    assert scores(run) == scores(folder(place, "runs"))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_out_of_memory_halves_what_runs_at_once_and_the_numbers_stay(place, error, monkeypatch):
    """Four rows a step; two at once are too many from the third backward pass on."""
    scored, passes = TorchStepper.scores, list[int]()

    def small(self: TorchStepper, batch: Any) -> Any:
        passes.append(batch.ids.shape[0])
        if len(passes) > 2 and batch.ids.shape[0] > 1:
            raise error
        return scored(self, batch)

    monkeypatch.setattr(TorchStepper, "scores", small)
    events: list[dict[str, Any]] = []
    run_jobs([job("storage=small", "seeds=1", "train.micro_batch=4")], events.append)
    (result,) = read_run(folder(place, "small")).seeds
    (expected, _) = read_run(folder(place, "runs")).seeds
    assert result["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    assert result["scores"] == expected["scores"]
    assert result["memory_halved"] == 2
    assert "memory_halved" not in expected
    told = [event["text"] for event in events if event["event"] == "note"]
    assert [line.split(";")[0] for line in told] == ["seed 0: out of memory"] * 2
    assert "1/4 of the rows" in told[1]
    resumed = [event for event in events if event["event"] == "resume"]
    assert resumed, "it goes on from its last state"


def test_a_row_that_does_not_fit_alone_ends_the_run(place, monkeypatch):
    def never(self: TorchStepper, batch: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(TorchStepper, "scores", never)
    monkeypatch.setattr(executor, "MOST_HALVINGS", 2)
    with pytest.raises(
        UserError, match=r"^run: seed 0 of .* does not fit into memory, even .* at once: CUDA out of mem"
    ):
        run_jobs([job("storage=small", "seeds=1")])


@pytest.mark.parametrize("as_stored", [False, True])
def test_a_model_is_opened_while_freed_memory_goes_at_once(as_stored, place, monkeypatch):
    """The first time and again: training keeps what it frees, and of weights in 4 bits holes would stay."""
    told, read = list[Any](), load.read
    monkeypatch.setattr(load.HEAP, "keep", told.append)
    monkeypatch.setattr(load, "read", lambda *wanted: told.append("opened") or read(*wanted))
    mapped = load.map_weights
    monkeypatch.setattr(load, "map_weights", lambda *wanted: told.append("again") or mapped(*wanted))
    loaded: Any = executor.LoadedBackbone(as_stored)
    name = job("seeds=1").job.backbone
    found = load.load_backbone(name)
    cell: Any = SimpleNamespace(job=SimpleNamespace(backbone=name, train=Train()), facts={"backbone": found.revision})
    loaded.of(cell)
    loaded.of(cell)
    assert told == [False, "opened"] * 2 + [False, "again"] * as_stored


def test_predictions_keep_what_they_free_once_the_model_is_open(place, monkeypatch):
    """As a training does; what opening holds for a moment goes at once."""
    run_jobs([job("storage=kept", "seeds=1", "train.epochs=1")])
    (folder,) = Path("kept").glob("*")
    told = list[bool]()
    monkeypatch.setattr(load.HEAP, "keep", told.append)
    load_trained(folder)
    assert told == [False, True]

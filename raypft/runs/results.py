"""A run's folder as it is read: the job, its finished cells, the files of a cell. No torch here.

<cell>/events.jsonl, predictions.parquet, trained.safetensors, result.json   (state.pt while unfinished);
       demos.parquet where the prompts show demonstrations
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from raypft.errors import UserError
from raypft.storage import Log

TESTED, UNTESTED = "result.json", "searched.json"
"""The result of a cell, and what it is before the test, where that is withheld."""
TRAINED, PREDICTIONS, STATE, EVENTS = "trained.safetensors", "predictions.parquet", "state.pt", "events.jsonl"
DEMOS = "demos.parquet"
"""A seed's demonstrations, so that a run can be used where its data is not."""

Tell = Callable[[dict[str, Any]], None]


def is_finished(folder: Path, test: bool = True) -> bool:
    """Whether a cell's folder holds a result; one without a test is enough where none is asked for."""
    return (folder / TESTED).is_file() or (not test and (folder / UNTESTED).is_file())


def read_result(folder: Path) -> dict[str, Any]:
    """The result of a finished cell, without test numbers where the test was withheld."""
    return json.loads((folder / (TESTED if is_finished(folder) else UNTESTED)).read_text())


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The finished cells of a run, by seed."""
    results = [json.loads(path.read_text()) for path in folder.glob(f"seed-*/{TESTED}")]
    return sorted(results, key=lambda result: result["seed"])


def read_job(folder: Path) -> dict[str, Any]:
    """The resolved job of a run.

    Raises:
        UserError: the folder is no run.
    """
    path = folder / "job.yaml"
    if not path.is_file():
        raise UserError(f"run: {folder} holds no job.yaml; give the folder of a run, e.g. runs/profit-xnli-…")
    return yaml.safe_load(path.read_text())


def recorder(folder: Path) -> Tell:
    """Appends events, with the time, to the cell's events.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    log = Log(folder / EVENTS)
    return lambda event: log.append(json.dumps({"time": round(time.time(), 3), **event}).encode() + b"\n")

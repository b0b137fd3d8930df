"""A run's folder as it is read: the job, its finished cells, the files of a cell. No torch here.

<cell>/events.jsonl, predictions.parquet, trained.safetensors, result.json   (state.pt while unfinished);
       demos.parquet where the prompts show demonstrations
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import yaml

from raypft.errors import UserError
from raypft.storage import Log, on_disk

if TYPE_CHECKING:
    import pandas

TESTED, UNTESTED = "result.json", "searched.json"
"""The result of a cell, and what it is before the test, where that is withheld."""
TRAINED, PREDICTIONS, STATE, EVENTS = "trained.safetensors", "predictions.parquet", "state.pt", "events.jsonl"
DEMOS = "demos.parquet"
"""A seed's demonstrations, so that a run can be used where its data is not."""

Tell = Callable[[dict[str, Any]], None]
SCORES = pa.schema(
    [
        ("recipe", pa.string()),
        ("task", pa.string()),
        ("seed", pa.int64()),
        ("metric", pa.string()),
        ("language", pa.string()),
        ("score", pa.float64()),
    ]
)
"""The columns of a run's scores."""


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


@dataclass(frozen=True)
class RunResults:
    """The finished seeds of a run.

    folder: the run's; job: its resolved job, as job.yaml holds it; seeds: result.json of each finished seed, by seed.
    """

    folder: Path
    job: dict[str, Any]
    seeds: list[dict[str, Any]]

    @property
    def mean(self) -> float:
        """The task's first metric, its mean over languages and seeds, in percent; nan where no seed is tested."""
        return statistics.fmean(self._means) if self._means else math.nan

    @property
    def std(self) -> float:
        """Sample standard deviation over seeds of the mean over languages; nan below two seeds."""
        return statistics.stdev(self._means) if len(self._means) > 1 else math.nan

    @property
    def _means(self) -> list[float]:
        return [seed["mean"] for seed in self.seeds if "mean" in seed]

    def to_arrow(self) -> pa.Table:
        """One row a seed, metric and language: recipe, task, seed, metric, language, score (percent)."""
        rows = []
        for seed in self.seeds:
            for metric, scores in seed.get("metrics", {}).items():
                for language, score in scores.items():
                    rows.append((self.job["recipe"], self.job["task"], seed["seed"], metric, language, score))
        columns = list(zip(*rows, strict=True)) or [()] * len(SCORES)
        arrays = [pa.array(values, field.type) for values, field in zip(columns, SCORES, strict=True)]
        return pa.Table.from_arrays(arrays, schema=SCORES)

    def to_pandas(self) -> pandas.DataFrame:
        """`to_arrow` as a pandas table."""
        return self.to_arrow().to_pandas()

    def predictions(self) -> pa.Table:
        """What each seed answered to each test row: seed, id, language, gold, answer, and the scores behind it."""
        tables = []
        for seed in self.seeds:
            path = self.folder / f"seed-{seed['seed']}" / PREDICTIONS
            with on_disk(path) as file:
                table = pa_parquet.read_table(file)
            tables.append(table.add_column(0, "seed", pa.array([seed["seed"]] * len(table), pa.int64())))
        return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})


def read_run(folder: Path) -> RunResults:
    """The finished seeds of a run as an object.

    Raises:
        UserError: the folder is no run.
    """
    return RunResults(folder, read_job(folder), read_results(folder))


def recorder(folder: Path) -> Tell:
    """Appends events, with the time, to the cell's events.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    log = Log(folder / EVENTS)
    return lambda event: log.append(json.dumps({"time": round(time.time(), 3), **event}).encode() + b"\n")

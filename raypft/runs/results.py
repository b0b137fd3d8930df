"""A run's folder as it is read: the job, its finished cells, the files of a cell. No torch here.

<cell>/events.jsonl, predictions.parquet, trained.safetensors, result.json;
       demos.parquet where the prompts show demonstrations;
       while unfinished state.pt and state.previous.pt, or where much trains the folder state (training/states.py);
       where much was trained trained-00001-of-00002.safetensors, …, trained.safetensors.index.json (shards.py)
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet

from raypft.errors import UserError, first_line
from raypft.schema import read_yaml
from raypft.storage import Log, on_disk

if TYPE_CHECKING:
    import pandas

TESTED, UNTESTED = "result.json", "searched.json"
"""The result of a cell, and what it is before the test, where that is withheld."""
TRAINED, PREDICTIONS, EVENTS = "trained.safetensors", "predictions.parquet", "events.jsonl"
STATE, PREVIOUS, PARTS = "state.pt", "state.previous.pt", "state"
"""Where a cell stands: the last file and the one before, or the folder of the parts of states."""
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


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is no file, or it is not whole (a full disk, a machine that died)."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _is_whole(path: Path) -> bool:
    """Whether a result was written to its end. It is indented: only its own last bracket begins a line, so that a
    campaign need not read the whole of its thousands."""
    try:
        with path.open("rb") as stream:
            stream.seek(-2, os.SEEK_END)
            return stream.read() == b"\n}" or read_json(path) is not None
    except (OSError, ValueError):  # no file, or an empty one
        return False


def is_finished(folder: Path, test: bool = True) -> bool:
    """Whether a cell's folder holds a whole result; one without a test is enough where none is asked for."""
    return _is_whole(folder / TESTED) or (not test and _is_whole(folder / UNTESTED))


def state_time(folder: Path) -> float:
    """When a cell's last state was kept, in seconds of the file's clock; 0 where there is none."""
    files = [folder / STATE, folder / PREVIOUS, *(folder / PARTS).glob("*.json")]
    return max((file.stat().st_mtime for file in files if file.is_file()), default=0.0)


def read_result(folder: Path) -> dict[str, Any]:
    """The result of a finished cell, without test numbers where the test was withheld.

    Raises:
        UserError: there is none that is whole.
    """
    result = read_json(folder / TESTED) or read_json(folder / UNTESTED)
    if result is None:
        raise UserError(f"run: {folder} holds no whole {TESTED}; run it again")
    return result


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The finished cells of a run, by seed; see `damaged` for those that are left out."""
    results = [read_json(path) or {} for path in folder.glob(f"seed-*/{TESTED}")]
    return sorted((result for result in results if "seed" in result), key=lambda result: result["seed"])


def damaged(folder: Path) -> str:
    """What to say of results of a run that are there but not whole; empty where all are."""
    names = sorted(path.parent.name for path in folder.glob(f"seed-*/{TESTED}") if not read_json(path))
    return f"; {TESTED} can't be read in {', '.join(names)}: run the job again" if names else ""


def read_job(folder: Path) -> dict[str, Any]:
    """The resolved job of a run.

    Raises:
        UserError: the folder is no run, or its job.yaml is not whole.
    """
    path = folder / "job.yaml"
    if not path.is_file():
        raise UserError(f"run: {folder} holds no job.yaml; give the folder of a run, e.g. runs/profit-xnli-…")
    return read_yaml(path, str(path))


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
            table = read_parquet(self.folder / f"seed-{seed['seed']}" / PREDICTIONS)
            tables.append(table.add_column(0, "seed", pa.array([seed["seed"]] * len(table), pa.int64())))
        return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})


def read_parquet(path: Path) -> pa.Table:
    """A Parquet file of a cell.

    Raises:
        UserError: it is not there, or not whole.
    """
    try:
        with on_disk(path) as file:
            return pa_parquet.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"run: {path} can't be read: {first_line(error)}; run the job again") from None


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

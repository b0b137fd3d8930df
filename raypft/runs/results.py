"""A run's folder as it is read: the job, its finished cells, the files of a cell. No torch here.

<cell>/events.jsonl, predictions.parquet, trained.safetensors, result.json, which knows the sha256 of these two;
       demos.parquet where the prompts show demonstrations;
       while unfinished state.pt and state.previous.pt, or where much trains the folder state (training/states.py);
       where much was trained trained-00001-of-00002.safetensors, …, trained.safetensors.index.json (shards.py)
"""

from __future__ import annotations

import json
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet

from raypft.errors import UserError, first_line
from raypft.records import (
    IN_JSON,
    SAMPLES,
    Damaged,
    Log,
    check_seal,
    hash_of,
    job_in,
    opened,
    read,
    read_or_none,
    set_aside,
)
from raypft.storage import is_remote, on_disk, sha256

if TYPE_CHECKING:
    import pandas

TESTED, UNTESTED = "result.json", "searched.json"
"""The result of a cell, and what it is before the test, where that is withheld."""
TRAINED, PREDICTIONS, EVENTS = "trained.safetensors", "predictions.parquet", "events.jsonl"
STATE, PREVIOUS, PARTS = "state.pt", "state.previous.pt", "state"
"""Where a cell stands: the last file and the one before, or the folder of the parts of states."""
LOG = "failure.log"
"""The traceback of a cell's last failure, until it is finished."""
DEMOS = "demos.parquet"
"""A seed's demonstrations, so that a run can be used where its data is not."""

JOB_FILE, PROVENANCE = "job.yaml", "provenance.json"
"""Of a run: the resolved job, and what results depend on beside it."""

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


NEEDED: dict[str, dict[str, Any]] = {
    UNTESTED: {"seed": int, "cell": str},
    TESTED: {
        **{"seed": int, "cell": str, "metric": str, "scores": dict, "metrics": dict, "sizes": dict, "rows": dict},
        **{"test_rows": str, "trainable": int, "mean": (int, float), "seconds": (int, float)},
    },
}
"""What a result must say to be one, and of which type."""
SMALL = 64 << 20
"""Bytes of a file that is read where a finished seed is reused, to see whether it is whole."""
HEAD = 300
"""Bytes of a result that hold its seed and key: they come first."""


def is_finished(folder: Path, key: str, test: bool = True) -> bool:
    """Whether a cell's folder holds the whole result of the cell with a key; one without a test is enough where none is
    asked for."""
    return _is_whole(folder / TESTED, key) or (not test and _is_whole(folder / UNTESTED, key))


def _is_whole(path: Path, key: str) -> bool:
    """Whether a result is the one that was written, of a cell; it is not parsed: a campaign has thousands."""
    try:
        text = path.read_bytes()
        if not check_seal(text, IN_JSON):
            opened(text, **NEEDED[path.name])
    except (OSError, ValueError):  # no file, or not what was written
        return False
    return key_in(text) == key


def key_in(text: bytes) -> str | None:
    """The cell key that a result begins with."""
    match = re.search(rb'"cell": "(\w+)"', text[:HEAD])
    return match[1].decode() if match else None


def key_of(path: Path) -> str | None:
    """The cell key of a result file, None where there is none."""
    try:
        with path.open("rb") as stream:
            return key_in(stream.read(HEAD))
    except OSError:
        return None


def states_kept(folder: Path) -> set[tuple[str, float]]:
    """The states of a cell that are there, each by its file's name and time: these tell one from another, not which
    came first, since clocks are set."""
    files = [folder / STATE, folder / PREVIOUS, *(folder / PARTS).glob("*.json")]
    return {(file.name, file.stat().st_mtime) for file in files if file.is_file()}


def result_in(path: Path) -> dict[str, Any] | None:
    """The result in a file of a cell's folder, None where there is none.

    Raises:
        Damaged: it is not what was written, or of another seed.
    """
    found = read(path, **NEEDED[path.name])
    if found is not None and path.parent.name != f"seed-{found['seed']}":
        raise Damaged(f"{path} is of another run (seed {found['seed']})")
    return found


def read_result(folder: Path) -> dict[str, Any]:
    """The result of a finished cell, without test numbers where the test was withheld.

    Raises:
        UserError: there is none that is whole.
    """
    result = result_in(folder / TESTED) or result_in(folder / UNTESTED)
    if result is None:
        raise UserError(f"run: {folder} holds no {TESTED}; run it again")
    return result


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The finished cells of a run, by seed; see `damaged` for those that are left out."""
    return sorted((result for result, _ in _results(folder) if result), key=lambda result: result["seed"])


def damaged(folder: Path) -> str:
    """What to say of results of a run that are there but not whole, or of another run; empty where all are its own."""
    lines = [line for _, line in _results(folder) if line]
    return f"; {'; '.join(lines)}: run the job again" if lines else ""


def _results(folder: Path) -> Iterator[tuple[dict[str, Any] | None, str]]:
    """Of each result of a run what it says, or why that does not count."""
    begun = read_or_none(folder / SAMPLES) or {}
    for path in sorted(folder.glob(f"seed-*/{TESTED}")):
        try:
            result = result_in(path)
        except Damaged as error:
            yield None, str(error)
            continue
        known = begun.get(path.parent.name.removeprefix("seed-"), {}).get("cell")
        if result and known not in (None, result["cell"]):
            yield None, f"{path} is of another run (cell {result['cell']}; expected {known})"
        else:
            yield result, ""


def set_aside_damaged(folder: Path) -> Iterator[str]:
    """Give results of a cell that are not whole another name, so that it counts as unfinished; a line about each, and
    about small files of this machine that are not what a whole result knows them to be."""
    for name in (TESTED, UNTESTED):
        try:
            result = result_in(folder / name)
        except Damaged as error:
            yield f"{error}; it is {set_aside(folder / name)} now, and the seed runs again"
            continue
        for path, digest in _written(folder, result):
            if not path.is_file():
                yield f"{path} is missing; the seed's scores stand, use --fresh to make it again"
            elif path.stat().st_size <= SMALL and sha256(path) != digest:
                yield f"{path} is damaged; the seed's scores stand, use --fresh to make it again"


def _written(folder: Path, result: dict[str, Any] | None) -> Iterator[tuple[Path, str]]:
    """The local files that a result knows, with their sha256."""
    for name, digest in (result or {}).get("files", {}).items():
        if name != DEMOS and not is_remote(folder):  # demonstrations are written again, see `run`
            yield folder / name, digest


def read_job(folder: Path) -> dict[str, Any]:
    """The resolved job of a run.

    Raises:
        UserError: the folder is no run, or its job.yaml is not whole.
    """
    path = folder / JOB_FILE
    if not path.is_file():
        raise UserError(f"run: {folder} holds no job.yaml; give the folder of a run, e.g. runs/profit-xnli-…")
    return job_in(path)


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
            table = read_parquet(self.folder / f"seed-{seed['seed']}" / PREDICTIONS, seed)
            tables.append(table.add_column(0, "seed", pa.array([seed["seed"]] * len(table), pa.int64())))
        return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})


def read_parquet(path: Path, result: Mapping[str, Any] | None = None) -> pa.Table:
    """A Parquet file of a cell; where its result knows the file's sha256, that is compared.

    Raises:
        UserError: it is not there, or not whole, or not of that result.
    """
    try:
        with on_disk(path) as file:
            digest = (result or {}).get("files", {}).get(path.name)
            if digest is not None and sha256(file) != digest:
                raise OSError("its sha256 is not the one that the result knows")
            return pa_parquet.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"run: {path} can't be read: {first_line(error)}; run the job again") from None


def rows_digest(table: pa.Table) -> str:
    """16 hex digits over the rows of a table."""
    return hash_of(json.dumps(table.to_pylist(), default=str).encode())


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

"""A run: a job's cells computed, one after the other, and its table.

runs/<name>/job.yaml            the resolved job
           provenance.json      git, versions, device, model and data revision
           samples.json         the sample manifest of every seed
           seed-<n>/            a cell, see results.py
           table.md             mean and std over seeds
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pa_parquet

from raypft.config.job import Resources
from raypft.errors import UserError
from raypft.runs.cell import Cell
from raypft.runs.executor import Executors
from raypft.runs.prepare import Prepared
from raypft.runs.provenance import provenance
from raypft.runs.results import DEMOS, Tell, read_json, read_results
from raypft.runs.table import run_table
from raypft.storage import locked, remove, written


def run(
    prepared: Sequence[Prepared], executor_of: Executors, tell: Tell = lambda event: None, fresh: bool = False
) -> list[list[dict[str, Any]]]:
    """Run the unfinished cells of jobs and return each job's results by seed; finished cells are reused.

    Args:
        executor_of: what runs cells; jobs with the same resources share one.
        fresh: start over where results or states exist.

    Raises:
        UserError: another process works on a run, or its data or model changed since it began.
    """
    check_distinct(prepared)
    with ExitStack() as stack:
        for ready in prepared:
            stack.enter_context(begun(ready, fresh))
        for resources, cells in _unfinished(prepared, tell).items():
            with closing(executor_of(resources)) as executor:
                executor.prepare(cells)
                for cell in cells:
                    executor.run(cell, tell)
        return [conclude(ready) for ready in prepared]


def _unfinished(prepared: Sequence[Prepared], tell: Tell) -> dict[Resources, list[Cell]]:
    """The cells to run, by what their jobs ask for."""
    cells: dict[Resources, list[Cell]] = {}
    for ready in prepared:
        for cell in ready.cells():
            if cell.finished:
                tell({"event": "reuse", "run": ready.folder.name, "seed": cell.seed})
            else:
                cells.setdefault(ready.job.resources, []).append(cell)
    return cells


@contextmanager
def begun(prepared: Prepared, fresh: bool, wait: float = 0) -> Iterator[None]:
    """The run's folder, locked (waiting so many seconds for another process) and with its inputs written."""
    with locked(prepared.folder, wait):
        if fresh:
            for cell in prepared.cells():
                remove(cell.folder)
        check_unchanged(prepared)
        _write_inputs(prepared)
        yield


def conclude(prepared: Prepared) -> list[dict[str, Any]]:
    """Write the run's table, where something of it is tested; its results by seed."""
    results = read_results(prepared.folder)
    if results:
        _write(prepared.folder / "table.md", run_table([prepared.folder]).markdown())
    return [result for result in results if result["seed"] in prepared.job.seeds]


def _write(path: Path, text: str) -> None:
    with written(path) as file:
        file.write_text(text, encoding="utf-8")


def check_distinct(prepared: Sequence[Prepared]) -> None:
    """Raise a UserError where two jobs have one folder: the second would wait for the first."""
    folders = [ready.folder for ready in prepared]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        raise UserError(f"run: {twice} was asked for twice; name each job once")


def check_unchanged(prepared: Prepared) -> None:
    """Raise a UserError where the run's folder holds seeds that were begun with other data, model or code."""
    path = prepared.folder / "samples.json"
    if not path.is_file():
        return
    before = read_json(path)
    for cell in prepared.cells():
        if not cell.folder.is_dir():
            continue
        if before is None:
            raise UserError(f"run: {path} can't be read; restore it, or use --fresh to start over")
        stored, key = before.get(str(cell.seed), {}), prepared.keys[cell.seed]
        if stored.get("cell") != key:
            raise UserError(
                f"run: {prepared.folder} seed {cell.seed} was begun with other data, model or method version "
                f"(cell {stored.get('cell')}, now {key}); use --fresh to start over, or another storage="
            )


def _write_inputs(prepared: Prepared) -> None:
    folder = prepared.folder
    _write(folder / "job.yaml", prepared.job.dump())
    _write(folder / "provenance.json", json.dumps(provenance(prepared), indent=1))
    path = folder / "samples.json"
    stored = read_json(path) or {}
    for seed, manifest in prepared.manifests.items():
        stored[str(seed)] = {"cell": prepared.keys[seed], **manifest}
    _write(path, json.dumps(stored, ensure_ascii=False))
    for cell in prepared.cells():  # after samples.json: a seed's folder says that it was begun
        if cell.sample is not None and cell.sample.demos is not None:
            cell.folder.mkdir(exist_ok=True)
            with written(cell.folder / DEMOS) as file:
                pa_parquet.write_table(cell.sample.demos, file)

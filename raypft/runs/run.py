"""A run: a job's cells computed, one after the other, and its table.

runs/<name>/job.yaml            the resolved job
           provenance.json      git, versions, device, model and data revision
           samples.json         the sample manifest of every seed
           seed-<n>/            a cell, see results.py
           table.md             mean and std over seeds
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pa_parquet

from raypft.config.job import Resources
from raypft.errors import UserError
from raypft.records import SAMPLES, hash_of, read, read_or_none, sealed, sealed_yaml
from raypft.runs.cell import Cell
from raypft.runs.executor import Executors
from raypft.runs.prepare import Prepared
from raypft.runs.provenance import provenance
from raypft.runs.results import (
    DEMOS,
    JOB_FILE,
    PROVENANCE,
    TESTED,
    UNTESTED,
    Tell,
    key_of,
    read_job,
    read_parquet,
    read_results,
    set_aside_damaged,
)
from raypft.runs.table import run_table
from raypft.runs.tracking import tracked
from raypft.storage import locked, one_line_of_disk, remove, tidy, write_text, written


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
    with one_line_of_disk(), ExitStack() as stack:
        for ready in prepared:
            stack.enter_context(begun(ready, fresh, tell=tell))
        tell = stack.enter_context(tracked(prepared, tell))
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
def begun(prepared: Prepared, fresh: bool, wait: float = 0, tell: Tell = lambda event: None) -> Iterator[None]:
    """The run's folder, locked (waiting so many seconds for another process) and with its inputs written.

    Args:
        tell: hears of files that are not whole, which get another name.
    """
    with locked(prepared.folder, wait):
        cells = prepared.cells()
        if fresh:
            for cell in cells:
                remove(cell.folder)
        check_unchanged(prepared)
        for cell in cells:
            for line in set_aside_damaged(cell.folder):
                tell({"event": "note", "run": prepared.folder.name, "seed": cell.seed, "text": line})
            tidy(cell.folder)
        tidy(prepared.folder)
        _write_inputs(prepared)
        yield


def conclude(prepared: Prepared) -> list[dict[str, Any]]:
    """Write the run's table, where something of it is tested; its results by seed."""
    results = read_results(prepared.folder)
    if results:
        write_text(prepared.folder / "table.md", run_table([prepared.folder]).markdown())
    return [result for result in results if result["seed"] in prepared.job.seeds]


def check_distinct(prepared: Sequence[Prepared]) -> None:
    """Raise a UserError where two jobs have one folder: the second would wait for the first."""
    folders = [ready.folder for ready in prepared]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        raise UserError(f"run: {twice} was asked for twice; name each job once")


def check_unchanged(prepared: Prepared) -> None:
    """Raise a UserError where the run's folder holds seeds that were begun with other data, model or code.

    Results know their cell themselves, and so do states, which are looked at when a seed goes on."""
    before = read_or_none(prepared.folder / SAMPLES) or {}
    for cell in prepared.cells():
        key = prepared.keys[cell.seed]
        known = [key_of(cell.folder / name) for name in (TESTED, UNTESTED)]
        known += [before.get(str(cell.seed), {}).get("cell")] if cell.folder.is_dir() else []
        other = next((one for one in known if one not in (None, key)), None)
        if other is not None:
            raise UserError(
                f"run: {prepared.folder} seed {cell.seed} was begun with other data, model or method version "
                f"(cell {other}, now {key}); use --fresh to start over, or another storage="
            )


def _write_inputs(prepared: Prepared) -> None:
    """Write what the unfinished cells start from; where all are finished nothing is written, but for what is lost."""
    folder, cells = prepared.folder, prepared.cells()
    paths = [folder / name for name in (JOB_FILE, PROVENANCE, SAMPLES)]
    if not all(cell.finished for cell in cells) or not all(map(_is_readable, paths)):
        job = sealed_yaml(prepared.job.dump())
        write_text(paths[0], job)
        write_text(paths[1], sealed(provenance(prepared), indent=1))
        stored = read_or_none(paths[2]) or {}
        for seed, manifest in prepared.manifests.items():
            stored[str(seed)] = {"cell": prepared.keys[seed], **manifest}
        write_text(paths[2], sealed({**stored, "job": hash_of(job.encode())}, ensure_ascii=False))
    for cell in cells:  # after samples.json: a seed's folder says that it was begun
        if cell.sample is not None and cell.sample.demos is not None and not _has_demos(cell):
            cell.folder.mkdir(exist_ok=True)
            with written(cell.folder / DEMOS) as file:
                pa_parquet.write_table(cell.sample.demos, file)


def _is_readable(path: Path) -> bool:
    """Whether an input of a run is there and what was written."""
    try:
        if path.name == JOB_FILE:
            return bool(read_job(path.parent))
        return read(path) is not None
    except UserError:
        return False


def _has_demos(cell: Cell) -> bool:
    """Whether a cell's demonstrations are in its folder."""
    assert cell.sample is not None
    try:
        return read_parquet(cell.folder / DEMOS).equals(cell.sample.demos)
    except UserError:
        return False

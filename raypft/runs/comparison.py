"""Runs side by side as the report reads them: what a campaign is to its cells."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raypft.config.job import provenance_keys
from raypft.errors import UserError
from raypft.report.groups import MAJORITY, text
from raypft.report.notes import label
from raypft.runs.results import damaged, read_job, read_results
from raypft.schema import flat

PROVENANCE = tuple(provenance_keys())
MOST = 3
"""Keys that tell runs of one recipe apart in a row's name, before the folder's name does."""


@dataclass(frozen=True)
class Comparison:
    """Runs as a table: a row a recipe, a column a language, or a task where there are several."""

    about: str
    rows: dict[str, Any]
    tasks: list[str]
    columns: str
    source: str = ""
    vary: dict[str, list[Any]] = field(default_factory=dict)
    scale: None = None
    search: None = None
    paper: None = None
    speedup_over: None = None


def compared(folders: Sequence[Path]) -> tuple[Comparison, list[dict[str, Any]]]:
    """A comparison of runs and its cells, see `raypft.report.groups.Cells`.

    Raises:
        UserError: a folder is no run, has no finished seed, or is named twice.
    """
    if twice := [str(folder) for folder, count in Counter(folders).items() if count > 1]:
        raise UserError(f"report: {twice[0]} is named twice; name each run once")
    jobs = {folder: read_job(folder) for folder in folders}
    names = _names(jobs)
    cells = []
    for folder, job in jobs.items():
        results = {result["seed"]: result for result in read_results(folder)}
        if not results:
            raise UserError(f"report: {folder} has no finished seed yet; run it first{damaged(folder)}")
        for seed in [*results, *(seed for seed in job["seeds"] if seed not in results)]:
            status = "finished" if seed in results else "missing"
            place = {"row": names[folder], "task": job["task"], "axes": {}, "seed": seed, "status": status}
            cells.append(place | {"reason": "", "result": results.get(seed), "folder": folder / f"seed-{seed}"})
    tasks = list(dict.fromkeys(job["task"] for job in jobs.values()))
    about = f"{', '.join(map(text, tasks))}: {len(folders)} run{'s' * (len(folders) > 1)}"
    columns = "language" if len(tasks) == 1 else "task"
    rows: dict[str, Any] = dict.fromkeys(names.values())
    if any(cell["result"] and cell["result"].get("majority") for cell in cells):
        rows["MAJ"] = MAJORITY
    return Comparison(about, rows, tasks, columns), cells


def _names(jobs: dict[Path, dict[str, Any]]) -> dict[Path, str]:
    """A row's name for each run: its recipe; where several of one task have it, with the keys in which they differ."""
    alike: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for folder, job in jobs.items():
        alike[label(job), job["task"]].append(folder)
    names = {}
    for (name, _), folders in alike.items():
        words = _words([jobs[folder] for folder in folders])
        for folder, told in zip(folders, words or [folder.name for folder in folders], strict=True):
            names[folder] = f"{name} ({told})" if len(folders) > 1 else name
    return {folder: names[folder] for folder in jobs}


def _words(jobs: Sequence[dict[str, Any]]) -> list[str]:
    """What tells jobs apart, the keys in which they differ; nothing where those are too many, or do not."""
    values = [flat(job) for job in jobs]
    keys = dict.fromkeys(itertools.chain.from_iterable(values))
    shown: list[str] = []
    for key in keys:
        if not key.startswith(PROVENANCE) and len({str(of_job.get(key)) for of_job in values}) > 1:
            shown.append(key)
    words = []
    for of_job in values:
        words.append(", ".join(f"{key}={text(of_job.get(key))}" for key in shown))
    return words if len(shown) <= MOST and len(set(words)) == len(words) else []

"""Tables of finished runs: methods by languages, mean and std over seeds, with what a reader must know in footnotes."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypft.errors import UserError
from raypft.records import read_or_none
from raypft.report.formats import metric_name
from raypft.report.groups import text
from raypft.report.mixing import Mixing, made, tested
from raypft.report.notes import label, selected
from raypft.report.table import WIDEST, Table, mean_std
from raypft.runs.results import EVENTS, PROVENANCE, damaged, read_job, read_results, states_kept
from raypft.tasks.metrics import mean_without, pivot_in

if TYPE_CHECKING:
    from raypft.runs.prepare import Prepared  # needs torch


def check_comparable(prepared: Sequence[Prepared]) -> None:
    """Raise a UserError where jobs of one command could not stand in one table, before anything of them runs."""

    def tested(ready: Prepared) -> Any:
        return ready.job.task, ready.resolved.task.metric, {one["test_hash"] for one in ready.manifests.values()}

    first = prepared[0]
    for ready in prepared[1:]:
        if tested(ready) == tested(first):
            continue
        rules = f"protocols {first.job.protocol} and {ready.job.protocol}; give both one, e.g. protocol=fixed"
        if ready.job.protocol == first.job.protocol:
            rules = f"tasks {first.job.task} and {ready.job.task}; run them apart"
        raise UserError(
            f"run: {first.job.recipe} and {ready.job.recipe} would be tested on other rows or in another order, and "
            f"make no table ({rules})"
        )


def run_table(folders: Sequence[Path], mixing: Mixing | None = None) -> Table:
    """The runs of one task side by side, the majority class below.

    Args:
        mixing: hears what else must be the same for all; None of a command that made the runs itself.

    Raises:
        UserError: a folder is no run, has no finished cell, or the runs differ in task, metric or test rows; what
            `mixing` refuses.
    """
    runs = [(folder, read_job(folder), read_results(folder)) for folder in folders]
    for folder, _, results in runs:
        if not results:
            raise UserError(f"report: {folder} has no finished seed yet; run it first{damaged(folder)}")
    first, first_job, first_results = runs[0]
    for folder, job, _ in runs[1:]:
        if job["task"] != first_job["task"]:
            raise UserError(
                f"report: {folder} is task {job['task']}, {first} is {first_job['task']}; report one task at a time"
            )
    task = text(first_job["task"])
    if mixing is not None:
        _compare(task, runs, mixing)
    every_result = itertools.chain.from_iterable(results for _, _, results in runs)
    if mixing is None and len({(result["metric"], result["test_rows"]) for result in every_result}) > 1:
        raise UserError(
            "report: these runs were tested on different rows or metrics; a table of them would mislead; "
            "report them apart"
        )
    tested_in: dict[str, None] = {}
    for result in itertools.chain.from_iterable(results for _, _, results in runs):
        tested_in |= dict.fromkeys(result["scores"])
    languages = list(tested_in)
    wide = len(languages) > 1
    pivot = pivot_in(first_results[0])
    means = ["mean", mean_without(pivot)] if wide and first_results[0]["mean_without_english"] else []
    every: dict[str, None] = {}
    for result in itertools.chain.from_iterable(results for _, _, results in runs):
        every |= dict.fromkeys(result["metrics"])
    others = [name for name in every if name != first_results[0]["metric"]]
    columns = ["run", "shots", "n", *languages, *means, *map(metric_name, others), "trainable", "seconds"]
    mixed = list(mixing.found) if mixing is not None else []
    title = f"{task}: {metric_name(first_results[0]['metric'])}{' (mixed: see below)' if mixed else ''}"
    table = Table(title, columns)
    for _, job, results in runs:
        table.rows.append(_row(job, results, languages, means, others))
    majority = first_results[0]["majority"]
    if majority:  # none where answers are texts
        cells = _majority(majority, languages, means, pivot)
        table.rows.append(cells + [""] * (len(columns) - len(cells)))
    table.notes = [f"mixed: {line}" for line in mixed] + _notes(runs, languages)
    if others:
        over = ", mean over languages" if wide else ""
        table.notes.append(
            f"{', '.join(map(metric_name, others))}: the same predictions by the papers' other metrics{over}"
        )
    return table.turned() if len(columns) > WIDEST else table


def _compare(task: str, runs: Sequence[tuple[Path, dict[str, Any], list[dict[str, Any]]]], mixing: Mixing) -> None:
    """Tell what the runs of a table were made with."""
    for folder, job, results in runs:
        origin = read_or_none(folder / PROVENANCE) or {}
        for result in results:
            mixing.add(folder.name, itertools.chain(tested(task, result), made(task, (), result, job, origin)))


def interrupted(prepared: Sequence[Prepared]) -> tuple[Table | None, str]:
    """What interrupted jobs of one command have finished as a table, None where that is nothing; and a line about it
    and the states that are kept."""
    cells = list(itertools.chain.from_iterable(ready.cells() for ready in prepared))
    done = [cell for cell in cells if cell.finished]
    folders = list(dict.fromkeys(cell.folder.parent for cell in done))
    table = None
    with suppress(UserError):  # of jobs that go into no one table each is shown by report
        table = run_table(folders) if folders else None
    if table is not None:
        table.title = f"partial, {len(done)} of {len(cells)} seeds: {table.title}"
    told = [f"{len(done)} of {len(cells)} seeds are finished"]
    for cell in cells:
        if not cell.finished and states_kept(cell.folder):
            told.append(f"the last state of seed {cell.seed} is kept")
        elif not cell.finished and (cell.folder / EVENTS).is_file():
            told.append(f"no state of seed {cell.seed} was kept yet (train.save_every), it begins anew")
    return table, "; ".join(told)


def _row(
    job: dict[str, Any], results: list[dict[str, Any]], languages: list[str], means: list[str], others: list[str]
) -> list[str]:
    cells = [label(job), "all" if job["shots"] is None else str(job["shots"]), str(len(results))]
    for language in languages:
        tested_here = [result["scores"][language] for result in results if language in result["scores"]]
        cells.append(mean_std(tested_here) if tested_here else "-")
    for _, key in zip(means, ("mean", "mean_without_english"), strict=False):
        averaged = [result[key] for result in results if result[key] is not None]
        cells.append(mean_std(averaged) if averaged else "-")
    for name in others:
        having = [statistics.mean(result["metrics"][name].values()) for result in results if name in result["metrics"]]
        cells.append(mean_std(having) if having else "")
    cells.append(f"{results[0]['trainable']:,}")
    cells.append(f"{statistics.mean(result['seconds'] for result in results):.0f}")
    return cells


def _majority(majority: dict[str, float], languages: list[str], means: list[str], pivot: str | None) -> list[str]:
    others = [value for language, value in majority.items() if language != pivot]
    cells = ["MAJ", "", ""] + [f"{majority[name]:.1f}" if name in majority else "-" for name in languages]
    for _, values in zip(means, (list(majority.values()), others), strict=False):
        cells.append(f"{statistics.mean(values):.1f}")
    return cells


def _notes(runs: Sequence[tuple[Path, dict[str, Any], list[dict[str, Any]]]], languages: list[str]) -> list[str]:
    notes = [
        "mean ± sample standard deviation over seeds; n = finished seeds; "
        "seconds = mean per seed, model loading excluded"
    ]
    for folder, job, results in runs:
        sizes = results[0]["sizes"]
        rows = results[0]["rows"]
        per_language = sorted(set(rows.values()))
        tested = f"{per_language[0]}" if len(per_language) == 1 else f"{per_language[0]} to {per_language[-1]}"
        seeds = [result["seed"] for result in results]
        missing = [seed for seed in job["seeds"] if seed not in seeds]
        select = selected(job, sizes["dev"], results[0]["metric"])
        notes.append(
            f"{label(job)}: {job['backbone']}, protocol {job['protocol']}, seeds {', '.join(map(str, seeds))}"
            + (f" (unfinished: {missing})" if missing else "")
            + f", {sizes['train']} train rows, {sizes['demos']} demonstrations, {select}"
            + f"; {tested} test rows a language; {folder.name}{damaged(folder)}"
        )
        told = f"{label(job)}, seed {seeds[0]}"
        notes += [f"{told}: {line}" for line in results[0].get("warnings", [])]
    if len(languages) > 1:
        trained = ", ".join(runs[0][1]["train"]["languages"])
        notes.append(f"trained on {trained}; MAJ = share of the largest class of the test rows")
    return notes

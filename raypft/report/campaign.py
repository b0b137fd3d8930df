"""The tables of a campaign: its rows by languages, tasks or an axis, the paper's numbers beside, what they cost.

<folder>/table.md     every table, with notes       table.csv   one line a number; the same bytes for the same results
         table.tex    the main tables, booktabs     costs.csv   parameters, seconds, memory
         plot-<axis>.png, .svg                      score against the values of an axis or of a searched key
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raypft.report.formats import csv_text, latex
from raypft.report.groups import MAJORITY, Cells, Group, Score, text
from raypft.report.layout import Section, sections
from raypft.report.mixing import Mixing
from raypft.report.notes import notes
from raypft.report.paper import Paper
from raypft.report.plots import write_plots
from raypft.report.table import Table, plain

COSTS = (
    "n",
    "trainable parameters",
    "training FLOPs",
    "training seconds",
    "all seconds",
    "CPU seconds",
    "peak memory MB",
    "peak GPU memory MB",
)
CSV = (
    "metric",
    "mean over",
    "task",
    "row",
    "column",
    "mean",
    "std",
    "n",
    "planned",
    "failed",
    "pruned",
    "paper",
    "verdict",
)


@dataclass(frozen=True)
class Line:
    """A row of a section at one point of the axes: a score, the paper's number and a verdict for each column."""

    row: str
    point: tuple[Any, ...]
    scores: list[Score]
    paper: list[float | None]
    verdicts: list[str]


def write_tables(campaign: Any, rows: Iterable[dict[str, Any]], folder: Path, mix: bool = False) -> Path:
    """Write the tables and plots of a campaign into `folder`; returns table.md.

    Args:
        campaign: a `raypft.campaigns.campaign.Campaign`.
        rows: one dict a cell, see `Cells`.
        mix: let numbers stand in one table that don't compare; its notes say so.

    Raises:
        UserError: what `Cells` refuses.
    """
    cells, paper = Cells(campaign, rows, Mixing(mix)), Paper(campaign)
    folder.mkdir(parents=True, exist_ok=True)
    tables, tex, records = [], [], []
    for section in sections(cells):
        lines = list(lines_of(section, cells, paper))
        tables.append(table_of(section, lines, cells))
        for line in lines:
            records += records_of(section, line, cells)
        if section.main:
            tex.append(latex(tables[-1], len(axes_of(cells)) + 1))
    costs = costs_of(cells)
    head = [*axes_of(cells), *CSV]
    (folder / "table.csv").write_text(csv_text([head, *records]), encoding="utf-8", newline="")
    (folder / "costs.csv").write_text(csv_text([costs.columns, *costs.rows]), encoding="utf-8", newline="")
    (folder / "table.tex").write_text(
        "\n".join([*tex, latex(costs, len(costs.columns) - len(COSTS))]), encoding="utf-8"
    )
    images = [f"![{path.stem}]({path.name})\n" for path in write_plots(cells, folder)]
    head_lines = [f"# {plain(campaign.about)}\n"] + [f"Source: {plain(campaign.source)}\n"] * bool(campaign.source)
    mixed = [f"mixed: {line}" for line in cells.mixing.found]
    parts = [*head_lines, *(table.markdown() for table in [*tables, costs]), *images]
    (folder / "table.md").write_text(
        "\n".join([*parts, *(f"- {plain(note)}" for note in [*mixed, *notes(cells, paper)])]) + "\n", encoding="utf-8"
    )
    return folder / "table.md"


def axes_of(cells: Cells) -> list[str]:
    """The axes that make lines, not columns."""
    return [key for key in cells.axes if key != cells.campaign.columns]


def labels_of(cells: Cells, row: str, point: tuple[Any, ...]) -> list[str]:
    """The values of the lines' axes; a majority class has none."""
    values = [value for key, value in zip(cells.axes, point, strict=True) if key != cells.campaign.columns]
    return ["" if cells.campaign.rows[row] == MAJORITY else text(value) for value in values]


def lines_of(section: Section, cells: Cells, paper: Paper) -> Iterator[Line]:
    """The lines of a table, point by point and row by row."""
    for number, point in enumerate(cells.points):
        for row, kind in cells.campaign.rows.items():
            if kind == MAJORITY and (number or section.over):
                continue  # it depends on the test rows alone
            scores = section.scores(cells, row, point)
            named = list(zip(section.names, scores, strict=True))
            values = [paper.value(row, point, name) if section.main else None for name, _ in named]
            verdicts = [paper.verdict(row, point, name, score) if section.main else "" for name, score in named]
            yield Line(row, point, scores, values, verdicts)


def table_of(
    section: Section, lines: list[Line], cells: Cells, written: Callable[[Line], list[str]] | None = None
) -> Table:
    """Our numbers, and below each line that has one the paper's with a verdict.

    Args:
        written: the cells of a line's scores, where they are to tell more than their text.
    """
    table = Table(section.title, [*axes_of(cells), "row", *section.names])
    for line in lines:
        labels = labels_of(cells, line.row, line.point)
        ours = written(line) if written else [score_text(score, cells.seeds) for score in line.scores]
        table.rows.append([*labels, line.row, *ours])
        if any(value is not None for value in line.paper):
            beside = [
                "" if value is None else f"{value:g} {verdict}".strip()
                for value, verdict in zip(line.paper, line.verdicts, strict=True)
            ]
            table.rows.append([*labels, f"{line.row} (paper)", *beside])
    return table


def score_text(score: Score, usual: int) -> str:
    """`81.2 ± 0.4`; in brackets another number of seeds than usual, failures, pruned seeds; `-` where nothing ran."""
    lost = [f"{count} {state}" for count, state in ((score.failed, "failed"), (score.pruned, "pruned")) if count]
    if not score.values:
        return ", ".join(lost) or "-"
    count = len(score.values)
    said = ([f"n={count}"] if not score.exact and (count != usual or count == 1) else []) + lost
    spread = f" ± {score.std:.1f}" if score.std is not None and not score.exact else ""
    return f"{score.mean:.1f}{spread}" + (f" ({', '.join(said)})" if said else "")


def records_of(section: Section, line: Line, cells: Cells) -> Iterator[list[str]]:
    tasks = [column.task for column in section.columns] + [""] * section.averaged
    for task, name, score, value, verdict in zip(
        tasks, section.names, line.scores, line.paper, line.verdicts, strict=True
    ):
        numbers = [f"{score.mean:.4f}", "" if score.std is None else f"{score.std:.4f}"] if score.values else ["", ""]
        counts = [str(count) for count in (len(score.values), score.planned, score.failed, score.pruned)]
        beside = ["" if value is None else f"{value:g}", verdict]
        yield [
            *labels_of(cells, line.row, line.point),
            section.metric,
            section.view,
            text(task),
            line.row,
            name,
            *numbers,
            *counts,
            *beside,
        ]


def costs_of(cells: Cells) -> Table:
    """What each configuration shown cost: means over seeds, of memory the most."""
    table = Table("cost", [*cells.axes, "task", "row", *COSTS])
    rows: list[str] = list(cells.campaign.rows)
    tasks: list[str] = list(cells.campaign.tasks)
    for point, task, row in itertools.product(cells.every_point, tasks, rows):
        chosen = cells.at(row, task, point)
        if chosen is not None and chosen.best.results:
            table.rows.append([*map(text, point), text(task), row, *_cost(chosen.best)])
    return table


def _cost(group: Group) -> list[str]:
    results = list(group.results.values())
    training = statistics.fmean(result.get("train_seconds") or 0.0 for result in results)
    whole = statistics.fmean(result.get("seconds") or 0.0 for result in results)
    memory = max(result.get("peak_memory_mb") or 0.0 for result in results)
    of_gpus = [result["peak_gpu_memory_mb"] for result in results if "peak_gpu_memory_mb" in result]
    of_cpus = [result["cpu_seconds"] for result in results if "cpu_seconds" in result]
    of_flops = [result["train_flops"] for result in results if result.get("train_flops") is not None]
    flops = f"{statistics.fmean(of_flops):.3g}" if of_flops else ""
    seconds = [f"{training:.1f}", f"{whole:.1f}", f"{statistics.fmean(of_cpus):.1f}" if of_cpus else ""]
    gpu = f"{max(of_gpus):.0f}" if of_gpus else ""
    return [str(len(results)), f"{results[0]['trainable']:,}", flops, *seconds, f"{memory:.0f}", gpu]

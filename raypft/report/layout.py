"""Which tables a campaign has and what stands in their columns: languages, tasks, or the values of an axis."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from raypft.report.formats import metric_name
from raypft.report.groups import Cells, Result, Score, average, text
from raypft.tasks.metrics import mean_without, pivot_in

MEAN = "mean"
Get = Callable[[Result], float | None]


@dataclass(frozen=True)
class Column:
    """A column: name, task of its numbers, how one is read out of a result; at: the axis value that it stands for.

    metric: whose number it is, empty where it is no metric's; language: the one it stands for, empty where it is a mean
    over languages; view: which mean.
    """

    name: str
    task: str
    get: Get
    at: Any = None
    metric: str = ""
    language: str = ""
    view: str = ""

    def languages(self, result: Result) -> list[str]:
        """The languages whose numbers it averages."""
        if self.language:
            return [self.language]
        pivot = pivot_in(result) if self.view else None
        return [language for language in scores_of(result, self.metric) if language != pivot]


@dataclass(frozen=True)
class Section:
    """A table to be.

    averaged: the mean of its columns follows them; main: it goes into the LaTeX file, with the paper's numbers; over:
    the row whose numbers are divided by each row's.
    """

    metric: str
    view: str
    columns: list[Column]
    averaged: bool = False
    main: bool = True
    over: str | None = None

    @property
    def names(self) -> list[str]:
        """The names of all its columns."""
        return [column.name for column in self.columns] + [MEAN] * self.averaged

    @property
    def parts(self) -> list[list[Column]]:
        """For each of its columns those whose numbers it averages."""
        return [[column] for column in self.columns] + [self.columns] * self.averaged

    @property
    def summaries(self) -> list[bool]:
        """For each of its columns whether it is a mean over others."""
        by_language = any(column.language for column in self.columns)
        return [by_language and not column.language for column in self.columns] + [True] * self.averaged

    @property
    def title(self) -> str:
        """Task, metric, and which mean."""
        tasks = {text(column.task) for column in self.columns}
        parts = [*tasks] if len(tasks) == 1 and self.columns[0].name not in tasks else []
        return ", ".join([*parts, metric_name(self.metric), *([self.view] if self.view else [])])

    def scores(self, cells: Cells, row: str, point: tuple[Any, ...]) -> list[Score]:
        """A row's score in every column, at a point of the axes."""
        scores = [cells.score(row, c.task, cells.complete(point, c.at), c.get, self.over) for c in self.columns]
        return scores + [average(scores)] * self.averaged


def sections(cells: Cells) -> Iterator[Section]:
    """The tables of a campaign: the task's own metric first, where it compares speeds those before."""
    campaign, tasks = cells.campaign, [task for task in cells.campaign.tasks if task in cells.first]
    over = campaign.speedup_over
    if over and tasks:
        columns = [Column(text(task), task, _seconds) for task in campaign.tasks]
        yield Section(
            f"training seconds an epoch of {over} / those of the row", "", columns, len(columns) > 1, over=over
        )
    if campaign.columns == "task":
        yield from _by_task(cells, tasks, not over)
        return
    for task in tasks:
        first = cells.first[task]
        for metric in dict.fromkeys([first["metric"], *cells.metrics[task]]):
            main = metric == first["metric"] and not over
            if campaign.columns == "language":
                languages = [_one_language(language, task, metric) for language in first["scores"]]
                means = [_mean(view or MEAN, task, metric, view) for view in _views(first)]
                yield Section(metric, "", languages + (means if len(languages) > 1 else []), main=main)
            else:
                for view in _views(first):
                    varied = campaign.vary[campaign.columns]
                    values = [_mean(text(value), task, metric, view, value) for value in varied]
                    yield Section(metric, view, values, main=main)


def _by_task(cells: Cells, tasks: list[str], main: bool) -> Iterator[Section]:
    first_metrics = {task: cells.first[task]["metric"] for task in tasks}
    title = " and ".join(dict.fromkeys(first_metrics.values())) or "score"
    everything = list(cells.campaign.tasks)
    views: dict[str, None] = {"": None}
    for task in tasks:
        views |= dict.fromkeys(_views(cells.first[task]))
    for view in views:
        # a task without a result has its column too: no mean is taken over fewer tasks than there are
        having = [task for task in tasks if view in _views(cells.first[task])] if view else everything
        columns = [_mean(text(task), task, first_metrics.get(task, ""), view) for task in having]
        if columns:
            yield Section(title, view, columns, len(columns) == len(everything) > 1, main)
    others: dict[str, None] = {}
    for task in tasks:
        others |= dict.fromkeys(name for name in cells.metrics[task] if name != first_metrics[task])
    for metric in others:
        having = [task for task in tasks if metric in cells.metrics[task]]
        columns = [_mean(text(task), task, metric, "") for task in having]
        yield Section(metric, "", columns, main=False)


def _views(result: Result) -> list[str]:
    """The means a result has: one without the pivot only where the pivot and another language were tested."""
    pivot = pivot_in(result)
    both = pivot in result["scores"] and len(result["scores"]) > 1
    return ["", mean_without(pivot)] if both else [""]


def _seconds(result: Result) -> float | None:
    """Training seconds an epoch, validation left out; None where nothing was trained."""
    epochs = len(result.get("history") or [])
    return result["train_seconds"] / epochs if epochs and result["train_seconds"] else None


def scores_of(result: Result, metric: str) -> dict[str, float]:
    """A metric's numbers by language, in percent; empty where the result has none."""
    return result.get("scores", {}) if metric == result.get("metric") else result.get("metrics", {}).get(metric, {})


def _one_language(language: str, task: str, metric: str) -> Column:
    return Column(language, task, _of_language(metric, language), metric=metric, language=language)


def _mean(name: str, task: str, metric: str, view: str, at: Any = None) -> Column:
    return Column(name, task, _of_mean(metric, view), at, metric, view=view)


def _of_language(metric: str, language: str) -> Get:
    return lambda result: scores_of(result, metric).get(language)


def _of_mean(metric: str, view: str) -> Get:
    def get(result: Result) -> float | None:
        pivot = pivot_in(result) if view else None
        values = [value for language, value in scores_of(result, metric).items() if language != pivot]
        return statistics.fmean(values) if values else None

    return get

"""The cells of a campaign by row, task and point of its axes; a searched row's best configuration, by dev alone."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from raypft.errors import UserError
from raypft.report.mixing import Mixing, tested
from raypft.tasks.metrics import pivot_in

MAJORITY = "majority"
Result = dict[str, Any]


@dataclass(frozen=True)
class Score:
    """A number a seed, and how many seeds gave none.

    values: in percent or a ratio, as the section says, in the order of `seeds`; planned, failed, pruned: counts of
    seeds; exact: no seed has a part in it (MAJ).
    """

    values: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    planned: int = 0
    failed: int = 0
    pruned: int = 0
    exact: bool = False

    @property
    def mean(self) -> float:
        """Mean over seeds; nan without any."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None below two; 0 of an exact number."""
        if self.exact:
            return 0.0
        if len(self.values) < 2:
            return None
        mean = self.mean
        return math.sqrt(math.fsum((value - mean) ** 2 for value in self.values) / (len(self.values) - 1))


def average(scores: Sequence[Score]) -> Score:
    """The mean of several scores, seed by seed; of the seeds that all of them have. Empty where one has no value."""
    if not scores or not all(score.values for score in scores):
        return Score()
    if all(score.exact for score in scores):
        return Score((statistics.fmean(score.values[0] for score in scores),), exact=True)
    by_seed = [dict(zip(score.seeds, score.values, strict=True)) for score in scores]
    shared = set(by_seed[0]).intersection(*by_seed)
    seeds = tuple(seed for seed in by_seed[0] if seed in shared)
    columns = [map(values.__getitem__, seeds) for values in by_seed]
    return Score(tuple(map(statistics.fmean, zip(*columns, strict=True))), seeds, max(s.planned for s in scores))


def ratio(above: Score, below: Score) -> Score:
    """One score divided by another, seed by seed, of the seeds that both have; the counts are those below."""
    tops = dict(zip(above.seeds, above.values, strict=True))
    ratios = {seed: tops[seed] / value for seed, value in zip(below.seeds, below.values, strict=True) if seed in tops}
    return replace(below, values=tuple(ratios.values()), seeds=tuple(ratios))


@dataclass
class Group:
    """The cells of one configuration, by seed: results of the finished and their folders where those are known, status
    and reason of the others.

    point: its values on the axes; choice: searched key to value, of the keys that its row's search has.
    """

    row: str
    task: str
    point: tuple[Any, ...]
    choice: dict[str, Any] = field(default_factory=dict)
    results: dict[int, Result] = field(default_factory=dict)
    unfinished: dict[int, tuple[str, str]] = field(default_factory=dict)
    folders: dict[int, Path] = field(default_factory=dict)

    @property
    def planned(self) -> int:
        """Seeds that were to run."""
        return len(self.results) + len(self.unfinished)

    def score(self, of: Callable[[Result], float | None]) -> Score:
        """What `of` gives for each finished seed, in the order of seeds; None is left out."""
        by_seed = {seed: value for seed in sorted(self.results) if (value := of(self.results[seed])) is not None}
        values, seeds = tuple(by_seed.values()), tuple(by_seed)
        states = [status for status, _ in self.unfinished.values()]
        return Score(values, seeds, self.planned, states.count("failed"), states.count("pruned"))

    @property
    def dev(self) -> Score:
        """The dev score a seed."""
        return self.score(lambda result: result.get("dev"))


@dataclass(frozen=True)
class Chosen:
    """A searched row at one task and point: all its configurations and the one that dev prefers."""

    best: Group
    tried: list[Group]


def frozen(value: Any) -> Hashable:
    """A value of an axis as a key: lists and mappings by their JSON."""
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value


def text(value: Any) -> str:
    """A value of an axis, or a task, as tables print it: lists with commas, of a path its last part."""
    if isinstance(value, list):
        return ",".join(map(text, value))
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    return shown.rstrip("/").rpartition("/")[2].removesuffix(".yaml")


def told(keys: Sequence[str], choice: Mapping[str, Any]) -> list[str]:
    """What a configuration chose of each key, as tables print it; empty where its row's search lacks the key."""
    return [text(choice[key]) if key in choice else "" for key in keys]


class Cells:
    """A campaign's cells.

    Args:
        campaign: a `raypft.campaigns.campaign.Campaign`.
        rows: one dict a cell: row, task, axes {dotted key: value}, seed, status (finished, failed, pruned, missing),
            reason, result (a result.json, or None), folder (the cell's Path; may be left out).
        mixing: hears what must be the same for all numbers; the strict one by default.

    Raises:
        UserError: cells of one column were tested on different rows, or with different metric versions or protocols; a
            cell of a row that the campaign does not have; a search without dev scores.
    """

    def __init__(self, campaign: Any, rows: Iterable[dict[str, Any]], mixing: Mixing | None = None) -> None:
        self.campaign, self.mixing = campaign, mixing or Mixing()
        self.axes = list(campaign.vary or {})
        spaces = [campaign.search.of(row).space for row in campaign.rows] if campaign.search else []
        self.searched = list(dict.fromkeys(itertools.chain.from_iterable(spaces)))
        self.groups: dict[Hashable, dict[Hashable, Group]] = defaultdict(dict)
        self.first: dict[str, Result] = {}
        self.metrics: dict[str, dict[str, None]] = defaultdict(dict)
        """Task to the metrics that any of its results has: a readout may have one that another lacks."""
        for row in rows:
            self._add(row)
        self.chosen = {place: self._choose(list(groups.values())) for place, groups in self.groups.items()}

    def _add(self, cell: dict[str, Any]) -> None:
        row, task, axes = cell["row"], cell["task"], cell.get("axes") or {}
        if row not in self.campaign.rows or task not in list(self.campaign.tasks):
            raise UserError(
                f'report: a cell is of row "{row}", task {task}, which the campaign does not have; '
                "report with the file that ran it"
            )
        if self.campaign.rows[row] == MAJORITY:
            return
        point = tuple(axes.get(key) for key in self.axes)
        choice = {key: axes[key] for key in self.searched if key in axes}
        groups = self.groups[self._place(row, task, point)]
        group = groups.setdefault(frozen(choice), Group(row, task, point, choice))
        if cell["status"] == "finished" and cell.get("result"):
            group.results[cell["seed"]] = cell["result"]
            if cell.get("folder") is not None:
                group.folders[cell["seed"]] = cell["folder"]
            self._check(group, cell["result"])
        else:
            group.unfinished[cell["seed"]] = (cell["status"], cell.get("reason") or "")

    @staticmethod
    def _place(row: str, task: str, point: Sequence[Any]) -> Hashable:
        return (row, task, tuple(map(frozen, point)))

    def _check(self, group: Group, result: Result) -> None:
        if "scores" not in result:
            return
        self.mixing.add(group.row, tested(text(group.task), result))
        self.first.setdefault(group.task, result)
        self.metrics[group.task] |= dict.fromkeys(result["metrics"])

    def _choose(self, tried: list[Group]) -> Chosen:
        tried.sort(key=lambda group: [self._rank(group.row, *chosen) for chosen in group.choice.items()])
        if len(tried) == 1:
            return Chosen(tried[0], tried)
        scored = [(len(group.dev.values), group.dev.mean, group) for group in tried if group.dev.values]
        if not scored and any(group.results for group in tried):
            raise UserError(
                f'report: row "{tried[0].row}" was searched on {tried[0].task} without dev scores; '
                "a search needs dev rows to choose by"
            )
        if not scored:
            return Chosen(tried[0], tried)
        most = max(seeds for seeds, _, _ in scored)
        _, _, best = max((item for item in scored if item[0] == most), key=lambda item: item[1])
        return Chosen(best, tried)

    def _rank(self, row: str, key: str, value: Any) -> tuple[float, str]:
        """Sorts the values of a searched key as the file lists them, drawn ones by size."""
        listed = self.campaign.search.of(row).space[key].listed or []
        return (listed.index(value) if value in listed else value if isinstance(value, int | float) else -1, str(value))

    @cached_property
    def points(self) -> list[tuple[Any, ...]]:
        """Every point of the axes, the first axis outermost; None stands for the axis that makes the columns."""
        values = [[None] if key == self.campaign.columns else self.campaign.vary[key] for key in self.axes]
        return list(itertools.product(*values))

    @cached_property
    def every_point(self) -> list[tuple[Any, ...]]:
        """Every point of the axes, that of the columns too."""
        return list(itertools.product(*(self.campaign.vary[key] for key in self.axes)))

    def at(self, row: str, task: str, point: Sequence[Any]) -> Chosen | None:
        """The configuration shown at a place of the table, None where no cell is."""
        return self.chosen.get(self._place(row, task, point))

    def complete(self, point: Sequence[Any], at: Any) -> tuple[Any, ...]:
        """A point with the value of the axis that makes the columns."""
        return tuple(at if key == self.campaign.columns else value for key, value in zip(self.axes, point, strict=True))

    def score(
        self, row: str, task: str, point: Sequence[Any], of: Callable[[Result], float | None], over: str | None = None
    ) -> Score:
        """A row's score at a place, of the majority class where the row is that.

        Args:
            of: a number out of a result, None where it has none.
            over: a row whose score is divided by this one's, seed by seed.
        """
        if self.campaign.rows[row] == MAJORITY:
            first = self.first.get(task)
            value = of(majority(first)) if first else None
            return Score(() if value is None else (value,), exact=True)
        chosen = self.at(row, task, point)
        score = chosen.best.score(of) if chosen else Score()
        return ratio(self.score(over, task, point, of), score) if over else score

    @cached_property
    def seeds(self) -> int:
        """Seeds a configuration was to run, as most were."""
        counts: Counter[int] = Counter()
        for groups in self.groups.values():
            counts.update(group.planned for group in groups.values())
        return max(counts, key=lambda planned: (counts[planned], planned), default=0)


def majority(result: Result) -> Result:
    """A result's majority class in the form of a result; of other metrics it is not known."""
    scores = result.get("majority") or {}
    pivot = pivot_in(result)
    others = [value for language, value in scores.items() if language != pivot]
    mean = statistics.fmean(scores.values()) if scores else None
    return {
        "scores": scores,
        "metric": result["metric"],
        "metrics": {},
        "mean": mean,
        "mean_without_english": statistics.fmean(others) if others else None,
        "pivot": pivot,
    }

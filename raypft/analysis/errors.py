"""The same rows answered by two methods: per language and label who is right where, and the rows on which they part.

Counted from the predictions of the seeds that both runs have; of tasks that tag words, words are counted.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from raypft.analysis import base
from raypft.analysis._plots import heat_map
from raypft.analysis._runs import Run
from raypft.errors import UserError
from raypft.runs.predict import started_from
from raypft.runs.results import PREDICTIONS, read_parquet
from raypft.tasks.load import load_task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OUTCOMES = ("both right", "only first right", "only second right", "both wrong")


@dataclass(frozen=True)
class Unit:
    """A row, or a word of it at a place from 0, with what was right and what each run said."""

    seed: int
    language: str
    id: str
    place: int
    gold: str
    first: str
    second: str

    @property
    def outcome(self) -> str:
        """Which of `OUTCOMES` it is."""
        return OUTCOMES[2 * (self.first != self.gold) + (self.second != self.gold)]


class Errors(base.Kind):
    """Two runs' answers to the same test rows."""

    fewest: ClassVar[int] = 2
    most: ClassVar[int | None] = 2

    def compute(self, runs: Sequence[Run], options: Any) -> base.Analysis:
        first, second = runs
        labels = _labels(first)
        if labels != _labels(second):
            raise second.refused("errors", "has other labels", f"those of {first.folder}: {', '.join(labels)}")
        units = list(_units(first, second))
        counts = _counts(units, labels)
        return base.Analysis(
            name="errors",
            title=f"Errors of {first.name} and {second.name}",
            how=f"The same test rows answered by {first.name} (first) and {second.name} (second), counted by language "
            "and right label over the seeds that both have; difference: percentage points that the second is right "
            "more often; from the runs' predictions.",
            tables={"errors": counts, "answers": _answers(units), "rows": _parted(units)},
            figures={"errors": lambda figure: _draw(figure, counts, labels, f"{second.name} − {first.name}")},
        )


def _labels(run: Run) -> list[str]:
    """The labels of a run's task."""
    with started_from(run.folder):
        task = load_task(run.moved.get("task", run.job["task"]))
    if not task.label.names:
        raise run.refused("errors", f"is of task {task.name}, whose answers are no labels", "a task of choice or tags")
    return task.label.names


def _units(first: Run, second: Run) -> Iterator[Unit]:
    """The rows, or words, of the seeds that both runs have."""
    others = {result["seed"]: result for result in second.results}
    shared = [result for result in first.results if result["seed"] in others]
    if not shared:
        seeds = f"{_seeds(first)} and {_seeds(second)}"
        raise UserError(f"analyse errors: the runs have no seed in common ({seeds}); run one of them with the other's")
    for result in shared:
        seed = result["seed"]
        if result["test_rows"] != others[seed]["test_rows"]:
            raise UserError(
                f"analyse errors: {first.folder} and {second.folder} were tested on other rows in seed {seed}; give "
                "both one protocol, test.limit and test.languages"
            )
        pairs = ((first, result), (second, others[seed]))
        tables = [read_parquet(run.folder / f"seed-{seed}" / PREDICTIONS, of).to_pylist() for run, of in pairs]
        for one, other in zip(*tables, strict=True):
            said = map(_listed, (one["gold"], one["answer"], other["answer"]))
            for place, (gold, a, b) in enumerate(zip(*said, strict=True)):
                yield Unit(seed, one["language"], one["id"], place, str(gold), str(a), str(b))


def _seeds(run: Run) -> str:
    return ", ".join(str(result["seed"]) for result in run.results)


def _listed(value: Any) -> list[Any]:
    """The labels of a row's words; of a row its own."""
    return value if isinstance(value, list) else [value]


def _counts(units: Sequence[Unit], labels: Sequence[str]) -> list[base.Row]:
    """A row a language and label: who was right how often."""
    found = Counter((unit.language, unit.gold, unit.outcome) for unit in units)
    rows: list[base.Row] = []
    for language, label in itertools.product(dict.fromkeys(unit.language for unit in units), labels):
        each = {outcome: found[language, label, outcome] for outcome in OUTCOMES}
        total = sum(each.values())
        if total:
            right = [each["both right"] + each[f"only {which} right"] for which in ("first", "second")]
            shares = {"first %": 100 * right[0] / total, "second %": 100 * right[1] / total}
            difference = {"difference": 100 * (right[1] - right[0]) / total}
            rows.append({"language": language, "label": label, "n": total, **each, **shares, **difference})
    return rows


def _answers(units: Sequence[Unit]) -> list[base.Row]:
    """How often what was right, what the first and what the second said met, by language."""
    found = Counter((unit.language, unit.gold, unit.first, unit.second) for unit in units)
    columns = ("language", "label", "first", "second")
    return [{**dict(zip(columns, key, strict=True)), "n": count} for key, count in sorted(found.items())]


def _parted(units: Sequence[Unit]) -> list[base.Row]:
    """The rows that only one of the two got right."""
    return [
        {**vars(unit), "right": "first" if unit.first == unit.gold else "second"}
        for unit in units
        if unit.outcome in OUTCOMES[1:3]
    ]


def _draw(figure: Figure, rows: Sequence[base.Row], labels: Sequence[str], title: str) -> None:
    languages = list(dict.fromkeys(row["language"] for row in rows))
    cells = {(row["language"], row["label"]): row["difference"] for row in rows}
    heat_map(figure, languages, labels, cells, title=f"percentage points right, {title}")


Kind = Errors

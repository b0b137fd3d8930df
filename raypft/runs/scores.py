"""From answers to prompts to answers to rows, and to the task's metrics per language. No torch here."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pa_compute

from raypft.catalogue import is_own
from raypft.encoded import Encoded
from raypft.tasks.metrics import OF_WRITTEN, metric
from raypft.tasks.task import Task
from raypft.training.rows import packed

MAJORITY = "majority"
"""What stands beside metrics: the first one's score of the majority class."""
READ = {MAJORITY: ("gold", MAJORITY), **dict.fromkeys(OF_WRITTEN, ("right", "written"))}
"""The columns of `Pairs` that are compared by what does not read gold and answer."""


@dataclass(frozen=True, slots=True)
class RowAnswer:
    """The answer to a row beside what was right: a label name, a tag a word, or a text (gold is then a list of
    texts); written: the same two as whole texts, where sentences are written with their tags."""

    key: str
    language: str
    gold: Any
    answer: Any
    scores: list[float]
    written: tuple[str, str] | None = None


def by_row(readout: Any, prompts: Sequence[Encoded], answers: Sequence[Any]) -> list[RowAnswer]:
    """The answers to rows out of the answers to their prompts, which stand next to each other.

    Args:
        readout: a `raypft.readouts.base.Readout`; answers: its, one a prompt.
    """
    begins = [i for i, prompt in enumerate(prompts) if prompt.part == 0]  # not by key: a row may stand there twice
    rows = []
    for begin, end in itertools.pairwise([*begins, len(prompts)]):
        parts = prompts[begin:end]
        said = answers[begin:end]
        answer, scores = readout.gather(parts, said)
        written = readout.written(parts, said)
        rows.append(RowAnswer(parts[0].key, parts[0].language, readout.gold(parts), answer, scores, written))
    return rows


class Pairs:
    """Gold beside answers as metrics read them, by language, packed: a name that repeats stands there once."""

    def __init__(self, rows: Iterable[RowAnswer] = ()) -> None:
        self._parts: dict[str, list[pa.RecordBatch]] = {}
        self.add(rows)

    def add(self, rows: Iterable[RowAnswer]) -> None:
        """Take in more rows."""
        by_language: dict[str, list[RowAnswer]] = defaultdict(list)
        for row in rows:
            by_language[row.language].append(row)
        for language, some in by_language.items():
            columns = {"gold": [row.gold for row in some], "answer": [row.answer for row in some]}
            texts = [row.written for row in some if row.written is not None]
            if texts:
                columns["right"], columns["written"] = map(list, zip(*texts, strict=True))
            self._parts.setdefault(language, []).append(packed(pa.RecordBatch.from_pydict(columns)))

    @property
    def rows(self) -> dict[str, int]:
        """Language to rows."""
        return {language: sum(map(len, parts)) for language, parts in self._parts.items()}

    def of(self, language: str) -> dict[str, list[Any]]:
        """Columns of a language's rows: gold and answer; right and written where sentences are written with tags."""
        columns: dict[str, list[Any]] = defaultdict(list)
        for part in self._parts.get(language, []):
            for name, column in zip(part.schema.names, part.columns, strict=True):
                columns[name] += _values(column)
        return columns


def _values(column: Any) -> list[Any]:
    """What `packed` was given; names that repeat are one object."""
    if pa.types.is_list(column.type):
        values = _values(column.values)
        return [values[begin:end] for begin, end in itertools.pairwise(column.offsets.to_pylist())]
    if pa.types.is_dictionary(column.type):
        names = column.dictionary.to_pylist()
        return [None if code is None else names[code] for code in column.indices.to_pylist()]
    return column.to_pylist()


def mean_score(task: Task, pairs: Pairs, name: str | None = None) -> float:
    """The mean of a metric over languages, of the task's first where none is named."""
    name = name or task.metric
    return _mean(_scores(task, [name], pairs)[name])


def measured(task: Task, pairs: Pairs) -> dict[str, Any]:
    """The task's metrics per language, the means of the first one with and without the pivot language, and the
    majority class."""
    every = _scores(task, [task.metric, *task.metrics, MAJORITY], pairs)
    scores, majority = every[task.metric], every.pop(MAJORITY)
    others = [value for language, value in scores.items() if language != task.pivot_language]
    return {
        "metric": metric(task.metric)[0],
        "scores": scores,
        "metrics": {metric(name)[0]: every[name] for name in task.metrics if every[name]},
        "majority": majority,
        "rows": pairs.rows,
        "mean": _mean(scores),
        "mean_without_english": sum(others) / len(others) if others else None,
        "pivot": task.pivot_language,
    }


def _scores(task: Task, names: Iterable[str], pairs: Pairs) -> dict[str, dict[str, float]]:
    """Metric to its score per language, in the task's order; none of a metric of written texts where there are none.

    The rows of one language at a time are Python's.
    """
    scores: dict[str, dict[str, float]] = {name: {} for name in names}
    for language in task.languages:
        columns = pairs.of(language)
        if MAJORITY in scores and task.metric not in OF_WRITTEN:
            columns[MAJORITY] = majority(task, columns["gold"])
        for name, of_language in scores.items():
            gold, answers = READ.get(name, ("gold", "answer"))
            if columns[answers]:
                function = metric(task.metric if name == MAJORITY else name)[1]
                of_language[language] = function(columns[gold], columns[answers], language=language)
    return scores


def try_metrics(task: Task, names: Iterable[str], table: pa.Table) -> None:
    """Score what is right against itself, so that what a metric can't read is told before anything is trained.

    Args:
        names: of metrics; one of a user's own is given all rows of a language, as it is in the end, others one; table:
        rows in the task's columns.

    Raises:
        UserError: what a metric says.
    """
    if not task.kind.reads_labels:
        return
    for name in dict.fromkeys(name for name in names if name not in OF_WRITTEN):
        for language in table["language"].unique().to_pylist():
            rows = table.filter(pa_compute.field("language") == language)
            gold = (rows if is_own(name) else rows.slice(0, 1))["label"].to_pylist()
            metric(name)[1](gold, [of_row[0] for of_row in gold] if task.kind.passage else gold, language=language)


def majority(task: Task, gold: Sequence[Any]) -> list[Any]:
    """Rows answered with their most frequent label or tag; none where answers are texts."""
    if not task.label.names or not gold:
        return []
    counts = Counter[Any]()
    for label in gold:
        counts.update(label if isinstance(label, list) else [label])
    common = counts.most_common(1)[0][0]
    return [[common] * len(label) if isinstance(label, list) else common for label in gold]


def answer_table(task: Task, rows: Sequence[RowAnswer]) -> pa.Table:
    """Rows as predictions.parquet holds them: id, language, gold, answer, and p(label) where a row has one each,
    scores elsewhere."""
    columns: dict[str, Any] = {
        "id": [row.key.split("/", 1)[1] for row in rows],
        "language": [row.language for row in rows],
        "gold": [row.gold for row in rows],
        "answer": [row.answer for row in rows],
    }
    if task.kind.passage:
        columns["gold"] = pa.array(columns["gold"], pa.list_(pa.string()))  # there may be no answer in all rows
    names = task.label.names
    if task.kind.one_label and all(len(row.scores) == len(names) for row in rows):
        for i, name in enumerate(names):
            columns[f"p({name})"] = [row.scores[i] for row in rows]
    else:
        columns["scores"] = [row.scores for row in rows]
    return pa.table(columns)


def _mean(scores: Mapping[str, float]) -> float:
    return sum(scores.values()) / len(scores)

"""From answers to prompts to answers to rows, and to the task's metrics per language. No torch here."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pa_compute

from raypft.catalogue import is_own
from raypft.encoded import Encoded
from raypft.tasks.metrics import OF_WRITTEN, metric
from raypft.tasks.task import Task


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


def scores_by_language(task: Task, name: str, rows: Sequence[RowAnswer]) -> dict[str, float]:
    """A metric per language, in the task's order; none of a metric of written texts where there are none."""
    by_language: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
    for row in rows:
        pair = row.written if name in OF_WRITTEN else (row.gold, row.answer)
        if pair is not None:
            by_language[row.language].append(pair)
    function = metric(name)[1]
    scores = {}
    for language in task.languages:
        if language in by_language:
            gold, answers = map(list, zip(*by_language[language], strict=True))
            scores[language] = function(gold, answers, language=language)
    return scores


def mean_score(task: Task, rows: Sequence[RowAnswer], name: str | None = None) -> float:
    """The mean of a metric over languages, of the task's first where none is named."""
    return _mean(scores_by_language(task, name or task.metric, rows))


def measured(task: Task, rows: Sequence[RowAnswer]) -> dict[str, Any]:
    """The task's metrics per language, the means of the first one with and without the pivot language, and the
    majority class."""
    scores = scores_by_language(task, task.metric, rows)
    every = {metric(name)[0]: scores_by_language(task, name, rows) for name in task.metrics}
    others = [value for language, value in scores.items() if language != task.pivot_language]
    return {
        "metric": metric(task.metric)[0],
        "scores": scores,
        "metrics": {name: of_metric for name, of_metric in every.items() if of_metric},
        "majority": scores_by_language(task, task.metric, majority(task, rows)),
        "rows": dict(Counter(row.language for row in rows)),
        "mean": _mean(scores),
        "mean_without_english": sum(others) / len(others) if others else None,
        "pivot": task.pivot_language,
    }


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


def majority(task: Task, rows: Sequence[RowAnswer]) -> list[RowAnswer]:
    """The rows answered with each language's most frequent label or tag; none where answers are texts."""
    if not task.label.names:
        return []
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        counts[row.language].update(row.gold if isinstance(row.gold, list) else [row.gold])
    common = {language: of_language.most_common(1)[0][0] for language, of_language in counts.items()}

    def answered(row: RowAnswer) -> RowAnswer:
        label = common[row.language]
        return replace(row, answer=[label] * len(row.gold) if isinstance(row.gold, list) else label)

    return [answered(row) for row in rows]


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

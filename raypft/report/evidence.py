"""The test rows behind a score: what each configuration answered, as percent a row."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet

from raypft.errors import UserError, first_line
from raypft.report.groups import MAJORITY, Cells, Group, text
from raypft.report.layout import Column, scores_of
from raypft.report.significance import Floats, Rows
from raypft.storage import on_disk, sha256
from raypft.tasks.metrics import OF_WRITTEN, metric

PREDICTIONS = "predictions.parquet"
COLUMNS = ["id", "language", "gold", "answer"]
Parts = dict[Hashable, tuple[float, Rows]]
ByLanguage = dict[str, Rows]


class Evidence:
    """The rows of the configurations that a report shows, each file read once.

    lost: a line for each file that can't be read; nonadditive: metrics that are no mean over rows, such as F1.
    """

    def __init__(self, cells: Cells) -> None:
        self.cells = cells
        self.lost: dict[str, None] = {}
        self.nonadditive: dict[str, None] = {}
        self._rows: dict[tuple[int, str], ByLanguage | None] = {}

    def parts(self, row: str, point: tuple[Any, ...], columns: Sequence[Column]) -> Parts | None:
        """The rows behind the mean of some columns; None where the metric of one is no mean over rows, or the answers
        are not there."""
        if self.cells.campaign.rows[row] == MAJORITY:
            return None
        found: Parts = {}
        for column in columns:
            chosen = self.cells.at(row, column.task, self.cells.complete(point, column.at))
            by_language = self._of(chosen.best, column.metric) if chosen and column.metric else None
            languages = column.languages(self.cells.first[column.task]) if by_language else []
            if not by_language or not languages or not set(languages) <= set(by_language):
                return None
            for language in languages:
                weight = 1 / len(columns) / len(languages)
                found[column.task, column.name, language] = (weight, by_language[language])
        return found

    def differences(self, first: Parts | None, second: Parts | None) -> Parts | None:
        """The differences of two methods, row by row; None where they were not tested on the same rows."""
        if first is None or second is None or set(first) != set(second):
            return None
        found: Parts = {}
        for key, (weight, rows) in first.items():
            other = second[key][1]
            if not np.array_equal(rows.ids, other.ids):
                return None
            found[key] = (weight, Rows(rows.ids, rows.values - other.values))
        return found

    def _of(self, group: Group, name: str) -> ByLanguage | None:
        key = (id(group), name)
        if key not in self._rows:
            self._rows[key] = self._mean_over_seeds(group, name)
        return self._rows[key]

    def _mean_over_seeds(self, group: Group, name: str) -> ByLanguage | None:
        seeds = [seed for seed in group.results if scores_of(group.results[seed], name)]
        if not seeds or not set(seeds) <= set(group.folders):
            return None
        each = [self._of_seed(group, seed, name) for seed in seeds]
        whole = [by_language for by_language in each if by_language is not None]
        if len(whole) < len(each):
            return None
        found: ByLanguage = {}
        for language, rows in whole[0].items():
            if not all(np.array_equal(rows.ids, other[language].ids) for other in whole if language in other):
                return None
            found[language] = Rows(rows.ids, np.mean([other[language].values for other in whole], axis=0))
        return found

    def _of_seed(self, group: Group, seed: int, name: str) -> ByLanguage | None:
        table = self.answers(group, seed)
        if table is None:
            return None
        scores = scores_of(group.results[seed], name)
        found: ByLanguage = {}
        for language, rows in _credits(table, name, text(group.task)).items():
            if abs(rows.values.mean() - scores.get(language, np.nan)) > 1e-6:
                self.nonadditive[name] = None
                return None
            found[language] = rows
        if not found:
            self.nonadditive[name] = None
        return found or None

    def answers(self, group: Group, seed: int) -> pa.Table | None:
        """A cell's predictions; None, and a line in `lost`, where they can't be read."""
        folder = group.folders[seed]
        try:
            with on_disk(folder / PREDICTIONS) as file:
                digest = group.results[seed].get("files", {}).get(PREDICTIONS)
                if digest is not None and sha256(file) != digest:
                    raise OSError("its sha256 is not the one that the result knows")
                return pa_parquet.read_table(file)
        except (OSError, pa.ArrowException) as error:
            why = "is not there" if isinstance(error, FileNotFoundError) else f"can't be read: {first_line(error)}"
            self.lost[f"{folder / PREDICTIONS} {why}; intervals and tests leave rows out; run the seed again"] = None
            return None


def _credits(table: pa.Table, name: str, task: str) -> ByLanguage:
    """Percent a row by language, as the metric gives a row that stands alone; empty for a metric that is not known
    here, in this version, or can't take one row, and for one of whole texts, which are not kept."""
    try:
        known, function = metric(name.split("@")[0])
    except UserError:  # a user's own, whose file is not named in a result
        return {}
    if known != name or name.split("@")[0] in OF_WRITTEN or not set(COLUMNS) <= set(table.column_names):
        return {}
    columns = [table[column].to_pylist() for column in COLUMNS]
    by_language: dict[str, tuple[list[str], list[float]]] = {}
    seen: dict[Hashable, float] = {}
    with suppress(UserError, ZeroDivisionError):
        for row_id, language, gold, answer in zip(*columns, strict=True):
            key = (language, str(gold), str(answer))
            if key not in seen:
                seen[key] = function([gold], [answer], language=language)
            ids, values = by_language.setdefault(language, ([], []))
            ids.append(f"{task}/{row_id}")
            values.append(seen[key])
        return {language: Rows(np.array(ids), _floats(values)) for language, (ids, values) in by_language.items()}
    return {}


def _floats(values: list[float]) -> Floats:
    return np.array(values, dtype=np.float64)

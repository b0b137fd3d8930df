"""One file for all splits: which of its rows train, select and test. The rule is ours.

Rows of one id or one content are a unit and stay together, so that no row is tested that was trained on. Of each class
(and set of languages) a tenth of the units, at least one, is tested, and another selects: those that come first when
units are ordered by a hash of their content. Row order, machine and seeds play no part, and a row that is added moves
few others.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import PurePath

import pyarrow as pa

from raypft.tasks.task import SPLITS, Task


def divided(task: Task, table: pa.Table) -> dict[str, pa.Table]:
    """The rows of each split, in the file's order.

    Args:
        table: all rows, with the columns of `sources.read_split`.
    """
    columns = [table[name].to_pylist() for name in task.fields.values()]
    contents = [_hash(repr(values)) for values in zip(*columns, strict=True)]
    units = _units(table["id"].to_pylist(), contents)
    labels = table["label"].to_pylist() if task.kind.one_label else [""] * len(table)
    places: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for unit, label, language in zip(units, labels, table["language"].to_pylist(), strict=True):
        places[unit].add((language, label))
    classes: dict[tuple[tuple[str, ...], str], list[str]] = defaultdict(list)
    for unit, found in places.items():
        languages, names = zip(*found, strict=True)
        classes[tuple(sorted(set(languages))), min(names)].append(unit)
    split_of: dict[str, str] = {}
    for of_class in classes.values():
        ordered = sorted(of_class, key=lambda unit: _hash(f"split\x1f{unit}"))
        tenth = max(1, len(ordered) // 10)
        tested = tenth if len(ordered) > 1 else 0
        selecting = tenth if len(ordered) > 2 else 0
        for number, unit in enumerate(ordered):
            split_of[unit] = "test" if number < tested else "validation" if number < tested + selecting else "train"
    rows: dict[str, list[int]] = {split: [] for split in SPLITS}
    for number, unit in enumerate(units):
        rows[split_of[unit]].append(number)
    return {split: table.take(pa.array(numbers, pa.int64())) for split, numbers in rows.items()}


def sizes_told(task: Task, file: str, parts: dict[str, pa.Table]) -> str:
    """`support.csv: 48 train, 6 dev, 6 test rows, by class`."""
    train, dev, test = (len(parts[split]) for split in SPLITS)
    by_class = ", by class" if task.kind.one_label else ""
    return f"{PurePath(file).name}: {train} train, {dev} dev, {test} test rows{by_class}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _units(ids: list[str], contents: list[str]) -> list[str]:
    """The unit of each row, [rows]: rows that share an id or a content, or are linked so by others, are one; it is
    called by the least of its contents."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for row_id, content in zip(ids, contents, strict=True):
        first, second = sorted((root(f"id {row_id}"), root(content)))  # hexadecimal digits come before "id"
        parent[second] = first
    return [root(content) for content in contents]

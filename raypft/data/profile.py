"""The columns of someone's file as they stand there: which may be texts, which labels, and the labels they hold."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import pyarrow as pa

from raypft.data.formats import Columns
from raypft.errors import UserError
from raypft.tasks.kinds.base import shown, texts

MOST_LABELS, MOST_NUMBERS, LONGEST = 200, 20, 60
"""Labels; labels that are numbers; characters of a label's name, where a column is taken for one of labels."""
LOOKED_AT = 500
"""Rows whose texts are measured."""
NOTHING = {"", "nan", "null"}
"""Values that stand for no label, in lower case; what others write for it may be a class."""


@dataclass(frozen=True)
class Column:
    """A column: its name, its values as texts (None where they are lists or objects), how often each stands there,
    words of a value on average."""

    name: str
    texts: pa.ChunkedArray | None
    counts: Mapping[str, int]
    words: float

    @property
    def is_text(self) -> bool:
        """Whether its values may be what is read: texts that are no numbers."""
        return self.texts is not None and not all(map(is_number, self.counts))

    @property
    def is_labels(self) -> bool:
        """Whether its values may be classes: few short ones, each twice on average."""
        filled = [value for value in self.counts if not is_nothing(value)]
        rows = sum(self.counts[value] for value in filled)
        few = 2 <= len(filled) <= MOST_LABELS and rows >= 2 * len(filled)
        return few and max(map(len, filled)) <= LONGEST


def slug(name: str) -> str:
    """A column's name in lower case, all but letters and digits as one underscore."""
    return re.sub(r"\W+", "_", name.strip().lower()).strip("_")


def is_number(text: str) -> bool:
    """Whether a text is a number, as tables write it."""
    return re.fullmatch(r"\s*[-+]?(\d+[.,]?\d*|[.,]\d+)([eE][-+]?\d+)?\s*", text) is not None


def is_nothing(value: str) -> bool:
    """Whether a value stands for no label."""
    return value.strip().lower() in NOTHING


def check_columns(table: Columns, where: str, named: Iterable[str], has_header: bool) -> None:
    """Raise a UserError where a table has no rows, two columns of one name, or a first line that seems to be a row.

    Args:
        named: columns that the user calls by their names; has_header: the first line names the columns.
    """
    twice = next((name for name in table.names if table.names.count(name) > 1), None)
    if twice is not None:
        raise UserError(
            f'init: {where} has {table.names.count(twice)} columns called "{twice}"; give each its own name'
        )
    if not table.rows or not table.names:
        raise UserError(f"init: {where} has no rows; expected a row for each text, with its label")
    for name in table.names if has_header else ():
        column = column_of(table, name, where)
        if name.strip() and name not in named and name in column.counts and len(column.counts) <= MOST_LABELS:
            raise UserError(
                f"init: {where}: its first line calls a column {shown(name)}, which is a value of it, too; if that "
                "line is a row, put a line of names above it, e.g. text,label; if a row repeats the names, drop it; if "
                "it is a name, say what the column is, e.g. label=NAME"
            )


def is_scalar(table: Columns, name: str) -> bool:
    """Whether a column's values are no lists or objects."""
    values = table.values(name)
    if isinstance(values, pa.ChunkedArray):
        return not pa.types.is_nested(cast(pa.ChunkedArray, values).type)
    return not any(isinstance(value, list | tuple | Mapping) for value in values)


def column_of(table: Columns, name: str, where: str) -> Column:
    """A column of a table that has rows; one whose values are no texts (a picture's bytes, say) is as one of lists."""
    if not is_scalar(table, name):
        return Column(name, None, {}, 0.0)
    try:
        values = texts(table.values(name), name, where)
    except UserError:
        return Column(name, None, {}, 0.0)
    found = values.value_counts()
    counts = dict(zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True))
    some = values.slice(0, LOOKED_AT).to_pylist()
    return Column(name, values, counts, statistics.fmean(len(text.split()) for text in some))


def repeated(columns: Iterable[Column]) -> int:
    """Rows that hold the same texts as an earlier one."""
    rows = list(zip(*(column.texts.to_pylist() for column in columns if column.texts is not None), strict=True))
    return len(rows) - len(set(rows))


def labels_in(column: Column, table: Columns, where: str, names: str | None) -> tuple[dict[str, int], dict[str, str]]:
    """The labels of a column as the task calls them, each with its rows; and how it calls those that the file calls
    otherwise.

    Args:
        names: what the labels are called, in their order, divided by commas; None: as in the file.

    Raises:
        UserError: no labels, or none that can be told apart.
    """
    told = f'init: {where}: label column "{column.name}"'
    if column.texts is None:
        raise UserError(f"{told} holds lists or objects; expected one label a row")
    missing = [value for value in column.counts if is_nothing(value)]
    if missing:
        count, row = sum(column.counts[value] for value in missing), column.texts.to_pylist().index(missing[0])
        raise UserError(f"{told} is empty in {count} of {len(column.texts)} rows (row {row} is one); drop or fill them")
    counts: dict[str, int] = {}
    for value, count in column.counts.items():
        whole = re.fullmatch(r"(-?\d+)\.0*", value)  # which the task takes for 1 where it knows 1
        name = whole[1] if whole else value
        counts[name] = counts.get(name, 0) + count
    if len(counts) == 1:
        raise UserError(f"{told} says {shown(next(iter(counts)))} in every row; expected two labels or more")
    numeric = all(map(is_number, counts))
    if numeric and (len(counts) > MOST_NUMBERS or not all(re.fullmatch(r"\s*[-+]?\d+\s*", value) for value in counts)):
        raise UserError(
            f"{told} holds {len(counts)} numbers, as a score to be foretold (regression), which no kind of task here "
            "does; make a column of a few classes out of it, or name another: label=COLUMN"
        )
    if len(counts) > MOST_LABELS:
        raise UserError(
            f"{told} holds {len(counts)} values in {len(column.texts)} rows; expected at most {MOST_LABELS} labels; "
            "name another: label=COLUMN"
        )
    if 2 * len(counts) > len(column.texts):
        raise UserError(
            f"{told} holds {len(counts)} values in {len(column.texts)} rows; expected labels that have two rows or "
            "more each; name another: label=COLUMN"
        )
    return called(counts, table, column.name, names)


def called(
    counts: Mapping[str, int], table: Columns, column: str, names: str | None
) -> tuple[dict[str, int], dict[str, str]]:
    """What `labels_in` gives, of labels that were counted."""
    by_class = of_classes(table, column, counts)
    if by_class is not None and names is None:
        return by_class, {}
    ordered = sorted(counts, key=float) if all(map(is_number, counts)) else sorted(counts)
    if names is None:
        return {value: counts[value] for value in ordered}, {}
    given = [name.strip() for name in names.split(",")]
    if len(given) != len(ordered) or len(set(given)) != len(given) or not all(given):
        raise UserError(f"init: names={names}: expected {len(ordered)} names, for {', '.join(ordered)} in this order")
    return dict(zip(given, map(counts.__getitem__, ordered), strict=True)), dict(zip(ordered, given, strict=True))


def of_classes(table: Columns, name: str, counts: Mapping[str, int]) -> dict[str, int] | None:
    """The labels of a column by the names that the file has for their numbers, None where it has none."""
    classes = table.classes.get(name)
    if not classes or not all(value.isdecimal() and int(value) < len(classes) for value in counts):
        return None
    return {classes[int(value)]: counts[value] for value in sorted(counts, key=int)}

"""What a task kind decides: fields and labels of its rows, the prompts of a row, metrics, the form of an answer."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import pyarrow as pa
import pyarrow.compute as pa_compute

from raypft.encoded import Encoded
from raypft.errors import UserError
from raypft.tasks.query import Query

compute: Any = pa_compute  # its functions are made at import
Values = Sequence[Any] | pa.ChunkedArray
"""A column as a file gives it: as Arrow has it where that is texts, words or whole numbers, else Python's values."""
TEXTS = pa.list_(pa.string())
HIDDEN = {"-1", "", "None", "NS", "?", "_"}
"""Values that stand for a hidden label in published test sets."""


@dataclass(frozen=True)
class ReadRows:
    """What of a table is read before its labels.

    where: the file or data set, for messages; ids: as the table calls its rows; fields: field to its column;
    names: the task's label names; ours: their label value, as text, to our label name; unanswerable: a row may have no
    label.
    """

    where: str
    ids: pa.ChunkedArray
    fields: dict[str, pa.ChunkedArray]
    names: list[str]
    ours: Mapping[str, str]
    unanswerable: bool = False


class RowEncoder(Protocol):
    """What a kind asks of the encoder that makes its prompts."""

    @property
    def names(self) -> list[str]:
        """The task's label names."""
        ...

    @property
    def max_tokens(self) -> int:
        """Tokens of a prompt at most."""
        ...

    @property
    def asks_words(self) -> bool:
        """Whether the pattern has one query a word."""
        ...

    def step(self, room: int) -> int:
        """Tokens from one window of a passage to the next where each has room for so many."""
        ...

    def render(self, row: Mapping[str, Any]) -> Query:
        """The query of a row."""
        ...

    def asked(self, row: Mapping[str, Any]) -> list[Encoded]:
        """The prompts of a row, one a word, where the pattern asks about {token}."""
        ...

    def encode(self, query: Query, row: Mapping[str, Any], max_tokens: int | None = None) -> Encoded:
        """The tokens of a query."""
        ...

    def value(self, row: Mapping[str, Any], field: str) -> Any:
        """A field of a row."""
        ...

    def with_value(self, row: Mapping[str, Any], field: str, value: Any) -> dict[str, Any]:
        """The row with another value of a field."""
        ...

    def word(self, row: Mapping[str, Any], label: str) -> str:
        """The text that stands for a label: its word where the pattern has one."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text inside a prompt."""
        ...

    def offsets(self, text: str) -> tuple[list[int], list[int], list[int]]:
        """Token ids of a text, and the characters [start, end) that each stands for."""
        ...


class Kind:
    """The interface of a task kind, with the behaviour of one text a row.

    Class attributes:
        name: as YAML calls it; metrics: the names whose gold and answers have its form; fields: those its rows must
        have; only_fields: it has no others; has_labels: there is a label set; one_label: a row has one label of the
        set, so that rows are drawn, demonstrated and scored by class; answers_words: an answer is a tag a word;
        passage: the field that an answer is a piece of; reads_labels: rows have a column of labels; label_type: of that
        column.
    """

    name: str
    metrics: tuple[str, ...]
    fields: tuple[str, ...] = ()
    only_fields: bool = False
    has_labels: bool = False
    one_label: bool = False
    answers_words: bool = False
    passage: str | None = None
    reads_labels: bool = True
    field_type: pa.DataType = pa.string()

    def __str__(self) -> str:
        return self.name

    @property
    def answered_at(self) -> str | None:
        """The field that a pattern must show, since answers are read at it; None where <slot> says so."""
        return self.passage

    def usual_metric(self, names: Sequence[str]) -> str:
        """The metric of a task that names none; names: its labels."""
        return self.metrics[0]

    def read_field(self, values: Values, column: str, where: str) -> pa.ChunkedArray:
        """A field's values as the task's prompts read them.

        Raises:
            UserError: a value that is none.
        """
        return texts(values, column, where)

    def read_labels(self, values: Values, rows: ReadRows) -> dict[str, pa.ChunkedArray]:
        """The label columns of a table, checked.

        Raises:
            UserError: a hidden label, or one that does not fit (file and row named).
        """
        return {"label": class_names(texts(values, "label", rows.where), rows)}

    def labels_of(self, row: Mapping[str, Any]) -> list[str]:
        """The labels in a row."""
        return [row["label"]]

    def prompts(self, encoder: RowEncoder, row: Mapping[str, Any]) -> list[Encoded]:
        """The prompts of a row, in order."""
        label = row.get("label")
        gold = [encoder.names.index(label)] if encoder.names and label else [-1]
        answers = [encoder.word(row, str(label or ""))]
        return [encoder.encode(encoder.render(row), row).but(gold=gold, answers=answers)]


def listed(values: Values) -> Sequence[Any]:
    """A column as Python's values."""
    return cast(pa.ChunkedArray, values).to_pylist() if isinstance(values, pa.ChunkedArray) else values


def column_of(values: Sequence[Any], type: pa.DataType) -> pa.ChunkedArray:
    """Python's values as a column."""
    made = pa.array(values, type)
    return made if isinstance(made, pa.ChunkedArray) else pa.chunked_array([made])  # chunks of more than 2 GB


def texts(values: Values, column: str, where: str) -> pa.ChunkedArray:
    """The same as `as_text`, as a column; of what Arrow has as texts or whole numbers no value is looked at."""
    arrow = cast(pa.ChunkedArray, values) if isinstance(values, pa.ChunkedArray) else None
    if arrow is not None and not pa.types.is_nested(arrow.type):
        return compute.fill_null(arrow.cast(pa.string()), "")
    return column_of(as_text(listed(values), column, where), pa.string())


def renamed(column: pa.ChunkedArray, rename: Callable[[list[str]], list[str]]) -> pa.ChunkedArray:
    """Texts by other names; `rename` gets each text once."""
    found = column.unique()
    return pa.array(rename(found.to_pylist()), pa.string()).take(compute.index_in(column, found))


def as_text(values: Sequence[Any], column: str, where: str) -> list[str]:
    """Values as text; nothing (null, NaN) is an empty one.

    Args:
        column, where: the column and its file, for messages.

    Raises:
        UserError: a value that is none, such as a list (row named).
    """
    return [
        value
        if type(value) is str and value.isascii()
        else _text(value, f'data: {where} row {number}: column "{column}"')
        for number, value in enumerate(values)
    ]


def _text(value: Any, where: str) -> str:
    if is_missing(value):
        return ""
    if isinstance(value, str):
        if value.encode("utf-8", "replace").decode("utf-8") != value:  # half a surrogate pair, as a cut JSON text has
            raise UserError(f"{where} holds {shown(value)}, of which a character is no Unicode; expected a text")
        return value
    if isinstance(value, bytes):  # Parquet columns without the mark of text
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{where} holds bytes that are no UTF-8; expected a text") from None
    if isinstance(value, list | tuple | Mapping):
        raise UserError(f"{where} holds {shown(value)}; expected a text")
    return str(value)


def is_missing(value: Any) -> bool:
    """Whether a value stands for nothing: null, or NaN, which pandas writes for it."""
    return value is None or value != value


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def class_names(values: pa.ChunkedArray, rows: ReadRows) -> pa.ChunkedArray:
    """Label values by our names; where there is no label set, any text that is not empty.

    Raises:
        UserError: a hidden label, or one outside the set.
    """
    known = rows.names
    names = renamed(values, functools.partial(named, rows=rows)) if known or rows.ours else values
    fits = compute.is_in(names, pa.array(known, pa.string())) if known else compute.not_equal(names, "")
    number = compute.index(fits, False).as_py()
    if number >= 0:
        value = values[number].as_py()
        what = "a hidden label" if value in HIDDEN else "outside the label set"
        expected = wanted(value, values.unique().to_pylist(), rows) if known else "a text"
        raise UserError(f'data: {rows.where} row {number} has label "{value}", {what}; expected {expected}')
    return names


def named(values: Sequence[str], rows: ReadRows) -> list[str]:
    """Label values by our names; 1.0 is 1 and True is true or 1 where the task knows those only."""
    known = {*rows.names, *rows.ours}
    spelt = {value: _spelt(value, known) for value in set(values)}
    return [rows.ours.get(spelt[value], spelt[value]) for value in values]


def _spelt(value: str, known: set[str]) -> str:
    """A label value as the task spells it, where a file format has only another way to write it."""
    truth = {"True": ["true", "1"], "False": ["false", "0"]}
    whole = re.fullmatch(r"(-?\d+)\.0*", value)
    spellings = [value, *truth.get(value, []), *([whole[1]] if whole else [])]
    return next((text for text in spellings if text in known), value)


def wanted(value: str, values: Sequence[str], rows: ReadRows) -> str:
    """The label names, and what to write where another value is one of them but for case and blanks, or a number."""
    told = f"one of {', '.join(rows.names)}"
    meant = next((name for name in rows.names if name.lower() == value.strip().lower()), None)
    if meant is not None:
        return f'{told}; did you mean "{meant}"? write it so, or labels: {{"{value}": {meant}}} in the source'
    numbers = sorted({other for other in values if re.fullmatch(r"\d+", other)}, key=int)
    if value in numbers and not rows.ours:
        pairs = ", ".join(f'"{number}": NAME' for number in numbers[:5]) + (", …" if len(numbers) > 5 else "")
        return f"{told}; say in the source which number is which, as labels: {{{pairs}}}"
    return told

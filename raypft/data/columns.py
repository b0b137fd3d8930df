"""Rows of a source become rows of a task: columns, labels and languages by our names, checked as the kind needs.

Every table has id, language, label and the task's fields. By kind:
choice, text: label is a string, fields are text. mlm: label is "".
tags: label is a list of tags, one a word; the field is a list of words.
span: label is a list of answer texts; starts is a list of their character offsets in the field `context`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pa_compute

from raypft.data.content import CHUNK
from raypft.data.formats import Columns
from raypft.errors import UserError, first_line
from raypft.tasks.kinds.base import ReadRows, Values, column_of, listed, renamed, texts
from raypft.tasks.task import Source, Task

compute: Any = pa_compute  # its functions are made at import
NOTES = b"notes"
"""The key of a table's notes in its schema's metadata."""


def their_columns(source: Source, ours: str) -> list[str]:
    """What a source may call one of our columns; the first that a table has counts."""
    names = source.columns.get(ours, ours)
    return [names] if isinstance(names, str) else names


def spoken(source: Source, table: Columns, where: str) -> pa.ChunkedArray | None:
    """The language of each row in our codes, [rows], or None where no column says it.

    Raises:
        UserError: a row that does not say it, in a column that others do.
    """
    values = _column(source, table, "language", where)
    if values is None:
        return None
    told = texts(values, "language", where)
    row = compute.index(told, "").as_py()
    if row >= 0:
        raise UserError(f"data: {where} row {row} has no language; expected one in each row")
    back, before = {theirs: ours for ours, theirs in source.languages.items()}, source.language_before

    def ours(found: list[str]) -> list[str]:
        codes = [text.partition(before)[0] if before else text for text in found]
        return [back.get(code, code) for code in codes]

    return renamed(told, ours)


def normalise(
    task: Task,
    source: Source,
    table: Columns,
    where: str,
    language: str | None,
    labelled: bool = True,
    first: int = 0,
) -> pa.Table:
    """The table in our columns, its rows in the order they come in.

    Args:
        where: the file or data set, for messages; language: of rows whose table doesn't say, None for the task's first.
        labelled: False leaves labels out, whatever the table holds.
        first: rows of the split in this language that came before; the id of a row of a source whose languages are
            parallel is its number, where no column says it.

    Raises:
        UserError: missing column; hidden label or one outside the set; words without one tag each; no words; no answer
            or one that does not stand where it should (all with file and row).
    """
    kind = task.kind
    columns: dict[str, pa.ChunkedArray] = {}
    for name in task.fields.values():
        values = _column(source, table, name, where)
        if values is None:
            raise _missing(source, table, name, where)
        columns[name] = kind.read_field(values, name, where)
    languages = spoken(source, table, where)
    if languages is None:
        languages = pa.repeat(language or task.languages[0], table.rows)
    ids = _named_by_content(texts(_ids(source, table, where, first), "id", where), pa.table(columns))
    labels: dict[str, pa.ChunkedArray] = {}
    if labelled:
        fields = {field: columns[name] for field, name in task.fields.items()}
        rows = ReadRows(where, ids, fields, task.label.names, _our_labels(task, source, table), task.label.unanswerable)
        labels = kind.read_labels(_label_values(task, source, table, where), rows)
    return pa.table({"id": ids, "language": languages, **labels, **columns})


def _ids(source: Source, table: Columns, where: str, first: int) -> Values:
    """What names each row, empty where nothing does, [rows]."""
    told = _column(source, table, "id", where)
    if told is not None:
        return told
    return range(first, first + table.rows) if source.parallel else [""] * table.rows


def _named_by_content(ids: pa.ChunkedArray, fields: pa.Table) -> pa.ChunkedArray:
    """The ids, for an empty one a hash of the row's fields."""
    empty = np.flatnonzero(compute.equal(ids, ""))
    return _put(ids, empty, _content_hashes(fields.take(empty))) if len(empty) else ids


def _put(column: pa.ChunkedArray, rows: np.ndarray, values: list[str]) -> pa.ChunkedArray:
    """The column with other texts in some rows."""
    places = np.arange(len(column))
    places[rows] = np.arange(len(rows)) + len(column)
    return pa.chunked_array([*column.chunks, *column_of(values, pa.string()).chunks], pa.string()).take(places)


def _our_labels(task: Task, source: Source, table: Columns) -> dict[str, str]:
    """Their label value to our name: what the source says, and the classes that the file names as the task does."""
    column = next((name for name in their_columns(source, task.label.column) if name in table.names), "")
    named = [source.labels.get(name, name) for name in table.classes.get(column, ())]
    ours = task.label.names
    told = {str(number): name for number, name in enumerate(named) if name in ours}
    return {**{number: name for number, name in told.items() if number not in ours}, **source.labels}


def _content_hashes(fields: pa.Table) -> list[str]:
    """Hash of the fields of each row."""
    hashes: list[str] = []
    between = {name: pa.scalar(text, pa.large_string()) for name, text in (("words", " "), ("fields", "\x1f"))}
    for batch in fields.to_batches(max_chunksize=CHUNK):
        columns = []
        for column in batch.columns:
            if pa.types.is_list(column.type):
                column = compute.binary_join(column.cast(pa.list_(pa.large_string())), between["words"])
            columns.append(column.cast(pa.large_string()))
        joined = compute.binary_join_element_wise(*columns, between["fields"]).cast(pa.large_binary())
        hashes += [hashlib.sha256(text).hexdigest()[:16] for text in joined.to_pylist()]
    return hashes


def _label_values(task: Task, source: Source, table: Columns, where: str) -> Values:
    """The column of labels, as it is; empty where the kind has none."""
    if not task.kind.reads_labels:
        return []
    column = task.label.column
    values = _column(source, table, column, where)
    if values is None:
        values = _flattened(source, table, column, where)
    if values is None:
        raise _missing(source, table, column, where)
    return values


def _flattened(source: Source, table: Columns, ours: str, where: str) -> list[Any] | None:
    """A column of objects out of the columns that `datasets` flattens it to: answers.text, answers.answer_start."""
    for name in their_columns(source, ours):
        parts = [part for part in table.names if part.startswith(f"{name}.")]
        if parts:
            keys = [part.removeprefix(f"{name}.") for part in parts]
            columns = [listed(_values(table, part, where)) for part in parts]
            return [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]
    return None


def _column(source: Source, table: Columns, ours: str, where: str) -> Values | None:
    name = next((name for name in their_columns(source, ours) if name in table.names), None)
    return None if name is None else _values(table, name, where)


def _values(table: Columns, name: str, where: str) -> Values:
    if table.names.count(name) > 1:
        raise UserError(f'data: {where} has {table.names.count(name)} columns called "{name}"; expected one')
    try:
        return table.values(name)
    except (pa.ArrowException, OverflowError, ValueError) as error:
        raise UserError(f'data: {where}: column "{name}" can\'t be read: {first_line(error)}') from None


def _missing(source: Source, table: Columns, ours: str, where: str) -> UserError:
    theirs = " or ".join(f'"{name}"' for name in their_columns(source, ours))
    found = ", ".join(f'"{name}"' if name != name.strip() else name for name in table.names)
    return UserError(
        f"data: {where} has no column {theirs}; found: {found}; add it, or name theirs in the source's columns"
    )


def with_notes(table: pa.Table, notes: Iterable[str]) -> pa.Table:
    """The table with what a reader of its rows should know; it stays with rows that are taken from it."""
    lines = list(dict.fromkeys(notes))
    return table.replace_schema_metadata({NOTES: json.dumps(lines)} if lines else None)


def notes_of(table: pa.Table) -> list[str]:
    """What `with_notes` gave a table, or one that it was taken from."""
    return json.loads((table.schema.metadata or {}).get(NOTES, b"[]"))


def with_own_ids(task: Task, table: pa.Table) -> pa.Table:
    """Rows with ids that repeat within a language told apart by their content.

    Where a row has one label, the same content keeps the same id: it is drawn and held out together. Elsewhere the same
    row twice is told apart by a count.
    """
    if len(table["id"].unique()) == len(table):
        return table
    language, name = (
        table[column].dictionary_encode().combine_chunks().indices.to_numpy() for column in ("language", "id")
    )
    _, place, often = np.unique(language.astype(np.int64) << 32 | name, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(often[place] > 1)
    if not len(rows):
        return table
    repeated = table.take(rows)
    ids, languages = repeated["id"].to_pylist(), repeated["language"].to_pylist()
    digests = _content_hashes(repeated.select(list(task.fields.values())))
    contents: dict[tuple[str, str], set[str]] = defaultdict(set)
    for language, name, digest in zip(languages, ids, digests, strict=True):
        contents[language, name].add(digest)
    seen: Counter[tuple[str, str]] = Counter()
    for row, (language, name, digest) in enumerate(zip(languages, ids, digests, strict=True)):
        if name != digest and (len(contents[language, name]) > 1 or not task.kind.one_label):
            ids[row] = f"{name}-{digest}"
        seen[language, ids[row]] += 1
        if seen[language, ids[row]] > 1 and not task.kind.one_label:
            ids[row] += f"-{seen[language, ids[row]]}"
    return table.set_column(table.schema.get_field_index("id"), "id", _put(table["id"], rows, ids))

"""Rows of a source become rows of a task: columns, labels and languages by our names, checked as the kind needs.

Every table has id, language, label and the task's fields. By kind:
choice, text: label is a string, fields are text. mlm: label is "".
tags: label is a list of tags, one a word; the field is a list of words.
span: label is a list of answer texts; starts is a list of their character offsets in the field `context`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from raypft.errors import UserError
from raypft.tasks.kinds.base import ReadRows, as_text
from raypft.tasks.task import Source, Task


def their_columns(source: Source, ours: str) -> list[str]:
    """What a source may call one of our columns; the first that a table has counts."""
    names = source.columns.get(ours, ours)
    return [names] if isinstance(names, str) else names


def spoken(source: Source, table: pa.Table) -> list[str] | None:
    """The language of each row in our codes, [rows], or None where no column says it."""
    values = _column(source, table, "language")
    if values is None:
        return None
    back = {theirs: ours for ours, theirs in source.languages.items()}
    codes = [text.partition(source.language_before)[0] if source.language_before else text for text in as_text(values)]
    return [back.get(code, code) for code in codes]


def normalise(
    task: Task, source: Source, table: pa.Table, where: str, language: str | None, labelled: bool = True
) -> pa.Table:
    """The table in our columns, its rows in the order they come in.

    Args:
        where: the file or data set, for messages; language: of rows whose table doesn't say, None for the task's first.
        labelled: False leaves labels out, whatever the table holds; a text of a tags task is then split at blanks.

    Raises:
        UserError: missing column; hidden label or one outside the set; words without one tag each; no words; no answer
            or one that does not stand where it should (all with file and row).
    """
    kind = task.kind
    columns: dict[str, list[Any]] = {}
    for name in task.fields.values():
        values = _column(source, table, name)
        if values is None:
            theirs = " or ".join(their_columns(source, name))
            raise UserError(f'data: {where} has no column "{theirs}"; found: {", ".join(table.column_names)}')
        columns[name] = kind.read_field(values, name, where, split=not labelled)
    languages = spoken(source, table) or [language or task.languages[0]] * table.num_rows
    hashes = [_content_hash(values) for values in zip(*columns.values(), strict=True)]
    named = _column(source, table, "id")
    ids = hashes if named is None else as_text(named)
    labels: dict[str, pa.Array] = {}
    if labelled:
        fields = {field: columns[name] for field, name in task.fields.items()}
        rows = ReadRows(where, ids, fields, task.label.names, source.labels)
        labels = kind.read_labels(_label_values(task, source, table, where), rows)
    return pa.table(
        {
            "id": pa.array(ids if kind.one_label else _unique(ids, hashes, languages), pa.string()),
            "language": pa.array(languages, pa.string()),
            **labels,
            **{name: pa.array(values, kind.field_type) for name, values in columns.items()},
        }
    )


def _content_hash(values: Sequence[Any]) -> str:
    """Hash of the fields of a row."""
    texts = [" ".join(value) if isinstance(value, list) else value for value in values]
    return hashlib.sha256("\x1f".join(texts).encode()).hexdigest()[:16]


def _label_values(task: Task, source: Source, table: pa.Table, where: str) -> list[Any]:
    """The column of labels, as it is; empty where the kind has none."""
    if not task.kind.reads_labels:
        return []
    values = _column(source, table, task.label.column)
    if values is None:
        theirs = " or ".join(their_columns(source, task.label.column))
        raise UserError(f'data: {where} has no label column "{theirs}" (hidden labels?); scores need labels')
    return values


def _column(source: Source, table: pa.Table, ours: str) -> list | None:
    name = next((name for name in their_columns(source, ours) if name in table.column_names), None)
    return None if name is None else table[name].to_pylist()


def _unique(ids: list[str], hashes: list[str], languages: list[str]) -> list[str]:
    """An id that repeats within a language is told apart by its row's content, the same row twice by a count."""
    often = Counter(zip(languages, ids, strict=True))
    seen: Counter[tuple[str, str]] = Counter()
    unique = []
    for name, digest, language in zip(ids, hashes, languages, strict=True):
        told = f"{name}-{digest}" if often[language, name] > 1 and name != digest else name
        seen[language, told] += 1
        unique.append(told if seen[language, told] == 1 else f"{told}-{seen[language, told]}")
    return unique

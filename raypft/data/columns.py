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
from raypft.tasks.task import Source, Task

HIDDEN = {"-1", "", "None", "NS", "?", "_"}
"""Values that stand for a hidden label in published test sets."""


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
    codes = [text.partition(source.language_before)[0] if source.language_before else text for text in _text(values)]
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
    fields = {}
    for name in task.fields.values():
        values = _column(source, table, name)
        if values is None:
            theirs = " or ".join(their_columns(source, name))
            raise UserError(f'data: {where} has no column "{theirs}"; found: {", ".join(table.column_names)}')
        fields[name] = _words(values, name, where, split=not labelled) if task.kind == "tags" else _text(values)
    languages = spoken(source, table) or [language or task.languages[0]] * table.num_rows
    hashes = [_hash(values) for values in zip(*fields.values(), strict=True)]
    given = _column(source, table, "id")
    ids = hashes if given is None else _text(given)
    kind = pa.list_(pa.string()) if task.kind == "tags" else pa.string()
    return pa.table(
        {
            "id": pa.array(ids if task.kind == "choice" else _unique(ids, hashes, languages), pa.string()),
            "language": pa.array(languages, pa.string()),
            **(_labels(task, source, table, where, fields, ids) if labelled else {}),
            **{name: pa.array(values, kind) for name, values in fields.items()},
        }
    )


def _hash(values: Sequence[str | list[str]]) -> str:
    parts = [" ".join(value) if isinstance(value, list) else value for value in values]
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]


def _labels(
    task: Task, source: Source, table: pa.Table, where: str, fields: dict[str, list], ids: list[str]
) -> dict[str, pa.Array]:
    if task.kind == "mlm":
        return {"label": pa.array([""] * table.num_rows, pa.string())}
    values = _column(source, table, task.label.column)
    if values is None:
        theirs = " or ".join(their_columns(source, task.label.column))
        raise UserError(f'data: {where} has no label column "{theirs}" (hidden labels?); scores need labels')
    strings = pa.list_(pa.string())
    if task.kind == "tags":
        return {"label": pa.array(_tags(task, source, values, fields[task.fields[task.words]], where), strings)}
    if task.kind == "span":
        contexts = fields[task.fields["context"]]
        answers = [_answers(*asked, where) for asked in zip(values, contexts, ids, strict=True)]
        return {
            "label": pa.array([texts for texts, _ in answers], strings),
            "starts": pa.array([starts for _, starts in answers], pa.list_(pa.int32())),
        }
    return {"label": pa.array(_names(task, source, _text(values), where), pa.string())}


def _named(source: Source, values: Sequence[object]) -> list[str]:
    """A source's labels by our names."""
    return [source.labels.get(str(value), str(value)) for value in values]


def _names(task: Task, source: Source, values: list[str], where: str) -> list[str]:
    named = _named(source, values)
    known = set(task.label.names)
    for row, name in enumerate(named):
        if (known and name not in known) or not name:
            what = "a hidden label" if values[row] in HIDDEN else "outside the label set"
            expected = f"one of {', '.join(task.label.names)}" if known else "a text"
            raise UserError(f'data: {where} row {row} has label "{values[row]}", {what}; expected {expected}')
    return named


def _tags(task: Task, source: Source, values: list, words: list[list[str]], where: str) -> list[list[str]]:
    known = set(task.label.names)
    named = [_named(source, value or []) for value in values]
    for row, (sentence, tags) in enumerate(zip(words, named, strict=True)):
        if not tags:
            raise UserError(f"data: {where} row {row} has no tags (hidden labels?); scores need labels")
        if len(sentence) != len(tags):
            raise UserError(
                f"data: {where} row {row} has {len(sentence)} words and {len(tags)} tags; expected one tag a word"
            )
        if not known.issuperset(tags):
            i = next(i for i, tag in enumerate(tags) if tag not in known)
            what = "a hidden label" if tags[i] in HIDDEN else "outside the tag set"
            raise UserError(
                f'data: {where} row {row} word {i} "{sentence[i]}" has tag "{tags[i]}", {what}; '
                f"expected one of {', '.join(task.label.names)}"
            )
    return named


def _answers(value: Any, context: str, row: str, where: str) -> tuple[list[str], list[int]]:
    """Texts and starts out of {text: [...], answer_start: [...]} or [{text, answer_start}, ...]."""
    if isinstance(value, dict):
        texts, starts = value.get("text") or [], value.get("answer_start") or []
    elif isinstance(value, list):
        texts, starts = [a.get("text") for a in value], [a.get("answer_start") for a in value]
    else:
        texts, starts = [], []
    if not texts or not all(texts):
        raise UserError(f'data: {where} row "{row}" has no answer (hidden labels?); scores need answers')
    if len(texts) != len(starts):
        raise UserError(
            f'data: {where} row "{row}" has {len(texts)} answers and {len(starts)} starts; expected one start an answer'
        )
    for text, start in zip(texts, starts, strict=True):
        # startswith would count a negative start from the end
        if start is None or start < 0 or not context.startswith(text, start):
            there = context[start : start + len(text)] if start is not None and start >= 0 else ""
            raise UserError(
                f'data: {where} row "{row}" has the answer "{text}" at character {start}; '
                f'its context holds "{there}" there'
            )
    return list(texts), list(starts)


def _column(source: Source, table: pa.Table, ours: str) -> list | None:
    name = next((name for name in their_columns(source, ours) if name in table.column_names), None)
    return None if name is None else table[name].to_pylist()


def _text(values: Sequence[object]) -> list[str]:
    return [str(value) if value is not None else "" for value in values]


def _words(values: list, name: str, where: str, split: bool = False) -> list[list[str]]:
    if split:
        values = [value.split() if isinstance(value, str) else value for value in values]
    for row, value in enumerate(values):
        if not value:
            raise UserError(f"data: {where} row {row} has no words; drop it from the file")
        if not isinstance(value, list):
            raise UserError(f'data: {where} row {row}: column "{name}" holds {value!r}; expected a list of words')
    return [list(map(str, value)) for value in values]


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

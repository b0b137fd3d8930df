"""Rows out of JSON: a row a line, an array of rows, an object of columns, or SQuAD's articles, told apart by what a
file holds."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from typing import Any

from raypft.data.decode import PIECE, Content, Pieces, check_all_text, check_text
from raypft.data.packed_rows import PackedRows, Row

LARGE = 256 << 20
"""Characters of a document from which on it is told that it is read whole."""


def records(content: Content, by_columns: bool) -> tuple[PackedRows, list[str]]:
    """The rows of a file, and a line on those left out.

    Rows that are null are left out. SQuAD's articles give id, question, context and answers, a row a question; a
    question marked is_impossible has no answers. Where a line is a row, lines are read one after the other; any other
    document is parsed whole.

    Args:
        by_columns: lists alone, one a key and all as long, are columns; they are one row where a line is a row.

    Raises:
        ValueError: not JSON, or a row that is no object or has a key twice (row named).
    """
    check_text(next(content.pieces(), b""))
    notes: list[str] = []
    try:
        rows = _in_lines(content) if _has_rows_in_lines(content) else _whole(content, by_columns, notes)
        return PackedRows(_kept(rows, notes)), notes
    except ValueError:
        check_all_text(content.pieces())
        raise


def _lines(content: Content) -> Iterator[str]:
    """The lines that are not blank, without their ends."""
    text = _text(content, newline=None)
    lines = itertools.chain([next(text, "").removeprefix("\ufeff")], text)
    return (line.removesuffix("\n") for line in lines if line.strip())


def _text(content: Content, newline: str | None) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedReader(Pieces(content.pieces()), PIECE), "utf-8", newline=newline)


def _has_rows_in_lines(content: Content) -> bool:
    """Whether there are several lines, and the first is a document of its own."""
    begin = list(itertools.islice(_lines(content), 2))
    return len(begin) > 1 and _is_json(begin[0])


def _in_lines(content: Content) -> Iterator[tuple[Any, int]]:
    """Each line's document, and how long the line is."""
    for number, line in enumerate(_lines(content)):
        yield _parsed(line, f"row {number}: "), len(line)


def _whole(content: Content, by_columns: bool, notes: list[str]) -> Iterator[tuple[Any, int]]:
    """The rows of a file that is one document, or holds none, and their mean length."""
    text = _text(content, newline="").read().removeprefix("\ufeff")
    if not text.strip():
        return
    if len(text) > LARGE:
        notes.append(f"one JSON document of {len(text) / 1e6:,.0f} MB is read whole; with a row a line, rows are not")
    size = len(text)
    rows = _rows_of(_parsed(text, ""), by_columns)
    del text
    for row in rows:
        yield row, size // len(rows)


def _kept(rows: Iterator[tuple[Any, int]], notes: list[str]) -> Iterator[tuple[Row, int]]:
    """The rows that are not null.

    Raises:
        ValueError: one is no object.
    """
    nulls, odd = 0, ""
    for number, (row, size) in enumerate(rows):
        if isinstance(row, dict):
            yield row, size
        elif row is None:
            nulls += 1
        else:
            odd = odd or f"row {number} is a {type(row).__name__}; expected an object, column to value"
    if odd:
        raise ValueError(odd)
    if nulls:
        notes.append(f"{nulls} rows that are null are left out")


def _is_json(line: str) -> bool:
    """Whether a line is a document of its own."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}{error}") from None


def _object(pairs: list[tuple[str, Any]]) -> Row:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f'key "{next(name for name in names if names.count(name) > 1)}" stands twice in one object')
    return found


def _rows_of(document: Any, by_columns: bool) -> list[Any]:
    """The rows of a whole document."""
    if isinstance(document, dict):
        document = _rows_of_object(document, by_columns)
    if not isinstance(document, list):
        raise ValueError(f"found a {type(document).__name__}; expected rows")
    if any(isinstance(article, dict) and "paragraphs" in article for article in document):
        return list(_questions(document))
    return document


def _rows_of_object(document: Row, by_columns: bool) -> list[Any]:
    """What stands under "data" (beside "columns" as pandas splits a table), columns as pandas and datasets write them,
    or one row."""
    data, names, values = document.get("data"), document.get("columns"), list(document.values())
    if isinstance(data, list) and isinstance(names, list):
        return [_zipped(names, row) for row in data]
    if isinstance(data, list):
        return data
    if values and all(isinstance(value, dict) for value in values):  # columns or rows by their number in the index
        index = list(values[0])
        if index and all(key.isdecimal() for key in index) and all(list(value) == index for value in values):
            rows = zip(*map(dict.values, values), strict=True)
            return [dict(zip(document, row, strict=True)) for row in rows]
        if all(key.isdecimal() for key in document):
            return values
    if by_columns and values and all(isinstance(value, list) for value in values):
        sizes = {name: len(value) for name, value in document.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"columns are of unequal length: {', '.join(f'{name} {n}' for name, n in sizes.items())}")
        return [dict(zip(document, row, strict=True)) for row in zip(*values, strict=True)]
    return [document]


def _zipped(names: list[Any], row: Any) -> Any:
    if not isinstance(row, list) or len(row) != len(names):
        return row
    return dict(zip(map(str, names), row, strict=True))


def _questions(articles: list[Row]) -> Iterator[Row]:
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    yield {
                        "id": asked.get("id"),
                        "question": asked["question"],
                        "context": paragraph["context"],
                        "answers": [] if asked.get("is_impossible") else asked.get("answers"),
                    }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not laid out as SQuAD is (data, paragraphs, qas): {type(error).__name__} {error}") from None

"""Rows out of JSON: a row a line, an array of rows, an object of columns, or SQuAD's articles, told apart by what a
file holds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]


def records(text: str, by_columns: bool) -> tuple[list[Row], list[str]]:
    """The rows of a file, and a line on those left out.

    Rows that are null are left out. SQuAD's articles give id, question, context and answers, a row a question; a
    question marked is_impossible has no answers.

    Args:
        by_columns: lists alone, one a key and all as long, are columns; they are one row where a line is a row.

    Raises:
        ValueError: not JSON, or a row that is no object or has a key twice (row named).
    """
    lines = [line for line in re.split("\r\n|\r|\n", text) if line.strip()]
    if len(lines) > 1 and _is_json(lines[0]):
        rows = [_parsed(line, f"row {number}: ") for number, line in enumerate(lines)]
    else:
        rows = _rows_of(_parsed(text, ""), by_columns) if lines else []
    for number, row in enumerate(rows):
        if not isinstance(row, dict | None):
            raise ValueError(f"row {number} is a {type(row).__name__}; expected an object, column to value")
    kept = [row for row in rows if row is not None]
    return kept, [f"{len(rows) - len(kept)} rows that are null are left out"] if len(kept) < len(rows) else []


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

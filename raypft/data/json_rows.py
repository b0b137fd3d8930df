"""Rows out of JSON: a row a line, an array of rows, or SQuAD's articles, told apart by what a file holds."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any


def records(data: bytes) -> list[dict[str, Any]]:
    """The rows of a file.

    SQuAD's articles give id, question, context and answers, a row a question.

    Raises:
        ValueError: not JSON, or a row that is no object or has a key twice (row named).
    """
    data = data.removeprefix(codecs.BOM_UTF8)
    lines = [line for line in data.splitlines() if line.strip()]
    if len(lines) > 1 and _is_json(lines[0]):
        rows = [_parsed(line, f"row {number}: ") for number, line in enumerate(lines)]
    else:
        rows = _rows_of(_parsed(data, "")) if lines else []
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is a {type(row).__name__}; expected an object, column to value")
    return rows


def _is_json(line: bytes) -> bool:
    """Whether a line is a document of its own."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _parsed(text: bytes, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}{error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f'key "{next(name for name in names if names.count(name) > 1)}" stands twice in one object')
    return found


def _rows_of(document: Any) -> list[Any]:
    """The rows of a whole document: an array, one row, or what stands under "data"."""
    if isinstance(document, dict) and isinstance(document.get("data"), list):
        document = document["data"]
    elif isinstance(document, dict):
        document = [document]
    if not isinstance(document, list):
        raise ValueError(f"found a {type(document).__name__}; expected rows")
    if any(isinstance(article, dict) and "paragraphs" in article for article in document):
        return list(_questions(document))
    return document


def _questions(articles: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    yield {
                        "id": asked.get("id"),
                        "question": asked["question"],
                        "context": paragraph["context"],
                        "answers": asked.get("answers"),
                    }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not laid out as SQuAD is (data, paragraphs, qas): {type(error).__name__} {error}") from None

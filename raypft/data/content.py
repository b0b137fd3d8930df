"""A hash of what rows hold, taken where Arrow has them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pa_compute

compute: Any = pa_compute  # its functions are made at import
CHUNK = 1 << 14
"""Rows that are Python's objects at a time."""
ESCAPED = r'["\\\x00-\x1f]'
"""What JSON escapes in a text."""


def content_hash(table: pa.Table | None) -> str:
    """Hash over the rows, each as JSON writes its sorted pairs of column and value."""
    digest, names = hashlib.sha256(), [] if table is None else sorted(table.column_names)
    for batch in [] if table is None else table.select(names).to_batches(max_chunksize=CHUNK):
        pieces: list[Any] = []
        for name, column in zip(names, batch.columns, strict=True):
            pieces += [_text(f"{'], [' if pieces else '[['}{_json(name)}, "), _as_json(column)]
        rows = compute.binary_join_element_wise(*pieces, _text("]]"), _text(""))
        (whole,) = compute.binary_join(pa.LargeListArray.from_arrays([0, len(rows)], rows), _text(""))
        digest.update(whole.as_buffer())
    return digest.hexdigest()[:16]


_json = json.JSONEncoder(ensure_ascii=False).encode


def _text(text: str) -> pa.Scalar:
    return pa.scalar(text, pa.large_string())


def _as_json(column: pa.Array) -> pa.Array:
    """Each value as JSON; texts in which JSON escapes nothing never become Python's."""
    is_text = column.type == pa.string() and not column.null_count
    if not is_text or compute.any(compute.match_substring_regex(column, ESCAPED)).as_py():
        return pa.array(map(_json, column.to_pylist()), pa.large_string())
    return compute.binary_join_element_wise(_text('"'), column.cast(pa.large_string()), _text('"'), _text(""))

"""Rows that need not have the same columns, kept as Arrow's columns: each value comes back as it went in."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from raypft.data.spool import spooled
from raypft.tasks.kinds.base import Values

Row = dict[str, Any]
"""What json.loads makes of an object."""
ROWS = 1 << 12
"""Of so many at most a batch is made."""
SIZE = 1 << 23
"""Characters after which a batch ends."""
JSON = pa.large_string()
"""The type of a column whose values are JSON, since Arrow has them not as they are; no other column is of it."""


class PackedRows:
    """Rows in batches, see `spooled`.

    Args:
        rows: each with about how many characters it has.

    Raises:
        ValueError: an object within an object, more than can be written.
    """

    def __init__(self, rows: Iterable[tuple[Row, int]]) -> None:
        self.places: dict[str, int] = {}
        """The columns in the order in which they came, with the names that they have in batches, whose own may be
        anything."""
        self.batches = spooled(self._batches(rows))
        self.rows = sum(map(len, self.batches))

    def values(self, name: str) -> Values:
        """A column; what a row lacks is None."""
        place = str(self.places[name])
        parts = [batch[place] if place in batch.schema.names else pa.nulls(len(batch)) for batch in self.batches]
        types = {part.type for part in parts} - {pa.null()}
        if len(types) == 1 and JSON not in types:
            (kind,) = types
            return pa.chunked_array([part.cast(kind) for part in parts], kind)
        return list(itertools.chain.from_iterable(map(_values, parts)))

    def _batches(self, rows: Iterable[tuple[Row, int]]) -> Iterator[pa.RecordBatch]:
        some, size = list[Row](), 0
        for row, length in rows:
            some.append(row)
            size += length
            if len(some) == ROWS or size > SIZE:
                yield self._batch(some)
                some, size = [], 0
        if some:
            yield self._batch(some)

    def _batch(self, rows: list[Row]) -> pa.RecordBatch:
        columns: dict[str, pa.Array] = {"rows": pa.nulls(len(rows))}  # they count where none has a column
        for name in dict.fromkeys(itertools.chain.from_iterable(rows)):
            place = self.places.setdefault(name, len(self.places))
            columns[str(place)] = _column([row.get(name) for row in rows])
        return pa.record_batch(columns)


def _column(values: list[Any]) -> pa.Array:
    """Values as Arrow has them where it gives the same back, else as JSON."""
    types = set(map(type, values)) - {type(None)}
    kind = {str: pa.string(), int: pa.int64()}.get(*types) if len(types) == 1 else None
    if types == {list}:
        inner = set(map(type, itertools.chain.from_iterable(value for value in values if value is not None)))
        kind = pa.list_({str: pa.string(), int: pa.int64()}[inner.pop()]) if inner in ({str}, {int}) else None
    if not types:
        return pa.nulls(len(values))
    try:
        if kind is not None:
            return pa.array(values, kind)
    except (OverflowError, UnicodeEncodeError):  # an endless number; half a surrogate pair, as a cut JSON text has
        pass
    try:
        return pa.array(map(json.dumps, values), JSON)
    except RecursionError:
        raise ValueError("a value has too many lists and objects within each other") from None


def _values(part: pa.Array) -> list[Any]:
    return list(map(json.loads, part.to_pylist())) if part.type == JSON else part.to_pylist()

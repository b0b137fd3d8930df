"""Files become columns: Parquet, Arrow, JSON, tsv, csv, and the layouts of the field (CoNLL, SQuAD).

Values are as the format has them; those of tsv and csv are text, as they are written. Columns of the layouts: conllu,
words and panx give id, tokens and tags (a row a sentence); squad gives id, question, context and answers. A byte-order
mark before the text is none of it. A file may be packed; endings count in any case.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet
from pyarrow import fs

from raypft.data.conll import conllu, words
from raypft.data.decode import COMPRESSIONS, Content, decoded
from raypft.data.json_rows import records
from raypft.data.packed_rows import PackedRows
from raypft.data.separated import separated
from raypft.data.spool import LEAST, ROWS, spooled
from raypft.errors import UserError, first_line
from raypft.tasks.kinds.base import Values

ENDINGS = {
    "parquet": "parquet",
    "arrow": "arrow",
    "feather": "arrow",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "tsv": "tsv",
    "csv": "csv",
    "conllu": "conllu",
    "conll": "words",
    "bio": "words",
    "json": "squad",
}
"""What a file's ending says of its format."""
TOLD = (
    f"{', '.join(f'.{ending}' for ending in ENDINGS)}, also with {', '.join(f'.{ending}' for ending in COMPRESSIONS)}"
)
"""The endings, for messages."""


@dataclass(frozen=True)
class Columns:
    """What a file or data set holds, not yet looked at.

    names: of the columns, as they stand there; rows: how many there are; values: a column's, one a row; notes: what a
    reader of the rows should know, a line each, such as how many were left out; classes: a column's class names in the
    order of their numbers, where the file says them.
    """

    names: list[str]
    rows: int
    values: Callable[[str], Values]
    notes: tuple[str, ...] = ()
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def of_arrow(cls, table: pa.Table, notes: list[str] | None = None) -> Columns:
        """The columns of an Arrow table."""
        told, named = tuple(notes or ()), _classes(table.schema.metadata or {})
        return cls(table.column_names, table.num_rows, lambda name: _values(table[name]), told, named)

    @classmethod
    def of_rows(cls, rows: PackedRows, notes: list[str]) -> Columns:
        """The columns of packed rows."""
        return cls(list(rows.places), rows.rows, rows.values, tuple(notes))

    @classmethod
    def of_records(cls, rows: list[dict[str, Any]], notes: list[str] | None = None) -> Columns:
        """The columns of rows that need not have the same; what a row lacks is None."""
        names = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
        return cls(names, len(rows), lambda name: [row.get(name) for row in rows], tuple(notes or ()))


def _values(column: pa.ChunkedArray) -> Values:
    inner = column.type.value_type if pa.types.is_list(column.type) else column.type
    try:
        if pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_integer(inner):
            column.validate(full=True)
            return column
        return column.to_pylist()
    except (OverflowError, ValueError):  # no UTF-8, or a point in time that Python does not have
        return column.cast(pa.string()).to_pylist()


def _classes(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """The names of each column of classes, of words too, as `datasets` writes them into Arrow and Parquet files."""
    named: dict[str, list[str]] = {}
    try:
        for column, feature in json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"].items():
            inner = feature.get("feature", feature)
            if inner.get("_type") == "ClassLabel":
                named[column] = list(map(str, inner["names"]))
    except (ValueError, LookupError, TypeError, AttributeError):  # written by another version, or by someone else
        return {}
    return named


def ending_of(path: str) -> tuple[str | None, str | None]:
    """What a file's name says: a key of READERS and one of COMPRESSIONS, None where it says nothing."""
    name, _, last = path.rsplit("/", 1)[-1].lower().rpartition(".")
    if last not in COMPRESSIONS:
        return (ENDINGS.get(last) if name else None), None
    bare, _, inner = name.rpartition(".")
    return (ENDINGS.get(inner) if bare else None), last


def read_file(system: fs.FileSystem, path: str, format: str | None = None, language: str | None = None) -> Columns:
    """The columns of a file, called as its format calls them.

    Args:
        path: in `system`; format: a key of READERS; None goes by the ending.
        language: whose contractions a CoNLL-U file holds.

    Raises:
        UserError: the file is damaged, or no UTF-8.
    """
    said, compression = ending_of(path)
    reader = READERS[format or said or ""]
    try:
        return reader(Content(lambda: system.open_input_file(path), compression), language or "")
    except UserError:  # the hub's, when the file is opened
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"data: {path} can't be read: {first_line(error)}") from None


def _at_once(read: Callable[[pa.NativeFile, str], Columns]) -> Callable[[Content, str], Columns]:
    def reader(content: Content, language: str) -> Columns:
        with content.at_once() as stream:
            return read(stream, language)

    return reader


def _parquet(stream: pa.NativeFile, _: str) -> Columns:
    parquet = pa_parquet.ParquetFile(stream)
    groups = map(parquet.metadata.row_group, range(parquet.num_row_groups))
    if sum(group.total_byte_size for group in groups) <= LEAST:
        return Columns.of_arrow(parquet.read())
    return Columns.of_arrow(pa.Table.from_batches(spooled(parquet.iter_batches(ROWS))))


def _arrow(stream: pa.NativeFile, _: str) -> Columns:
    begin = stream.read(6)
    if begin[:4] == b"FEA1":
        raise ValueError("it is of Feather's first version; write it anew with pyarrow.feather.write_feather")
    is_file = begin == b"ARROW1"  # Feather's second version too; datasets.save_to_disk writes a stream
    stream.seek(0)
    with pa.ipc.open_file(stream) if is_file else pa.ipc.open_stream(stream) as found:
        batches = map(found.get_batch, range(found.num_record_batches)) if is_file else found
        table = pa.Table.from_batches(spooled(map(_checked, batches)), found.schema)
    return Columns.of_arrow(table)


def _checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    batch.validate(full=True)  # a damaged one is taken as it is, and read outside of its memory
    return batch


def _json(by_columns: bool) -> Callable[[Content, str], Columns]:
    # not Arrow's reader, which takes a text that looks like a date for one
    return lambda content, _: Columns.of_rows(*records(content, by_columns))


def _separated(kind: str) -> Callable[[Content, str], Columns]:
    return lambda content, _: Columns.of_arrow(*separated(content, kind))


def _words(prefix: bool) -> Callable[[Content, str], Columns]:
    return _at_once(lambda stream, _: Columns.of_records(words(decoded(stream.read()), prefix)))


def _conllu(stream: pa.NativeFile, language: str) -> Columns:
    return Columns.of_records(*conllu(decoded(stream.read()), language))


READERS: dict[str, Callable[[Content, str], Columns]] = {
    "parquet": _at_once(_parquet),
    "arrow": _at_once(_arrow),
    "jsonl": _json(by_columns=False),
    "tsv": _separated("\t"),
    "csv": _separated(","),
    "conllu": _at_once(_conllu),
    "squad": _json(by_columns=True),
    "words": _words(prefix=False),
    "panx": _words(prefix=True),
}

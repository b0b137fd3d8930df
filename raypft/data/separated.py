"""Rows out of csv and tsv.

A csv is quoted as RFC 4180 says, a tsv is not, unless its header is. Where the header has no separator of its kind but
another (Excel writes ";" in many countries, and "sep=;" before it), that one counts.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pa_compute
import pyarrow.csv as pa_csv

from raypft.data.decode import check_text, decoded
from raypft.errors import first_line

compute: Any = pa_compute  # its functions are made at import
SEPARATORS = ",;\t"
LARGEST = (1 << 31) - 1
"""Bytes of a block at most; a row must lie in one."""


def separated(stream: pa.NativeFile, kind: str) -> tuple[pa.Table, list[str]]:
    """The rows of a file, every value as text, and what is odd about them.

    Args:
        kind: the separator that the file's ending promises.

    Raises:
        ValueError: no UTF-8, rows of unequal length, a quote that does not end.
    """
    data = stream.read().removeprefix(codecs.BOM_UTF8)
    check_text(data)
    head = _first_line(data)
    told = re.fullmatch(rb"sep=(.)[\r\n]*", head)
    if told:
        data = data[len(head) :]
        head = _first_line(data)
    if re.compile(rb"\S").search(data, len(head)) is None:
        return pa.table({}), []
    separator = told[1].decode("latin-1") if told else _separator(head.decode("utf-8", "replace"), kind)
    quoted = separator != "\t" or kind != "\t" or _all_quoted(head.strip().split(b"\t"))
    # every column is text: "007" is no number, "2020-01-01" no date
    convert = pa_csv.ConvertOptions(default_column_type=pa.string(), strings_can_be_null=False)
    parse = pa_csv.ParseOptions(delimiter=separator, quote_char='"' if quoted else False, newlines_in_values=quoted)
    read = pa_csv.ReadOptions(block_size=min(max(len(data) + 1, 1 << 20), LARGEST))
    try:
        table = pa_csv.read_csv(pa.BufferReader(data), read, parse, convert)
        names = table.column_names
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        decoded(data)  # what is wrong with the bytes, in words that help
        advice = f'; put quotes around values that hold "{separator}"' if quoted and "columns" in str(error) else ""
        raise ValueError(f"{first_line(error)}{advice}") from None
    # Arrow takes what it finds: a quote that is left open, or written \" within a value, as one that closes it
    doubtful = quoted and (b'\\"' in data or any(_breaks(table[place]) for place in range(len(names))))
    return table, _check_quotes(data, table, separator) if doubtful else []


def _first_line(data: bytes) -> bytes:
    """The first line, with its end."""
    end = re.search(rb"\r\n?|\n", data)
    return data if end is None else data[: end.end()]


def _separator(head: str, kind: str) -> str:
    return next((char for char in kind + SEPARATORS if char in head), kind)


def _all_quoted(cells: list[bytes]) -> bool:
    return all(len(cell) > 1 and cell.startswith(b'"') and cell.endswith(b'"') for cell in cells)


def _breaks(column: pa.ChunkedArray) -> bool:
    return bool(compute.any(compute.match_substring_regex(column, "[\r\n]")).as_py())


def _check_quotes(data: bytes, table: pa.Table, separator: str) -> list[str]:
    """A line where values hold what looks like rows: a quote that should not be there swallows what follows it.

    Raises:
        ValueError: a quote that does not end, or ends within a value.
    """
    rows = csv.reader(io.StringIO(decoded(data), newline=""), delimiter=separator, strict=True)
    last = 0
    try:
        for _ in rows:
            last = rows.line_num
    except csv.Error:
        raise ValueError(
            f"a value that begins in line {last + 1} has a quote that does not end where the value does (line "
            f'{rows.line_num}); close it, and double the quotes within a value ("")'
        ) from None
    columns = [table[place].to_pylist() for place in range(table.num_columns)]
    known = [set(column) for column in columns]
    odd = 0
    for place, column in enumerate(columns):
        for value in filter(_breaks_in, column):
            lines = [line.split(separator) for line in value.splitlines()]
            odd += any(_is_row(line, place, known) for line in lines)
    return [f"values that hold lines which look like rows of their own: {odd}; is a quote left open?"] if odd else []


def _breaks_in(value: str) -> bool:
    return "\n" in value


def _is_row(cells: list[str], place: int, known: list[set[str]]) -> bool:
    """Whether a line within a value of the column at `place` has as many cells as a row, and one that another column
    has elsewhere."""
    if len(cells) != len(known):
        return False
    return any(cell in known[number] for number, cell in enumerate(cells) if number != place)

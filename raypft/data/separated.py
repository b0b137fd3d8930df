"""Rows out of csv and tsv.

A csv is quoted as RFC 4180 says, a tsv is not, unless its header is. Where the header has no separator of its kind but
another (Excel writes ";" in many countries, and "sep=;" before it), that one counts.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pa_compute
import pyarrow.csv as pa_csv

from raypft.data.decode import PIECE, Content, Pieces, check_all_text, check_text
from raypft.data.spool import spooled
from raypft.errors import first_line

compute: Any = pa_compute  # its functions are made at import
SEPARATORS = ",;\t"
BLOCK = 1 << 20
"""Bytes that are read at a time; Arrow reads up to 32 times ahead."""
LARGEST = (1 << 31) - 1
"""Bytes of a block at most; a row must lie in one."""


class _Layout(NamedTuple):
    """How a file is laid out: bytes and lines before its header, what is between two values, and whether they may be
    quoted."""

    skip: int
    lines: int
    separator: str
    quoted: bool


def separated(content: Content, kind: str) -> tuple[pa.Table, list[str]]:
    """The rows of a file, every value as text, and what is odd about them.

    Args:
        kind: the separator that the file's ending promises.

    Raises:
        ValueError: no UTF-8, rows of unequal length, a quote that does not end.
    """
    layout = _layout(content, kind)
    if layout is None:
        return pa.table({}), []
    table = _table(content, layout)
    # Arrow takes what it finds: a quote that is left open, or written \" within a value, as one that closes it
    if not layout.quoted or not (any(map(_breaks, table.columns)) or _escapes(content, table)):
        return table, []
    _check_quotes(content, layout)
    return table, _swallowed(table, layout.separator)


def _layout(content: Content, kind: str) -> _Layout | None:
    """None where no row follows the header."""
    data = b""
    for piece in content.pieces():
        data += piece
        begin = data.removeprefix(codecs.BOM_UTF8)
        check_text(begin)
        head = _first_line(begin)
        told = re.fullmatch(rb"sep=(.)[\r\n]*", head)
        if told:
            begin = begin[len(head) :]
            head = _first_line(begin)
        if re.compile(rb"\S").search(begin, len(head)) is not None:
            separator = told[1].decode("latin-1") if told else _separator(head.decode("utf-8", "replace"), kind)
            quoted = separator != "\t" or kind != "\t" or _all_quoted(head.strip().split(b"\t"))
            return _Layout(len(data) - len(begin), bool(told), separator, quoted)
    return None


def _table(content: Content, layout: _Layout) -> pa.Table:
    # every column is text: "007" is no number, "2020-01-01" no date
    convert = pa_csv.ConvertOptions(default_column_type=pa.string(), strings_can_be_null=False)
    quote = '"' if layout.quoted else False
    parse = pa_csv.ParseOptions(delimiter=layout.separator, quote_char=quote, newlines_in_values=layout.quoted)
    size = BLOCK
    while True:
        read = pa_csv.ReadOptions(block_size=size)
        try:
            with content.stream() as stream:
                stream.read(layout.skip)
                file = stream if isinstance(stream, pa.NativeFile) else pa.PythonFile(stream, "r")
                with pa_csv.open_csv(file, read, parse, convert) as rows:
                    table = pa.Table.from_batches(spooled(rows), rows.schema)
                    table.column_names  # noqa: B018  (no UTF-8, it may be)
                    return table
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            check_all_text(content.pieces())  # what is wrong with the bytes, in words that help
            if "block" in str(error) and size < LARGEST:  # a row must lie in one
                if layout.quoted:
                    _check_quotes(content, layout)
                size = min(16 * size, LARGEST)
                continue
            odd = layout.quoted and "columns" in str(error)
            advice = f'; put quotes around values that hold "{layout.separator}"' if odd else ""
            raise ValueError(f"{first_line(error)}{advice}") from None


def _escapes(content: Content, table: pa.Table) -> bool:
    """Whether a quote is written \\" somewhere."""
    names = any("\\" in name for name in table.column_names)
    if not names and not any(compute.any(compute.match_substring(column, "\\")).as_py() for column in table.columns):
        return False
    last = b""
    for piece in content.pieces():
        if b'\\"' in last + piece:
            return True
        last = piece[-1:]
    return False


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


def _check_quotes(content: Content, layout: _Layout) -> None:
    """Look through a file for a quote that should not be there: it swallows what follows it.

    Raises:
        ValueError: a quote that does not end, or ends within a value.
    """
    stream = io.BufferedReader(Pieces(content.pieces(), layout.skip), PIECE)
    rows = csv.reader(io.TextIOWrapper(stream, "utf-8", newline=""), delimiter=layout.separator, strict=True)
    last, most = 0, csv.field_size_limit(LARGEST)
    try:
        for _ in rows:
            last = rows.line_num
    except csv.Error:
        raise ValueError(
            f"a value that begins in line {layout.lines + last + 1} has a quote that does not end where the value does "
            f'(line {layout.lines + rows.line_num}); close it, and double the quotes within a value ("")'
        ) from None
    finally:
        csv.field_size_limit(most)


def _swallowed(table: pa.Table, separator: str) -> list[str]:
    """A line where values hold what looks like rows: lines with as many cells as a row, one of which another column
    has elsewhere."""
    odd: list[set[tuple[int, str]]] = []  # of each value with line ends, the cells of other columns in such lines
    asked: dict[int, set[str]] = {}
    for place, column in enumerate(table.columns):
        for value in column.filter(compute.match_substring(column, "\n")).to_pylist():
            odd.append(set())
            for line in value.splitlines():
                cells = line.split(separator)
                if len(cells) == table.num_columns:
                    odd[-1] |= {(other, cell) for other, cell in enumerate(cells) if other != place}
            for other, cell in odd[-1]:
                asked.setdefault(other, set()).add(cell)
    known = set[tuple[int, str]]()
    for other, cells in asked.items():
        there = table[other].filter(compute.is_in(table[other], pa.array(cells, pa.string()))).unique()
        known.update((other, cell) for cell in there.to_pylist())
    count = sum(not known.isdisjoint(cells) for cells in odd)
    return (
        [f"values that hold lines which look like rows of their own: {count}; is a quote left open?"] if count else []
    )

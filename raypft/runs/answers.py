"""Rows beside their answers, as `raypft predict` shows and writes them."""

from __future__ import annotations

import csv
import itertools
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet

from raypft.data.content import CHUNK
from raypft.data.decode import Content
from raypft.data.formats import Columns
from raypft.data.json_rows import records
from raypft.data.sources import read_columns
from raypft.errors import UserError, first_line
from raypft.report.table import Table
from raypft.runs.predict import Trained, columns_of_texts, predict, records_of, rows_of
from raypft.storage import check_writable, is_remote, written
from raypft.tasks.kinds.base import Values

ENDINGS = (".parquet", ".jsonl", ".csv", ".tsv")
"""What predictions can be written as."""
Part = tuple[Columns, str]
"""What a file holds, and how messages call it."""
GIVEN = " (given)"
"""Behind the name of a column that is called like one of ours."""


def given(trained: Trained, data: str | None, texts: Sequence[str], language: str | None) -> list[Part]:
    """What is to be answered: each file of `data`, or the row of `texts`. `-` reads stdin: JSON lines as data, a text a
    line as texts.

    Raises:
        UserError: no such file, or it can't be read; no UTF-8; not one text for each field.
    """
    if data == "-":
        try:
            lines = sys.stdin.buffer.read()
            return [(Columns.of_rows(*records(Content(lambda: pa.BufferReader(lines)), by_columns=False)), "stdin")]
        except ValueError as error:
            raise UserError(f"data: stdin can't be read: {first_line(error)}; expected rows as JSON lines") from None
    if data is not None:
        return read_columns(data, language)
    if list(texts) != ["-"]:
        return [(columns_of_texts(trained, texts), "--text")]
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except ValueError as error:
        raise UserError(f"text: stdin can't be read: {first_line(error)}; expected UTF-8, a text a line") from None
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    return [(Columns.of_records(records_of(trained, lines)), "stdin")]


def answered(trained: Trained, parts: Sequence[Part], language: str | None) -> pa.Table:
    """The rows of `given` beside what the model says."""
    tables = []
    for columns, where in parts:
        tables.append(beside(columns, where, predict(trained, rows_of(trained, columns, where, language))))
    return pa.concat_tables(tables, promote_options="permissive")


def beside(columns: Columns, where: str, answers: pa.Table) -> pa.Table:
    """What a file holds, as it stands there, and behind it what the model says: language, answer, p(label) or scores.

    Args:
        where: how messages call the file; answers: `predict.predict` of its rows, in their order. Ids, which are a
        row's own or a hash of its content, are left out.

    Raises:
        UserError: two columns of one name.
    """
    ours = [name for name in answers.column_names if name != "id" and (name != "language" or name not in columns.names)]
    shown: dict[str, pa.Array | pa.ChunkedArray] = {}
    for name in columns.names:
        if columns.names.count(name) > 1:
            raise UserError(f'data: {where} has {columns.names.count(name)} columns called "{name}"; expected one')
        shown[name + GIVEN if name in ours else name] = _array(columns.values(name))
    return pa.table(shown | {name: answers[name] for name in ours})


def _array(values: Values) -> pa.Array | pa.ChunkedArray:
    """A column; values of several types as JSON."""
    if isinstance(values, pa.ChunkedArray):
        return values
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        return pa.array([value if isinstance(value, str | None) else _json(value) for value in values], pa.string())


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def check_out(path: Path) -> None:
    """Raise a UserError unless predictions can be written to this path."""
    if path.suffix not in ENDINGS or (not is_remote(path) and path.is_dir()):
        raise UserError(f"out: found {path}; expected a file that ends in {', '.join(ENDINGS)}")
    check_writable(path.parent, "out")


def lines_of(table: pa.Table) -> Iterator[str]:
    """The rows of a table as JSON, which has no nan and no infinity: null stands for them."""
    for row in _rows(table):
        yield _json(dict(zip(row, map(_finite, row.values()), strict=True)))


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a table, which become Python's some at a time."""
    return itertools.chain.from_iterable(map(pa.RecordBatch.to_pylist, table.to_batches(max_chunksize=CHUNK)))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def shown(title: str, table: pa.Table) -> Table:
    """Predictions as a table for a person."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.3f}"
        return " ".join(map(cell, value)) if isinstance(value, list) else "" if value is None else str(value)

    rows = [list(map(cell, row.values())) for row in table.to_pylist()]
    return Table(title, table.column_names, rows)


def write(table: pa.Table, path: Path) -> None:
    """Write predictions as the path's ending says; lists are JSON in csv and tsv.

    Raises:
        UserError: see `check_out`; a text that tsv can't hold.
    """
    check_out(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as file:
        if path.suffix == ".parquet":
            pa_parquet.write_table(table, file)
        elif path.suffix == ".jsonl":
            with file.open("w", encoding="utf-8") as stream:
                stream.writelines(f"{line}\n" for line in lines_of(table))
        else:
            _separated(table, file, path)


def _separated(table: pa.Table, file: Path, path: Path) -> None:
    """csv, or tsv as the field writes it and `data/formats.py` reads it: without quoting."""
    rows = itertools.chain([table.column_names], (list(map(_cell, row.values())) for row in _rows(table)))
    with file.open("w", encoding="utf-8", newline="") as stream:
        if path.suffix == ".csv":
            csv.writer(stream, lineterminator="\n").writerows(rows)
            return
        for number, row in enumerate(rows):
            if len("".join(row).split("\t")) > 1 or len("".join(row).splitlines()) > 1:
                raise UserError(f"out: row {number - 1} holds a tab or a line break, which tsv can't; write .csv")
            stream.write("\t".join(row) + "\n")


def _cell(value: Any) -> str:
    if isinstance(value, list | dict):
        return _json(value)
    return "" if value is None else str(value)

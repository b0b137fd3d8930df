"""Rows in lines are read a piece at a time: whatever a piece is, the same comes out, and little is read ahead."""

from __future__ import annotations

import gzip
import json
import lzma
import math
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs
from test_formats import notes
from test_odd_files import CHOICE, refused

from raypft.data import decode, formats, json_rows, packed_rows, separated, spool
from raypft.data.decode import Content
from raypft.data.formats import Columns, read_file
from raypft.data.json_rows import records
from raypft.data.packed_rows import PackedRows
from raypft.errors import UserError
from raypft.tasks.kinds.base import listed

LONG = "film " * 100
TEXTS = {
    "csv": f'\ufefftext,label\r\n"Zug, fährt\nab",no\r\n\r\n{LONG},yes\r\n"{LONG}\n{LONG}",no\r\nende,"say ""a"""\r\n',
    "told.csv": 'sep=;\ntext;label\n"Zug; fährt\nab";no\n日本語;yes\nC:\\dir\\;no\n',
    "tsv": f'text\tlabel\nZug fährt\t"no\r{LONG}\tyes\r\n日本語\t\n',
    "jsonl": '\ufeff{"text": "Zug fährt", "label": 1}\r\n\r\n'
    '{"label": "日本語"}\rnull\n{"text": "\\ud83d", "more": [1]}',
}


def held(columns: Columns) -> dict:
    """The columns, by what they hold."""
    return {name: listed(columns.values(name)) for name in columns.names}


def opened(data: bytes):
    return lambda: pa.BufferReader(data)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("packed", [None, "gz", "xz"])
def test_pieces_of_any_size_make_the_same_rows(name, packed, monkeypatch):
    data, ending = TEXTS[name].encode(), name.rpartition(".")[2]
    stored = {None: bytes, "gz": gzip.compress, "xz": lzma.compress}[packed](data)
    read = formats.READERS[ending]
    expected = read(Content(opened(data)), "")
    monkeypatch.setattr(separated, "BLOCK", 16)
    monkeypatch.setattr(packed_rows, "ROWS", 1)
    for size in (1, 7, 64):
        for module in (decode, separated, json_rows):
            monkeypatch.setattr(module, "PIECE", size)
        found = read(Content(opened(stored), packed), "")
        assert held(found) == held(expected)
        assert (found.names, found.rows, found.notes) == (expected.names, expected.rows, expected.notes)


ODD = [
    {"a": 1, "": "x", "\ud800": True, "rows": [["a"], ["b"]]},
    {"a": None, "0": 1.0, "rows": [[], None]},
    {},
    {"a": 1 << 70, "0": -0.0, "": None, "rows": {"b": [1, "x", None]}},
    {"a": "\udc9f", "0": 1, "": "", "rows": []},
    {"a": "1", "0": False, "": "日", "rows": ["a", "b"]},
]


@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_values_come_back_as_they_went_in(rows, monkeypatch):
    """Also their types, and what a row lacks."""
    monkeypatch.setattr(packed_rows, "ROWS", rows)
    packed = PackedRows((row, 1) for row in ODD)
    assert (list(packed.places), packed.rows) == (["a", "", "\ud800", "rows", "0"], len(ODD))
    for name, found in held(Columns.of_rows(packed, [])).items():
        assert list(map(repr, found)) == [repr(row.get(name)) for row in ODD]
    (number,) = held(Columns.of_rows(PackedRows([({"a": math.nan}, 1)]), []))["a"]
    assert math.isnan(number)


def test_texts_numbers_and_lists_of_them_stay_arrows(monkeypatch):
    monkeypatch.setattr(packed_rows, "ROWS", 1)
    rows = [{"t": "a", "n": 1, "l": ["a"]}, {"t": None}, {"t": "b", "n": 2, "l": ["b", ""], "m": [0]}]
    packed = PackedRows((row, 1) for row in rows)
    types = {"t": pa.string(), "n": pa.int64(), "l": pa.list_(pa.string()), "m": pa.list_(pa.int64())}
    for name, kind in types.items():
        found: Any = packed.values(name)
        assert isinstance(found, pa.ChunkedArray)
        assert found.type == kind
        assert found.to_pylist() == [row.get(name) for row in rows]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_little_is_read_ahead(ending, tmp_path, monkeypatch):
    """When the first rows are laid down, most of the file is not read yet."""
    rows = [{"text": f"film {number} {LONG}", "label": "no"} for number in range(4000)]
    lines = [json.dumps(row) if ending == "jsonl" else ",".join(row.values()) for row in rows]
    data = "\n".join([*(["text,label"] if ending == "csv" else []), *lines]).encode()
    for module in (decode, separated, json_rows):
        monkeypatch.setattr(module, "PIECE", 1 << 14)
    monkeypatch.setattr(separated, "BLOCK", 1 << 14)
    monkeypatch.setattr(packed_rows, "ROWS", 20)
    streams, told = list[pa.NativeFile](), list[int]()

    def again() -> pa.NativeFile:
        streams.append(pa.BufferReader(data))
        return streams[-1]

    def watched(batches):
        for batch in batches:
            told.append(len(data) if streams[-1].closed else streams[-1].tell())
            yield batch

    for module in (separated, packed_rows):
        monkeypatch.setattr(module, "spooled", lambda batches: spool.spooled(watched(batches)))
    assert formats.READERS[ending](Content(again), "").rows == len(rows)
    assert told[0] < len(data) / 2  # Arrow reads up to 32 blocks ahead
    assert len(told) > 50


def test_a_document_that_is_large_is_told(origin, tmp_path, monkeypatch):
    monkeypatch.setattr(json_rows, "LARGE", 50)
    (tmp_path / "train.json").write_text(json.dumps([{"text": "a" * 50, "label": "no"}]))
    told = "train.json: one JSON document of 0 MB is read whole; with a row a line, rows are not"
    assert notes(origin(CHOICE), tmp_path) == [told]
    (tmp_path / "train.json").write_text('{"text": "a", "label": "no"}\n' * 9)
    assert notes(origin(CHOICE), tmp_path) == []


def test_a_row_longer_than_a_block_is_read_and_an_open_quote_refused(origin, tmp_path, monkeypatch):
    """Also where the csv module would take no field so long."""
    monkeypatch.setattr(separated, "BLOCK", 64)
    (tmp_path / "train.csv").write_text(f'text,label\na,no\n"{"b" * 200_000}\n",yes\n')
    assert read_file(fs.LocalFileSystem(), str(tmp_path / "train.csv")).rows == 2
    (tmp_path / "train.csv").write_text('text,label\na,no\n"' + "b,no\n" * 1000)
    assert "a value that begins in line 3 has a quote that does not end where the value does" in refused(origin(CHOICE))


def test_a_byte_that_is_no_text_is_told_before_what_else_is_wrong(monkeypatch):
    for module in (decode, json_rows):
        monkeypatch.setattr(module, "PIECE", 3)
    data = '{"a": "日本"}\n{"a": 1\n'.encode() + b'{"a": "\xe4"}\n'
    with pytest.raises(ValueError, match=r"^line 3 holds the byte 0xe4, which is no UTF-8"):
        records(Content(opened(data)), by_columns=False)


def test_what_nests_too_deep_is_refused():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="too many lists"):
        PackedRows([({"a": deep}, 1)])
    while deep:  # let go of one after the other
        deep = deep.pop()


def test_a_file_that_is_cut_off_is_told_while_it_is_read(tmp_path):
    for ending, pack in (("gz", gzip.compress), ("xz", lzma.compress)):
        whole = pack(b"text,label\n" + b"a,no\n" * 100_000)
        (tmp_path / f"x.csv.{ending}").write_bytes(whole[:-20])
        with pytest.raises(UserError, match=f"can't be read: it can't be unpacked as .{ending}: "):
            read_file(fs.LocalFileSystem(), str(tmp_path / f"x.csv.{ending}"))

"""Rows that are many lie in a file: the same values, no memory, and nothing left behind."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pa_parquet
import pytest

from raypft.contract import cases
from raypft.data import formats, sources, spool
from raypft.data.origin import Origin
from raypft.encoded import Encoded
from raypft.errors import UserError
from raypft.tasks.task import Source
from raypft.training import rows

BATCHES = [
    pa.record_batch({"words": [["a", "b"], None], "number": pa.array([1, 2], pa.int8())}),
    pa.record_batch({"words": pa.array(["x"]).dictionary_encode()}),
    pa.record_batch({"words": pa.array([], pa.string())}),
]


@pytest.mark.parametrize("least", [0, 10, 1 << 30])
def test_batches_come_back_as_they_were_whatever_their_schemas(least, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = spool.spooled(iter(BATCHES), least)
    assert found == BATCHES
    assert not list(tmp_path.iterdir())


def test_what_lies_in_a_file_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = pa.total_allocated_bytes()
    made = (pa.record_batch({"number": pa.array(range(start, start + 10_000))}) for start in range(0, 10**6, 10_000))
    found = pa.Table.from_batches(spool.spooled(made, 1 << 20))
    assert found["number"].to_pylist()[::99_999] == [*range(0, 10**6, 99_999)]
    assert pa.total_allocated_bytes() - before < 1 << 20


def test_a_folder_that_is_full_is_one_line(monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spool, "_append", full)
    with pytest.raises(UserError, match=r"takes no more of the rows: .*No space left.*set TMPDIR to a folder"):
        spool.spooled(iter(BATCHES), 0)


@pytest.mark.parametrize("ending", ["parquet", "arrow", "csv"])
def test_a_split_is_the_same_in_memory_and_in_a_file(ending, tmp_path, monkeypatch):
    """Rows of a language that is not asked for between the others."""
    languages = ["en", "de", "fr"] * 700
    names = [("negative", "positive")[number % 2] for number in range(len(languages))]
    texts = [f"film {number}" for number in range(len(languages))]
    table = pa.table({"text": texts, "label": names, "language": languages})
    write(table, tmp_path / f"test.{ending}")
    task = cases.task().model_copy(update={"languages": ["en", "de", "fr"]})
    origin = Origin(task, "files", Source(files={"test": "test"}), str(tmp_path))
    expected = sources.read_split(origin, "test", ["en", "fr"])
    monkeypatch.setattr(spool.spooled, "__defaults__", (0,))
    monkeypatch.setattr(formats, "LEAST", 0)
    monkeypatch.setattr(formats, "ROWS", 100)
    before = pa.total_allocated_bytes()
    found = sources.read_split(origin, "test", ["en", "fr"])
    assert found is not None
    assert expected is not None
    assert found.equals(expected)
    assert len(found) == 1400
    assert pa.total_allocated_bytes() == before


def test_prompts_are_the_same_in_a_file(monkeypatch):
    prompts = [
        Encoded(f"en/{number}", "en", [number, 70_000 * (number % 2)], [0, 1], {"slot": [1]}, answers=["a"])
        for number in range(3000)
    ]
    monkeypatch.setattr(spool.spooled, "__defaults__", (0,))
    assert list(rows.EncodedRows.of(prompts)) == prompts


def write(table: pa.Table, path: Path) -> None:
    """A file as its ending says."""
    if path.suffix == ".parquet":
        pa_parquet.write_table(table, path, row_group_size=500)
    elif path.suffix == ".arrow":
        feather.write_feather(table, str(path), "uncompressed")
    else:
        names = table.column_names
        lines = [",".join(names), *(",".join(row.values()) for row in table.to_pylist())]
        path.write_text("\n".join(lines) + "\n")

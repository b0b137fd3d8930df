"""Columns in memory up to a size; larger ones in a file without a name, whose pages the machine takes back as it needs
memory and reads again as they are asked for."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable
from typing import BinaryIO

import pyarrow as pa

from raypft.errors import UserError, first_line

LEAST = 64 << 20
"""Bytes that are kept in memory."""
ROWS = 1 << 16
"""Of so many at most a batch is made."""
ALIGNED = 64
"""Bytes of which a batch begins at a multiple, as Arrow reads them in place."""


def spooled(batches: Iterable[pa.RecordBatch], least: int = LEAST) -> list[pa.RecordBatch]:
    """Record batches, which need not have one schema, as they are; of more than `least` bytes as views of a file.

    The file lies in the folder for temporary files (TMPDIR) and is gone with the process, however that ends.

    Raises:
        UserError: the folder takes no more.
    """
    kept, size, places = list[pa.RecordBatch](), 0, list[tuple[int, int]]()
    file: BinaryIO | None = None
    try:
        for batch in batches:
            kept.append(batch)
            size += batch.nbytes
            if file is None and size > least:
                file = tempfile.TemporaryFile()  # noqa: SIM115  (what is mapped outlives it)
            if file is not None:
                places += [_append(file, one) for one in kept]
                kept.clear()
        if file is None:
            return kept
        file.flush()
        mapped = pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        if file is None:
            raise
        raise UserError(
            f"data: {tempfile.gettempdir()} takes no more of the rows: {first_line(error)}; "
            "set TMPDIR to a folder that has room"
        ) from None
    finally:
        if file is not None:
            file.close()
    streams = (pa.ipc.open_stream(mapped.slice(begin, length)) for begin, length in places)
    return [stream.read_next_batch() for stream in streams]


def _append(file: BinaryIO, batch: pa.RecordBatch) -> tuple[int, int]:
    """Write a batch behind what is there; where it begins, and its length, in bytes."""
    file.write(bytes(-file.tell() % ALIGNED))
    begin = file.tell()
    with pa.ipc.new_stream(pa.PythonFile(file, "w"), batch.schema) as writer:
        writer.write_batch(batch)
    return begin, file.tell() - begin

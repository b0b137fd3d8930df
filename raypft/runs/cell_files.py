"""What a cell leaves on disk: its answers as they come, what is kept of the trained values, its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet

from raypft import shards
from raypft.methods.base import Result
from raypft.records import sealed
from raypft.runs.results import (
    DEMOS,
    LOG,
    PARTS,
    PREDICTIONS,
    PREVIOUS,
    STATE,
    TESTED,
    UNTESTED,
    read_parquet,
    rows_digest,
)
from raypft.storage import remove, sha256, tidy, written


@contextmanager
def predictions(folder: Path, files: dict[str, str]) -> Iterator[Callable[[pa.Table], None]]:
    """What writes the next rows of a cell's predictions, which stand there whole in the end.

    Args:
        files: gets their sha256.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writers = list[pa_parquet.ParquetWriter]()
    with written(folder / PREDICTIONS) as file:
        with ExitStack() as stack:

            def write(table: pa.Table) -> None:
                if not writers:
                    writers.append(stack.enter_context(pa_parquet.ParquetWriter(file, table.schema)))
                writers[0].write_table(table.cast(writers[0].schema))

            yield write
        files[PREDICTIONS] = sha256(file)


def save_kept(path: Path, kept: Result, shapes: shards.Shapes, values: Iterator[tuple[str, Any]]) -> dict[str, str]:
    """Write what is kept of the trained parameters, one at a time, and read it back, nothing where nothing is kept; the
    sha256 of what is written, by file.

    Args:
        shapes: of all values, by name, in the order in which they come; values: used up.
    """
    named = {kept.names[name]: shape for name, shape in shapes.items() if name in kept.names}
    if not named:
        return {}
    changed = ((kept.names[name], value) for name, value in values if name in kept.names)
    return shards.save(path, named, ((name, kept.change(name, value)) for name, value in changed), kept.metadata)


def conclude(folder: Path, name: str, result: dict[str, Any]) -> None:
    """Write a result, which comes last and says that the cell is whole, and remove what it does not need any more.

    Args:
        result: its `files`, the sha256 of what was written, gets that of the rows of demonstrations.
    """
    if (folder / DEMOS).is_file():
        result["files"][DEMOS] = rows_digest(read_parquet(folder / DEMOS))
    with written(folder / name) as file:
        file.write_text(sealed(result, indent=1))
    remove(folder / PARTS)
    for path in [folder / STATE, folder / PREVIOUS, folder / LOG, *([folder / UNTESTED] * (name == TESTED))]:
        path.unlink(missing_ok=True)
    tidy(folder)

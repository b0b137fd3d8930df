"""Ray Data: chosen rows -> encoded prompts -> Arrow files of a sample, mapped by every worker from shared storage.

Encoding ends before the worker group starts, so that readers and workers never wait for each other's CPUs; only
streamed rows are read while workers train (`RayFlow`), by tasks that are short.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import ray

from raypft.config.job import Job
from raypft.config.load import resolve
from raypft.data import streaming
from raypft.data.sampling import Sample
from raypft.encoded import Encoded
from raypft.errors import UserError, first_line
from raypft.readouts import READOUTS
from raypft.records import read, read_or_none, sealed
from raypft.runs.cell import Cell
from raypft.scale.encoding import EncoderOf, encode_file, encode_shards, read_steps
from raypft.scale.resources import ENCODER_CPUS
from raypft.storage import (
    absolute,
    is_remote,
    on_disk,
    owned,
    path_of,
    remove,
    remove_left,
    sha256,
    write_text,
    written,
)
from raypft.training.encode import ENCODING, ROLES
from raypft.training.flow import Share
from raypft.training.rows import EncodedRows

SHARDS = "shards.json"
"""The file that names the shards of a folder, written when all are there."""
SHARD = 2048
"""Rows of a shard at most."""
FEW = 2000
"""So many rows are encoded in the process that asks: a process of Ray Data takes longer to start."""
AHEAD, TASKS = 256, 4096
"""Rows that a task of a stream reads for a worker, at least; tasks that are planned at a time."""
IN_FLIGHT = 256 << 20
"""Bytes of encoded rows on their way to a worker."""
Work = tuple[pa.Table, EncoderOf, Path]
"""Rows, what encodes them, and the file that their prompts go to."""


def encoded_folder(cell: Cell) -> Path:
    """Where a cell's encoded prompts are: named after all they depend on, so that cells share what they can."""
    job, task = cell.job, cell.resolved.task
    parts = [
        ENCODING,
        task.model_dump(include={"name", "kind", "fields", "label"}),
        cell.resolved.pattern.model_dump(),
        cell.facts["backbone"],
        job.train.max_tokens,
        cell.resolved.method_config.soft_tokens,
        job.readout,
        cell.facts["manifest"],
    ]
    own_readout = READOUTS.own_hash(job.readout["name"])
    if own_readout:
        parts.append(own_readout)
    name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return path_of(absolute(job.storage)) / ".encoded" / name


def remove_left_in(storage: str) -> None:
    """Remove what killed processes left in a storage: rows that were to be encoded, and Ray Train's own files."""
    root = path_of(absolute(storage))
    remove_left(root / ".encoded", "*.rows")
    remove_left(root / ".ray", "attempt-*")


def sample_of(cell: Cell) -> Sample:
    """The rows of a cell that was not packed."""
    assert cell.sample is not None
    return cell.sample


def index_file(cell: Cell, index: streaming.Index) -> Path:
    """Where it says what a cell streams, and where that lies."""
    digest = hashlib.sha256(index.dump().encode()).hexdigest()[:16]
    return encoded_folder(cell).with_name(f"{digest}.stream.json")


def packed(cell: Cell) -> dict[str, Any]:
    """A cell as workers get it: without its rows, with where they are encoded."""
    index = sample_of(cell).stream
    streamed = None
    if isinstance(index, streaming.Index):
        streamed = {"index": str(index_file(cell, index)), "rows": index.rows}
    return {
        "job": cell.job.model_dump(),
        "seed": cell.seed,
        "folder": absolute(cell.folder),
        "encoded": str(encoded_folder(cell)),
        "facts": cell.facts,
        "test": cell.test,
        "stream": streamed,
    }


def unpacked(message: dict[str, Any]) -> Cell:
    """The cell, without its rows."""
    resolved, folder = resolve(Job(**message["job"])), path_of(message["folder"])
    return Cell(resolved, message["seed"], folder, message["facts"], test=message["test"])


def encode_on_ray(cells: Sequence[Cell]) -> None:
    """Encode what the cells need and is not there yet into shards, each of some rows of a role; many rows in one pass
    of Ray Data, which writes the shards where it makes them. What says that all are there is written last."""
    for cell in cells:
        index = sample_of(cell).stream
        if isinstance(index, streaming.Index):
            path = index_file(cell, index)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, index.dump())
    missing = {folder: cell for cell in cells if not _is_encoded(folder := encoded_folder(cell))}
    works = list[Work]()
    for folder, cell in missing.items():
        folder.mkdir(parents=True, exist_ok=True)
        encoder = (json.dumps(cell.job.model_dump()), json.dumps(_demos(sample_of(cell))))
        works += [(rows, encoder, folder / shard) for shard, rows in _shards(sample_of(cell))]
    if sum(len(rows) for rows, _, _ in works) <= FEW:
        for work in works:
            encode_file(*work)
    else:
        _encode_on_ray(works, cells[0].job)
    for folder in missing:
        shards = {to.name: _digest(to) for _, _, to in works if to.parent == folder}
        write_text(folder / SHARDS, sealed({"shards": shards}))


def _is_encoded(folder: Path) -> bool:
    """Whether all shards of a folder are there and what was written; a folder that isn't is encoded anew."""
    shards = (read_or_none(folder / SHARDS) or {}).get("shards")
    if not isinstance(shards, dict):
        return False
    try:
        return all(_digest(folder / name) == digest for name, digest in shards.items())
    except OSError:
        return False


def _digest(shard: Path) -> str:
    """The sha256 of a shard; of an object its size, since stores see to their content themselves."""
    if is_remote(shard):
        return str(shard.stat().st_size)
    stat = shard.stat()
    return _sha256(shard, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _sha256(shard: Path, size: int, time: int) -> str:
    """Of a file as it was then: cells share shards."""
    return sha256(shard)


def _shards(sample: Sample) -> Iterator[tuple[str, pa.Table]]:
    """The shards of a sample by their names, ROLE-NUMBER.arrow, with the rows of each."""
    for role in ROLES:
        table: pa.Table = getattr(sample, role) or pa.table({})
        for start in range(0, len(table), SHARD):
            yield f"{role}-{start // SHARD:06}.arrow", table.slice(start, SHARD)


def _encode_on_ray(works: Sequence[Work], job: Job) -> None:
    """`encode_shards` by processes of Ray Data, which read the rows from shared storage."""
    with owned(works[0][2].parent.with_name(f"{os.getpid()}-{time.time_ns()}.rows")) as scratch:
        try:
            _encode_from(scratch, works, job)
        finally:
            remove(scratch)


def _encode_from(scratch: Path, works: Sequence[Work], job: Job) -> None:
    """`_encode_on_ray`, from rows that are written into a folder."""
    encoders, asked = list(dict.fromkeys(encoder for _, encoder, _ in works)), list[dict[str, Any]]()
    for number, (rows, encoder, to) in enumerate(works):
        path = scratch / f"{number:06}.arrow"
        with written(path) as file, pa.ipc.new_file(str(file), rows.schema) as writer:
            writer.write_table(rows)
        asked.append({"rows": str(path), "to": str(to), "encoder": encoders.index(encoder)})
    dataset = ray.data.from_items(asked, override_num_blocks=len(asked)).map_batches(
        encode_shards,  # pyright: ignore[reportArgumentType]  # its type knows no fn_kwargs
        fn_kwargs={"encoders": encoders},
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=ENCODER_CPUS,
        **_where(job),
    )
    dataset.materialize()


def _where(job: Job) -> dict[str, Any]:
    """On which nodes rows are read and encoded, as an option of Ray Data."""
    label = job.resources.data_label
    return {"label_selector": dict([label.split("=")])} if label else {}


def _demos(sample: Sample) -> list[dict]:
    return [] if sample.demos is None else sample.demos.to_pylist()


class RayFlow:
    """A flow whose rows Ray Data reads and encodes, wherever there are CPUs for it, a little ahead of the worker."""

    def __init__(self, job: Job, index: str, rows: int) -> None:
        self.job, self.index, self.rows = job, index, rows

    def __call__(self, share: Share) -> Iterator[list[Encoded]]:
        steps = -(-self.rows // share.batch_size)
        each = max(1, AHEAD * share.world // share.batch_size)
        for first in range(share.step, steps, each * TASKS):
            yield from self._part(share, range(first, min(steps, first + each * TASKS)), each)

    def _part(self, share: Share, steps: range, each: int) -> Iterator[list[Encoded]]:
        """The prompts of some steps; a task reads `each` steps and ends: ranks never wait for each other's CPUs."""
        asked = {"job": json.dumps(self.job.model_dump()), "index": self.index, "share": vars(share), "count": each}
        begins = [{"step": step} for step in steps[::each]]
        ray.data.DataContext.get_current().enable_progress_bars = False
        dataset = ray.data.from_items(begins, override_num_blocks=len(begins)).map_batches(
            read_steps,  # pyright: ignore[reportArgumentType]  # its type knows no fn_kwargs
            fn_kwargs=asked,
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=ENCODER_CPUS,
            _generator_backpressure_num_objects=-1,
            **_where(self.job),
        )
        context = dataset.context
        context.raise_original_map_exception = True
        context.execution_options.preserve_order = True
        context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(
            object_store_memory=IN_FLIGHT
        )
        step, prompts = steps.start, list[Encoded]()
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
            columns = cast(pa.Table, table)
            for number, prompt in zip(columns["step"].to_pylist(), EncodedRows(columns.to_batches()), strict=True):
                while step < number:
                    yield prompts
                    step, prompts = step + 1, []
                prompts.append(prompt)
        for _ in range(step, steps.stop):
            yield prompts
            prompts = []


def read_encoded(folder: Path) -> dict[str, EncodedRows]:
    """Role to encoded prompts, memory-mapped.

    Raises:
        UserError: they are not there, or not whole.
    """
    prompts: dict[str, EncodedRows] = {}
    try:
        found = read(folder / SHARDS, shards=dict)
        if found is None:
            raise FileNotFoundError(f"it holds no {SHARDS}")
        with ExitStack() as stack:  # a copy out of a bucket may be removed once it is mapped
            for role, names in itertools.groupby(found["shards"], key=lambda name: name.partition("-")[0]):
                prompts[role] = EncodedRows.read(stack.enter_context(on_disk(folder / name)) for name in names)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"run: {folder} can't be read: {first_line(error)}; run again, which encodes anew") from None
    return prompts

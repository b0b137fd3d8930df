"""Ray Data: chosen rows -> encoded prompts -> one Arrow file per sample, read back by every worker from shared storage.

Encoding ends before the worker group starts, so that readers and workers never wait for each other's CPUs; only
streamed rows are read while workers train (`RayFlow`), by tasks that are short.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pa_compute
import pyarrow.parquet as pa_parquet
import ray

from raypft.backbones.load import load_text
from raypft.config.job import Job
from raypft.config.load import resolve
from raypft.data import streaming
from raypft.data.sampling import Sample
from raypft.encoded import Encoded
from raypft.readouts import READOUTS
from raypft.runs.cell import Cell
from raypft.scale.resources import ENCODER_CPUS
from raypft.storage import absolute, on_disk, path_of, written
from raypft.training.encode import ENCODING, RECORD, ROLES, Encoder, from_record, to_record, uncollected
from raypft.training.loader import Share, steps

FEW = 2000
"""So many rows are encoded in the process that asks: a process of Ray Data takes longer to start."""
AHEAD, TASKS = 256, 4096
"""Rows that a task of a stream reads for a worker, at least; tasks that are planned at a time."""
IN_FLIGHT = 256 << 20
"""Bytes of encoded rows on their way to a worker."""
BESIDE = pa.schema([("file", pa.string()), ("role", pa.string()), ("number", pa.int64())])
"""What travels with a row through Ray Data."""


@functools.lru_cache(maxsize=8)
def _encoder(job: str, demos: str) -> Encoder:
    """One encoder per job in each process of Ray Data, however many batches it gets."""
    resolved = resolve(Job(**json.loads(job)))
    text = load_text(resolved.job.backbone)
    return Encoder.of(resolved, text, pa.Table.from_pylist(json.loads(demos)))


@uncollected()
def encode_batch(batch: pa.Table, files: dict[str, tuple[str, str]]) -> pa.Table:
    """Rows to encoded prompts, `file`, `role` and `number` kept beside.

    Args:
        files: name of an encoded file to the job and demonstrations that encode its rows, as JSON.
    """
    records: list[dict[str, Any]] = []
    for row in batch.to_pylist():
        beside = {key: row[key] for key in BESIDE.names}
        prompts = _encoder(*files[row["file"]])(json.loads(row["row"]))
        records += [{**to_record(prompt), **beside} for prompt in prompts]
    return pa.Table.from_pylist(records, schema=pa.schema([*RECORD, *BESIDE]))


def encoded_file(cell: Cell) -> Path:
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
    return path_of(absolute(job.storage)) / ".encoded" / f"{name}.arrow"


def sample_of(cell: Cell) -> Sample:
    """The rows of a cell that was not packed."""
    assert cell.sample is not None
    return cell.sample


def index_file(cell: Cell, index: streaming.Index) -> Path:
    """Where it says what a cell streams, and where that lies."""
    digest = hashlib.sha256(index.dump().encode()).hexdigest()[:16]
    return encoded_file(cell).with_name(f"{digest}.stream.json")


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
        "encoded": str(encoded_file(cell)),
        "facts": cell.facts,
        "test": cell.test,
        "stream": streamed,
    }


def unpacked(message: dict[str, Any]) -> Cell:
    """The cell, without its rows."""
    resolved, folder = resolve(Job(**message["job"])), path_of(message["folder"])
    return Cell(resolved, message["seed"], folder, message["facts"], test=message["test"])


def encode_on_ray(cells: Sequence[Cell]) -> None:
    """Encode what the cells need and is not there yet, into one Arrow file per sample; many rows in one pass of Ray
    Data."""
    for cell in cells:
        index = sample_of(cell).stream
        if isinstance(index, streaming.Index) and not (path := index_file(cell, index)).is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with written(path) as file:
                file.write_text(index.dump())
    missing = {path.stem: (path, cell) for cell in cells if not (path := encoded_file(cell)).is_file()}
    if not missing:
        return
    tables = [_rows(name, sample_of(cell)) for name, (_, cell) in missing.items()]
    files = {
        name: (json.dumps(cell.job.model_dump()), json.dumps(_demos(sample_of(cell))))
        for name, (_, cell) in missing.items()
    }
    folder, all_rows = next(iter(missing.values()))[0].parent, pa.concat_tables(tables)
    folder.mkdir(parents=True, exist_ok=True)
    if len(all_rows) <= FEW:
        encoded = encode_batch(all_rows, files)
    else:
        encoded = _encoded_on_ray(all_rows, files, folder, cells[0].job)
    for name, (path, _) in missing.items():
        of_file = pa_compute.equal(encoded["file"], name)  # pyright: ignore[reportAttributeAccessIssue]  # made at import
        prompts = encoded.filter(of_file).drop_columns("file")
        prompts = prompts.sort_by([("number", "ascending"), ("part", "ascending")])
        with written(path) as file, pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, prompts.schema) as writer:
            writer.write_table(prompts)


def _encoded_on_ray(all_rows: pa.Table, files: dict[str, tuple[str, str]], folder: Path, job: Job) -> pa.Table:
    """`encode_batch` by processes of Ray Data, which read the rows from shared storage."""
    rows = folder / f"{os.getpid()}-{time.time_ns()}.rows.parquet"  # several processes may encode at once
    with written(rows) as file:
        pa_parquet.write_table(all_rows, file)
    dataset = ray.data.read_parquet(str(rows)).map_batches(
        encode_batch,  # pyright: ignore[reportArgumentType]  # its type knows no fn_kwargs
        fn_kwargs={"files": files},
        batch_format="pyarrow",
        batch_size=256,
        num_cpus=ENCODER_CPUS,
        **_where(job),
    )
    tables = ray.get(cast("list[ray.ObjectRef[pa.Table]]", dataset.to_arrow_refs()))
    rows.unlink(missing_ok=True)
    return pa.concat_tables(tables)


def _where(job: Job) -> dict[str, Any]:
    """On which nodes rows are read and encoded, as an option of Ray Data."""
    label = job.resources.data_label
    return {"label_selector": dict([label.split("=")])} if label else {}


def _rows(name: str, sample: Sample) -> pa.Table:
    """A sample's rows as JSON, since tasks differ in columns, with the file they go to, their role and their number."""
    roles: list[str] = []
    rows: list[str] = []
    for role in ROLES:
        table = getattr(sample, role)
        if table is not None:
            roles += [role] * len(table)
            rows += [json.dumps(row) for row in table.to_pylist()]
    return pa.table(
        {
            "file": pa.array([name] * len(rows), pa.string()),
            "role": pa.array(roles, pa.string()),
            "number": pa.array(range(len(rows)), pa.int64()),
            "row": pa.array(rows, pa.string()),
        }
    )


def _demos(sample: Sample) -> list[dict]:
    return [] if sample.demos is None else sample.demos.to_pylist()


def read_steps(batch: pa.Table, job: str, index: str, share: dict[str, Any], count: int) -> Iterator[pa.Table]:
    """Of each step in `batch` and those after it, `count` in all, a rank's rows, read and encoded, `step` beside."""
    reader, encoder = _reader(job, index)
    schema = pa.schema([*RECORD, ("step", pa.int64())])
    for first in batch["step"].to_pylist():
        read = steps(reader, encoder, Share(**{**share, "step": first}), count)
        for number, prompts in enumerate(read, start=first):
            if prompts:
                records = [{**to_record(prompt), "step": number} for prompt in prompts]
                yield pa.Table.from_pylist(records, schema=schema)


@functools.lru_cache(maxsize=4)
def _reader(job: str, path: str) -> tuple[streaming.Reader, Encoder]:
    """One for each job in a process of Ray Data, so that row groups are read once where steps follow each other."""
    resolved = resolve(Job(**json.loads(job)))
    mix, text = resolved.job.data.stream, load_text(resolved.job.backbone)
    assert mix is not None
    index = streaming.Index.load(resolved.origin, path_of(path).read_text())
    return streaming.Reader(index, mix), Encoder.of(resolved, text)


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
            for record in cast(pa.Table, table).to_pylist():
                number = record.pop("step")
                while step < number:
                    yield prompts
                    step, prompts = step + 1, []
                prompts.append(from_record(record))
        for _ in range(step, steps.stop):
            yield prompts
            prompts = []


@uncollected()
def read_encoded(path: Path) -> dict[str, list[Encoded]]:
    """Role to encoded prompts, memory-mapped."""
    prompts: dict[str, list[Encoded]] = {}
    with on_disk(path) as file, pa.memory_map(str(file)) as source:
        for record in pa.ipc.open_file(source).read_all().drop_columns("number").to_pylist():
            prompts.setdefault(record.pop("role"), []).append(from_record(record))
    return prompts

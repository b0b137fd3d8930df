"""Ray Data: chosen rows -> encoded prompts -> one Arrow file per sample, read back by every worker from shared storage.

Encoding ends before the worker group starts, so that readers and workers never wait for each other's CPUs.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import ray

from raypft.backbones import load_skeleton
from raypft.batch import Encoded
from raypft.cells import Cell
from raypft.encode import ENCODING, RECORD, ROLES, Encoder, from_record, to_record
from raypft.fewshot import Sample
from raypft.job import Job, part_config
from raypft.storage import absolute, on_disk, path_of, written
from raypft.tasks import load_task

ENCODER_CPUS = 0.5
BESIDE = pa.schema([("file", pa.string()), ("role", pa.string()), ("number", pa.int64())])
"""What travels with a row through Ray Data."""


@functools.lru_cache(maxsize=8)
def _encoder(job: str, demos: str) -> Encoder:
    """One encoder per job in each process of Ray Data, however many batches it gets."""
    made = Job(**json.loads(job))
    return Encoder.of(made, load_skeleton(made.backbone), pa.Table.from_pylist(json.loads(demos)))


def encode_batch(batch: pa.Table, files: dict[str, tuple[str, str]]) -> pa.Table:
    """Rows to encoded prompts, `file`, `role` and `number` kept beside.

    Args:
        files: name of an encoded file to the job and demonstrations that encode its rows, as JSON.
    """
    records = [
        {**to_record(prompt), **{key: row[key] for key in BESIDE.names}}
        for row in batch.to_pylist()
        for prompt in _encoder(*files[row["file"]])(json.loads(row["row"]))
    ]  # fmt: skip
    return pa.Table.from_pylist(records, schema=pa.schema([*RECORD, *BESIDE]))


def encoded_file(cell: Cell) -> Path:
    """Where a cell's encoded prompts are: named after all they depend on, so that cells share what they can."""
    job = cell.job
    _, method = part_config(job.method, "method")
    task = load_task(job.task)
    parts = [
        ENCODING,
        task.model_dump(include={"name", "kind", "fields", "label"}),
        task.pattern(job.pattern).model_dump(),
        cell.facts["backbone"],
        job.train.max_tokens,
        method.soft_tokens,
        job.readout,
        cell.facts["manifest"],
    ]
    return path_of(absolute(job.storage)) / ".encoded" / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}.arrow"


def encode_on_ray(cells: Sequence[Cell]) -> None:
    """Encode what the cells need and is not there yet, in one pass of Ray Data, into one Arrow file per sample."""
    missing = {path.stem: (path, cell) for cell in cells if not (path := encoded_file(cell)).is_file()}
    if not missing:
        return
    tables = [_rows(name, cell.sample) for name, (_, cell) in missing.items()]
    files = {name: (json.dumps(cell.job.model_dump()), json.dumps(_demos(cell.sample))) for name, (_, cell) in missing.items()}
    folder = next(iter(missing.values()))[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / f"{os.getpid()}-{time.time_ns()}.rows.parquet"  # several processes may encode at once
    with written(rows) as file:
        pa_parquet.write_table(pa.concat_tables(tables), file)
    dataset = ray.data.read_parquet(str(rows)).map_batches(
        encode_batch, fn_kwargs={"files": files}, batch_format="pyarrow", batch_size=256, num_cpus=ENCODER_CPUS
    )
    encoded = pa.concat_tables(ray.get(dataset.to_arrow_refs()))
    for name, (path, _) in missing.items():
        own = encoded.filter(pa.compute.equal(encoded["file"], name)).sort_by([("number", "ascending"), ("part", "ascending")]).drop_columns("file")
        with written(path) as file, pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, own.schema) as writer:
            writer.write_table(own)
    rows.unlink(missing_ok=True)


def _rows(name: str, sample: Sample) -> pa.Table:
    """A sample's rows as JSON, since tasks differ in columns, with the file they go to, their role and their number."""
    found = [(role, row) for role in ROLES if (table := getattr(sample, role)) is not None for row in table.to_pylist()]
    return pa.table({
        "file": pa.array([name] * len(found), pa.string()),
        "role": pa.array([role for role, _ in found], pa.string()),
        "number": pa.array(range(len(found)), pa.int64()),
        "row": pa.array([json.dumps(row) for _, row in found], pa.string()),
    })  # fmt: skip


def _demos(sample: Sample) -> list[dict]:
    return [] if sample.demos is None else sample.demos.to_pylist()


def read_encoded(path: Path) -> dict[str, list[Encoded]]:
    """Role to encoded prompts, memory-mapped."""
    prompts: dict[str, list[Encoded]] = {}
    with on_disk(path) as file, pa.memory_map(str(file)) as source:
        for record in pa.ipc.open_file(source).read_all().drop_columns("number").to_pylist():
            prompts.setdefault(record.pop("role"), []).append(from_record(record))
    return prompts

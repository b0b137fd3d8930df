"""Ray Data: chosen rows -> encoded prompts -> one Arrow file per sample, read back by every worker from shared storage.

Encoding ends before the worker group starts, so that readers and workers never wait for each other's CPUs.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import ray

from raypft.backbones import load_skeleton
from raypft.batch import Encoded
from raypft.encode import RECORD, ROLES, Encoder, from_record, to_record
from raypft.fewshot import Sample
from raypft.job import Job

ENCODER_CPUS = 0.5


@functools.lru_cache(maxsize=1)
def _encoder(job: str, demos: str) -> Encoder:
    """One encoder per worker process of Ray Data, however many batches it gets."""
    made = Job(**json.loads(job))
    return Encoder.of(made, load_skeleton(made.backbone), pa.Table.from_pylist(json.loads(demos)))


def encode_batch(batch: pa.Table, job: str, demos: str) -> pa.Table:
    """Rows to encoded prompts, `role` and `number` kept beside; job and demonstrations as JSON."""
    encoder = _encoder(job, demos)
    encoded = pa.Table.from_pylist([to_record(encoder(row)) for row in batch.to_pylist()], schema=RECORD)
    return encoded.append_column("role", batch["role"]).append_column("number", batch["number"])


def encode_on_ray(job: Job, sample: Sample, folder: Path, name: str) -> Path:
    """Encode a sample with Ray Data into `folder/<name>.arrow`; done once per sample, whatever the number of seeds."""
    path = folder / f"{name}.arrow"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    tables = [(role, table) for role in ROLES if (table := getattr(sample, role)) is not None]
    rows = pa.concat_tables([table.append_column("role", pa.array([role] * len(table), pa.string())) for role, table in tables])
    rows = rows.append_column("number", pa.array(range(len(rows)), pa.int64()))
    pa_parquet.write_table(rows, folder / f"{name}.rows.parquet")
    dataset = ray.data.read_parquet(str(folder / f"{name}.rows.parquet")).map_batches(
        encode_batch,
        fn_kwargs={"job": json.dumps(job.model_dump()), "demos": json.dumps([] if sample.demos is None else sample.demos.to_pylist())},
        batch_format="pyarrow",
        batch_size=256,
        num_cpus=ENCODER_CPUS,
    )
    encoded = pa.concat_tables(ray.get(dataset.to_arrow_refs())).sort_by("number")
    partial = path.with_suffix(".partial")
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, encoded.schema) as writer:
        writer.write_table(encoded)
    partial.replace(path)
    return path


def read_encoded(path: Path) -> dict[str, list[Encoded]]:
    """Role to encoded prompts, memory-mapped."""
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    prompts: dict[str, list[Encoded]] = {}
    for record in table.drop_columns("number").to_pylist():
        prompts.setdefault(record.pop("role"), []).append(from_record(record))
    return prompts

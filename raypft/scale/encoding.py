"""What processes of Ray Data do: they encode rows into files of prompts, or into the prompts of some steps. They load
tokenizers and no models.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from raypft.backbones.text_load import load_text
from raypft.config.job import Job
from raypft.config.load import resolve
from raypft.data import streaming
from raypft.storage import on_disk, path_of, written
from raypft.training.encode import Encoder, encoded, uncollected
from raypft.training.flow import Share, steps
from raypft.training.rows import columns_of, write

EncoderOf = tuple[str, str]
"""What makes an encoder in any process: job and demonstrations, as JSON."""


@functools.lru_cache(maxsize=8)
def _encoder(job: str, demos: str) -> Encoder:
    """One encoder per job in each process of Ray Data, however many shards it gets."""
    resolved = resolve(Job(**json.loads(job)))
    text = load_text(resolved.job.backbone)
    return Encoder.of(resolved, text, pa.Table.from_pylist(json.loads(demos)))


def encode_shards(batch: pa.Table, encoders: Sequence[EncoderOf]) -> pa.Table:
    """Encode files of rows into files of prompts; what comes back is how many prompts each has.

    Args:
        batch: the paths `rows` and `to`; `encoder`, which of the encoders.
    """
    counts = []
    for one in batch.to_pylist():
        with on_disk(path_of(one["rows"])) as file, pa.memory_map(str(file)) as source:
            counts.append(
                encode_file(pa.ipc.open_file(source).read_all(), encoders[one["encoder"]], path_of(one["to"]))
            )
    return pa.table({"prompts": pa.array(counts, pa.int64())})


@uncollected()
def encode_file(rows: pa.Table, encoder: EncoderOf, to: Path) -> int:
    """Encode rows into a file of prompts; how many these are."""
    with written(to) as file:
        return write(encoded(_encoder(*encoder), rows), file)


def read_steps(batch: pa.Table, job: str, index: str, share: dict[str, Any], count: int) -> Iterator[pa.Table]:
    """Of each step in `batch` and those after it, `count` in all, a rank's rows, read and encoded, `step` beside."""
    reader, encoder = _reader(job, index)
    for first in batch["step"].to_pylist():
        read = steps(reader, encoder, Share(**{**share, "step": first}), count)
        for number, prompts in enumerate(read, start=first):
            if prompts:
                columns = pa.Table.from_batches([columns_of(prompts)])
                yield columns.append_column("step", pa.array([number] * len(prompts), pa.int64()))


@functools.lru_cache(maxsize=4)
def _reader(job: str, path: str) -> tuple[streaming.Reader, Encoder]:
    """One for each job in a process of Ray Data, so that row groups are read once where steps follow each other."""
    resolved = resolve(Job(**json.loads(job)))
    mix, text = resolved.job.data.stream, load_text(resolved.job.backbone)
    assert mix is not None
    index = streaming.Index.load(resolved.origin, path_of(path).read_text())
    return streaming.Reader(index, mix), Encoder.of(resolved, text)

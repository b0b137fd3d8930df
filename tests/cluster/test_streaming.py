"""A stream on two hosts: six languages, ten times the rows that a reader may hold.

Each row comes once, memory stays flat, the mix is kept, no worker starves. RAYPFT_ALL_NODES=1 runs it; what it measured
is printed (-s).
"""

from __future__ import annotations

import json
import statistics
import sys
import tracemalloc
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from hosts import ROOT
from test_cli import place, words  # noqa: F401  (a fixture)
from test_nodes import Run, hosts, more, reason  # noqa: F401  (a fixture)
from test_streaming_order import task_with

from raypft.config.load import load_job
from raypft.data.streaming import Index
from raypft.runs.prepare import prepare
from raypft.training.encode import Encoder

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(reason is not None, reason=reason or ""),
]
SIZES = {"en": 60_000, "de": 36_000, "fr": 24_000, "tr": 12_000, "sw": 9_000, "zh": 3_000}


def write(place, sizes: dict[str, int]) -> None:  # noqa: F811
    """Train rows of about 60 tokens, a row group of 1,000 at a time."""
    text = {name: f"the film was {'good' if i % 2 else 'bad'} " * 14 for i, name in enumerate(sizes)}
    for name, size in sizes.items():
        rows = {
            "id": [f"{name}{i}" for i in range(size)],
            "language": [name] * size,
            "text": [f"{text[name]} {i}" for i in range(size)],
        }
        (place / "train").mkdir(exist_ok=True)
        table = pa.table({**rows, "label": [("negative", "positive")[i % 2] for i in range(size)]})
        pa_parquet.write_table(table, place / "train" / f"{name}.parquet", row_group_size=1000)
    (place / "train.parquet").unlink(missing_ok=True)
    task = task_with("train/*.parquet").replace("languages: [en, de]", f"languages: [{', '.join(SIZES)}]")
    (place / "mytask.yaml").write_text(task)


@more
def test_ten_times_what_a_reader_may_hold(hosts, place):  # noqa: F811
    write(place, SIZES)
    languages = f"[{','.join(SIZES)}]"
    name, *overrides = words(
        place,
        "seeds=1",
        f"train.languages={languages}",
        "train.max_tokens=96",
        "data.stream=proportional",
        "dev.rows=none",
    )
    prepared = prepare(load_job(name, overrides))
    index, encoder = prepared.samples[0].stream, Encoder.of(prepared.resolved, prepared.skeleton.text)
    assert isinstance(index, Index)
    tracemalloc.start()
    row = index.head().to_pylist()[0]
    held = [list(encoder(row)) for _ in range(500)]
    whole = tracemalloc.get_traced_memory()[0] / sum(map(len, held)) * index.rows / 1e6
    tracemalloc.stop()
    limit = whole / 10
    for part in (place / "index.json", place / "read.json"):
        part.write_text(index.dump())
    arguments = [
        prepared.job.model_dump_json(),
        str(place / "index.json"),
        str(index.rows),
        "64",
        str(place / "read.json"),
    ]
    command = [
        sys.executable,
        str(ROOT / "tests" / "cluster" / "stream_reader.py"),
        hosts.env["RAY_ADDRESS"],
        *arguments,
    ]
    process = hosts._begin("head", command, hosts.env, -1)
    out, err = process.communicate(timeout=1200)
    assert process.returncode == 0, (out, err)
    readers = json.loads((place / "read.json").read_text())
    read: list[list[str]] = []
    for path in place.glob("read.json.keys-*"):
        read += map(str.split, path.read_text().splitlines())
    keys, mixes = Counter(key for _, key in read), Counter((int(step) // 16, key.split("/")[0]) for step, key in read)
    assert (len(keys), set(keys.values())) == (index.rows, {1})
    for window in range(index.rows // 1024):  # 16 steps of 64 rows
        assert all(abs(mixes[window, name] - 1024 * size / index.rows) <= len(SIZES) for name, size in SIZES.items())
    assert len({reader["node"] for reader in readers}) == 2
    for reader in readers:
        memory, waited = reader["memory"], sorted(reader["waits"][1:])
        settled = memory[len(memory) // 5 :]
        growth = max(settled) - settled[0]
        starved = sum(waited) / (sum(waited) + 0.05 * len(waited))
        tenths = [round(memory[len(memory) * i // 10]) for i in range(10)]
        print(
            f"{reader['node']}: {reader['rows']} rows; memory in tenths {tenths} MB, "
            f"grows by {growth:.1f} of {limit:.0f} MB after a fifth (all rows: {whole:.0f} MB); "
            f"first rows after {reader['waits'][0]:.1f} s, "
            f"then waits median {statistics.median(waited) * 1000:.1f} ms, longest {waited[-1]:.1f} s, "
            f"{starved:.0%} of the time at 50 ms a step"
        )
        assert growth < limit
        assert waited[-1] < 10


@more
def test_a_streamed_job_goes_on_where_a_lost_host_left_it(hosts, place):  # noqa: F811
    """In the middle of an epoch; losses are those of a run in one process. Only the host with the label reads rows."""
    write(place, {name: size // 100 for name, size in SIZES.items()})
    streamed = [
        f"train.languages=[{','.join(SIZES)}]",
        "train.epochs=4",
        "train.batch_size=8",
        "train.max_tokens=96",
        "data.stream=2",
        "dev.rows=none",
        "train.select=last",
    ]
    hosts.add("data", 2, "--labels", "pool=cpu-data")
    hosts.wait(4)
    run, readers = Run(hosts, place, *streamed, "train.save_every=7", label="pool=cpu-data"), set[str]()

    def reached(done) -> bool:
        readers.update(name for name in hosts.names if hosts.runs(name, "read_steps"))
        return done()

    run.until(lambda: reached(lambda: list(run.folder.glob("*/seed-0/state.pt"))), "state")
    hosts.kill(run.at_work())
    hosts.add("three", 3)
    seconds = run.until(lambda: reached(lambda: run.resumed(2)), "resume")
    print(f"host lost: the stream goes on after {seconds:.0f} s; rows are read on {readers}")
    assert readers == {"data"}
    assert any(event["event"] == "resume" and event["step"] for event in run.events())
    run.check()

"""Runs and campaigns in an S3-compatible store: killed, they go on from it, on any machine, with the same numbers."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import ray
from bucket import served
from test_cli import call, place, words  # noqa: F401  (a fixture)
from test_ray import below
from test_tune import drive, write

from raypft import shards
from raypft.campaigns.ledger import FILE
from raypft.config.load import load_job
from raypft.errors import UserError
from raypft.records import PART, Log
from raypft.runs.predict import load_trained
from raypft.runs.prepare import prepare
from raypft.scale.run import run_jobs
from raypft.storage import locked, on_disk, path_of, remove, written
from raypft.training import checkpoint
from raypft.training.checkpoint import StateWriter

pytestmark = [pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def bucket():
    with pytest.MonkeyPatch.context() as patch, served(patch) as uri:
        yield uri


def wait_for(happened, seconds: float = 120) -> None:
    """Until something is there; what goes between being listed and looked at is not."""
    deadline, there = time.monotonic() + seconds, False
    while not there:
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.05)
        with suppress(FileNotFoundError):
            there = happened()


def result(storage: str) -> dict:
    """The only result below a storage."""
    (path,) = path_of(storage).glob("*/seed-*/result.json")
    return json.loads(path.read_text())


def started(arguments: list[str], cwd: Path) -> subprocess.Popen[str]:
    """A command in a process of its own, at home in an empty folder, as on another machine."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(cwd)}
    return subprocess.Popen(
        [sys.executable, "-m", "raypft.cli", *arguments], cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_what_pathlib_and_object_stores_share(kind, tmp_path, bucket):
    root = path_of(str(tmp_path) if kind == "folder" else f"{bucket}/shared")
    with locked(root), written(root / "a.json") as file:
        file.write_text("whole")
        assert not (root / "a.json").exists()
    with on_disk(root / "a.json") as file:
        assert isinstance(file, Path)
        assert file.read_text() == "whole"
    log = Log(root / "own" / "lines.jsonl")
    log.path.parent.mkdir(parents=True, exist_ok=True)
    lines = [b"%d %s\n" % (number, b"x" * (PART // 5)) for number in range(20)]
    for line in lines[:12]:
        log.append(line)
    again = Log(log.path)
    assert again.read() == b"".join(lines[:12])
    for line in lines[12:]:
        again.append(line)
    assert Log(log.path).read() == b"".join(lines)
    again.rewrite(lines[0])
    again.append(lines[1])
    assert Log(log.path).read() == lines[0] + lines[1]
    again.remove()
    assert Log(log.path).read() == b""
    again.append(lines[2])
    assert Log(log.path).read() == lines[2]
    remove(root / "own")
    assert not (root / "own").exists()
    remove(root / "own")


def test_what_cant_be_written_is_one_line(place, bucket, monkeypatch, capsys):  # noqa: F811
    assert call(monkeypatch, "run", *words(place, "storage=s3://raypft-nowhere/runs")) == 2
    assert capsys.readouterr().err.startswith("raypft: storage: s3://raypft-nowhere/runs/")
    with pytest.raises(
        UserError, match=r"storage: nope://x can't be reached: .*pip install 'raypft\[s3\]' \(or gcs, azure\)"
    ):
        path_of("nope://x")


def test_a_killed_run_goes_on_elsewhere_from_the_bucket(place, bucket, tmp_path, monkeypatch, capsys):  # noqa: F811
    """kill -9; a process that has nothing but the bucket goes on from there and gives the same losses, bit for bit."""
    more = ["seeds=1", "train.epochs=40", "train.save_every=1", "train.batch_size=4"]
    assert call(monkeypatch, "run", *words(place, *more, f"storage={place}/whole")) == 0
    storage = f"{bucket}/killed"
    command = ["run", *words(place, *more, f"storage={storage}")]
    homes = [tmp_path / "here", tmp_path / "there"]
    for home in homes:
        home.mkdir()
    with started(command, homes[0]) as process:
        wait_for(lambda: list(path_of(storage).glob("*/seed-0/state.pt")))
        process.send_signal(signal.SIGKILL)
    assert not list(path_of(storage).glob("*/seed-0/result.json")), "the run ended before it was killed; make it longer"
    with started(command, homes[1]) as process:
        assert "from its last state" in process.communicate()[0]
    assert {name: result(storage)[name] for name in ("losses", "scores", "best_epoch")} == {
        name: result(f"{place}/whole")[name] for name in ("losses", "scores", "best_epoch")
    }
    (folder,) = {path.parent.parent for path in path_of(storage).glob("*/seed-0/result.json")}
    capsys.readouterr()
    assert call(monkeypatch, "report", str(folder)) == 0
    assert "| MAJ |" in capsys.readouterr().out
    assert call(monkeypatch, "predict", str(folder), "--text", "the film was great") == 0
    assert '"p(positive)": 0.' in capsys.readouterr().out
    for home in homes:
        assert not any(path.is_file() for path in home.rglob("*.json")), "something was kept beside the bucket"


def test_a_large_state_lies_in_the_bucket_in_parts(place, bucket, monkeypatch):  # noqa: F811
    """And a damaged part there is found; the state before is used, and what is large in the result read from there."""
    monkeypatch.setattr(shards, "WHOLE", 0)
    monkeypatch.setattr(checkpoint, "LOOK", 1)
    monkeypatch.setattr(StateWriter, "_is_due", lambda writer, patience=10: False)
    more = ["seeds=1", "train.epochs=8", "train.save_every=8", "train.batch_size=4", "train.select=last"]
    name, *common = words(place, *more, "train.patience=null")
    events, stops = list[dict](), iter([KeyboardInterrupt])

    def tell(event: dict) -> None:
        events.append(event)
        if event["event"] == "epoch" and event["epoch"] == 4:
            time.sleep(1)  # in which the state after its last step is written
        if event["event"] == "epoch" and event["epoch"] == 5 and (stop := next(stops, None)):
            raise stop

    (whole,) = run_jobs([prepare(load_job(name, [*common, f"storage={place}/whole"]))])
    job = load_job(name, [*common, f"storage={bucket}/large"])
    with pytest.raises(KeyboardInterrupt):
        run_jobs([prepare(job)], tell)
    manifests = sorted(path_of(f"{bucket}/large").glob("*/seed-0/state/*.json"))
    assert len(manifests) == 2, "the last state and the one before"
    part = json.loads(manifests[-1].read_text())["parts"][0]["file"]
    path = manifests[-1].with_name(part)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (results,) = run_jobs([prepare(job)], tell)
    (resumed,) = [event for event in events if event["event"] == "resume"]
    assert (
        f"{part} is damaged: its sha256 is not the one it was written with; goes on from the state"
        in resumed["notes"][0]
    )
    assert results[0]["losses"] == whole[0]["losses"]
    assert not list(path_of(f"{bucket}/large").glob("*/seed-0/state/*"))
    assert list(path_of(f"{bucket}/large").glob("*/seed-0/trained.safetensors.index.json"))
    answers = [load_trained(str(ready.folder)).predict(["a film"]) for ready in (prepare(job),)]
    (local,) = (place / "whole").glob("*/job.yaml")
    assert answers == [load_trained(str(local.parent)).predict(["a film"])]


@pytest.mark.cluster
@pytest.mark.ray
def test_workers_killed_and_a_campaign_resumed_from_the_bucket(place, bucket, monkeypatch):  # noqa: F811
    """Workers keep state, events and encoded rows in the bucket, a campaign its ledger: its second run runs nothing."""
    folder = tempfile.mkdtemp(prefix="rp-", dir="/tmp")
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=folder,
        runtime_env={"env_vars": environment},
    )
    try:
        whole = _trained(place, f"{place}/whole", workers=0)
        assert _trained(place, f"{bucket}/workers", workers=2) == pytest.approx(whole, rel=1e-4)
        rows = {"Plain": {"recipe": "profit"}, "Searched": {"recipe": "profit"}}
        search = {"space": {"train.lr": [0.001, 0.01]}, "rows": ["Searched"]}
        path = write(place, "campaign", rows, search, storage=f"{bucket}/campaign")
        first = drive(path)
        written = {str(p): p.stat().st_mtime for p in path_of(f"{bucket}/campaign").glob("*/seed-*/*.json")}
        (ledger,) = path_of(f"{bucket}/campaign").glob(f"*/{FILE}")
        known = Log(ledger).read()
        assert known.count(b'"finished"') >= 6
        assert drive(path) == first
        assert Log(ledger).read() == known
        assert written == {str(p): p.stat().st_mtime for p in path_of(f"{bucket}/campaign").glob("*/seed-*/*.json")}
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _trained(place: Path, storage: str, workers: int) -> list[float]:  # noqa: F811
    """The losses of a job; one of its workers, if it has any, is killed when there is a state."""
    name, *overrides = words(
        place,
        "train.dropout=0.0",
        "seeds=1",
        "train.epochs=12",
        "train.save_every=1",
        "train.patience=null",
        f"resources.workers={workers}",
        f"storage={storage}",
    )
    events, killed = list[dict](), list[int]()

    def end_one() -> None:
        wait_for(lambda: list(path_of(storage).glob("*/seed-0/state.pt")))
        out = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
        workers = [int(line.split()[0]) for line in out.splitlines() if "RayTrainWorker" in line]
        killed.append([worker for worker in workers if below(worker, os.getpid())][-1])
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=end_one, daemon=True)
    if workers:
        thread.start()
    (results,) = run_jobs([prepare(load_job(name, overrides))], events.append)
    assert bool(killed) == bool(workers) == bool([event for event in events if event["event"] == "resume"])
    return results[0]["losses"]


def test_check_tells_a_bucket_that_is_not_there(bucket, place, monkeypatch, capsys):  # noqa: F811
    for verb in ("check", "run"):
        assert call(monkeypatch, verb, *words(place, "storage=s3://raypft-no-such-bucket/runs")) == 2
        line = "raypft: storage: s3://raypft-no-such-bucket/runs/profit-mytask-all-bert-"
        assert capsys.readouterr().err.startswith(line)
    before = sorted(path_of(bucket).glob("**/*"))
    assert call(monkeypatch, "check", *words(place, f"storage={bucket}/checked")) == 0
    assert sorted(path_of(bucket).glob("**/*")) == before

"""Jobs on Ray Train workers: every ZeRO stage gives the numbers of the plain run; a killed worker changes nothing."""

from __future__ import annotations

import asyncio
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
from pathlib import Path
from typing import Any, cast

import pytest
import ray
import ray._private.worker
from test_cli import place, words  # noqa: F401  (a fixture)

from raypft.config.load import load_job
from raypft.errors import UserError
from raypft.runs.prepare import prepare
from raypft.scale.cell_queue import CellQueue
from raypft.scale.resources import cpus_per_worker
from raypft.scale.run import run_jobs
from raypft.scale.session import check_storage
from raypft.scale.worker import teller

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def session():
    """One Ray of our own for the module, with as many logical CPUs as two workers want."""
    folder = tempfile.mkdtemp(prefix="rp-", dir="/tmp")  # short: sockets lie below it
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=folder,
        runtime_env={"env_vars": environment},
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def run(place: Path, *more: str, recipe: str = "profit", model: str = "bert") -> tuple[list[dict], list[dict]]:  # noqa: F811
    """Results and events of a job."""
    name, *overrides = words(
        place, "train.dropout=0.1", "train.lr=1e-3", "train.batch_size=5", *more, recipe=recipe, model=model
    )
    events: list[dict] = []
    return run_jobs([prepare(load_job(name, overrides))], events.append)[0], events


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_workers_give_the_numbers_of_the_plain_run(stage, place, session, monkeypatch):  # noqa: F811
    """Two seeds in one worker group; 24 rows in steps of 5 leave unequal shares. Few rows are encoded in this process,
    at stage 2 by Ray Data as many would be."""
    if stage == 2:
        monkeypatch.setattr("raypft.scale.data.FEW", 0)
    plain, _ = run(place, f"storage={place}/plain")
    results, events = run(place, "resources.workers=2", f"zero.stage={stage}", f"storage={place}/ray")
    for one, other in zip(plain, results, strict=True):
        assert other["losses"] == pytest.approx(one["losses"], rel=1e-4)
        assert other["scores"] == one["scores"]
        assert other["cell"] == one["cell"]
        assert other["workers"] == 2
    assert {event["event"] for event in events} == {"start", "steps", "epoch", "result"}


@pytest.mark.parametrize(("recipe", "more"), [("gnnavi_gcn", []), ("icl", ["train.epochs=0"])])
def test_a_causal_method_on_stage_three(recipe, more, place, session):  # noqa: F811
    """Cached states, graph layer and a model with nothing to train, partitioned."""
    common = ["pattern=shown", "demos=1", "seeds=1", "train.epochs=2", "train.optimizer=adamw", *more]
    plain, _ = run(place, *common, f"storage={place}/plain", recipe=recipe, model="llama")
    results, _ = run(
        place, *common, "resources.workers=2", "zero.stage=3", f"storage={place}/ray", recipe=recipe, model="llama"
    )
    assert results[0]["losses"] == pytest.approx(plain[0]["losses"], rel=1e-4)
    assert results[0]["scores"] == plain[0]["scores"]


def test_a_row_that_does_not_fit_is_the_same_line_wherever_it_is_encoded(place, session, monkeypatch):  # noqa: F811
    """Of the German pattern, which the first row does not ask with, too little fits."""
    wording = '{text: "{text} . ' + "it was " * 20 + '<slot> .", verbalizer: {negative: bad, positive: good}}'
    task = (place / "mytask.yaml").read_text()
    asked = 'plain: {text: "{text} . it was <slot> .", verbalizer: {negative: bad, positive: good}, source: test'
    (place / "mytask.yaml").write_text(task.replace(asked, f"{asked}, by_language: {{de: {wording}}}"))
    monkeypatch.setattr("raypft.scale.data.FEW", 0)
    line = r"^train.max_tokens: the pattern \(row de/200\) needs \d+ tokens .*; raise max_tokens\Z"
    for workers in (0, 1):
        with pytest.raises(UserError, match=line):
            run(place, "seeds=1", f"resources.workers={workers}")


@pytest.mark.parametrize(
    ("victim", "line"),
    [
        ("RayTrainWorker", "its workers ended early; they start again, time 1 of at most 3 without a new state"),
        ("CellQueue", "what hands out cells died; it and the workers are started again"),
    ],
)
def test_a_killed_process_costs_nothing_but_time(victim, line, place, session, capfd):  # noqa: F811
    """kill -9 of a worker, or of the actor with their cells, in the middle: the run finishes by itself, from its last
    state, with the same numbers, and tells it in a line; of what Ray says of it nothing reaches the terminal or a
    file."""
    common = [
        "seeds=1",
        "train.epochs=12",
        "train.save_every=1",
        "train.patience=null",
        "resources.workers=2",
        "zero.stage=2",
    ]
    whole, _ = run(place, *common, f"storage={place}/whole")
    killed = []

    def kill() -> None:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and not killed:
            if list(place.glob("broken/*/seed-0/state.pt")):
                processes = ours(victim)
                if processes:
                    os.kill(processes[-1], signal.SIGKILL)
                    killed.append(processes[-1])
            time.sleep(0.05)

    thread = threading.Thread(target=kill)
    thread.start()
    results, events = run(place, *common, f"storage={place}/broken")
    thread.join()
    assert killed, "nothing was killed"
    assert [event for event in events if event["event"] == "resume"], "the run did not go on from a state"
    (note,) = (event["text"] for event in events if event["event"] == "note")
    assert note == f"seed 0: {line}"
    printed = "".join(capfd.readouterr())
    written = "".join(path.read_text() for path in place.glob("broken/profit-*/**/*.json*"))
    assert "A worker died" not in printed + written
    assert "\x1b" not in printed + written
    assert results[0]["losses"] == pytest.approx(whole[0]["losses"], rel=1e-6)
    assert results[0]["scores"] == whole[0]["scores"]
    assert results[0]["best_epoch"] == whole[0]["best_epoch"]


class SlowQueue(CellQueue):
    """One that is slower the earlier an event is."""

    async def add_event(self, event: dict[str, Any]) -> None:
        await asyncio.sleep(0.2 / event["epoch"])
        await super().add_event(event)


def test_events_come_in_the_order_in_which_they_were_told(session):
    queue: Any = ray.remote(SlowQueue).options(num_cpus=0, max_concurrency=1000).remote()
    tell = teller(queue)
    for epoch in range(1, 5):
        tell({"event": "epoch", "epoch": epoch})
    assert [event["epoch"] for event in ray.get(queue.take_events.remote())] == [1, 2, 3, 4]
    ray.kill(queue)


def test_queue_and_controller_load_no_torch(place, session):  # noqa: F811
    """Only the workers do: what they have mapped into memory can't be hidden."""
    loaded: dict[str, set[str]] = {}

    def look(event: dict) -> None:
        for title in ("ray::CellQueue", "ray::TrainController", "ray::RayTrainWorker"):
            for process in ours(title):
                maps = Path(f"/proc/{process}/maps").read_text()
                loaded[title] = {name for name in ("libtorch", "tokenizers", "_raylet") if name in maps}

    name, *overrides = words(place, "seeds=1", "resources.workers=1")
    run_jobs([prepare(load_job(name, overrides))], look)
    assert loaded == {
        "ray::CellQueue": {"_raylet"},
        "ray::TrainController": {"_raylet"},
        "ray::RayTrainWorker": {"libtorch", "tokenizers", "_raylet"},
    }


def ours(title: str) -> list[int]:
    """Processes of this test's Ray with such a title, the newest last."""
    command = ["ps", "-eo", "pid,args", "--sort=start_time"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    processes = [int(line.split()[0]) for line in out.splitlines() if title in line]
    return [process for process in processes if is_ours(process)]


def is_ours(process: int) -> bool:
    """Whether a process was started below this test's own Ray session."""
    session_dir = cast(Any, ray._private.worker._global_node).get_session_dir_path()
    try:
        return session_dir.encode() in Path(f"/proc/{process}/environ").read_bytes() or below(process, os.getpid())
    except OSError:
        return False


def below(process: int, ancestor: int) -> bool:
    """Whether `process` descends from `ancestor`."""
    while process > 1:
        if process == ancestor:
            return True
        process = int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return False


def test_a_workers_own_error_is_one_line(place, session):  # noqa: F811
    """A loss that is not finite ends the run with the worker's line."""
    with pytest.raises(UserError, match=r"^train: the loss is (nan|inf) at optimizer step"):
        run(place, "seeds=1", "train.lr=1e30", "train.epochs=9", "resources.workers=2", "resources.max_failures=0")


def test_a_label_that_no_node_has(place, session):  # noqa: F811
    """Ray Data would wait for ever."""
    with pytest.raises(
        UserError, match=r'resources.data_label: no node has "pool=cpu-data"; found: no labels; leave it out'
    ):
        run(place, "seeds=1", "resources.workers=1", "resources.data_label=pool=cpu-data")


def test_a_node_that_does_not_see_the_storage_is_told(place, session, monkeypatch):  # noqa: F811
    """Before anything is computed; here the other node is this one, and the marker is not written."""
    (here,) = ray.nodes()
    monkeypatch.setattr(ray, "nodes", lambda: [here, {**here, "NodeID": "a" * 56, "NodeManagerAddress": "10.0.0.9"}])
    check_storage(f"{place}/runs")
    assert not list((place / "runs").iterdir())
    monkeypatch.setattr(Path, "write_bytes", lambda path, content: path.with_suffix(".unseen").touch())
    monkeypatch.setattr(Path, "unlink", lambda path: None)
    with pytest.raises(
        UserError,
        match=r"storage: node 10.0.0.9 does not see .*/runs; give a folder that all nodes mount, or a URI such as",
    ):
        check_storage(f"{place}/runs")


def test_the_cpu_rule():
    """Workers, encoder and reader fit the machine or the job is refused."""
    job = load_job("profit", ["task=sentiment", "backbone=x", "resources.workers=2"]).job
    assert cpus_per_worker(job.resources, 2) == 0.25
    assert cpus_per_worker(job.resources, 16) == 1
    asked = job.resources.model_copy(update={"cpus_per_worker": 1.0})
    with pytest.raises(
        UserError, match=r"2 workers x 1 \+ 1 for reading \+ 0.5 for encoding = 3.5 CPUs; Ray has 2; use at most 0.25"
    ):
        cpus_per_worker(asked, 2)
    with pytest.raises(UserError, match="leave none for workers"):
        cpus_per_worker(job.resources, 1)


def test_events_are_json_lines_with_times(place, session):  # noqa: F811
    run(place, "seeds=1", "train.epochs=1", "resources.workers=1")
    (path,) = place.glob("runs/*/seed-0/events.jsonl")
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event["event"] for event in events] == ["start", "epoch", "result"]
    assert all(event["time"] > 0 for event in events)

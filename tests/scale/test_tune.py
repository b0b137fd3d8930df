"""Campaigns on Ray Tune: killed and resumed they end with the bytes of an uninterrupted run; no cell runs twice."""

from __future__ import annotations

import csv
import errno
import io
import json
import logging
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.tune import Callback
from test_cli import place, words  # noqa: F401  (a fixture)

from raypft.campaigns.ledger import FILE, Ledger
from raypft.campaigns.load import load_campaign
from raypft.campaigns.state import CampaignState, Configuration
from raypft.errors import UserError
from raypft.scale.tune import run as tune_run
from raypft.scale.tune.run import run_campaign

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def session():
    """One Ray of our own for the module with two CPUs, as the smallest machine has."""
    folder = tempfile.mkdtemp(prefix="rp-", dir="/tmp")  # short: sockets lie below it
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=folder,
        runtime_env={"env_vars": environment},
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def drive(path: str) -> bytes:
    """Run a campaign; its scores as CSV."""
    table = io.StringIO()
    writer = csv.writer(table)
    for row in run_campaign(load_campaign(path), lambda event: None):
        known = row["result"] or {}
        placed = [row[name] for name in ("row", "task", "axes", "seed", "status", "reason")]
        writer.writerow(placed + [known.get(name) for name in ("dev", "mean", "scores", "losses", "best_epoch")])
    return table.getvalue().encode()


def write(place: Path, name: str, rows: dict, search: dict | None = None, **defaults: object) -> str:  # noqa: F811
    """A campaign on the tiny task; its runs go to a folder of its own."""
    common = {
        "backbone": f"{place}/bert",
        "data.root": str(place),
        "storage": f"{place}/{name}",
        "pattern": "plain",
        "protocol": "fixed",
        "seeds": [0, 1],
        "train.languages": ["en"],
        "train.max_tokens": 32,
        "train.dropout": 0.0,
        "train.epochs": 2,
        "train.lr": 0.003,
        "train.batch_size": 4,
    }
    file = {"about": "test", "defaults": {**common, **defaults}, "rows": rows, "tasks": [f"{place}/mytask.yaml"]}
    (place / f"{name}.yaml").write_text(
        yaml.safe_dump({**file, **({"search": search} if search else {})}, sort_keys=False)
    )
    return str(place / f"{name}.yaml")


def results(folder: Path) -> dict[str, int]:
    """Results and withheld ones below a folder, with the time they were written."""
    paths = [*folder.glob("*/seed-*/result.json"), *folder.glob("*/seed-*/searched.json")]
    return {str(path): path.stat().st_mtime_ns for path in paths}


def lines(folder: Path) -> int:
    return sum(len(path.read_bytes().splitlines()) for path in folder.glob(f"*/{FILE}"))


def killed(path: str, count: int, seconds: float) -> None:
    """Run a campaign in a process of its own; kill -9 it some seconds after its ledger has grown by so many lines."""
    temp = tempfile.mkdtemp(prefix="rp-", dir="/tmp")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_TMPDIR": temp, "OMP_NUM_THREADS": "1"}
    storage = Path(yaml.safe_load(Path(path).read_text())["defaults"]["storage"])
    before, deadline = lines(storage), time.monotonic() + 120
    command = [sys.executable, "-c", "import sys, test_tune; test_tune.drive(sys.argv[1])", path]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and lines(storage) < before + count and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(seconds)
        assert process.poll() is None, "the campaign ended before it was killed; make it longer"
        process.send_signal(signal.SIGKILL)
    shutil.rmtree(temp, ignore_errors=True)


def test_a_grid_campaign_killed_three_times_ends_with_the_same_bytes(place, session):  # noqa: F811
    rows = {"Plain": {"recipe": "profit"}, "Searched": {"recipe": "profit"}, "MAJ": "majority"}
    search = {"space": {"train.lr": [0.001, 0.01]}, "rows": ["Searched"]}
    seeds, source = {"seeds": [0, 1, 2], "train.epochs": 8, "train.save_every": 5}, random.Random(time.time_ns())
    whole = drive(write(place, "whole", rows, search, **seeds))
    broken, done = write(place, "broken", rows, search, **seeds), dict[str, int]()
    for number in range(3):
        moment = (source.randint(1, 4), source.uniform(0, 0.7))
        print("kill", number, moment)
        killed(broken, *moment)
        finished = with_test(place / "broken")
        assert done.items() <= finished.items(), "a finished cell ran again"
        done = finished
    assert drive(broken).replace(b"broken", b"whole") == whole
    assert done.items() <= with_test(place / "broken").items(), "a finished cell ran again"
    assert whole.count(b"finished") == 9


def with_test(folder: Path) -> dict[str, int]:
    """The results with a test, with the time they were written."""
    return {path: written for path, written in results(folder).items() if path.endswith("result.json")}


def test_a_tpe_campaign_runs_no_cell_twice_and_knows_every_past_result(place, session, monkeypatch):  # noqa: F811
    search = {"space": {"train.lr": {"log": [0.0001, 0.1]}}, "searcher": "tpe", "trials": 4}
    path = write(place, "tpe", {"Searched": {"recipe": "profit"}}, search)
    killed(path, 5, 0.2)
    before = results(place / "tpe")
    assert before, "killed before a cell was finished"
    searches = spied(monkeypatch)
    rows = run_campaign(load_campaign(path), lambda event: None)
    assert {p: t for p, t in results(place / "tpe").items() if p in before} == {
        p: t for p, t in before.items() if Path(p).exists()
    }, "a cell ran again"
    tried = {row["axes"]["train.lr"] for row in rows}
    assert len(tried) == 4, "it suggested what it had tried before"
    assert sum("scores" in row["result"] for row in rows) == 2, "only the chosen configuration is tested"
    assert {values["train.lr"] for values, _ in searches[-1].tpe.known} == tried
    file = yaml.safe_load(Path(path).read_text())
    file["search"]["trials"] = 5
    Path(path).write_text(yaml.safe_dump(file, sort_keys=False))
    before = with_test(place / "tpe")
    rows = run_campaign(load_campaign(path), lambda event: None)
    known = {values["train.lr"]: value for values, value in searches[-1].tpe.known}
    rates = {row["axes"]["train.lr"] for row in rows}
    assert known == pytest.approx({lr: mean_dev(rows, lr) for lr in rates})
    assert tried < set(known)
    assert len(known) == 5
    assert before.items() <= with_test(place / "tpe").items()


def mean_dev(rows: list[dict], lr: float) -> float:
    """Mean dev score of a configuration."""
    return statistics.fmean(row["result"]["dev"] for row in rows if row["axes"]["train.lr"] == lr)


def spied(monkeypatch) -> list:
    """The searches made from now on."""
    made = []
    kind = tune_run.TableCellSearch
    monkeypatch.setattr(tune_run, "TableCellSearch", lambda *given: made.append(kind(*given)) or made[-1])
    return made


def test_failed_cells_are_told_the_others_go_on_and_an_extension_runs_only_what_is_new(place, session):  # noqa: F811
    rows = {"Bad": {"recipe": "profit", "set": {"train.lr": 1e30}}, "Good": {"recipe": "profit"}}
    path = write(place, "failing", rows)
    events: list[dict] = []
    cells = run_campaign(load_campaign(path), events.append)
    assert [(row["row"], row["status"]) for row in cells] == [
        ("Bad", "failed"),
        ("Bad", "failed"),
        ("Good", "finished"),
        ("Good", "finished"),
    ]
    assert all(row["reason"].startswith("train: the loss is") for row in cells[:2])
    assert [event["reason"] for event in events if event.get("status") == "failed"] == [
        row["reason"] for row in cells[:2]
    ]
    assert all("scores" in row["result"] for row in cells[2:])
    before, events[:] = results(place / "failing"), []
    cells = run_campaign(
        load_campaign(
            write(
                place,
                "failing",
                {"Good": rows["Good"], "Other": {"recipe": "direct", "set": {"train.epochs": 0}}},
                seeds=[0, 1, 2],
            )
        ),
        events.append,
    )
    assert [row["status"] for row in cells] == ["finished"] * 6
    assert sorted(event["seed"] for event in events if event["event"] == "cell") == [0, 1, 2, 2]
    assert {p: t for p, t in results(place / "failing").items() if p in before} == before
    ledger = load_campaign(path).folder / FILE
    ledger.write_bytes(b"{rubbish\n" + ledger.read_bytes()[:-30])
    events.clear()
    assert run_campaign(load_campaign(path), events.append) == cells, (
        "a corrupt line costs nothing: the results are there"
    )
    (note,) = events
    assert note["text"].startswith(f"ledger: {ledger}: 2 unreadable lines left out, kept in ledger.bad.jsonl; ")
    assert json.loads(ledger.read_bytes().splitlines()[-1])["status"] == "finished"


def test_a_search_prunes_between_seeds_and_tests_only_the_chosen(place, session):  # noqa: F811
    """One trial at a time, so that the good configuration is there before the bad one."""
    search = {"space": {"train.lr": [0.003, 1e-9]}, "scheduler": "racing"}
    one = {"resources.cpus_per_worker": 2, "seeds": [0, 1, 2], "train.epochs": 30, "train.patience": None}
    path = write(place, "racing", {"Searched": {"recipe": "profit"}}, search, **one)
    cells = run_campaign(load_campaign(path), lambda event: None)
    states = {(row["axes"]["train.lr"], row["seed"]): row["status"] for row in cells}
    assert [states[0.003, seed] for seed in (0, 1, 2)] == ["finished"] * 3
    assert states[1e-9, 2] == "pruned"
    assert cells[-1]["reason"].startswith("racing: ")
    assert [("scores" in row["result"]) for row in cells if row["result"]] == [True] * 3 + [False] * 2
    entries = [entry for entry in Ledger(load_campaign(path).folder) if entry.get("tested")]
    assert len(entries) == 3, "every test read is in the ledger"
    assert run_campaign(load_campaign(path), lambda event: pytest.fail(f"ran again: {event}")) == cells


def test_the_tests_of_what_a_search_chooses_count_as_cells(place, session):  # noqa: F811
    search, events = {"space": {"train.lr": [0.001, 0.01]}}, list[dict]()
    path = write(place, "counted", {"Searched": {"recipe": "profit"}}, search)
    run_campaign(load_campaign(path), events.append)
    cells = [(event["done"], event["total"]) for event in events if event["event"] == "cell"]
    assert cells == [(number, 6) for number in range(1, 7)], "2 values of 2 seeds, and the chosen one's 2 tests"


def test_a_ledger_that_cannot_be_written_at_a_trials_end_is_one_line(place, session, monkeypatch):  # noqa: F811
    """Tune would take it for the trial's own failure and go on: the search would choose among what is in the ledger."""
    search = {"space": {"train.lr": [0.001, 0.003]}}
    whole, full = (write(place, name, {"Plain": {"recipe": "profit"}}, search, seeds=[0]) for name in ("whole", "full"))
    expected, note = drive(whole), CampaignState.note

    def noted(state: CampaignState, configuration: Configuration, seed: int, status: str, **more: Any) -> None:
        if status == "finished":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "ledger.jsonl")
        note(state, configuration, seed, status, **more)

    monkeypatch.setattr(CampaignState, "note", noted)
    with pytest.raises(UserError, match=r"^storage: ledger\.jsonl can't be written: No space left on device; .*\Z"):
        drive(full)
    monkeypatch.undo()
    before = results(place / "full")
    assert drive(full) == expected
    written = [path for path, when in results(place / "full").items() if before.get(path, when) != when]
    assert before
    assert not written, "what had ended is not run again"


def test_a_tracker_that_fails_is_told_and_no_trial_is_lost(place, session, monkeypatch):  # noqa: F811
    class Fails(Callback):
        def on_trial_complete(self, *told: Any, **info: Any) -> None:
            raise ConnectionError("no route\nto host")

    monkeypatch.setattr(tune_run, "tracker", lambda name: [Fails()])
    told = list[dict[str, Any]]()
    rows = {name: {"recipe": "profit", "set": {"train.lr": rate}} for name, rate in (("One", 0.001), ("Two", 0.003))}
    found = run_campaign(load_campaign(write(place, "tracked", rows, seeds=[0])), told.append)
    assert [row["status"] for row in found] == ["finished"] * 2
    notes = [event["text"] for event in told if event["event"] == "note"]
    assert notes == ["tracker: no route; the campaign goes on without it"]


def test_a_trial_with_workers_runs_and_stops_without_deadlock_on_two_cpus(place, session):  # noqa: F811
    """Encoder, reader, worker and trial fit 2 CPUs; the bad configuration is stopped while its group is at work."""
    search = {"space": {"train.lr": [0.003, 1e-9]}, "scheduler": "racing"}
    group = {"resources.workers": 1, "seeds": [0, 1, 2], "train.epochs": 20, "train.patience": None}
    cells = run_campaign(
        load_campaign(write(place, "workers", {"Searched": {"recipe": "profit"}}, search, **group)), lambda event: None
    )
    assert [row["status"] for row in cells] == ["finished"] * 5 + ["pruned"]
    assert all(row["result"]["workers"] == 1 for row in cells[:5])
    assert [("scores" in row["result"]) for row in cells[:5]] == [True] * 3 + [False] * 2
    assert ray.available_resources()["CPU"] == pytest.approx(2, abs=0.01) or wait_free()


def wait_free() -> bool:
    """Whether all CPUs come back within a while."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and ray.available_resources().get("CPU", 0) < 1.99:
        time.sleep(0.5)
    return ray.available_resources().get("CPU", 0) >= 1.99


def test_ctrl_c_ends_a_campaign_with_what_is_done_and_code_130(place):  # noqa: F811
    path = write(place, "stopped", {"Full": {"recipe": "profit"}}, **{"seeds": [0, 1, 2, 3], "train.epochs": 60})
    temp = tempfile.mkdtemp(prefix="rp-", dir="/tmp")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_TMPDIR": temp, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "raypft.cli", "tune", path]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 180
    while not results(place / "stopped") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, told = process.communicate(timeout=120)
    shutil.rmtree(temp, ignore_errors=True)
    assert process.returncode == 130
    done = len(results(place / "stopped"))
    assert 1 <= done < 4
    assert f"partial, {done} of 4 cells:\n# test" in out
    assert told == (
        f"raypft: interrupted; {done} of 4 cells are finished, others go on from their last state; "
        "the same command (without --fresh) goes on\n"
    )

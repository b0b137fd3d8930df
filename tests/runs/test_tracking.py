"""Trackers of `run`, with their real packages and without a network: all that is told arrives, one tracker run a seed,
a run that goes on goes on in the same one, and what fails there is one line."""

from __future__ import annotations

import json
import shutil
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import raypft
from raypft.config.load import load_job
from raypft.contract import tiny
from raypft.errors import UserError
from raypft.runs import trackers, tracking
from raypft.runs.prepare import prepare
from raypft.runs.results import RunResults
from raypft.runs.tracking import FILE, found_by, settings_of

NAMES = list(trackers.PACKAGES)
Curves = dict[str, list[tuple[int, float]]]
"""What a tracker run holds: of each name its numbers with their steps, in order."""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a tiny model."""
    folder = tmp_path_factory.mktemp("tracked")
    made = tiny.backbone("bert")
    made.model.save_pretrained(folder / "model")
    made.text.tokenizer.save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """An empty store of MLflow's, whose tables take seconds to make."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(autouse=True)
def offline(store, tmp_path, monkeypatch) -> Iterator[None]:
    """A working directory of its own; MLflow's store lies in it, W&B writes files."""
    shutil.copy(store, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_DIR", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    yield
    forget_wandb()


def forget_wandb() -> None:
    """Let W&B's process write what it has and end, and read the environment anew."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


def ran(place: Path, tell: Any = None, **keys: Any) -> RunResults:
    """A run of three epochs of two steps a seed, in the folder `runs`."""
    train = {"epochs": 3, "batch_size": 4, "lr": 1e-3}
    given = {"task": "sentiment", "backbone": str(place / "model"), "shots": 4, "seeds": 1, "train": train, **keys}
    return raypft.run("profit", tell=tell, **given)


def in_tensorboard(folder: Path) -> tuple[Curves, str]:
    """A seed's event files as TensorBoard reads them: numbers, and the settings as text."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    read.Reload()
    tags: dict[str, Any] = read.Tags()
    curves = {tag: [(one.step, one.value) for one in read.Scalars(tag)] for tag in tags["scalars"]}
    (text,) = [one.tensor_proto.string_val[0].decode() for one in read.Tensors("job/text_summary")]
    assert "_hparams_/session_start_info" in read.summary_metadata or not curves.get("test/mean")
    return curves, text


def in_mlflow(folder: Path) -> tuple[Curves, str]:
    """A seed's run as MLflow's client reads it."""
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("raypft")
    assert experiment is not None
    seed = folder.name.removeprefix("seed-")
    wanted = f"tags.`raypft.run` = '{folder.parent.name}' and tags.`raypft.seed` = '{seed}'"
    (run,) = client.search_runs([experiment.experiment_id], wanted)
    assert run.info.run_name == f"{folder.parent.name}/{folder.name}"
    assert run.info.status == ("FINISHED" if "test/mean" in run.data.metrics else "KILLED")
    curves = {}
    for name in run.data.metrics:
        curves[name] = [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
    return curves, "\n".join(f"| {key} | {value} |" for key, value in run.data.params.items())


BLOCK, HEAD = 32768, 7
"""Bytes of a block of LevelDB's log, which W&B's files are, and of the head of the file and of each of its pieces."""


def logged(data: bytes) -> Iterator[bytes]:
    """The records of a log: pieces in blocks, each behind checksum, size and whether more follows."""
    at, record = HEAD, b""
    while at + HEAD <= len(data):
        if BLOCK - at % BLOCK < HEAD:  # no head fits there
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + HEAD])
        record += data[at + HEAD : at + HEAD + size]
        at += HEAD + size
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def in_wandb(folder: Path) -> tuple[Curves, str]:
    """What a seed's files of W&B's offline mode hold, as `wandb sync` would send it; all have one id and one group."""
    from wandb.proto import wandb_internal_pb2

    forget_wandb()
    curves: Curves = {}
    settings: dict[str, Any] = {}
    ids, groups = set(), set()
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        for data in logged(path.read_bytes()):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
                groups.add(record.run.run_group)
                settings |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif record.WhichOneof("record_type") == "history":
                row = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
                row = {key: json.loads(value) for key, value in row.items() if not key.startswith("_")}
                step = row.pop("step")
                for name, value in row.items():
                    curves.setdefault(name, []).append((step, value))
    assert len(ids) == 1
    assert groups == {folder.parent.name}
    return curves, "\n".join(f"| {key} | {value} |" for key, value in settings.items())


READERS: dict[str, Callable[[Path], tuple[Curves, str]]] = {
    "tensorboard": in_tensorboard,
    "mlflow": in_mlflow,
    "wandb": in_wandb,
}


def check_whole(name: str, folder: Path, result: dict[str, Any], rates: bool = True) -> None:
    """A seed's tracker run holds its losses, rates, epochs, result and settings, each once."""
    curves, settings = READERS[name](folder)

    def near(numbers: list[float]) -> Any:
        return pytest.approx(numbers, rel=1e-6)  # TensorBoard keeps single precision

    steps = list(range(1, len(result["losses"]) + 1))
    assert [step for step, _ in curves["train/loss"]] == steps
    assert [loss for _, loss in curves["train/loss"]] == near(result["losses"])
    if rates:
        assert [rate for _, rate in curves["train/lr"]] == near([1e-3 * (1 - step / 6) for step in range(6)])
    assert [step for step, _ in curves["dev/score"]] == [2, 4, 6]
    assert [dev for _, dev in curves["dev/score"]] == near([record["dev"] for record in result["history"]])
    assert [loss for _, loss in curves["epoch/loss"]] == near([record["loss"] for record in result["history"]])
    found = found_by(result)
    assert {f"test/accuracy/{language}" for language in result["rows"]} < set(found)
    assert {"cost/seconds", "cost/trainable", "cost/peak_memory_mb", "test/mean", "epoch/kept"} < set(found)
    assert {key: curves[trackers.named(key)][0] for key in found} == {
        key: (6, pytest.approx(value, rel=1e-6)) for key, value in found.items()
    }
    assert all(len(curves[trackers.named(key)]) == 1 for key in found)
    for line in ("| train.batch_size | 4 |", "| method | full |", f"| folder | runs/{folder.parent.name} |"):
        assert line in settings


@pytest.mark.parametrize("name", NAMES)
def test_all_that_is_told_arrives_one_tracker_run_a_seed(name, place):
    events: list[dict[str, Any]] = []
    results = ran(place, events.append, seeds=2, tracker=name)
    for result in results.seeds:
        check_whole(name, results.folder / f"seed-{result['seed']}", result)
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert [note.split(":")[:2] for note in notes] == [["tracker", f" {name}"]], "a line says where"
    ran(place, seeds=2, tracker=name)  # nothing is left to tell
    check_whole(name, results.folder / "seed-1", results.seeds[1])


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_goes_on_is_tracked_in_the_same_tracker_run(name, place):
    """It is interrupted in its second epoch and goes on from its last state, of the first step."""

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and event["epoch"] == 2:
            raise KeyboardInterrupt

    train = {"epochs": 3, "batch_size": 4, "lr": 1e-3, "save_every": 1}
    with pytest.raises(KeyboardInterrupt):
        ran(place, stop, tracker=name, train=train)
    (folder,) = Path("runs").glob("profit-*/seed-0")
    before, _ = READERS[name](folder)
    assert [step for step, _ in before["train/loss"]] == [1, 2, 3, 4]
    assert "test/mean" not in before
    results = ran(place, tracker=name, train=train)
    check_whole(name, results.folder / "seed-0", results.seeds[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_that_comes_later_gets_finished_seeds(name, place):
    result = ran(place).seeds[0]
    results = ran(place, tracker=name)
    assert results.seeds[0] == result
    check_whole(name, results.folder / "seed-0", result, rates=False)


def test_fresh_begins_a_new_tracker_run(place):
    ids = []
    for _ in range(2):
        results = ran(place, tracker="mlflow", fresh=True)
        ids.append(json.loads((results.folder / "seed-0" / FILE).read_text())["mlflow"]["id"])
    assert ids[0] != ids[1]


def broken(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    """Make a tracker fail as its server or disk would; what its line says."""
    if name == "tensorboard":
        (folder / "tensorboard").parent.mkdir(parents=True)
        (folder / "tensorboard").write_text("a file where a folder should be")
        return "tracker: tensorboard: [Errno 17] File exists"
    if name == "mlflow":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hunter2@127.0.0.1:9")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        return "tracker: mlflow: "
    forget_wandb()
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(folder.parent.parent / "config"))
    monkeypatch.setenv("NETRC", str(folder.parent.parent / "netrc"))
    return "tracker: wandb: W&B has no key"


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_that_fails_is_one_line_and_the_run_goes_on(name, place, monkeypatch, capfd):
    expected = ran(place, storage="expected", seeds=2)
    capfd.readouterr()
    line = broken(name, monkeypatch, Path("runs") / expected.folder.name / "seed-0")
    if name == "tensorboard":
        shutil.copytree(f"runs/{expected.folder.name}/seed-0", f"runs/{expected.folder.name}/seed-1")
    events: list[dict[str, Any]] = []
    results = ran(place, events.append, seeds=2, tracker=name)
    assert [seed["losses"] for seed in results.seeds] == [seed["losses"] for seed in expected.seeds]
    assert [seed["metrics"] for seed in results.seeds] == [seed["metrics"] for seed in expected.seeds]
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert {note[: len(line)] for note in notes} == {line}, notes
    assert len(notes) <= 2
    assert all("\n" not in note and "the run goes on" in note for note in notes)
    assert "hunter2" not in "".join(notes)
    assert capfd.readouterr() == ("", ""), "the line is told, nothing is printed beside"


def test_what_a_failed_tracker_lacks_it_gets_when_the_command_is_given_again(place, monkeypatch):
    wrote, calls = trackers.MLflow.write, iter(range(100))

    def fails(self: trackers.MLflow, rows: Any) -> None:
        if next(calls) == 2:
            raise ConnectionError("the server went away")
        wrote(self, rows)

    monkeypatch.setattr(trackers.MLflow, "write", fails)
    events: list[dict[str, Any]] = []
    ran(place, events.append, tracker="mlflow")
    told = [event["text"] for event in events if event["event"] == "note"][1:]
    assert told == [
        "tracker: mlflow: the server went away; the run goes on, and the same command, given again, makes up for it"
    ]
    results = ran(place, tracker="mlflow")
    check_whole("mlflow", results.folder / "seed-0", results.seeds[0], rates=False)


def test_a_tracker_that_takes_nothing_holds_no_run_up(place, monkeypatch):
    """The longest it waits is at the end, and that is said."""
    monkeypatch.setattr(tracking, "LAST_SECONDS", 0.2)
    free = threading.Event()
    monkeypatch.setattr(trackers.TensorBoard, "write", lambda self, rows: free.wait())
    events: list[dict[str, Any]] = []
    began = time.monotonic()
    ran(place, lambda event: events.append({**event, "at": time.monotonic()}), tracker="tensorboard")
    assert events[-1]["text"] == "tracker: tensorboard has not taken all within 0.2 s; the same command makes up for it"
    assert events[-1]["at"] - events[-2]["at"] < 5
    assert time.monotonic() - began < 60
    free.set()
    for thread in threading.enumerate():
        if thread.name == "raypft-tracker":
            thread.join()


def test_a_missing_package_is_one_line_in_check_and_run(place, monkeypatch):
    monkeypatch.setitem(trackers.PACKAGES, "wandb", "no_such_package")
    job = raypft.load_job("profit", task="sentiment", backbone=str(place / "model"), shots=2, tracker="wandb")
    line = "tracker: wandb needs the package no_such_package; pip install 'raypft[wandb]', or leave tracker out"
    for command in (raypft.check, raypft.run):
        with pytest.raises(UserError) as caught:
            command(job)
        assert str(caught.value) == line
    assert not Path("runs").exists()


def test_a_tracker_is_where_a_run_is_shown_and_makes_no_other_cell(place):
    words = ["task=sentiment", f"backbone={place}/model", "shots=2"]
    plain, with_one = prepare(load_job("profit", words)), prepare(load_job("profit", [*words, "tracker=mlflow"]))
    assert with_one.keys == plain.keys
    assert with_one.folder == plain.folder


def test_settings_hold_no_secrets(place):
    shutil.copytree(Path(raypft.__file__).parent / "data/samples/sentiment", "signed?token=hunter2/sentiment")
    words = ["task=sentiment", f"backbone={place}/model", "shots=2", "data.root=signed?token=hunter2"]
    words += ["demos=0", "train.max_tokens=64"]
    settings = settings_of(prepare(load_job("lora", words)), 0)
    assert settings["data.root"] == "signed?token=…"
    assert settings["method"] == "lora"
    assert settings["train.languages"] == ["en"]
    assert "hunter2" not in str(settings)


@pytest.mark.ray
def test_a_run_with_workers_is_tracked_where_it_was_started(place):
    results = ran(place, tracker="tensorboard", resources={"workers": 2}, zero={"stage": 1})
    check_whole("tensorboard", results.folder / "seed-0", results.seeds[0])


def test_event_files_of_a_run_in_an_object_store_lie_there(tmp_path):
    from upath import UPath

    folder: Any = UPath("memory://tracked/a-run/seed-0")
    subject = trackers.Subject(folder, "a-run", 0, {"train.lr": 0.5})
    writer = trackers.TensorBoard(subject, None)
    writer.write([(1, {"train/loss": 2.0})])
    (file,) = (folder / "tensorboard").iterdir()
    writer.write([(2, {"train/loss": 1.0})])
    writer.close({"test/mean": 50.0})
    (tmp_path / "seed-0" / "tensorboard").mkdir(parents=True)
    (tmp_path / "seed-0" / "tensorboard" / file.name).write_bytes(file.read_bytes())
    curves, settings = in_tensorboard(tmp_path / "seed-0")
    assert curves["train/loss"] == [(1, 2.0), (2, 1.0)]
    assert "| train.lr | 0.5 |" in settings

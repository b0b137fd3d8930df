"""A run whose files a full disk or a dead machine has cut: what is whole is used, the rest is named; a run used from
another folder; storage that can't be made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

from raypft.config.load import load_job
from raypft.contract import cases, tiny
from raypft.errors import UserError
from raypft.runs import provenance
from raypft.runs.inspect import checked
from raypft.runs.predict import load_trained
from raypft.runs.prepare import prepare
from raypft.runs.results import read_results, read_run
from raypft.runs.table import run_table
from raypft.scale.run import run_jobs
from raypft.training import states
from raypft.training.states import States
from raypft.training.stepper import TorchStepper

TASK = """
about: mine
kind: choice
fields: {text: text}
label: {names: [bad, good]}
languages: [en]
metric: accuracy
sources: {files: {files: {train: train, test: test}}}
patterns: {plain: {text: "{text}", source: mine}}
"""
WORDS = [
    "task=mine.yaml", "data.root=data", "backbone=models/bert", "pattern=plain", "protocol=fixed", "seeds=2",
    "train.epochs=1", "train.languages=[en]", "dev.rows=none", "storage=runs", "train.max_tokens=16",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with a run of two seeds that was started in it, everything named by relative paths."""
    place = tmp_path_factory.mktemp("finished")
    (place / "mine.yaml").write_text(TASK)
    (place / "data").mkdir()
    rows = [{"text": f"film {i}", "label": ("bad", "good")[i % 2]} for i in range(8)]
    pa_parquet.write_table(pa.Table.from_pylist(rows[:6]), place / "data" / "train.parquet")
    pa_parquet.write_table(pa.Table.from_pylist(rows[5:]), place / "data" / "test.parquet")
    made = tiny.backbone("bert", dropout=0.0)
    made.model.save_pretrained(place / "models" / "bert")
    made.text.tokenizer.save_pretrained(place / "models" / "bert")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        run_jobs([prepare(load_job("vanilla", WORDS))])
    return place


@pytest.fixture
def place(finished, tmp_path, monkeypatch) -> Path:
    """A copy of it, which is the working directory."""
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def run_of(place: Path) -> Path:
    (folder,) = (place / "runs").glob("vanilla-*")
    return folder


def refused(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


CUT = ["", '{"seed": 1, "cell": "ab', "null", "\x00\x00"]


@pytest.mark.parametrize("content", CUT)
def test_a_result_that_is_not_whole_is_named_and_the_others_are_used(place, content):
    run = run_of(place)
    (run / "seed-1" / "result.json").write_text(content)
    assert [result["seed"] for result in read_results(run)] == [0]
    notes = "\n".join(run_table([run]).notes)
    assert "(unfinished: [1])" in notes
    line = f"{run}/seed-1/result.json can't be read ("
    assert line in notes
    assert "): run the job again" in notes
    assert load_trained(run).seed == 0
    assert f"no finished seed 1; finished: 0; {line}" in refused(lambda: load_trained(run, 1))


def test_a_run_goes_on_where_a_result_and_a_state_are_not_whole(place):
    run = run_of(place)
    before = read_results(run)
    (run / "seed-1" / "result.json").write_text("")
    (run / "seed-1" / "state.pt").write_bytes(b"")
    events: list[dict] = []
    run_jobs([prepare(load_job("vanilla", WORDS))], events.append)
    told = [(event["event"], event["seed"]) for event in events[:3]]
    assert told == [("note", 1), ("reuse", 0), ("start", 1)]
    assert events[0]["text"].startswith(f"{run.relative_to(place)}/seed-1/result.json can't be read (it is empty); ")
    assert events[0]["text"].endswith("; it is result.json.damaged now, and the seed runs again")
    assert events[2]["notes"][0] == "state.pt can't be read (File is not a zip file); trained from the beginning"
    after = read_results(run)
    assert [result["losses"] for result in after] == [result["losses"] for result in before]


@pytest.mark.parametrize("content", [b"PK\x03\x04", b"\x80\x02}", bytes(100)])
def test_a_state_that_is_cut_anywhere_is_begun_anew(place, content):
    run = run_of(place)
    (run / "seed-0" / "result.json").unlink()
    (run / "seed-0" / "state.pt").write_bytes(content)
    events: list[dict] = []
    run_jobs([prepare(load_job("vanilla", WORDS))], events.append)
    start = next(event for event in events if event["event"] == "start")
    assert start["notes"][0].startswith("state.pt can't be read (")
    assert [result["seed"] for result in read_results(run)] == [0, 1]


def test_other_files_that_are_not_whole_are_one_line(place):
    run = run_of(place)
    (run / "seed-0" / "trained.safetensors").write_bytes(b"")
    assert f"{run}/seed-0/trained.safetensors can't be read: " in refused(lambda: load_trained(run, 0))
    (run / "seed-0" / "predictions.parquet").write_bytes(b"PAR1")
    assert "predictions.parquet can't be read: " in refused(lambda: read_run(run).predictions())
    (run / "job.yaml").write_text("")
    assert "job.yaml is not the one that samples.json beside it was written with" in refused(lambda: load_trained(run))


def test_train_rows_that_are_test_rows_are_told_where_the_run_is_read(place):
    line = "1 of 6 train rows are also test rows"
    (result, _) = read_results(run_of(place))
    assert line in result["warnings"]
    assert f"vanilla (plain), seed 0: {line}" in run_table([run_of(place)]).notes
    assert f"warning: {line}" in checked(prepare(load_job("vanilla", WORDS)))["lines"]


def test_a_run_is_used_from_another_folder(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(finished)
    here = load_trained(run_of(finished)).predict(["a film"])
    (tmp_path / "mine.yaml").write_text("about: another task of that name")
    monkeypatch.chdir(tmp_path)
    assert load_trained(run_of(finished)).predict(["a film"]) == here
    assert Path.cwd() == tmp_path
    assert run_table([run_of(finished)]).rows


def test_where_the_folder_it_was_started_in_is_gone_the_present_one_counts(place):
    run = run_of(place)
    told = json.loads((run / "provenance.json").read_text())
    (run / "provenance.json").write_text(json.dumps({**told, "folder": str(place / "gone")}))
    assert load_trained(run).seed == 0
    (run / "provenance.json").write_text("")
    assert load_trained(run).seed == 0


def test_storage_that_cannot_be_made_is_refused_before_anything_is_computed(place):
    (place / "file").write_text("")
    for storage in ("file/runs", "/proc/none/runs"):
        prepared = prepare(load_job("vanilla", [*WORDS, f"storage={storage}"]))
        for use in (lambda ready=prepared: checked(ready), lambda ready=prepared: run_jobs([ready])):
            assert refused(use).startswith(f"storage: {storage}/vanilla-mine-all-bert-")
    before = sorted(place.rglob("*"))
    checked(prepare(load_job("vanilla", [*WORDS, "storage=new/deep"])))
    assert sorted(place.rglob("*")) == before


def test_a_tilde_is_the_home_folder(place, monkeypatch):
    monkeypatch.setenv("HOME", str(place))
    assert prepare(load_job("vanilla", [*WORDS, "storage=~/kept", "task=~/mine.yaml"])).folder.parent == place / "kept"


def test_a_machine_without_git_runs(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance._git() is None


def test_more_gpus_than_there_are_is_refused(place, monkeypatch):
    import raypft

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAYPFT_CLUSTER", raising=False)
    for more in (["resources.workers=1"], []):
        job = load_job("vanilla", [*WORDS, *more, "resources.gpus_per_worker=1000"])
        line = "resources.gpus_per_worker: the job needs 1000 GPUs; this machine has "
        assert refused(lambda job=job: raypft.check(job)).startswith(line)
    assert refused(lambda: run_jobs([prepare(job)])).startswith(line)


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (
            ["a", {"text": "b"}],
            "predict: found rows of several types; expected texts, or mappings",
        ),
        (["a", "\ud83d"], "data: rows row 1: column \"text\" holds '\\ud83d', of which a character is no Unicode"),
        ([{"text": "a"}, {"text": ["b"]}], "data: rows row 1: column \"text\" holds ['b']; expected a text"),
        ([{"text": "a"}, {"message": "b"}], "data: rows row 1 has no text in text; give one, or leave the row out"),
    ],
)
def test_odd_rows_of_a_program_are_refused(finished, monkeypatch, rows, line):
    monkeypatch.chdir(finished)
    trained = load_trained(run_of(finished))
    assert refused(lambda: trained.predict(rows)).startswith(line)


def test_a_store_that_fails_to_give_a_state_does_not_train_it_away(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    path.write_bytes(b"torn")
    kept = States(path, tmp_path / "state.previous.pt", tmp_path / "state", "cell")
    stepper = TorchStepper(cases.cell("bitfit", tiny.backbone("bert")).learner, cases.SETTINGS)
    assert kept.resume(stepper)[0] is None

    def fails(path: Path) -> Any:
        raise OSError("connection reset")

    with monkeypatch.context() as patch:
        patch.setattr(states, "on_disk", fails)
        with pytest.raises(OSError, match="connection reset"):
            kept.resume(stepper)
    path.unlink()
    assert kept.resume(stepper) == (None, [])

"""Every file of a run that is read again, damaged in every way: whoever reads it then says so in one line that names
it, or has the same numbers; the other seed is unharmed, and running the job again mends it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pa_compute
import pyarrow.parquet as pa_parquet
import pytest

from raypft.config.load import load_job
from raypft.contract import tiny
from raypft.errors import UserError
from raypft.report.folder import write_report
from raypft.runs.comparison import compared
from raypft.runs.executor import LocalExecutor
from raypft.runs.predict import load_trained
from raypft.runs.prepare import prepare
from raypft.runs.results import read_run
from raypft.runs.run import begun
from raypft.runs.table import run_table
from raypft.scale.run import run_jobs

TASK = """
about: mine
kind: choice
fields: {text: text}
label: {names: [bad, good]}
languages: [en]
metric: accuracy
sources: {files: {files: {train: train, test: test}}}
patterns:
  asked: {text: "<demos>{text} : <slot>", verbalizer: {bad: bad, good: good}, source: mine}
"""
WORDS = [
    "task=mine.yaml", "data.root=data", "backbone=models/gpt2", "pattern=asked", "protocol=fixed", "seeds=2",
    "train.epochs=3", "train.languages=[en]", "dev.rows=none", "storage=runs", "train.max_tokens=32",
    "train.batch_size=4", "train.save_every=1", "demos=1",
]  # fmt: skip
RECIPE = "gnnavi_gcn"
QUESTIONS = ["a bad film", "a great one"]


def job(*more: str) -> Any:
    return prepare(load_job(RECIPE, [*WORDS, *more]))


def stop(event: dict[str, Any]) -> None:
    """Stops a run in its second seed, after two of three epochs."""
    if (event["event"], event.get("seed"), event.get("epoch")) == ("epoch", 1, 2):
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a finished run, one of another learning rate, and one that was stopped in its second seed."""
    place = tmp_path_factory.mktemp("made")
    (place / "mine.yaml").write_text(TASK)
    (place / "data").mkdir()
    rows = [{"text": f"{word} film {i}", "label": word} for i in range(6) for word in ("bad", "good")]
    pa_parquet.write_table(pa.Table.from_pylist(rows[:8]), place / "data" / "train.parquet")
    pa_parquet.write_table(pa.Table.from_pylist(rows[8:]), place / "data" / "test.parquet")
    model = tiny.backbone("gpt2", dropout=0.0)
    model.model.save_pretrained(place / "models" / "gpt2")
    model.text.tokenizer.save_pretrained(place / "models" / "gpt2")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        run_jobs([job()])
        run_jobs([job("train.lr=0.02", "sample_seed=1", "storage=other")])
        with pytest.raises(KeyboardInterrupt):
            run_jobs([job("storage=stopped")], stop)
    return place


@pytest.fixture
def place(made, tmp_path, monkeypatch) -> Path:
    """A copy of it, which is the working directory."""
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def folder(place: Path, storage: str) -> Path:
    (found,) = (place / storage).glob(f"{RECIPE}-*")
    return found


def flipped(path: Path, other: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def of_another_version(path: Path, other: Path) -> None:
    if path.suffix == ".parquet":
        pa_parquet.write_table(pa.table({"version": [99]}), path)
    else:
        path.write_bytes(b'{"version": 99}')


DAMAGES: dict[str, Callable[[Path, Path], Any]] = {
    "cut": lambda path, other: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "cut at its end": lambda path, other: path.write_bytes(path.read_bytes()[:-40]),
    "empty": lambda path, other: path.write_bytes(b""),
    "garbage": lambda path, other: path.write_bytes(b"\x00\xff\x93garbage" * 40),
    "one bit": flipped,
    "of another version": of_another_version,
    "of another run": lambda path, other: shutil.copy(other, path),
    "half-written": lambda path, other: path.rename(path.with_name(f"{path.stem}.12345.partial{path.suffix}")),
    "deep": lambda path, other: path.write_bytes(b"[" * 100_000),
    "missing": lambda path, other: path.unlink(),
}
FILES = (
    "job.yaml", "samples.json", "provenance.json", "seed-1/events.jsonl", "seed-1/result.json",
    "seed-1/predictions.parquet", "seed-1/trained.safetensors", "seed-1/demos.parquet",
)  # fmt: skip
FEW = ("cut", "garbage", "one bit", "of another run", "half-written")
CASES = [(name, damage) for name in FILES for damage in (DAMAGES if "result" in name else FEW)]
TOLD_BY = {
    "report": ("job.yaml", "result.json"),
    "predict": ("job.yaml", "result.json", "trained.safetensors", "demos.parquet"),
    "answers": ("job.yaml", "predictions.parquet"),
}
"""Who must say that a file is not what was written; others need not read it."""


@dataclass
class Seen:
    """What a command found, or its one line."""

    numbers: Any = None
    lines: list[str] = field(default_factory=list)


def seen(find: Callable[[], Any], lines: Callable[[Any], list[str]] = lambda found: []) -> Seen:
    """A command's outcome; only a UserError may end it."""
    try:
        found = find()
    except UserError as error:
        return Seen(None, str(error).split("\n"))
    return Seen(found, lines(found))


def answers(run: Path) -> list[Any]:
    """What seed 1 answered."""
    table = read_run(run).predictions()
    return table.filter(pa_compute.field("seed") == 1).to_pylist() if len(table) else []


def looked_at(run: Path) -> dict[str, Seen]:
    """A run, and its second seed, as those see it who read it."""
    return {
        "report": seen(lambda: run_table([run]), lambda table: table.notes),
        "predict": seen(lambda: load_trained(run, 1).predict(QUESTIONS).to_pylist()),
        "answers": seen(lambda: answers(run)),
    }


def scores(run: Path) -> list[Any]:
    return [(seed["seed"], seed["scores"], seed["losses"]) for seed in read_run(run).seeds]


@pytest.fixture(scope="module")
def expected(made) -> dict[str, Any]:
    """What is seen where nothing is damaged, and the numbers of the run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        run = folder(made, "runs")
        return {**looked_at(run), "scores": scores(run)}


@pytest.mark.parametrize(("name", "damage"), CASES)
def test_a_damaged_file_is_one_line_or_the_same_numbers_and_a_run_mends_it(place, expected, name, damage):
    run = folder(place, "runs")
    DAMAGES[damage](run / name, folder(place, "other") / name)
    last, gone = Path(name).name, damage in ("missing", "half-written")
    for who, found in looked_at(run).items():
        told = any(last in line for line in found.lines)
        same = found.numbers == expected[who].numbers
        assert found.numbers is not None or len(found.lines) == 1
        left_out = last in ("result.json", "samples.json") and not found.numbers
        assert found.numbers is None or same or who == "report" or left_out
        if last in TOLD_BY[who] and not (gone and last == "result.json"):
            assert told or (damage == "one bit" and same), (who, found)
    events: list[dict[str, Any]] = []
    again = seen(lambda: run_jobs([job()], events.append))
    if damage == "of another run" and last in ("samples.json", "result.json"):
        assert "was begun with other data, model or method version" in again.lines[0]
        return
    assert not again.lines
    assert scores(run) == expected["scores"]
    assert ("reuse", 0) in [(event["event"], event.get("seed")) for event in events], "the neighbour is unharmed"
    notes = [event["text"] for event in events if event["event"] == "note"]
    if last == "result.json" and not gone:
        assert (run / "seed-1" / "result.json.damaged").is_file()
    kept = last in ("predictions.parquet", "trained.safetensors")
    assert len(notes) == (kept or (last == "result.json" and not gone))
    assert all(f"{name} " in note for note in notes)
    assert all(note.endswith("the seed's scores stand, use --fresh to make it again") for note in notes if kept)
    assert not list(run.rglob("*.partial*"))
    if last in ("job.yaml", "demos.parquet"):
        assert looked_at(run)["predict"].numbers == expected["predict"].numbers


PAGED = [(name, damage) for name in ("job.yaml", "provenance.json", "samples.json") for damage in ("cut", "one bit")]
PAGED += [("seed-1/predictions.parquet", damage) for damage in ("cut", "of another run", "missing")]


@pytest.mark.parametrize(("name", "damage"), PAGED)
def test_a_page_says_what_it_could_not_read(place, tmp_path, name, damage):
    run = folder(place, "runs")
    DAMAGES[damage](run / name, folder(place, "other") / name)

    def page() -> str:
        comparison, cells = compared([run])
        write_report(comparison, cells, tmp_path / "page")
        assert [cell["result"] is not None for cell in cells] == [True, True]
        return (tmp_path / "page" / "table.md").read_text()

    found = seen(page)
    assert len(found.lines) <= 1
    told = Path(name).name in (found.lines or [found.numbers])[0]
    assert told == (name not in ("provenance.json", "samples.json"))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("names", [("state.pt",), ("state.previous.pt",), ("state.pt", "state.previous.pt")], ids=str)
def test_a_damaged_state_is_told_and_the_last_good_one_used(place, expected, names, damage):
    run = folder(place, "stopped")
    other = run.parent.parent / "elsewhere"
    with pytest.raises(KeyboardInterrupt):
        run_jobs([job("train.lr=0.02", f"storage={other}")], stop)
    for name in names:
        DAMAGES[damage](run / "seed-1" / name, folder(place, "elsewhere") / "seed-1" / name)
    events: list[dict[str, Any]] = []
    run_jobs([job("storage=stopped")], events.append)
    assert scores(run) == expected["scores"]
    (began,) = [event for event in events if event.get("seed") == 1 and event["event"] in ("start", "resume")]
    gone = damage in ("missing", "half-written")
    for name in names if "state.pt" in names and not gone else ():
        (line,) = [note for note in began["notes"] if note.startswith(name)]
        ends = "trained from the beginning" if len(names) > 1 else "goes on from the state before, state.previous.pt"
        assert line.endswith(ends)
    assert began["event"] == ("resume" if len(names) == 1 else "start")


@pytest.mark.parametrize("damage", ["cut", "empty", "one bit", "deep"])
def test_a_damaged_result_without_a_test_is_told_and_the_seed_runs_again(place, expected, damage):
    ready = job("storage=searched", "seeds=1")
    with begun(ready, fresh=False):
        LocalExecutor().run(ready.cells(test=False)[0], lambda event: None)
    run = folder(place, "searched")
    (run / "seed-0" / "failure.log").write_text("of an earlier attempt")
    DAMAGES[damage](run / "seed-0" / "searched.json", place)
    events: list[dict[str, Any]] = []
    run_jobs([job("storage=searched", "seeds=1")], events.append)
    (note,) = [event["text"] for event in events if event["event"] == "note"]
    assert "seed-0/searched.json can't be read (" in note
    assert scores(run) == expected["scores"][:1]
    names = {path.name for path in (run / "seed-0").iterdir()}
    assert names == {
        *("demos.parquet", "events.jsonl", "predictions.parquet", "result.json", "trained.safetensors"),
        "searched.json.damaged",
    }


def test_the_seal_of_a_result_covers_every_byte(place):
    """One digit of a score, anywhere, is no score."""
    path = folder(place, "runs") / "seed-1" / "result.json"
    text = path.read_text()
    stored = json.loads(text)
    path.write_text(text.replace(f'"mean": {stored["mean"]}', f'"mean": {stored["mean"] + 1}'))
    assert [seed["seed"] for seed in read_run(path.parents[1]).seeds] == [0]

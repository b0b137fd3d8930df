"""`raypft predict` as a user meets it: rows beside their answers, stdin, files, and a run whose files lie elsewhere."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pa_parquet
import pytest
from test_cli import call
from test_damaged import WORDS, finished, place, run_of  # noqa: F401  (fixtures)

import raypft
from raypft.config.load import load_job
from raypft.records import opened, sealed
from raypft.runs.prepare import prepare
from raypft.scale.run import run_jobs

OURS = ["language", "answer", "p(bad)", "p(good)"]


def printed(monkeypatch, capsys, *words: str) -> list[dict]:
    assert call(monkeypatch, "predict", *words) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def refused(monkeypatch, capsys, *words: str) -> str:
    capsys.readouterr()
    assert call(monkeypatch, *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("raypft: ")


def test_rows_stand_beside_their_answers_in_every_format(place, monkeypatch, capsys):  # noqa: F811
    run, rows = str(run_of(place)), [["a film, long", "x|y", "7"], ["film 2", "", "8"]]
    with (place / "own.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["text", "note", "answer"], *rows])
    found = printed(monkeypatch, capsys, run, "--data", "own.csv")
    assert [list(row) for row in found] == [["text", "note", "answer (given)", *OURS]] * 2
    assert [list(row.values())[:3] for row in found] == rows
    assert {row["answer"] for row in found} <= {"bad", "good"}
    monkeypatch.setattr("raypft.runs.answers.CHUNK", 1)  # rows are written some at a time
    for ending in ("csv", "tsv", "jsonl", "parquet"):
        assert call(monkeypatch, "predict", run, "--data", "own.csv", "--out", f"new/out.{ending}") == 0
        assert capsys.readouterr().out == f"2 rows in new/out.{ending}\n"
    assert [json.loads(line) for line in Path("new/out.jsonl").read_text().splitlines()] == found
    assert pa_parquet.read_table("new/out.parquet").to_pylist() == found
    with Path("new/out.csv").open(newline="") as stream:
        assert list(csv.DictReader(stream)) == [{name: str(value) for name, value in row.items()} for row in found]
    lines = Path("new/out.tsv").read_text().splitlines()
    assert [line.split("\t") for line in lines] == [list(found[0]), *(list(map(str, row.values())) for row in found)]
    assert printed(monkeypatch, capsys, run, "--data", "new/out.csv")[0]["p(bad) (given)"] == str(found[0]["p(bad)"])


def test_what_json_and_tsv_cannot_say(place, monkeypatch, capsys):  # noqa: F811
    run = str(run_of(place))
    rows = [{"text": "a\tfilm", "note": 1, "far": float("inf")}, {"text": "film 2", "note": ["x", 2]}]
    Path("own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = printed(monkeypatch, capsys, run, "--data", "own.jsonl")
    assert [(row["note"], row["far"]) for row in found] == [("1", None), ('["x", 2]', None)]
    line = refused(monkeypatch, capsys, "predict", run, "--data", "own.jsonl", "--out", "out.tsv")
    assert line == "out: row 0 holds a tab or a line break, which tsv can't; write .csv"
    assert not Path("out.tsv").exists()


def test_the_same_column_twice_is_one_line(place, monkeypatch, capsys):  # noqa: F811
    Path("own.csv").write_text("text,a,a\nfilm,1,2\n")
    line = refused(monkeypatch, capsys, "predict", str(run_of(place)), "--data", "own.csv")
    assert line == 'data: own.csv has 2 columns called "a"; expected one'


def typed(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_stdin_is_read(place, monkeypatch, capsys):  # noqa: F811
    run = str(run_of(place))
    typed(monkeypatch, "\ufefffilm 1\r\nfilm ü\n".encode())
    assert [row["text"] for row in printed(monkeypatch, capsys, run, "--text", "-")] == ["film 1", "film ü"]
    typed(monkeypatch, b'{"text": "film 1", "note": 3}\n{"text": "film 2"}\n')
    found = printed(monkeypatch, capsys, run, "--data", "-")
    assert [(row["text"], row["note"]) for row in found] == [("film 1", 3), ("film 2", None)]


@pytest.mark.parametrize(
    ("option", "data", "line"),
    [
        ("--text", b"caf\xe9\n", "text: stdin can't be read: 'utf-8' codec can't decode byte 0xe9 in position 3"),
        ("--text", b"a film\n\nfilm 2\n", "data: stdin row 1 has no text in text; give one, or leave the row out"),
        ("--text", b"", "data: stdin row 0 has no text in text"),
        ("--data", b'{"text": "a"', "data: stdin can't be read: "),
        ("--data", b'"a"\n"b"\n', "data: stdin can't be read: row 0 is a str; expected an object"),
        ("--data", b"", "data: stdin has no rows"),
    ],
)
def test_odd_input_is_one_line(place, monkeypatch, capsys, option, data, line):  # noqa: F811
    typed(monkeypatch, data)
    assert refused(monkeypatch, capsys, "predict", str(run_of(place)), option, "-").startswith(line)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("latin.csv", b"text\ncaf\xe9\n", "data: latin.csv can't be read: "),
        ("empty.csv", b"text,n\n,1\n", "data: empty.csv row 0 has no text in text; give one, or leave the row out"),
        ("null.jsonl", b'{"text": "a"}\n{"n": 1}\n', "data: null.jsonl row 1 has no text in text"),
    ],
)
def test_rows_without_a_text_are_not_answered(place, monkeypatch, capsys, name, content, line):  # noqa: F811
    Path(name).write_bytes(content)
    assert refused(monkeypatch, capsys, "predict", str(run_of(place)), "--data", name).startswith(line)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["predict", "--text", "a", "--out", "file/x.csv"],
            "out: file can't be written: Not a directory; give",
        ),
        (["predict", "--text", "a", "--out", "memory://x/a.csv"], "out: memory://x ends with this process"),
        (["predict", "--text", "a", "--out", "folder.csv"], "out: found folder.csv; expected a file that ends in"),
        (["export", "file/x"], "export: file/x can't be written: Not a directory; give another folder"),
    ],
)
def test_where_nothing_can_be_written_is_one_line(place, monkeypatch, capsys, words, line):  # noqa: F811
    Path("file").write_text("")
    Path("folder.csv").mkdir()
    verb, *more = words
    assert refused(monkeypatch, capsys, verb, str(run_of(place)), *more).startswith(line)


# a run whose files lie elsewhere now


@pytest.fixture
def moved(place, tmp_path, monkeypatch):  # noqa: F811
    """The run alone on another machine: where it was started is gone, task and model lie elsewhere."""
    here = raypft.load_trained(run_of(place)).predict(["a film"])
    other = tmp_path / "other"
    shutil.copytree(run_of(place), other / "run")
    shutil.copytree(place / "models" / "bert", other / "weights")
    shutil.copy(place / "mine.yaml", other / "mine.yaml")
    path = other / "run" / "provenance.json"
    path.write_text(sealed({**opened(path.read_bytes()), "folder": str(tmp_path / "gone")}))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return other, here


def test_a_moved_run_names_what_it_lacks_and_takes_where_it_is(moved, tmp_path, monkeypatch, capsys):
    other, here = moved
    run, empty = str(other / "run"), tmp_path / "empty"
    asked = ["predict", run, "--text", "a film"]
    assert refused(monkeypatch, capsys, *asked) == (
        f"run: run uses backbone=models/bert, which is not there, seen from {empty}; "
        "say where it is now, e.g. backbone=/new/place/bert"
    )
    asked.append(f"backbone={other}/weights")
    assert "run uses task=mine.yaml, which is not there" in refused(monkeypatch, capsys, *asked)
    monkeypatch.chdir(other)
    found = printed(monkeypatch, capsys, run, "backbone=weights", "task=mine.yaml", "--text", "a film")
    assert found[0]["p(good)"] == here["p(good)"][0].as_py()
    trained = raypft.load_trained(run, backbone=other / "weights", task="mine.yaml")
    assert trained.predict(["a film"]).equals(here)
    assert call(monkeypatch, "export", run, "out", "backbone=weights", "task=mine.yaml") == 0
    assert (other / "out" / "config.json").is_file()
    (other / "mine.yaml").write_text((other / "mine.yaml").read_text().replace("[bad, good]", "[good, bad]"))
    line = refused(monkeypatch, capsys, "predict", run, "backbone=weights", "task=mine.yaml", "--text", "a film")
    assert "was trained with another model, task, method version or artefact" in line


def test_only_places_are_taken(moved, monkeypatch, capsys):
    run = str(moved[0] / "run")
    line = 'run: found "train.lr"; expected where something lies now: backbone=, task=, method.name='
    assert refused(monkeypatch, capsys, "predict", run, "train.lr=1", "--text", "a").startswith(line)
    line = 'run: found "weights"; expected KEY=PATH, where what the run was made with lies now'
    assert refused(monkeypatch, capsys, "predict", run, "weights", "--text", "a") == line


def test_an_own_method_that_has_moved(place, tmp_path, monkeypatch, capsys):  # noqa: F811
    shutil.copy(Path(raypft.__file__).parent / "methods" / "bitfit.py", place / "mine.py")
    prepared = prepare(load_job("vanilla", [*WORDS, "seeds=1", "method=mine.py", "storage=own"]))
    run_jobs([prepared])
    run = str(place / prepared.folder)
    here = printed(monkeypatch, capsys, run, "--text", "a film")
    (place / "mine.py").rename(tmp_path / "theirs.py")
    line = refused(monkeypatch, capsys, "predict", run, "--text", "a film")
    assert "uses method.name=mine.py, which is not there, seen from" in line
    assert printed(monkeypatch, capsys, run, f"method.name={tmp_path}/theirs.py", "--text", "a film") == here

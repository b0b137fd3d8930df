"""The command line as a user meets it: errors are one line with exit code 2 and nothing is half-written; runs,
reuse, resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

from raypft.cli import main
from raypft.cli.app import print_table
from raypft.contract import tiny
from raypft.report.table import Table

TASK = """
about: test
kind: choice
fields: {text: text}
label: {names: [negative, positive]}
languages: [en, de]
metric: accuracy
sources:
  files: {files: {train: train, validation: validation, test: test}}
patterns:
  vanilla: {text: "{text}", source: test}
  plain: {text: "{text} . it was <slot> .", verbalizer: {negative: bad, positive: good}, source: test}
  soft: {text: "{text} . <soft> <slot> .", verbalizer: {negative: bad, positive: good}, source: test}
  splits: {text: "{text} . <slot> .", verbalizer: {negative: bad film, positive: good}, source: test}
  shown: {text: "<demos>Review : {text} Sentiment : <slot>", verbalizer: {negative: bad, positive: good}, source: test}
"""
WORDS = {"negative": ["bad", "terrible", "no"], "positive": ["good", "great", "fine"]}


def rows(count: int, language: str = "en", start: int = 0) -> list[dict]:
    """Rows whose label is told by a word."""
    made = []
    for i in range(start, start + count):
        label = ("negative", "positive")[i % 2]
        made.append({"id": str(i), "text": f"the film was {WORDS[label][i % 3]}", "label": label, "language": language})
    return made


@pytest.fixture
def place(tmp_path):
    """A task, its data and two tiny models on disk."""
    (tmp_path / "mytask.yaml").write_text(TASK)
    for split, start in (("train", 0), ("validation", 100), ("test", 200)):
        pa_parquet.write_table(
            pa.Table.from_pylist(rows(24, "en", start) + rows(8, "de", start)), tmp_path / f"{split}.parquet"
        )
    for kind in ("bert", "llama"):
        made = tiny.backbone(kind, dropout=0.1 if kind == "bert" else 0.0)
        made.model.save_pretrained(tmp_path / kind)
        made.text.tokenizer.save_pretrained(tmp_path / kind)
    return tmp_path


def words(place: Path, *more: str, recipe: str = "profit", model: str = "bert") -> list[str]:
    """A command for the tiny task, later words override earlier ones."""
    base = [
        f"task={place}/mytask.yaml",
        f"backbone={place}/{model}",
        f"data.root={place}",
        f"storage={place}/runs",
        "pattern=plain",
        "seeds=2",
        "train.epochs=3",
        "train.lr=1e-2",
    ]
    return [recipe, *base, "train.languages=[en]", "train.max_tokens=32", "protocol=fixed", *more]


def call(monkeypatch, *arguments: str) -> int:
    """Exit code of a command run in this process."""
    monkeypatch.setattr(sys, "argv", ["raypft", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    code = stopped.value.code or 0
    assert isinstance(code, int)
    return code


def results(place: Path) -> dict[str, dict]:
    """Seed folder name to result."""
    return {
        path.parent.name: json.loads(path.read_text()) for path in sorted((place / "runs").glob("*/seed-*/result.json"))
    }


def corrupt(place: Path) -> None:
    (place / "train.parquet").write_bytes(b"PAR1 this is no parquet file PAR1")


def rewrite(place: Path, split: str, **change: object) -> None:
    table = [{**row, **change} for row in rows(24)]
    pa_parquet.write_table(
        pa.Table.from_pylist([{k: v for k, v in row.items() if v is not None} for row in table]),
        place / f"{split}.parquet",
    )


BAD = {
    "unknown key": (["trian.lr=1"], 'unknown key "trian"; did you mean "train"?'),
    "unknown nested key": (["train.lrr=1"], 'unknown key "train.lrr"; did you mean "lr"?'),
    "wrong type": (["train.lr=fast"], "train.lr: found 'fast'"),
    "unknown task": (["task=xnly"], 'task: "xnly" is unknown; did you mean "xnli"?'),
    "unknown method": (["method=gnavi"], 'method: "gnavi" is unknown; did you mean "gnnavi"?'),
    "unknown readout": (["readout=hed"], 'readout: "hed" is unknown; did you mean "head"?'),
    "unknown backbone": (
        ["backbone=smolm2-135m"],
        '"smolm2-135m" is no alias, folder or hub id (owner/name); did you mean "smollm2-135m"?',
    ),
    "unknown pattern": (["pattern=plane"], 'no pattern "plane"; did you mean "plain"?'),
    "missing folder": (["data.root=/nowhere"], "for the train split of mytask; there is no folder /nowhere"),
    "label word that splits": (["pattern=splits"], '"bad film" is 2 tokens for this backbone'),
    "empty language": (["train.languages=[fr]"], 'has no language "fr"'),
    "more shots than rows": (["shots=13"], 'asks for 13 rows of "negative" in en; only 12 are left'),
    "max_tokens too small": (["train.max_tokens=5"], "raise max_tokens"),
    "max_tokens too large": (["train.max_tokens=500"], "has 160 positions"),
    "prefix too long": (
        ["method.name=prefix", "method.length=140"],
        "has 160 positions; method prefix takes 140 of them, which leaves 20 for the text",
    ),
    "no soft tokens": (["pattern=soft"], "use method=soft_prompt"),
    "method and pattern": (["method=soft_prompt"], "needs <soft>"),
    "method and family": (["method=gnnavi"], "works with causal models"),
    "slot and readout": (["pattern=vanilla"], "use readout=head"),
    "demonstrations without place": (["demos=1"], "has no <demos>"),
    "fp16 without workers": (["train.precision=fp16"], "DeepSpeed scales the loss"),
    "zero without workers": (["zero.stage=2"], "found stage 2, offload False without workers"),
    "offload on stage 0": (["resources.workers=1", "zero.offload=true"], "nothing to offload"),
    "too many CPUs": (["resources.workers=2", "resources.cpus_per_worker=64"], "use at most"),
    "override without value": (["--", "train.lr="], "train.lr: found None"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(name, place, monkeypatch, capsys):
    arguments, expected = BAD[name]
    assert call(monkeypatch, "run", *words(place, *arguments)) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.strip().splitlines()) == 1
    assert not list(place.glob("runs/*"))


DAMAGED = {
    "corrupted parquet": (corrupt, "train.parquet can't be read"),
    "missing column": (
        lambda place: rewrite(place, "train", text=None),
        'has no column "text"; found: id, label, language',
    ),
    "label outside the set": (
        lambda place: rewrite(place, "test", label="mixed"),
        'row 0 has label "mixed", outside the label set; expected one of negative, positive',
    ),
    "hidden labels": (lambda place: rewrite(place, "test", label="-1"), 'row 0 has label "-1", a hidden label'),
    "no label column": (
        lambda place: rewrite(place, "test", label=None),
        'has no column "label"; found: id, text, language',
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_bad_data_is_one_line_and_exit_code_2(name, place, monkeypatch, capsys):
    damage, expected = DAMAGED[name]
    damage(place)
    assert call(monkeypatch, "run", *words(place)) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.strip().splitlines()) == 1
    assert not list(place.glob("runs/*"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "proft", "task=sst2", "backbone=x"], 'recipe: "proft" is unknown; did you mean "profit"?'),
        (["run", "nowhere.yaml"], "no file nowhere.yaml"),
        (["run", "task=sst2"], "name a recipe or a job file"),
        (["run", "profit", "task=sst2"], 'key "backbone" is missing'),
        (["list", "taks"], 'did you mean "tasks"?'),
        (["report", "nowhere"], "holds no job.yaml"),
    ],
)
def test_bad_command_is_one_line_and_exit_code_2(arguments, expected, monkeypatch, capsys):
    assert call(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.strip().splitlines()) == 1


def test_layer_out_of_range(place, monkeypatch, capsys):
    command = words(place, "pattern=shown", "demos=1", "method={name: gnnavi, layer: 9}", model="llama")
    assert call(monkeypatch, "run", *command) == 2
    assert "method.layer: found 9; expected 1 to 3" in capsys.readouterr().err


def test_a_run_writes_what_it_promises_and_is_reused(place, monkeypatch, capsys):
    assert call(monkeypatch, "run", *words(place)) == 0
    assert "mean ± sample standard deviation" in capsys.readouterr().out
    (folder,) = (place / "runs").iterdir()
    assert {p.name for p in folder.iterdir()} >= {
        "job.yaml",
        "provenance.json",
        "samples.json",
        "table.md",
        "seed-0",
        "seed-1",
    }
    assert {p.name for p in (folder / "seed-0").iterdir()} == {
        "events.jsonl",
        "result.json",
        "predictions.parquet",
        "trained.safetensors",
    }
    result = results(place)["seed-0"]
    assert set(result["scores"]) == {"en", "de"}
    predictions = pa_parquet.read_table(folder / "seed-0" / "predictions.parquet").to_pylist()
    own = [row for row in predictions if row["language"] == "en"]
    assert result["scores"]["en"] == pytest.approx(100 * sum(row["gold"] == row["answer"] for row in own) / len(own))
    assert all(row["p(negative)"] + row["p(positive)"] == pytest.approx(1) for row in predictions)
    before = (folder / "seed-0" / "result.json").stat().st_mtime_ns
    assert call(monkeypatch, "run", *words(place, "seeds=3")) == 0
    assert "seed 0: finished before, reused" in capsys.readouterr().out
    assert (folder / "seed-0" / "result.json").stat().st_mtime_ns == before
    assert "seed-2" in results(place)


def test_it_learns(place, monkeypatch):
    """The label stands in the row: full fine-tuning finds it, on validation and test alike."""
    assert (
        call(
            monkeypatch,
            "run",
            *words(
                place,
                "seeds=1",
                "train.epochs=30",
                "train.batch_size=4",
                "train.patience=null",
                "train.lr=3e-3",
                "train.dropout=0.0",
            ),
        )
        == 0
    )
    assert results(place)["seed-0"]["scores"]["en"] == 100


def test_changed_data_is_not_mixed_into_a_run(place, monkeypatch, capsys):
    assert call(monkeypatch, "run", *words(place)) == 0
    pa_parquet.write_table(pa.Table.from_pylist(rows(24, "en", 3)), place / "train.parquet")
    assert call(monkeypatch, "run", *words(place)) == 2
    assert "was begun with other data, model or method version" in capsys.readouterr().err
    assert call(monkeypatch, "run", "--fresh", *words(place)) == 0


def test_every_recipe_kind_runs(place, monkeypatch):
    """Head, soft prompt, frozen, graph layer, prefix, LoRA and adapter go the whole way."""
    for recipe, more, model in (
        ("vanilla", ["pattern=vanilla"], "bert"),
        ("sp", ["pattern=soft"], "bert"),
        ("direct", ["train.epochs=0"], "bert"),
        ("gnnavi_sage", ["pattern=shown", "demos=1"], "llama"),
        ("icl", ["pattern=shown", "demos=1", "train.epochs=0"], "llama"),
        ("prompt_tuning", ["pattern=vanilla"], "bert"),
        ("prefix", ["pattern=shown", "demos=1"], "llama"),
        ("lora", ["pattern=shown", "demos=1"], "llama"),
        ("adapter", ["pattern=shown", "demos=1"], "llama"),
    ):
        assert (
            call(monkeypatch, "run", *words(place, "seeds=1", "train.epochs=1", *more, recipe=recipe, model=model)) == 0
        )
    assert len(list((place / "runs").glob("*/seed-0/result.json"))) == 9


def test_show_check_list_and_report(place, monkeypatch, capsys):
    assert call(monkeypatch, "check", *words(place)) == 0
    out = capsys.readouterr().out
    assert "label words: negative = bad ['bad']" in out
    assert "24 train, 24 dev, 32 test" in out
    assert call(monkeypatch, "check", *words(place, "pattern=shown", "demos=1", recipe="lora", model="llama")) == 0
    counted = 3 * 8 * ((32 + 32) + (32 + 16))  # blocks x rank x (in + out of query and of value)
    assert f"trainable parameters of the method: {counted:,}" in capsys.readouterr().out
    assert call(monkeypatch, "show", "--json", *words(place), "--row", "de/201") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["key"] == "de/201"
    assert shown["tokens"][shown["marks"]["slot"][0]] == "<mask>"
    assert call(monkeypatch, "list", "methods") == 0
    assert "gnnavi" in capsys.readouterr().out
    assert call(monkeypatch, "run", *words(place, "seeds=1")) == 0
    capsys.readouterr()
    (folder,) = (place / "runs").iterdir()
    assert call(monkeypatch, "report", str(folder)) == 0
    assert "| MAJ |" in capsys.readouterr().out


def test_a_killed_run_goes_on_and_ends_with_the_same_numbers(place, monkeypatch):
    """kill -9 of the whole process after some steps; started again it says from where and gives the uninterrupted
    losses."""
    command = ["seeds=1", "train.epochs=40", "train.save_every=1", "train.batch_size=4"]
    whole = words(place, *command, f"storage={place}/whole")
    assert call(monkeypatch, "run", *whole) == 0
    killed = [sys.executable, "-m", "raypft.cli", "run", *words(place, *command)]
    with subprocess.Popen(killed, stdout=subprocess.DEVNULL, env=os.environ) as process:
        deadline = time.monotonic() + 120
        while not list(place.glob("runs/*/seed-0/state.pt")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    assert not results(place), "the run ended before it was killed; make it longer"
    again = subprocess.run(killed, capture_output=True, text=True, check=True, env=os.environ)
    assert "from its last state" in again.stdout
    (expected,) = [json.loads(path.read_text()) for path in place.glob("whole/*/seed-0/result.json")]
    found = results(place)["seed-0"]
    assert found["losses"] == expected["losses"]
    assert found["scores"] == expected["scores"]
    assert found["best_epoch"] == expected["best_epoch"]


def test_a_job_named_twice_is_refused(place, monkeypatch, capsys):
    """It would wait for itself."""
    arguments = words(place, "seeds=1")
    assert call(monkeypatch, "run", arguments[0], *arguments) == 2
    assert "was asked for twice; name each job once" in capsys.readouterr().err


def test_what_a_terminal_cannot_show_is_escaped_as_json_escapes_it(place):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "raypft.cli", "check", "profit", "task=é😀", "backbone=b"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert 'task: "\\u00e9\\ud83d\\ude00" is unknown' in done.stderr


def test_words_that_are_no_text_are_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["raypft", "predict", "runs/x", "--text", "caf\udce9"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    line = "raypft: command: word 4, 'caf\\udce9', holds bytes that are no UTF-8; expected UTF-8 text\n"
    assert capsys.readouterr().err == line


def test_what_a_table_and_its_notes_say_in_brackets_stays(capsys):
    shown = Table("t: [x]@1", ["run", "[red]"], [["[b]", ":key:"]], ["in /runs/[v2]/[/a]"])
    print_table(shown)
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("t: [x]@1", "[red]", "[b]", ":key:", "- in /runs/[v2]/[/a]"))


@pytest.mark.parametrize(
    "word", ["storage=~no-one/r", "task=~no-one/t.yaml", "backbone=~no-one/m", "method=~no-one/m.py"]
)
def test_the_home_of_no_one_is_one_line(place, word, monkeypatch, capsys):
    assert call(monkeypatch, "check", *words(place, "seeds=1", word)) == 2
    error = capsys.readouterr().err
    assert (error.count("\n"), "~no-one/" in error) == (1, True)

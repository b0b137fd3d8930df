"""A newcomer's first table: a CSV with its own column names, seven lines of YAML, two commands."""

from __future__ import annotations

import csv
import json
import random
import re
import shlex

import pytest
from test_cli import call

from raypft.cli.usage import check_blanks
from raypft.config.words import split_words
from raypft.contract import tiny

YAML = """\
kind: choice
files: support.csv
fields: [message]
label: topic
labels: [billing, bug, praise]
patterns:
  ask: {text: "{message} : <slot>", verbalizer: {billing: bad, bug: wrong, praise: good}}
"""
COMMANDS = """\
raypft check vanilla profit lora task=support.yaml backbone=bert protocol=fixed demos=0 train.max_tokens=64
raypft run vanilla profit lora task=support.yaml backbone=bert protocol=fixed demos=0 train.max_tokens=64 seeds=2
"""
TINY = ["train.epochs=2"]
"""What this test adds so as not to take minutes."""
WORDS = {"billing": "terrible", "bug": "no", "praise": "great"}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user's folder, the current one: a CSV and a tiny model."""
    made = tiny.backbone("bert")
    made.model.save_pretrained(tmp_path / "bert")
    made.text.tokenizer.save_pretrained(tmp_path / "bert")
    fill = random.Random(0)
    with (tmp_path / "support.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["ticket", "message", "topic"])
        writer.writeheader()
        for number in range(60):
            topic = list(WORDS)[number % 3]
            about = " ".join(fill.choices(["the", "a", "film", "was", "is", "it"], k=4))
            writer.writerow({"ticket": number, "message": f"{about} {WORDS[topic]}", "topic": topic})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_csv_becomes_a_table_of_three_methods_in_twelve_lines(home, monkeypatch, capsys):
    assert len((YAML + COMMANDS).splitlines()) <= 12
    (home / "support.yaml").write_text(YAML)
    check, run = (shlex.split(line)[1:] for line in COMMANDS.splitlines())
    assert call(monkeypatch, *check) == 0
    told = capsys.readouterr().out
    assert told.count("note: support.csv: 48 train, 6 dev, 6 test rows, by class") == 3
    assert call(monkeypatch, *run, *TINY) == 0
    shown = capsys.readouterr().out
    assert "support: accuracy" in shown
    for name in ("vanilla", r"profit \(ask\)", r"lora \(ask\)"):
        assert re.search(rf"\| {name} \| all \| 2 \| \d+\.\d ± \d+\.\d \|", shown), shown
    (samples,) = (home / "runs").glob("lora-*/samples.json")
    assert json.loads(samples.read_text())["0"]["notes"] == ["support.csv: 48 train, 6 dev, 6 test rows, by class"]


@pytest.mark.parametrize(("most", "full"), [(64, 0), (9, 6)])
def test_check_tells_how_many_prompts_are_shortened(most, full, home, monkeypatch, capsys):
    (home / "support.yaml").write_text(YAML)
    assert call(monkeypatch, "check", "profit", "task=support.yaml", "backbone=bert", f"train.max_tokens={most}") == 0
    (told,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("prompt length"))
    rest = f", {full} of them full: longer texts are shortened)" if full else ")"
    assert told.endswith(f"of max_tokens {most} (6 test prompts{rest}")


def test_jobs_that_make_no_table_are_refused_before_they_run(home, monkeypatch, capsys):
    (home / "support.yaml").write_text(YAML)
    words = ["task=support.yaml", "backbone=bert", "demos=0", "train.max_tokens=64", "train.epochs=1", "seeds=1"]
    for command in ("check", "run"):
        assert call(monkeypatch, command, "profit", "lora", *words) == 2
        assert capsys.readouterr().err.strip() == (
            "raypft: run: profit and lora would be tested on other rows or in another order, and make no table "
            "(protocols profit and gnnavi; give both one, e.g. protocol=fixed)"
        )
    assert not (home / "runs").exists()


def test_three_mistakes_are_three_lines_of_check(home, monkeypatch, capsys):
    wrong = YAML.replace("labels:", "lables:").replace("{message} :", "{mesage} :").replace("bug: wrong, ", "")
    (home / "support.yaml").write_text(wrong)
    assert call(monkeypatch, "check", "profit", "task=support.yaml", "backbone=bert", "train.lrr=1") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line.partition(";")[0] for line in lines] == [
        'raypft: profit: unknown key "train.lrr"',
        'raypft: support.yaml: unknown key "lables"',
        'raypft: support.yaml: patterns.ask.text: no field "mesage"',
        "raypft: support.yaml: patterns.ask.verbalizer: found ['billing', 'praise']",
    ]


def test_an_override_may_be_for_one_recipe():
    words = ["profit", "mine/job.yaml", "task=x", "profit.train.lr=1", "job.method.rank=2", "train.epochs=3"]
    assert split_words(words) == [
        ("profit", ["task=x", "train.lr=1", "train.epochs=3"]),
        ("mine/job.yaml", ["task=x", "method.rank=2", "train.epochs=3"]),
    ]


def test_a_file_called_as_a_key_of_jobs_takes_no_override_from_the_others():
    assert split_words(["train.yaml", "lora", "train.lr=1"]) == [
        ("train.yaml", ["train.lr=1"]),
        ("lora", ["train.lr=1"]),
    ]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("check profit task = sst2", 'command: found a blank before "="; write task=sst2 as one word'),
        ("check profit task =sst2", 'command: found a blank before "="; write task=sst2 as one word'),
        ("plan quickstart shots= 4", 'command: found a blank after "shots="; write shots=4 as one word'),
    ],
)
def test_a_command_written_as_elsewhere_is_told(line, told, monkeypatch, capsys):
    assert call(monkeypatch, *line.split()) == 2
    assert capsys.readouterr().err == f"raypft: {told}\n"


@pytest.mark.parametrize(
    "line", ["run profit --fresh --json", "check profit train.lr= shots=1", "show profit --row en/1"]
)
def test_words_of_our_own_are_let_through(line):
    check_blanks(line.split())


def test_a_file_with_keys_of_several_is_what_it_is_given_for(home, monkeypatch, capsys):
    (home / "job.yaml").write_text("{from: profit, task: xnli, kind: choice, backbone: bert}")
    assert call(monkeypatch, "check", "job.yaml") == 2
    assert 'job.yaml: unknown key "kind"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("run bitfit", "job: bitfit is a method; name a recipe beside it, e.g. raypft run profit method=bitfit"),
        ("check sst2", "job: sst2 is a task; name a recipe beside it, e.g. raypft run profit task=sst2"),
        ("show xlmr-base", "job: xlmr-base is a backbone; name a recipe beside it, e.g. raypft run profit backbone="),
        ("run support.csv", "job: support.csv is no job, which is a YAML; raypft init support.csv writes a task"),
        ("check profit task=support.csv backbone=bert", "task: support.csv is no task, which is a YAML; raypft init"),
        (
            "run profit_fewshot",
            "job: profit_fewshot is a campaign; raypft plan profit_fewshot says what it needs, raypft ",
        ),
        (
            "show topro scale=small",
            "job: topro is a campaign; raypft plan topro says what it needs, raypft tune topro runs",
        ),
        ("check task.yaml", "job: task.yaml is a task; name a recipe beside it, e.g. raypft run profit task=task.yaml"),
        (
            "plan task.yaml",
            "campaign: task.yaml is a task; raypft run profit task=task.yaml backbone=… runs a recipe on",
        ),
        ("check profit task=job.yaml backbone=bert", "task: job.yaml is a job; expected a task, with kind, fields and"),
        ("check profit task=table.yaml backbone=bert", "task: table.yaml is a campaign; expected a task, with kind"),
        ("check table.yaml", "job: table.yaml is a campaign; raypft plan table.yaml says what it needs, raypft tune"),
        ("profit_fewshot", 'command: "profit_fewshot" is unknown; profit_fewshot is run by raypft tune profit_fewshot'),
        ("tune profit", "campaign: profit is a recipe; raypft run profit task=… backbone=… runs it"),
        (
            "plan job.yaml",
            "job.yaml: found a job; expected a campaign, with rows and tasks; raypft run job.yaml runs it",
        ),
    ],
)
def test_a_word_that_names_something_else_is_told_as_what_it_is(line, told, home, monkeypatch, capsys):
    (home / "table.yaml").write_text("{about: a table, rows: {SP: {recipe: sp}}, tasks: [xnli]}")
    (home / "job.yaml").write_text("{from: profit, task: xnli}")
    (home / "task.yaml").write_text("{kind: choice, files: a.csv, fields: [a], labels: [b, c]}")
    assert call(monkeypatch, *line.split()) == 2
    assert capsys.readouterr().err.startswith(f"raypft: {told}")

"""A person's path, by commands alone: a CSV with column names of its own, `init`, `check`, `run` of three methods,
`report`, `predict`, `export`; then the model in transformers and peft, without raypft."""

from __future__ import annotations

import csv
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import call

from raypft.contract import tiny

TOPICS = {"good": "great", "bad": "terrible", "fine": "maybe"}
"""Label to a word that tells it."""
SHORTER = ["train.epochs=4", "train.lr=1e-2", "seeds=2"]
"""What this test adds, so as not to take minutes."""


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A person's folder, the current one: a CSV and a model."""
    made = tiny.backbone("bert")
    made.model.save_pretrained(tmp_path / "bert")
    made.text.tokenizer.save_pretrained(tmp_path / "bert")
    fill = random.Random(0)
    for name, count in (("tickets.csv", 90), ("new tickets.csv", 6)):
        with (tmp_path / name).open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["Ticket No.", "Customer Message", "Team"])
            for number in range(count):
                team = list(TOPICS)[number % 3]
                about = " ".join(fill.choices(["the", "a", "film", "was", "is", "it"], k=5))
                writer.writerow([1000 + number, f"{about} {TOPICS[team]}", team])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def without_raypft(code: str) -> str:
    """What a Python prints that knows transformers and peft, and can't import raypft."""
    blocked = "import sys; sys.modules['raypft'] = None\n"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    command = [sys.executable, "-W", "ignore", "-c", blocked + code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_from_a_csv_to_a_model_in_transformers(home, monkeypatch, capsys):
    typed: list[str] = []

    def type_(*words: str) -> str:
        typed.append(shlex.join(["raypft", *words]))
        assert call(monkeypatch, *words) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    told = type_("init", "tickets.csv", "backbone=bert", "text=Customer Message", "label=Team")
    assert "3 labels, rows of each: bad 30, fine 30, good 30" in told
    assert "label words: bad = bad ['bad']" in told, "check was run at once"
    check, run = re.findall(r"^raypft (check .*|run .*)$", told, re.MULTILINE)
    assert type_(*shlex.split(check)).count("note: tickets.csv: 72 train, 9 dev, 9 test rows, by class") == 3

    shown = type_(*shlex.split(run), *SHORTER)
    for recipe in ("vanilla", r"profit \(ask\)", r"lora \(ask\)"):
        assert re.search(rf"^\| {recipe} \| all \| 2 \| \d+\.\d ± \d+\.\d \|", shown, re.MULTILINE), shown
    folders = {path.name.partition("-")[0]: str(path) for path in Path("runs").iterdir()}
    assert set(folders) == {"vanilla", "profit", "lora"}

    assert "| lora" in type_("runs")
    assert type_("report", *map(str, folders.values())).count("± ") >= 3
    type_("report", *map(str, folders.values()), "--out", "page")
    assert "tickets" in Path("page/index.html").read_text()

    type_("predict", folders["vanilla"], "--data", "new tickets.csv", "--out", "answers.csv")
    with open("answers.csv", newline="") as stream:
        answers = list(csv.DictReader(stream))
    assert [row["Ticket No."] for row in answers] == [str(1000 + number) for number in range(6)]
    assert {row["answer"] for row in answers} <= set(TOPICS)

    code = ""
    for recipe in ("lora", "vanilla"):
        type_("export", folders[recipe], f"mine-{recipe}")
        card = Path(f"mine-{recipe}/README.md").read_text()
        (loads,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        code += f"{loads}\nprint(type(model).__module__.partition('.')[0])\n"
    code += (
        f"batch = tokenizer({[row['Customer Message'] for row in answers]}, return_tensors='pt', padding=True)\n"
        "print(*(model.config.id2label[i] for i in model(**batch).logits.argmax(-1).tolist()))\n"
    )
    lines = without_raypft(code).splitlines()
    assert lines == ["peft", "transformers", " ".join(row["answer"] for row in answers)]
    assert len(typed) == 9

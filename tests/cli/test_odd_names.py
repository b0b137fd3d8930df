"""Names that mean something to a shell, a page, a table, a terminal or a file system are names and nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from raypft.cli.app import main
from raypft.contract import tiny

NAMES = ("../../x", "$(touch owned)", "<b>x</b>", "\x1b]0;owned\x07", "a|b", "[red]x[/red]", "`id`", "a\nb", "-rf")
"""Of labels and ids, a pair of which stand in each run; without what no file can be called also of files."""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working directory with a tiny model, deep enough for ../../ to lead nowhere else."""
    place = tmp_path / "a" / "b" / "work"
    place.mkdir(parents=True)
    made = tiny.backbone("bert", dropout=0.0)
    made.model.save_pretrained(place / "bert")
    made.text.tokenizer.save_pretrained(place / "bert")
    monkeypatch.chdir(place)
    return place


def write(place: Path, labels: list[str], ids: list[str], file: str = "mine.yaml", language: str = "en") -> None:
    """A task whose rows hold labels and ids."""
    task = {
        "about": "<script>mine</script>",
        "kind": "choice",
        "fields": {"text": "text"},
        "label": {"names": labels},
        "languages": [language],
        "metric": "accuracy",
        "sources": {"files": {"files": {"train": "train.jsonl", "test": "test.jsonl"}}},
        "patterns": {"plain": {"text": "{text}", "source": "mine"}},
    }
    Path(place / file).write_text(yaml.safe_dump(task, allow_unicode=True))
    rows = [
        {"id": f"{ids[number % len(ids)]}{number}", "text": f"film {number}", "label": labels[number % len(labels)]}
        for number in range(8)
    ]
    for name in ("train", "test"):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def call(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["raypft", *words])
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


WORDS = (
    "data.root=.", "backbone=bert", "pattern=plain", "protocol=fixed", "seeds=1", "train.epochs=1", "dev.rows=none",
    "train.max_tokens=32", "storage=runs",
)  # fmt: skip


def harmless(place: Path, before: set[Path]) -> None:
    """Nothing was made but below the storage and the report's folder, and nothing ran."""
    made = {path for path in place.parents[1].rglob("*") if path not in before}
    assert all(path.is_relative_to(place / "runs") or path.is_relative_to(place / "page") for path in made)
    assert not list(place.parents[1].rglob("owned*"))


def test_odd_labels_and_ids_are_told_as_they_are(place, monkeypatch, capsys):
    write(place, list(NAMES), list(NAMES))
    before = set(place.parents[1].rglob("*"))
    code, out, err = call(monkeypatch, capsys, "run", "vanilla", "task=mine.yaml", *WORDS)
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert "\x07" not in out
    (folder,) = (place / "runs").iterdir()
    code, out, err = call(monkeypatch, capsys, "report", str(folder), "--out", "page")
    assert (code, err) == (0, "")
    page = (place / "page" / "index.html").read_text()
    assert "<b>x</b>" not in page
    assert "<script>mine" not in page
    assert "\x1b" not in page
    assert "\x1b" not in (place / "page" / "table.md").read_text()
    code, out, err = call(monkeypatch, capsys, "predict", str(folder), "--text", "$(touch owned)\x1b[2J")
    assert code == 0
    assert "\x1b" not in out + err
    harmless(place, before)


@pytest.mark.parametrize("name", ["$(touch owned)", "<b>x", "\x1b]0;owned\x07", "a|b", "[red]x", "`id`", "a\nb", "-rf"])
def test_an_odd_name_of_a_task_file(place, name, monkeypatch, capsys):
    write(place, ["bad", "good"], ["r"], f"{name}.yaml")
    before = set(place.parents[1].rglob("*"))
    code, out, err = call(monkeypatch, capsys, "run", "vanilla", f"task=./{name}.yaml", *WORDS)
    assert "Traceback" not in err
    assert "\x1b" not in out + err
    assert code in (0, 2)
    assert code == 0 or err.count("\n") == 1
    harmless(place, before)
    for folder in (place / "runs").glob("*"):
        assert not set(folder.name) & set("\x1b\x07\n")
        assert call(monkeypatch, capsys, "report", str(folder))[0] == 0


@pytest.mark.parametrize("name", ["../../x", "/abs/x", "a/b", "..", "a\x1b[2J", "a\nb", ""])
def test_an_odd_name_of_a_recipe_leaves_no_storage(place, name, monkeypatch, capsys):
    write(place, ["bad", "good"], ["r"])
    before = set(place.parents[1].rglob("*"))
    code, out, err = call(monkeypatch, capsys, "run", "vanilla", "task=mine.yaml", *WORDS, f"recipe={json.dumps(name)}")
    assert "\x1b" not in out + err
    if name == "..":
        assert code == 0
        assert [folder.name[:9] for folder in (place / "runs").iterdir()] == ["..-mine-a"]
    else:
        assert (code, err.count("\n")) == (2, 1)
    harmless(place, before)


@pytest.mark.parametrize("name", ["../../x", "<b>", "$(touch owned)", "\x1b[2J"])
def test_an_odd_name_of_a_language(place, name, monkeypatch, capsys):
    write(place, ["bad", "good"], ["r"], language=name)
    before = set(place.parents[1].rglob("*"))
    words = [*WORDS, f"train.languages=[{json.dumps(name)}]"]
    code, out, err = call(monkeypatch, capsys, "run", "vanilla", "task=mine.yaml", *words)
    assert "\x1b" not in out + err
    assert code == 0 or err.count("\n") == 1
    harmless(place, before)

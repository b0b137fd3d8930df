"""One file for all splits: by class, by content, whatever the order of its rows, and nothing of train in test."""

from __future__ import annotations

import csv
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from raypft.data import sources
from raypft.data.origin import choose
from raypft.errors import UserError
from raypft.tasks.load import load_task

TASK = """
kind: choice
files: support.csv
fields: [message]
labels: [billing, bug, praise]
label: topic
"""
CLASSES = ("billing", "bug", "praise")


def write(folder: Path, rows: list[dict[str, str]], task: str = TASK, file: str = "support.csv") -> sources.Origin:
    """The origin of a task beside its file."""
    with (folder / file).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "support.yaml").write_text(task, encoding="utf-8")
    return choose(load_task(str(folder / "support.yaml")), None, None)


def messages(count: int = 60) -> list[dict[str, str]]:
    return [{"message": f"message {number}", "topic": CLASSES[number % 3]} for number in range(count)]


def texts(origin: sources.Origin) -> dict[str, set[str]]:
    """Split to the messages in it."""
    return {split: set(table["message"].to_pylist()) for split, table in sources.split_parts(origin).items()}


def test_a_tenth_of_each_class_is_tested_and_another_selects(tmp_path):
    parts = sources.split_parts(write(tmp_path, messages()))
    assert {split: len(table) for split, table in parts.items()} == {"train": 48, "validation": 6, "test": 6}
    for split, each in (("train", 16), ("validation", 2), ("test", 2)):
        labels = parts[split]["label"].to_pylist()
        assert [labels.count(name) for name in CLASSES] == [each] * 3


def test_every_row_is_in_one_split_and_read_split_gives_it(tmp_path):
    origin = write(tmp_path, messages())
    parts = texts(origin)
    assert set.union(*parts.values()) == {row["message"] for row in messages()}
    assert sum(map(len, parts.values())) == 60
    for split, of_split in parts.items():
        table = sources.read_split(origin, split, ["en"])
        assert table is not None
        assert set(table["message"].to_pylist()) == of_split
    assert sources.languages_of(origin, "test") == ["en"]


def test_neither_the_order_of_rows_nor_the_interpreter_matters(tmp_path):
    before = texts(write(tmp_path, messages()))
    rows = messages()
    random.Random(1).shuffle(rows)
    assert texts(write(tmp_path, rows)) == before
    script = (
        "from raypft.data import sources; from raypft.data.origin import choose; "
        "from raypft.tasks.load import load_task; "
        f"o = choose(load_task({str(tmp_path / 'support.yaml')!r}), None, None); "
        "print(sorted(sources.split_parts(o)['test']['message'].to_pylist()))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(sorted(before["test"]))


def test_a_row_more_moves_few_others(tmp_path):
    before = texts(write(tmp_path, messages(300)))
    after = texts(write(tmp_path, [*messages(300), {"message": "one more", "topic": "bug"}]))
    assert sum(len(before[split] - after[split]) for split in before) <= 2


@pytest.mark.parametrize("with_ids", [False, True])
def test_rows_of_one_content_stay_on_one_side_whatever_their_labels_and_ids(with_ids, tmp_path):
    rows = messages(30)
    rows += [{"message": row["message"], "topic": CLASSES[(number + 1) % 3]} for number, row in enumerate(rows)]
    if with_ids:
        rows = [{"id": str(number), **row} for number, row in enumerate(rows)]
    parts = sources.split_parts(write(tmp_path, rows))
    sides = [set(table["message"].to_pylist()) for table in parts.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 30
    assert sum(map(len, parts.values())) == 60


def test_rows_of_one_id_stay_on_one_side(tmp_path):
    rows = [
        {"id": str(number // 2), "message": f"m {number}", "topic": "bug", "language": ("en", "de")[number % 2]}
        for number in range(60)
    ]
    parts = sources.split_parts(write(tmp_path, rows, TASK + "languages: [en, de]\n"))
    sides = [set(table["id"].to_pylist()) for table in parts.values()]
    assert sum(map(len, sides)) == 30
    for table in parts.values():
        assert table["language"].to_pylist().count("en") == len(table) / 2


def test_chains_of_ids_and_contents_are_one_unit(tmp_path):
    """Row n shares its id with row n + 1 and its content with row n - 1."""
    rows = [
        {"id": f"i{(n + 1) // 2}", "message": f"c{n // 2}", "topic": "bug", "language": ("en", "de")[n % 2]}
        for n in range(20)
    ]
    with pytest.raises(UserError, match="20 rows, too few to hold a test split out of them, of which 10 differ; give"):
        sources.split_parts(write(tmp_path, rows, TASK + "languages: [en, de]\n"))


def test_too_few_rows_are_refused(tmp_path):
    origin = write(tmp_path, messages(2)[:1])
    with pytest.raises(
        UserError, match=r"support\.csv has 1 rows, too few to hold a test split out of them; give more"
    ):
        sources.read_split(origin, "train", ["en"])


def test_two_rows_a_class_leave_no_dev_split(tmp_path):
    origin = write(tmp_path, messages(6))
    assert sources.read_split(origin, "validation", ["en"]) is None


def test_languages_of_a_column_must_be_named(tmp_path):
    rows = [{**row, "language": ("en", "de")[number % 2]} for number, row in enumerate(messages())]
    origin = write(tmp_path, rows)
    with pytest.raises(UserError) as caught:
        sources.read_split(origin, "train", ["en"])
    assert str(caught.value) == (
        f"languages: {tmp_path}/support.csv has rows in de, en; the task names no languages, which means en; "
        "write languages: [de, en] into it"
    )


def test_files_of_a_task_lie_beside_it_unless_a_root_is_given(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    origin = write(tmp_path, messages())
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert sources.read_split(origin, "test", ["en"]) is not None
    given = choose(origin.task, None, str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match=r"no file .*/elsewhere/support\.csv"):
        sources.read_split(given, "test", ["en"])


def test_files_of_splits_at_the_top_lie_beside_the_task_too(tmp_path):
    task = TASK.replace("support.csv", "{train: support.csv, test: support.csv}")
    origin = write(tmp_path, messages(6), task)
    for split in ("train", "test"):
        table = sources.read_split(origin, split, ["en"])
        assert table is not None
        assert len(table) == 6


def test_an_absolute_path_is_one(tmp_path):
    (tmp_path / "far").mkdir()
    origin = write(
        tmp_path, messages(), TASK.replace("support.csv", str(tmp_path / "far" / "mine.csv")), "far/mine.csv"
    )
    assert len(sources.split_parts(origin)["train"]) == 48


def test_a_stream_needs_a_file_of_its_own(tmp_path):
    with pytest.raises(UserError, match=r"data\.stream: support\.csv holds the rows of all splits"):
        sources.files_of(write(tmp_path, messages()), "train", ["en"])

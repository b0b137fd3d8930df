"""Where files are looked for: folders of any name, links, parts of data sets; and what is said where there are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_odd_files import CHOICE, lines, read, refused, told

from raypft.data import formats
from raypft.data.files import Place, place_of
from raypft.data.formats import TOLD, ending_of
from raypft.data.sources import existing_files, languages_of, read_rows
from raypft.errors import UserError
from raypft.schema import split_override

WHERE = " for the train split of mine; "


def put(folder: Path, *names: str, label: str = "no") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(lines([{"text": Path(name).name, "label": label}]))


@pytest.mark.parametrize(
    "folder",
    ["a b", "Ü ß", "run #2", "50%", "%20", "{x}", "{language}", "a*b", "*", "[v2]", "a?", "~", "a\\b", "'q'", "$HOME"],
)
def test_a_folder_may_have_any_name(origin, tmp_path, folder):
    root = tmp_path / folder
    put(root, "train.jsonl", "deep/part-0.jsonl", "deep/part-1.jsonl")
    put(tmp_path / "a other b", "train.jsonl", "deep/part-0.jsonl")  # what a * in the folder's name would stand for
    made = origin(CHOICE, root)
    assert told(read(made), "text") == [("train.jsonl",)]
    parts = origin(CHOICE, root, files={"train": "*/part-*"})
    assert told(read(parts), "text") == [("part-0.jsonl",), ("part-1.jsonl",)]
    assert [info.path for info in existing_files(parts)] == [f"{root}/deep/part-{i}.jsonl" for i in (0, 1)]
    assert len(read(origin(CHOICE, f"{root}/"))) == 1
    assert len(read_rows(made, f"{root}/train.jsonl", None, "en")) == 1


@pytest.mark.parametrize("word", ["/a/run #2", "/a#b", "/a/{x}", "/a*", "/a [v2]", "~/a", "/50%", "/Ü", "C:\\data"])
def test_a_folder_on_the_command_line_is_what_is_written(word):
    assert split_override(f"data.root={word}") == ("data.root", word)


def test_values_in_quotes_lists_and_numbers_stay_what_they_are():
    assert split_override("data.root='a #b'") == ("data.root", "a #b")
    assert split_override('pattern="a: #b"') == ("pattern", "a: #b")
    assert split_override("seeds=[0, 1]") == ("seeds", [0, 1])
    assert split_override("shots=8 # few") == ("shots", 8)


def test_uris_are_folders_too(origin, tmp_path):
    put(tmp_path / "a*b", "train.jsonl", "x-0.jsonl")
    put(tmp_path / "a-b", "train.jsonl", "x-0.jsonl")
    uri = f"file://{tmp_path}/a*b".replace(" ", "%20")
    assert len(read(origin(CHOICE, uri))) == 1
    assert len(read(origin(CHOICE, uri, files={"train": "x-*"}))) == 1
    assert str(place_of("file:///x/y/", "a/*")) == "file:///x/y/a/*"
    assert refused(origin(CHOICE, "nope://x")).startswith("data: nope://x can't be reached: ")


def test_links_are_followed(origin, tmp_path):
    put(tmp_path / "real", "rows.jsonl")
    (tmp_path / "linked").symlink_to(tmp_path / "real", target_is_directory=True)
    (tmp_path / "train.jsonl").symlink_to(tmp_path / "real/rows.jsonl")
    (tmp_path / "test.jsonl").symlink_to(tmp_path / "nowhere")
    assert len(read(origin(CHOICE))) == 1
    assert len(read(origin(CHOICE, files={"train": "linked/rows"}))) == 1
    assert len(read(origin(CHOICE, files={"train": "linked/*"}))) == 1
    with pytest.raises(UserError, match=r"data: no file .*/test"):
        languages_of(origin(CHOICE), "test")


def test_a_star_stands_for_nothing_that_is_hidden(origin, tmp_path):
    put(tmp_path, "d/train-0.jsonl", "d/.ipynb_checkpoints/train-0.jsonl", "d/._train-1.jsonl", ".d/train-2.jsonl")
    for pattern in ("*/train-*", "d/*", "*"):
        assert told(read(origin(CHOICE, files={"train": pattern})), "text") == [("train-0.jsonl",)]
    assert told(read(origin(CHOICE, files={"train": ".d/*"})), "text") == [("train-2.jsonl",)]
    assert len(read(origin(CHOICE, tmp_path / ".d", files={"train": "*"}))) == 1


def test_a_link_to_a_folder_above_shows_no_file_twice(origin, tmp_path):
    put(tmp_path, "deep/train-0.jsonl", "deep/train-1.jsonl")
    (tmp_path / "deep/up").symlink_to(tmp_path, target_is_directory=True)
    made = origin(CHOICE, files={"train": "*/train-*"})
    assert told(read(made), "text") == [("train-0.jsonl",), ("train-1.jsonl",)]
    assert [info.path for info in existing_files(made)] == [f"{tmp_path}/deep/train-{i}.jsonl" for i in (0, 1)]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("train.jsonl", ("jsonl", None)),
        ("a.b/train.CSV.Gz", ("csv", "gz")),
        ("train.v2.json.zst", ("squad", "zst")),
        ("train.parquet.bak", (None, None)),
        ("train", (None, None)),
        ("train.gz", (None, "gz")),
        (".csv", (None, None)),
        ("csv/train", (None, None)),
        (".csv.gz", (None, "gz")),
    ],
)
def test_the_ending_says_the_format_and_how_a_file_is_packed(name, said):
    assert ending_of(name) == said


# what is said where there is none


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["train.txt"], "found there: train.txt; a .txt is not read, rename it by its layout (.tsv, .conll, …), or "),
        (["train.xlsx", "b.csv"], "found there: train.xlsx; a .xlsx is not read, save it as CSV UTF-8"),
        (["train.zip"], "found there: train.zip; a .zip is not read, unpack it"),
        (["Train.csv"], "found there: Train.csv"),
        (["training.csv", "x.csv"], "found there: training.csv"),
        (["tarin.csv", "x.csv"], "found there: tarin.csv"),
        (["one.csv", "two/a.csv"], "found there: mine.yaml, one.csv, two/"),
        (["train.parquet/part-0.parquet"], "train.parquet/ is a folder: name its files, such as train.parquet/*"),
        (["train/a.csv"], "it is a folder: name its files, such as train/*"),
    ],
)
def test_what_lies_near_is_named(origin, tmp_path, names, line):
    put(tmp_path, *names)
    assert refused(origin(CHOICE)).startswith(f"data: no file {tmp_path}/train ({TOLD}){WHERE}{line}")


def test_the_first_folder_that_is_not_there_is_named(origin, tmp_path):
    put(tmp_path / "data", "train.csv")
    assert refused(origin(CHOICE, tmp_path / "dta" / "x")).endswith(f"{WHERE}there is no folder {tmp_path}/dta")
    missing = origin(CHOICE, files={"train": "parts/*/train-*"})
    assert refused(missing).startswith(f"data: no file {tmp_path}/parts/*/train-* ({TOLD}){WHERE}")
    assert refused(missing).endswith(f"; there is no folder {tmp_path}/parts")
    file = tmp_path / "data/train.csv"
    assert refused(origin(CHOICE, file)).endswith(f"there is no folder {file}")
    assert refused(origin(CHOICE, "C:\\data")).endswith("there is no folder C:\\data; folders are divided by /")
    assert refused(origin(CHOICE, "~nobody-here/x")).endswith("there is no folder ~nobody-here")


def test_a_file_without_an_ending_is_not_overlooked(origin, tmp_path):
    put(tmp_path, "train")
    line = f"data: {tmp_path}/train: expected a file that ends in {TOLD}; rename it, or write its format in the task's"
    assert refused(origin(CHOICE)).startswith(line)
    assert len(read(origin(CHOICE, format="jsonl"))) == 1
    put(tmp_path, "rows.txt")
    with pytest.raises(UserError, match=r"rows.txt: expected a file that ends in .*; rename it by its layout"):
        read_rows(origin(CHOICE), f"{tmp_path}/rows.txt", None, "en")


def test_predicting_finds_no_other_file(origin, tmp_path):
    put(tmp_path, "a-b.jsonl")
    with pytest.raises(UserError, match=r"data: no file .*/a\*b.jsonl; found there: a-b.jsonl"):
        read_rows(origin(CHOICE), f"{tmp_path}/a*b.jsonl", None, "en")
    put(tmp_path, "a*b.jsonl")
    rows = read_rows(origin(CHOICE), f"{tmp_path}/a*b.jsonl", None, "en")
    assert rows["text"].to_pylist() == ["a*b.jsonl"]


def test_paths_from_here_and_from_the_root(origin, tmp_path, monkeypatch):
    put(tmp_path, "train.jsonl", "sub/x-1.jsonl")
    monkeypatch.chdir(tmp_path)
    for root in (".", "./", "sub/..", "./sub/../"):
        assert told(read(origin(CHOICE, root)), "text") == [("train.jsonl",)]
        assert len(read(origin(CHOICE, root, files={"train": "*/x-*"}))) == 1
        assert len(read(origin(CHOICE, root, files={"train": "tr*"}))) == 1
    assert len(read_rows(origin(CHOICE), "train.jsonl", None, "en")) == 1
    assert len(read_rows(origin(CHOICE), "train", None, "en")) == 1
    with pytest.raises(UserError, match=r"^data: no file sub \(.*\); it is a folder: name one of its files$"):
        read_rows(origin(CHOICE), "sub", None, "en")
    below = str(tmp_path).lstrip("/")
    assert len(read(origin(CHOICE, "/", files={"train": f"{below}/tr*"}))) == 1


def test_a_packed_copy_beside_a_file_is_told(origin, tmp_path):
    put(tmp_path, "train.jsonl", "train.jsonl.gz")
    assert refused(origin(CHOICE)) == (
        f"data: found {tmp_path}/train.jsonl and {tmp_path}/train.jsonl.gz; expected one file of these rows; "
        "move the others away"
    )


# files that can't be read


def locked(*_: object, **__: object) -> None:
    """As a file system answers who may not read; root may, so a test can't only take rights away."""
    raise PermissionError(13, "Permission denied")


def test_a_file_that_may_not_be_read_is_one_line(origin, tmp_path, monkeypatch):
    put(tmp_path, "train.jsonl")
    monkeypatch.setattr(Place, "_is", locked)
    assert refused(origin(CHOICE)) == f"data: {tmp_path}/train can't be reached: [Errno 13] Permission denied"
    monkeypatch.undo()
    monkeypatch.setitem(formats.READERS, "jsonl", locked)
    assert refused(origin(CHOICE)) == f"data: {tmp_path}/train.jsonl can't be read: [Errno 13] Permission denied"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_rights_are_asked_for(origin, tmp_path):
    put(tmp_path, "train.jsonl")
    (tmp_path / "train.jsonl").chmod(0)
    assert "train.jsonl can't be read: " in refused(origin(CHOICE))


def test_a_folder_called_like_a_file_is_none(origin, tmp_path):
    put(tmp_path, "train.jsonl/x.jsonl")
    assert "it is a folder: name its files" in refused(origin(CHOICE, files={"train": "train.jsonl"}))
    assert refused(origin(CHOICE)).endswith("train.jsonl/ is a folder: name its files, such as train.jsonl/*")

"""Rows from files and hub layouts: the same table whatever the format, or an error that names file and row."""

from __future__ import annotations

import csv
import itertools
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pa_compute
import pyarrow.parquet as pa_parquet
import pytest
import yaml

from raypft.data.formats import TOLD
from raypft.data.origin import Origin, choose
from raypft.data.sources import languages_of, read_split
from raypft.errors import UserError
from raypft.tasks import task as tasks
from raypft.tasks.load import load_task, task_names

STORED = Path(os.environ.get("RAYPFT_DATA", Path(__file__).parents[3] / "shared" / "data"))
ROWS = [
    {"id": "007", "language": "en", "label": "0", "text": 'She said "no", twice'},
    {"id": "008", "language": "en", "label": "1", "text": "2020"},
    {"id": "009", "language": "de", "label": "1", "text": '"Gut'},
    {"id": "010", "language": "de", "label": "0", "text": "NA"},
]
EXPECTED = [{**row, "label": {"0": "no", "1": "yes"}[row["label"]]} for row in ROWS]
FILES = {"files": {"train": "mine/train", "test": "mine/test"}, "labels": {"0": "no", "1": "yes"}}


def write(path: Path, rows: list[dict]) -> None:
    """Write rows in the format of the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pa_parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".tsv":
        path.write_text("\n".join(["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]) + "\n")
    else:
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)


@pytest.fixture
def origin(tmp_path):
    """The origin of a user's task with one source, below tmp_path."""

    def origin(source: dict | None = None, root: str | None = None, shots: int | None = None, **task):
        values = {
            "about": "mine",
            "kind": "choice",
            "fields": {"text": "text"},
            "label": {"names": ["no", "yes"]},
            "languages": ["en", "de", "fr"],
            "metric": "accuracy",
            "sources": {"mine": source or FILES},
            "patterns": {"p": {"text": "{text}", "source": "mine"}},
            **task,
        }
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(values))
        return choose(load_task(str(path)), None, str(tmp_path) if root is None else root, shots)

    return origin


def read(origin, split: str = "train", languages: tuple[str, ...] = ("en", "de")) -> list[dict]:
    """The rows of a split."""
    return table_of(origin, split, list(languages)).to_pylist()


def table_of(origin: Origin, split: str, languages: list[str]) -> pa.Table:
    table = read_split(origin, split, languages)
    assert table is not None
    return table


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "tsv", "csv"])
def test_every_format_gives_the_same_table_of_text(origin, tmp_path, ending):
    write(tmp_path / f"mine/train.{ending}", ROWS)
    assert read(origin()) == EXPECTED


def test_text_that_looks_like_a_date_stays_as_it_is_written(origin, tmp_path):
    write(
        tmp_path / "mine/train.jsonl",
        [{"id": "2020-01-01", "language": "en", "label": "0", "text": "2020-01-01T10:00:00"}],
    )
    assert read(origin(), languages=("en",))[0] == {
        "id": "2020-01-01",
        "language": "en",
        "label": "no",
        "text": "2020-01-01T10:00:00",
    }


def test_numbers_for_labels_and_ids_are_read_as_text(origin, tmp_path):
    write(tmp_path / "mine/train.parquet", [{**row, "id": i, "label": int(row["label"])} for i, row in enumerate(ROWS)])
    assert [(row["id"], row["label"]) for row in read(origin())] == [
        ("0", "no"),
        ("1", "yes"),
        ("2", "yes"),
        ("3", "no"),
    ]


def test_a_large_csv_may_hold_line_breaks_inside_quotes(origin, tmp_path):
    rows = [
        {"id": str(i), "language": "en", "label": "0", "text": f"first line\nsecond, {'x' * (i % 97)}"}
        for i in range(20_000)
    ]
    write(tmp_path / "mine/train.csv", rows)
    assert [row["text"] for row in read(origin(), languages=("en",))] == [row["text"] for row in rows]


def test_columns_labels_and_languages_are_renamed_and_the_first_name_that_is_there_counts(origin, tmp_path):
    columns = {"text": ["review", "body"], "label": "gold", "language": ["lang", "spoken"], "id": "key"}
    source = {**FILES, "columns": columns, "languages": {"de": "ger"}}
    for body in ("review", "body"):
        write(
            tmp_path / "mine/train.jsonl", [{"key": "a", "spoken": "ger", "gold": "1", body: "Gut", "text": "not this"}]
        )
        assert read(origin(source), languages=("de",)) == [{"id": "a", "language": "de", "label": "yes", "text": "Gut"}]


def test_rows_without_an_id_are_known_by_their_content(origin, tmp_path):
    nameless = [{"label": row["label"], "language": row["language"], "text": row["text"]} for row in ROWS]
    write(tmp_path / "mine/train.jsonl", nameless)
    write(tmp_path / "mine/test.parquet", nameless[::-1])
    first = {row["text"]: row["id"] for row in read(origin(), "train")}
    second = {row["text"]: row["id"] for row in read(origin(), "test")}
    assert first == second
    assert len(set(first.values())) == len(ROWS)


def test_only_the_languages_asked_for_are_read(origin, tmp_path):
    write(tmp_path / "mine/train.jsonl", ROWS)
    assert read(origin(), languages=("de",)) == EXPECTED[2:]
    assert languages_of(origin(), "train") == ["en", "de"]


def test_a_file_for_each_language(origin, tmp_path):
    source = {**FILES, "files": {"train": "mine/{language}/train"}, "languages": {"de": "ger"}}
    for theirs, rows in (("en", ROWS[:2]), ("ger", ROWS[2:])):
        write(
            tmp_path / f"mine/{theirs}/train.jsonl",
            [{"id": r["id"], "label": r["label"], "text": r["text"]} for r in rows],
        )
    assert read(origin(source)) == EXPECTED


def test_a_split_that_is_not_there_is_none_and_only_dev_may_lack_its_file(origin, tmp_path):
    source = {**FILES, "files": {"train": "mine/train", "validation": "mine/dev"}}
    write(tmp_path / "mine/train.jsonl", ROWS)
    assert read_split(origin(source), "test", ["en"]) is None
    assert read_split(origin(source), "validation", ["en"]) is None


def write_jsonl(tmp_path: Path, **changes) -> None:
    """mine/train.jsonl, its third row changed; a value of None drops the column from all rows."""
    rows = [dict(row) for row in ROWS]
    rows[2].update(changes)
    for row, (name, value) in itertools.product(rows, changes.items()):
        if value is None:
            row.pop(name, None)
    write(tmp_path / "mine/train.jsonl", rows)


ADVICE = "; add it, or name theirs in the source's columns"
ERRORS = {
    "a language without rows": (
        {"language": "en"},
        ("fr",),
        'languages: train rows of mine (mine) hold none in "fr"; found: de, en',
    ),
    "label outside the set": (
        {"label": "2"},
        ("en",),
        'data: {root}/mine/train.jsonl row 2 has label "2", outside the label set; expected one of no, yes',
    ),
    "hidden label": (
        {"label": "-1"},
        ("en",),
        'data: {root}/mine/train.jsonl row 2 has label "-1", a hidden label; expected one of no, yes',
    ),
    "no label column": (
        {"label": None},
        ("en",),
        'data: {root}/mine/train.jsonl has no column "label"; found: id, language, text' + ADVICE,
    ),
    "no field column": (
        {"text": None},
        ("en",),
        'data: {root}/mine/train.jsonl has no column "text"; found: id, language, label' + ADVICE,
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_rows_that_cannot_be_used_are_one_line_with_file_and_row(origin, tmp_path, what):
    changes, languages, line = ERRORS[what]
    write_jsonl(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        read(origin(), languages=languages)
    assert str(caught.value) == line.format(root=tmp_path)


def test_a_missing_file_is_named(origin, tmp_path):
    with pytest.raises(UserError) as caught:
        read(origin())
    assert str(caught.value) == (
        f"data: no file {tmp_path}/mine/train ({TOLD}) for the train split of mine; there is no folder {tmp_path}/mine"
    )


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        ("parquet", b"PAR1 and then nothing"),
        ("jsonl", b'{"text": "a"\n'),
        ("csv", b"id,text\na,b,c\n"),
        ("parquet", b""),
    ],
)
def test_a_damaged_file_is_one_line(origin, tmp_path, ending, content):
    (tmp_path / "mine").mkdir()
    (tmp_path / f"mine/train.{ending}").write_bytes(content)
    with pytest.raises(UserError, match=rf"^data: {tmp_path}/mine/train\.{ending} can't be read: [^\n]+$"):
        read(origin())


def test_a_uri_is_read_through_its_file_system(origin, tmp_path):
    write(tmp_path / "mine/train.parquet", ROWS)
    assert read(origin(root=tmp_path.as_uri())) == EXPECTED
    with pytest.raises(UserError, match=r"^data: .*nosuch://bucket"):
        read(origin(root="nosuch://bucket"))


# a hub data set, from a local folder with the hub's layout

HUB = {"hub": "owner/name", "labels": FILES["labels"]}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Write parquet files below owner/name; nothing is cached outside tmp_path."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return lambda path, rows=ROWS: write(tmp_path / "owner" / "name" / path, rows)


@pytest.mark.parametrize("layout", ["{split}.parquet", "data/{split}-00000-of-00001.parquet"])
def test_a_hub_data_set_is_read_from_a_folder_with_its_layout(origin, hub, layout):
    for split, rows in (("train", ROWS), ("validation", ROWS[:1]), ("test", ROWS[1:])):
        hub(layout.format(split=split), rows)
    assert read(origin(HUB)) == EXPECTED
    assert read(origin(HUB), "validation", ("en",)) == EXPECTED[:1]
    assert read(origin(HUB), "test") == EXPECTED[1:]


def test_a_hub_data_set_with_a_configuration_for_each_language(origin, hub):
    for language, rows in (("en", ROWS[:2]), ("ger", ROWS[2:])):
        hub(f"{language}/train.parquet", [{"id": r["id"], "label": r["label"], "text": r["text"]} for r in rows])
    readme = {
        "configs": [{"config_name": language, "data_files": f"{language}/train.parquet"} for language in ("en", "ger")]
    }
    source = {**HUB, "config": "{language}", "languages": {"de": "ger"}}
    made = origin(source)
    Path(made.root, "owner/name/README.md").write_text(f"---\n{yaml.safe_dump(readme)}---\n")
    assert read(made) == EXPECTED
    assert languages_of(made, "train") == ["en", "de", "fr"]


def test_a_hub_data_set_with_a_configuration_for_each_split(origin, hub):
    for config, rows in (("English", ROWS[:1]), ("Test.en", ROWS[1:2]), ("Test.ger", ROWS[2:])):
        hub(f"{config}/train.parquet", [{"id": r["id"], "label": r["label"], "text": r["text"]} for r in rows])
    readme = {
        "configs": [
            {"config_name": name, "data_files": f"{name}/train.parquet"} for name in ("English", "Test.en", "Test.ger")
        ]
    }
    made = origin(
        {
            **HUB,
            "config": {"train": "English", "test": "Test.{language}"},
            "splits": {"train": "train", "test": "train"},
            "languages": {"de": "ger"},
        }
    )
    Path(made.root, "owner/name/README.md").write_text(f"---\n{yaml.safe_dump(readme)}---\n")
    assert read(made, "train", ("en",)) == EXPECTED[:1]
    assert read(made, "test") == EXPECTED[1:]
    assert (languages_of(made, "train"), languages_of(made, "test")) == (["en"], ["en", "de", "fr"])


def test_splits_of_the_hub_are_renamed_and_one_not_named_does_not_exist(origin, hub):
    hub("train.parquet")
    hub("validation.parquet", ROWS[:2])
    made = origin({**HUB, "splits": {"train": "train", "test": "validation"}})
    assert read(made, "test", ("en",)) == EXPECTED[:2]
    assert read_split(made, "validation", ["en"]) is None


def test_a_hub_data_set_that_is_not_to_be_had_is_one_line_with_the_way_out(origin, hub, tmp_path):
    with pytest.raises(UserError) as caught:
        read(origin({**HUB, "gated": "https://ask.here"}))
    line = str(caught.value)
    assert line.startswith(f"data: {tmp_path}/owner/name can't be read as a data set of the hub: ")
    assert line.endswith("; see https://ask.here; or give local files with data.root=FOLDER")
    assert "\n" not in line


# choosing a source


def test_local_files_are_read_where_a_root_is_given_else_the_first_source():
    task = load_task("xnli")
    assert (choose(task, None, "/data").name, choose(task, None, None).name, choose(task, "zs2021", "/data").name) == (
        "files",
        "hub",
        "zs2021",
    )


def test_an_unknown_source_and_files_without_a_root_are_errors():
    with pytest.raises(UserError, match=r'^data\.source: task xnli has no source "file"; did you mean "files"\?'):
        choose(load_task("xnli"), "file", "/data")
    with pytest.raises(UserError, match=r"^data\.root: source files of task xnli reads local files; say where"):
        choose(load_task("xnli"), "files", None)


# the few-shot files of Zhao & Schuetze


def test_the_published_few_shot_files_are_read_by_number_of_shots(tmp_path):
    pair = {"premise": "A man sleeps.", "hypothesis": "He is awake."}
    theirs = {"sentence1": pair["premise"], "sentence2": pair["hypothesis"]}
    write(tmp_path / "train/en/train_split,8.jsonl", [{**theirs, "gold": "contradiction", "lang": "en", "file_idx": 3}])
    write(
        tmp_path / "test/xnli.test.jsonl",
        [{**theirs, "gold_label": "contradiction", "language": lang, "pairID": "9"} for lang in ("en", "de")],
    )
    made = choose(load_task("xnli"), "zs2021", str(tmp_path), shots=8)
    assert read(made, "train", ("en",)) == [{"id": "3", "language": "en", "label": "contradiction", **pair}]
    assert read(made, "test", ("de",)) == [{"id": "9", "language": "de", "label": "contradiction", **pair}]
    assert languages_of(made, "test") == ["de", "en"]
    with pytest.raises(
        UserError, match=r"^shots: source zs2021 of xnli has one file per number of shots; set shots=K$"
    ):
        read(choose(load_task("xnli"), "zs2021", str(tmp_path)), "train", ("en",))


# what is bundled and what is stored


@pytest.mark.parametrize("name", ["nli", "sentiment"])
def test_bundled_samples_need_no_root_and_hold_every_language_and_label_in_every_split(name):
    task = load_task(name)
    made = choose(task, None, None)
    for split in ("train", "validation", "test"):
        table = table_of(made, split, task.languages)
        classes = set(zip(table["language"].to_pylist(), table["label"].to_pylist(), strict=True))
        assert classes == set(itertools.product(task.languages, task.label.names))
        keys = list(zip(table["language"].to_pylist(), table["id"].to_pylist(), strict=True))
        assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    "name",
    [name for name in task_names() if (STORED / name).is_dir()]
    or [pytest.param("", marks=pytest.mark.skip("no stored data"))],
)
def test_stored_data_loads_in_every_language_it_holds(name):
    task = load_task(name)
    made = choose(task, "files", str(STORED))
    assert made.source.files is not None
    for split in made.source.files:
        languages = languages_of(made, split)
        table = table_of(made, split, languages)
        assert languages
        assert set(table["language"].to_pylist()) == set(languages)
        if task.kind.name != "choice":
            keys = set(zip(table["language"].to_pylist(), table["id"].to_pylist(), strict=True))
            assert len(keys) == len(table)
        if task.kind.answers_words:
            sizes = [pa_compute.call_function("list_value_length", [table[name]]) for name in ("label", "tokens")]
            assert sizes[0] == sizes[1]
            labels = pa_compute.call_function("list_flatten", [table["label"]])
            assert set(labels.unique().to_pylist()) <= set(task.label.names)


@pytest.mark.skipif(not (STORED / "manifest.json").is_file(), reason="no stored data")
@pytest.mark.parametrize("name", ["panx", "udpos", "xquad", "mlqa", "tydiqa", "mlmtext"])
def test_no_stored_row_of_a_tagging_answering_or_text_task_is_lost(name):
    entries = json.loads((STORED / "manifest.json").read_text())["entries"]
    made = choose(load_task(name), "files", str(STORED))
    assert made.source.files is not None
    for split, file in made.source.paths.items():
        dataset, theirs = file.split("/")
        kept = made.source.split_languages.get(split, load_task(name).languages)
        stored = {
            e["language"]: e["rows"]
            for e in entries
            if (e["dataset"], e["split"]) == (dataset, theirs) and e["language"] in kept
        }
        table = table_of(made, split, languages_of(made, split))
        assert stored == {row["values"]: row["counts"] for row in table["language"].value_counts().to_pylist()}


@pytest.mark.skipif(not (STORED / "tydiqa").is_dir(), reason="no stored data")
def test_the_stored_test_file_of_tydiqa_holds_no_answers_and_is_refused(tmp_path):
    path = tmp_path / "tydiqa.yaml"
    values = yaml.safe_load((Path(tasks.__file__).parent / "tydiqa.yaml").read_text(encoding="utf-8"))
    path.write_text(
        yaml.safe_dump({**values, "sources": {"files": {"files": {"train": "tydiqa/train", "test": "tydiqa/test"}}}})
    )
    with pytest.raises(
        UserError,
        match=r"tydiqa/test.parquet row \"arabic-.* has no answer; if it is hidden, drop the row",
    ):
        read(choose(load_task(str(path)), None, str(STORED)), "test", ("ar",))

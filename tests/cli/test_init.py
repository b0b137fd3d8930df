"""`raypft init`: someone's file becomes a task that loads, or one line says why not."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path

import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from hypothesis import HealthCheck, given, settings
from rich.console import Console
from test_cli import call

import raypft
from raypft.contract import tiny
from raypft.data.draft import drafted, files_at, write
from raypft.data.origin import choose
from raypft.data.sources import languages_of, read_split
from raypft.errors import UserError
from raypft.tasks.load import load_task


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_csv(name: str, header: list[str], rows: Iterable[Iterable[object]], encoding: str = "utf-8") -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    with open(name, "w", newline="", encoding=encoding) as stream:
        csv.writer(stream).writerows([header, *rows])


def rows(count: int = 12, labels: tuple = ("good", "bad")) -> list[list]:
    return [[number, f"the film {number} was so so", labels[number % len(labels)]] for number in range(count)]


def read(name: str, split: str = "train") -> pa.Table:
    origin = choose(load_task(name), None, None)
    table = read_split(origin, split, languages_of(origin, split))
    assert table is not None
    return table


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_csv_becomes_a_task_and_the_next_commands_are_told(encoding, monkeypatch, capsys):
    write_csv("support.csv", ["ticket_id", "message", "topic"], rows(), encoding)
    assert call(monkeypatch, "init", "support.csv") == 0
    told = capsys.readouterr().out.splitlines()
    assert told[:2] == [
        "support.csv: 12 rows, kind choice; text: message; label: topic; id: ticket_id",
        "2 labels, rows of each: bad 6, good 6",
    ]
    assert told[-4:] == [
        "support.csv: 8 train, 2 dev, 2 test rows, by class",
        "written to support.yaml; next:",
        "raypft check vanilla profit lora task=support.yaml backbone=xlmr-base protocol=fixed demos=0 "
        "train.max_tokens=128",
        "raypft run vanilla profit lora task=support.yaml backbone=xlmr-base protocol=fixed demos=0 "
        "train.max_tokens=128 train.epochs=20 train.batch_size=8 seeds=3",
    ]
    task = load_task("support.yaml")
    assert task.patterns["ask"].text == "{message}\nTopic: <slot>"
    assert task.patterns["ask"].verbalizer == {"bad": "bad", "good": "good"}
    table = read("support.yaml")
    assert set(table["id"].to_pylist()) < set(map(str, range(12)))
    assert set(table["label"].to_pylist()) == {"good", "bad"}


def test_a_task_that_is_there_stays_without_force(monkeypatch, capsys):
    write_csv("a.csv", ["text", "label"], [row[1:] for row in rows()])
    Path("a.yaml").write_text("mine")
    assert call(monkeypatch, "init", "a.csv") == 2
    told = capsys.readouterr().err
    assert told == "raypft: init: a.yaml is there already; --force writes over it, --out FILE writes another\n"
    assert Path("a.yaml").read_text() == "mine"
    assert call(monkeypatch, "init", "a.csv", "--out", "tasks/b.yaml") == 2, "its folder is not made"
    Path("tasks").mkdir()
    assert call(monkeypatch, "init", "a.csv", "--out", "tasks/b.yaml") == 0
    assert len(read("tasks/b.yaml")) == 8
    assert call(monkeypatch, "init", "a.csv", "--force") == 0
    assert len(read("a.yaml")) == 8


REFUSED = {
    "no label": (["a", "text"], [[n, f"text {n} of many"] for n in range(9)], "has no column of labels"),
    "one label": (["text", "label"], [[f"a b {n}", "x"] for n in range(9)], "says 'x' in every row"),
    "scores": (["text", "label"], [[f"a b {n}", n / 7] for n in range(500)], "(regression)"),
    "500 numbers": (["text", "label"], [[f"a b {n}", n] for n in range(500)], "holds 500 numbers, as a score"),
    "500 names": (["text", "label"], [[f"a b {n}", f"x{n}"] for n in range(500)], "holds 500 values in 500 rows"),
    "nan": (["text", "label"], [*([f"a b {n}", "xy"[n % 2]] for n in range(9)), ["c", "nan"]], "is empty in 1 of 10"),
    "empty": (["text", "label"], [], "has no rows"),
    "no header": ([*rows()[0][1:]], [row[1:] for row in rows()[1:]], "which is a value of it, too"),
    "twice": (["text", "text"], [["a", "b"]], 'has 2 columns called "text"'),
    "two texts": (["one", "two", "label"], [[f"a b c {n}", f"d e f {n}", n % 2] for n in range(9)], "text=one,two"),
    "two labels": (["text", "p", "q"], [[f"a b c {n}", n % 2, n % 3] for n in range(12)], "p, q may each be the label"),
    "no text": (["n", "label"], [[n, "ab"[n % 2]] for n in range(9)], "has no column of texts"),
    "all differ": (["text", "label"], [[f"a b {n}", "xyz"[n]] for n in range(3)], "two rows or more each"),
    "scarce": (
        ["text", "label"],
        [[f"a b {n // 4}", "xy"[n // 4]] for n in range(8)],
        "8 rows, too few to hold a test",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_task_is_refused_in_a_line_and_nothing_is_left(case, monkeypatch, capsys):
    header, lines, told = REFUSED[case]
    write_csv("x.csv", header, lines)
    assert call(monkeypatch, "init", "x.csv") == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["x.csv"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["missing.csv"], "no file missing.csv"),
        (["x.xlsx"], "save it as CSV UTF-8"),
        (["a*.csv"], "'a*.csv' holds what stands for others"),
        (["."], "expected a file called train and one called test"),
        (["x.csv", "label=lable"], 'has no column "lable"'),
        (["x.csv", "text="], "expected text=VALUE"),
        (["x.csv", "kind=mlm"], "found kind=mlm"),
        (["x.csv", "names=a,b,c"], "expected 2 names, for bad, good in this order"),
        (["x.csv", "text=text,text"], "name each once"),
        (["x.csv", "text=label", "label=label"], "can't be both text and label"),
        (["x.csv", "format=xml"], "found format=xml; known: "),
        (["x.csv", "languages=de,en"], "expected one, that of all rows"),
        (["x.csv", "--out", "x.txt"], "ends in .yaml"),
        (["squad.json", "names=a,b"], "names=a,b: kind=span has no labels; leave it out"),
        (
            ["squad.json", "text=context"],
            "text=context: kind=span reads question, context, answers; call",
        ),
        (["tags.json", "text=tokens,tags"], "text=tokens,tags: kind=tags reads one column of words"),
        (["x.csv", "language=text", "languages=de"], "found languages=de beside language=text; give one"),
    ],
)
def test_words_that_name_nothing_are_refused(words, told, monkeypatch, capsys):
    for name in ("x.csv", "x.xlsx", "a*.csv"):
        write_csv(name, ["text", "label"], [row[1:] for row in rows()])
    Path("tags.json").write_text(json.dumps([{"tokens": ["a", "b"], "tags": ["c", "d"]}] * 9))
    Path("squad.json").write_text(json.dumps([{"question": "a b", "context": "c d", "answers": {"text": ["d"]}}] * 9))
    assert call(monkeypatch, "init", *words) == 2
    assert told in capsys.readouterr().err
    assert not list(Path().glob("*.yaml"))


def test_labels_that_are_numbers_get_names(monkeypatch, capsys):
    write_csv("x.csv", ["text", "label"], [[f"a b {n}", (0.0, 1.0)[n % 2]] for n in range(12)])
    assert call(monkeypatch, "init", "x.csv") == 0
    assert "the labels are numbers" in capsys.readouterr().out
    assert set(read("x.yaml")["label"].to_pylist()) == {"0", "1"}
    assert call(monkeypatch, "init", "x.csv", "names=negative,positive", "--force") == 0
    table = read("x.yaml")
    assert set(table["label"].to_pylist()) == {"negative", "positive"}
    assert all(int(row["text"][4:]) % 2 == (row["label"] == "positive") for row in table.to_pylist())


def test_tags_that_are_numbers_are_told_and_get_names(monkeypatch, capsys):
    lines = [{"tokens": ["Ann", "met", f"Bo{n}"], "ner_tags": [1, 0, 3]} for n in range(12)]
    Path("x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert call(monkeypatch, "init", "x.jsonl") == 0
    told = "the labels are numbers, by which no entities are counted; names=NAME,… calls them, in the order 0, 1, 3"
    assert told in capsys.readouterr().out
    assert call(monkeypatch, "init", "x.jsonl", "names=O,B-PER,I-PER", "--force") == 0
    assert "numbers" not in capsys.readouterr().out
    assert read("x.yaml")["label"].to_pylist()[0] == ["B-PER", "O", "I-PER"]


def test_labels_that_may_be_one_and_labels_with_few_rows_are_told(monkeypatch, capsys):
    names = ["good", "Good", "bad", " bad", "bad "] * 4 + ["odd", "strange", "strange"]
    write_csv("x.csv", ["text", "label"], [[f"a b {n}", name] for n, name in enumerate(names)])
    assert call(monkeypatch, "init", "x.csv") == 0
    told = capsys.readouterr().out
    assert "'Good' and 'good' differ in blanks or capitals alone" in told
    assert "' bad' and 'bad' and 'bad ' differ" in told
    assert "tested: odd, strange; add" in told
    write_csv("y.csv", ["text", "label"], [[f"a b {n}", ["good", "bad"][n % 2]] for n in range(12)])
    assert call(monkeypatch, "init", "y.csv") == 0
    told = capsys.readouterr().out
    assert "differ" not in told
    assert "few rows" not in told


def test_files_of_splits_are_taken_from_their_folder(monkeypatch, capsys):
    for name, count in (("train", 12), ("dev", 4), ("test", 6)):
        lines = [[*row[1:], ("en", "de")[row[0] // 2 % 2] if name == "test" else "en"] for row in rows(count)]
        write_csv(f"data/reviews_{name}.csv", ["text", "label", "lang"], lines)
    for given_as in ("data", "data/reviews_train.csv"):
        assert call(monkeypatch, "init", given_as, "--force") == 0
        assert "12 train, 4 validation, 6 test rows" in capsys.readouterr().out
        task = load_task("data/data.yaml")
        assert task.languages == ["en", "de"]
        assert len(read("data/data.yaml", "test")) == 6


@pytest.mark.parametrize(
    "column", ["the Text", "a.b", "text\n2", "{text}", "<slot>", "token", "id", "language", "label", "Ünï", "1", "a,b"]
)
def test_columns_with_any_name(column):
    write_csv("x.csv", [column, "my label?"], [row[1:] for row in rows()])
    files = files_at("x.csv", None)
    found, _ = drafted(files, {"text": column, "label": "my label?"}, refuse)
    write(found, files, Path("x.yaml"), None)
    (field,) = load_task("x.yaml").fields.values()
    assert sorted(read("x.yaml")[field].to_pylist())[0].startswith("the film")


@pytest.mark.parametrize("label", ["id", "language", "text", "label", "1"])
def test_a_label_column_with_any_name(label):
    write_csv("x.csv", ["Text ", label], [row[1:] for row in rows()])
    files = files_at("x.csv", None)
    found, _ = drafted(files, {"label": label}, refuse)
    write(found, files, Path("x.yaml"), None)
    assert set(read("x.yaml")["label"].to_pylist()) == {"good", "bad"}


def refuse(role: str, columns: object) -> str:
    raise UserError(f"init: {columns} for {role}")


def test_words_and_tags_pairs_and_questions(monkeypatch, capsys):
    sentence = "John B-PER\nlives O\nin O\nParis B-LOC\n\n"
    Path("ner.conll").write_text("".join(sentence.replace("John", f"John{n}") for n in range(12)))
    assert call(monkeypatch, "init", "ner.conll") == 0
    told = capsys.readouterr().out
    assert "3 tags, words of each: B-LOC 12, B-PER 12, O 24" in told
    assert "raypft run vanilla_tags task=ner.yaml" in told
    assert read("ner.yaml")["label"].to_pylist()[0] == ["B-PER", "O", "O", "B-LOC"]
    pairs = [[f"a man {n} sleeps", f"he {n} is awake", ("no", "yes")[n % 2]] for n in range(12)]
    write_csv("nli.csv", ["hypothesis", "premise", "gold"], pairs)
    assert call(monkeypatch, "init", "nli.csv") == 0
    assert list(load_task("nli.yaml").fields) == ["premise", "hypothesis"]
    assert load_task("nli.yaml").patterns["ask"].text == "{premise}\n{hypothesis}\nAnswer: <slot>"
    answers = {"text": ["Paris"], "answer_start": [10]}
    asked = [{"question": f"where {n}", "context": "he was in Paris", "answers": answers} for n in range(12)]
    Path("qa.jsonl").write_text("\n".join(map(json.dumps, asked)))
    assert call(monkeypatch, "init", "qa.jsonl") == 0
    assert load_task("qa.yaml").kind.name == "span"


def test_classes_that_a_parquet_file_names_are_the_labels():
    told = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["neg", "pos"]}}}}
    table = pa.table({"text": [f"a b {n}" for n in range(12)], "label": [n % 2 for n in range(12)]})
    pa_parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(told)}), "x.parquet")
    files = files_at("x.parquet", None)
    for said, names in (({}, ["neg", "pos"]), ({"names": "bad,good"}, ["bad", "good"])):
        write(drafted(files, said, refuse)[0], files, Path("x.yaml"), None)
        by_text = {row["text"]: row["label"] for row in read("x.yaml").to_pylist()}
        assert {by_text[text] for text in by_text if int(text[4:]) % 2} == {names[1]}
        assert set(by_text.values()) == set(names)


def test_a_language_column_without_english_says_what_is_trained(monkeypatch, capsys):
    write_csv("x.csv", ["text", "label", "lang"], [[*row[1:], ("de", "fr", "fr")[row[0] % 3]] for row in rows(60)])
    assert call(monkeypatch, "init", "x.csv") == 0
    assert "'train.languages=[fr]'" in capsys.readouterr().out
    assert load_task("x.yaml").languages == ["fr", "de"]


def test_a_language_that_is_said_is_that_of_all_rows(monkeypatch, capsys):
    write_csv("x.csv", ["text", "label", "lang"], [[*row[1:], ("de", "fr")[row[0] % 2]] for row in rows(60)])
    assert call(monkeypatch, "init", "x.csv", "languages=it") == 0
    assert "not used: lang" in capsys.readouterr().out
    assert set(read("x.yaml")["language"].to_pylist()) == {"it"}


def test_on_a_terminal_it_is_asked_which_column_is_meant(monkeypatch, capsys):
    write_csv("x.csv", ["one", "two", "label"], [[f"a b c {n}", f"d e f {n}", "pq"[n % 2]] for n in range(12)])
    monkeypatch.setattr("raypft.cli.init.console", Console(force_terminal=True))
    monkeypatch.setattr("sys.stdin", Typed("three\none, two\n"))
    assert call(monkeypatch, "init", "x.csv") == 0
    assert (
        capsys.readouterr().out.count("Which column is the text? (two with a comma between are a pair) one, two") == 2
    )
    assert list(load_task("x.yaml").fields) == ["one", "two"]
    monkeypatch.setattr("sys.stdin", Typed(""))
    assert call(monkeypatch, "init", "x.csv", "--force") == 130
    assert "raypft: interrupted" in capsys.readouterr().err


class Typed(io.StringIO):
    """What someone types."""

    def isatty(self) -> bool:
        return True


CELLS = st.one_of(
    st.sampled_from(["", "a", "b", "A ", "nan", "0", "1", "1.0", "-1", "True", "a: b", "#", "'", '"', "{x}", "<slot>"]),
    st.sampled_from(["en", "de", "one two three four", "\u2028", "a\nb", "a,b", "[1, 2]", "🎈 ü"]),
    st.text(max_size=12),
)
NAMES = st.one_of(
    st.sampled_from(["text", "label", "id", "language", "lang", "", " ", "a.b", "Text", "topic", "tokens", "tags"]),
    st.text(max_size=8),
)


@st.composite
def tables(draw) -> list[list[str]]:
    """A header and rows as a spreadsheet may hold them: a column of sentences, one of few values, others."""
    count = draw(st.sampled_from([0, 5, 12, 16, 24]))
    sentences = [f"{draw(CELLS)} is what {number} says" for number in range(count)]
    few = draw(st.lists(CELLS, min_size=2, max_size=3, unique=True))
    columns = [sentences, [few[number % len(few)] for number in range(count)]]
    for _ in range(draw(st.integers(0, 2))):
        columns.append(draw(st.lists(CELLS, min_size=count, max_size=count)))
    names = [draw(st.one_of(st.just(usual), NAMES)) for usual in ("text", "label", "id", "lang")[: len(columns)]]
    return [names, *map(list, zip(*columns, strict=True))]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables())
def test_whatever_a_csv_holds_what_is_written_loads(tmp_path, table):
    header, *lines = table
    write_csv("any.csv", header, lines, encoding="utf-8")
    to = Path("any.yaml")
    to.unlink(missing_ok=True)
    files, told = files_at("any.csv", None), ""
    try:
        write(drafted(files, {}, refuse)[0], files, to, None)
    except UserError as refused:
        told = str(refused).strip()
    if told:
        assert "\n" not in told or "\\n" in str(table)
        assert not to.exists()
        return
    assert len(load_task("any.yaml").label.names) > 1
    for split in ("train", "test"):
        assert len(read("any.yaml", split))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """The folder of a tiny model."""
    made, folder = tiny.backbone("bert"), tmp_path_factory.mktemp("bert")
    made.model.save_pretrained(folder)
    made.text.tokenizer.save_pretrained(folder)
    return str(folder)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(CELLS, min_size=2, max_size=4, unique=True), st.lists(CELLS, min_size=12, max_size=20), NAMES, NAMES)
def test_what_is_written_passes_check(model, tmp_path, labels, texts, text, label):
    write_csv("any.csv", [text, label], [[one, labels[n % len(labels)]] for n, one in enumerate(texts)])
    to = Path("any.yaml")
    to.unlink(missing_ok=True)
    try:
        files = files_at("any.csv", None)
        write(drafted(files, {"text": text, "label": label}, refuse)[0], files, to, None)
    except UserError:
        return
    job = raypft.load_job("vanilla", task="any.yaml", backbone=model, protocol="fixed", seeds=1)
    assert raypft.check(job)["lines"][-1].startswith("ok: results go to runs/vanilla-any-all-")

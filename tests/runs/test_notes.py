"""What is told of a run's rows: test rows that were trained on, repeated rows, empty texts, unknown tokens."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from raypft.contract import tiny
from raypft.data.columns import with_notes
from raypft.data.sampling import Sample
from raypft.runs import notes
from raypft.runs.notes import notes_on
from raypft.tasks.kinds import KINDS
from raypft.tasks.task import Label, Source, Task

FIELDS = {
    "choice": {"text": "text"},
    "mlm": {"text": "text"},
    "tags": {"tokens": "words"},
    "span": {"question": "question", "context": "context"},
}


class Known:
    """A text side that knows every letter but q."""

    class tokenizer:
        unk_token, unk_token_id = "[UNK]", 3

    def tokenize(self, text: str) -> list[int]:
        return [3 if letter == "q" else 9 for letter in text]


def told(
    kind: str, train: list[dict], test: list[dict], text: Any = None, tests_dev: bool = False, **more
) -> list[str]:
    fields = FIELDS[kind]
    task = Task(
        name="t", about="", kind=KINDS[kind], fields=fields, label=Label(names=more.get("names", ["a"])),
        languages=["en", "de"], metric="accuracy", sources={"files": Source(files={"train": "x"})}, patterns={},
    )  # fmt: skip

    def table(rows: list[dict]) -> pa.Table:
        return pa.Table.from_pylist([{"id": str(i), "language": "en", **row} for i, row in enumerate(rows)])

    dev = table(more["dev"]) if "dev" in more else None
    stream = more.get("stream")
    sample = Sample(table(train), dev, table(test), None, (), stream)
    return notes_on(task, sample, tests_dev, text or cast(Any, Known()))


def row(text: str, label: str = "a", language: str = "en") -> dict:
    return {"text": text, "label": label, "language": language}


def test_rows_that_are_fine_are_not_spoken_of():
    assert told("choice", [row("x"), row("y")], [row("z"), row("x", language="de"), row("x", label="b")]) == []


def test_train_rows_that_are_test_rows_are_counted():
    train = [row("x"), row("y"), row("z")]
    assert told("choice", train, [row("y"), row("x")]) == ["2 of 3 train rows are also test rows"]
    assert told("choice", train, [row("w")], dev=[row("w"), row("x")]) == [
        "1 of 2 dev rows are also test rows",
        "1 of 3 train rows are also dev rows",
    ]


def test_rows_that_only_share_a_mark_are_not_the_same(monkeypatch):
    monkeypatch.setattr(notes, "_marks", lambda task, table: np.zeros(len(table), np.int64))
    train = [row("x"), row("y"), row("x")]
    assert told("choice", train, [row("y"), row("z")]) == [
        "1 of 3 train rows are also test rows",
        "1 of 3 train rows repeat another train row",
    ]
    assert told("choice", train[:2], [row("z")]) == []


def test_a_class_without_train_rows_is_told():
    assert told("choice", [row("x")], [row("y"), row("z", "b")], names=["a", "b", "c"]) == [
        'no train row has the label "b"',
        'no train row has the label "c"',
    ]
    assert told("tags", [{"words": ["x"], "label": ["a"]}], [{"words": ["y"], "label": ["b"]}], names=["a", "b"]) == []


def test_what_the_protocol_wants_or_no_one_has_read_is_not_told():
    assert told("choice", [row("x")], [row("w")], dev=[row("w")], tests_dev=True) == []
    assert told("choice", [row("x")], [row("x")], stream=object()) == []


@pytest.mark.parametrize(
    ("kind", "same", "other"),
    [
        ("tags", {"words": ["a", "b"], "label": ["a", "b"]}, {"words": ["a b"], "label": ["a", "b"]}),
        (
            "span",
            {"question": "q", "context": "c", "label": ["c"]},
            {"question": "q", "context": "c", "label": ["c", "c"]},
        ),
        ("mlm", row("x", ""), row("y", "")),
    ],
)
def test_rows_of_every_kind_are_compared(kind, same, other):
    lines = told(kind, [same, other], [same])
    assert "1 of 2 train rows are also test rows" in lines
    assert not any("repeat" in line for line in lines)


def test_repeated_rows_and_empty_texts_are_counted():
    assert told("choice", [row("x"), row("x"), row("x"), row("y")], [row(" "), row("")]) == [
        "2 of 4 train rows repeat another train row",
        "2 of 2 test rows have an empty text",
    ]
    train = [{"words": ["x", " "], "label": ["a", "b"]}]
    assert told("tags", train, [{"words": ["x"], "label": ["a"]}]) == ["1 of 2 words of train rows are empty"]


def test_values_that_stand_for_none_and_doubled_quotes_are_told():
    assert told("choice", [row("nan"), row("a nan"), row("N/A")], [row("x")]) == [
        "2 of 3 train rows have nan, null or the like for text; is a value missing there?"
    ]
    quoted = [row('"the ""best"" film"'), row('"so it is"'), row('he said "no"'), row('""')]
    (line,) = told("choice", [row("x")], quoted)
    assert line.startswith("1 of 4 test rows have doubled quotes in text, as pandas writes them; ")


def test_a_language_of_which_most_tokens_are_unknown_is_told():
    train = [row("qqq"), row("a", language="de"), row("qa", language="de")]
    (line,) = told("choice", train, [row("ab")])
    assert line.startswith("100% of the tokens of train rows in en are [UNK], unknown to the tokenizer; ")
    assert told("choice", [row("x")], [row("qaa")]) == []


def test_a_tokenizer_without_an_unknown_token_knows_all():
    text = tiny.backbone("bert").text
    unknown = text.tokenizer.unk_token
    lines = told("choice", [row(f"{unknown} {unknown}")], [row("y")], text)
    assert any(line.startswith("100% of the tokens of train rows in en are ") for line in lines)
    text.tokenizer.unk_token = None
    assert told("choice", [row(f"{unknown} {unknown}")], [row("y")], text) == []


def test_what_was_left_out_of_a_file_is_told_once_whatever_was_drawn_of_it():
    def table(*rows: dict) -> pa.Table:
        whole = pa.Table.from_pylist([{"id": str(i), "language": "en", **row} for i, row in enumerate(rows)])
        return with_notes(whole, ["a.jsonl: 2 rows that are null are left out"])

    train = table(row("x"), row("y"), row("z"))
    sample = Sample(train.take([1]), train.filter(pa.array([True, False, False])), table(row("v")), None)
    task = Task(
        name="t", about="", kind=KINDS["choice"], fields=FIELDS["choice"], label=Label(names=["a"]), languages=["en"],
        metric="accuracy", sources={"files": Source(files={"train": "x"})}, patterns={},
    )  # fmt: skip
    assert notes_on(task, sample, False, cast(Any, Known())) == ["a.jsonl: 2 rows that are null are left out"]


def test_sentences_of_one_word_each_may_be_a_word_a_row():
    def words(*sentences: str) -> list[dict]:
        return [{"words": sentence.split(), "label": ["a"] * len(sentence.split())} for sentence in sentences]

    line = "all train rows are of one word; a sentence is a row, of a word a line the format is words"
    assert told("tags", words("x", "y"), words("v w")) == [line]
    assert told("tags", words("x", "y z"), words("v w")) == []
    assert told("tags", words("x"), words("v w")) == []

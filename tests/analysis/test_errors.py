"""Errors: every row counted once, against a count by hand; runs that can't be laid side by side are refused."""

from __future__ import annotations

import shutil
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
import yaml
from test_analyse import read
from toy import TASK

from raypft.records import opened, sealed

FAST = {"epochs": 1, "lr": 1e-2, "batch_size": 8, "max_tokens": 64}


@pytest.fixture
def pair(ran, tmp_path):
    """A run, and a copy of it that answers every third and every seventh row otherwise."""
    run, other = ran("dp", "full", "xlmr", seeds=[3, 4], train=FAST), tmp_path / "other"
    shutil.copytree(run, other)
    for path in other.glob("seed-*/predictions.parquet"):
        rows = pa_parquet.read_table(path).to_pylist()
        for number, row in enumerate(rows):
            if number % 3 == 0 or number % 7 == 0:
                row["answer"] = "negative" if row["answer"] == "positive" else "positive"
        pa_parquet.write_table(pa.Table.from_pylist(rows), path)
        result = path.with_name("result.json")
        kept = {key: value for key, value in opened(result.read_bytes()).items() if key != "files"}
        result.write_text(sealed(kept))
    return [run, other]


def predicted(run) -> list[dict]:
    found = []
    for path in sorted(run.glob("seed-*/predictions.parquet")):
        found += [{**row, "seed": path.parent.name} for row in pa_parquet.read_table(path).to_pylist()]
    return found


def test_counts_are_those_of_the_rows(pair, finish, tmp_path):
    assert finish("analyse", "errors", *pair, "--out", tmp_path)[0] == 0
    place = tmp_path / "analysis-errors"
    rows = read(place / "errors.csv")
    by_hand: Counter = Counter()
    parted = []
    for one, other in zip(*map(predicted, pair)):
        assert (one["seed"], one["language"], one["id"]) == (other["seed"], other["language"], other["id"])
        right = (one["answer"] == one["gold"], other["answer"] == one["gold"])
        by_hand[one["language"], one["gold"], right] += 1
        if right[0] != right[1]:
            parted.append((one["language"], one["id"], one["answer"], other["answer"]))
    assert len(rows) == 4  # two languages, two labels
    for row in rows:
        key = row["language"], row["label"]
        expected = [by_hand[*key, right] for right in ((True, True), (True, False), (False, True), (False, False))]
        outcomes = ("both right", "only first right", "only second right", "both wrong")
        assert [int(row[name]) for name in outcomes] == expected
        assert int(row["n"]) == sum(expected)
        assert float(row["difference"]) == pytest.approx(100 * (expected[2] - expected[1]) / sum(expected))
    assert sum(int(row["n"]) for row in rows) == 2 * 24
    assert sum(int(row["n"]) for row in read(place / "answers.csv")) == 2 * 24
    assert [(row["language"], row["id"], row["first"], row["second"]) for row in read(place / "rows.csv")] == parted
    assert parted, "the two runs must part somewhere for this test to say something"


def test_words_are_counted_where_words_are_tagged(place, ran, finish, tmp_path):
    task = {**TASK, "kind": "tags", "fields": {"tokens": "tokens"}, "metric": "token_accuracy"}
    task["patterns"] = {"vanilla": {"text": "{tokens}", "source": "test"}}
    (place / "tags.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    words = [["the", "film", "was"], ["good", "bad"]]
    rows = [
        {
            "id": str(i),
            "language": "en",
            "tokens": words[i % 2],
            "label": ["positive", "negative", "negative"][: 3 - i % 2],
        }
        for i in range(8)
    ]
    (place / "tags").mkdir()
    for split in ("train", "validation", "test"):
        pa_parquet.write_table(pa.Table.from_pylist(rows), place / "tags" / f"{split}.parquet")
    more = {"task": f"{place}/tags.yaml", "pattern": "vanilla", "readout": "head", "data": {"root": f"{place}/tags"}}
    runs = [ran(f"tags-{lr}", "full", "xlmr", train={**FAST, "lr": lr}, **more) for lr in (1e-2, 1e-4)]
    assert finish("analyse", "errors", *runs, "--out", tmp_path)[0] == 0
    counts = {row["label"]: int(row["n"]) for row in read(tmp_path / "analysis-errors" / "errors.csv")}
    assert counts == {"negative": 12, "positive": 8}


BAD = {
    "one run": (["ONE"], "analyse errors: found 1 runs; expected 2"),
    "three runs": (["ONE", "TWO", "OTHER"], "analyse errors: found 3 runs; expected 2"),
    "no seed in common": (["ONE", "OTHER"], "the runs have no seed in common (3, 4 and 5)"),
    "other test rows": (["ONE", "FEWER"], "were tested on other rows in seed 3"),
    "no predictions": (["ONE", "BARE"], "predictions.parquet can't be read"),
    "no labels": (["TEXT", "TEXT2"], "is of task text, whose answers are no labels"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_pair_is_one_line(case, pair, ran, place, finish, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(pair[1], bare)
    (bare / "seed-3" / "predictions.parquet").unlink()
    text = {"task": f"{place}/text.yaml", "pattern": "vanilla", "readout": "mlm", "protocol": "ticket_search"}
    runs = {"ONE": pair[0], "TWO": pair[1], "BARE": bare}
    runs["OTHER"] = ran("dp", "full", "xlmr", seeds=[5], train={**FAST, "lr": 1e-3})
    runs["FEWER"] = ran("dp", "full", "xlmr", train=FAST, test={"languages": ["en"]})
    for name, lr in (("TEXT", 1e-2), ("TEXT2", 1e-3)):
        runs[name] = ran("ticket_search", "ticket_search", "xlmr", train={**FAST, "lr": lr}, **text)
    words, told = BAD[case]
    code, out, err = finish("analyse", "errors", *[runs[word] for word in words])
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err

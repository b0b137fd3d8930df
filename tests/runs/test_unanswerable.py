"""Questions without an answer from the file to the predictions, and in the cell's key; what was left out is told."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow.parquet as pa_parquet
import pytest

from raypft.config.load import load_job
from raypft.contract import tiny
from raypft.runs.prepare import Prepared, prepare
from raypft.scale.run import run_jobs

TASK = """
about: mine
kind: span
fields: {{question: question, context: context}}
label: {{column: answers{}}}
languages: [en]
metric: f1
metrics: [f1, exact_match]
sources: {{files: {{files: {{train: train, test: train}}}}}}
patterns: {{p: {{text: "{{question}} <sep> {{context}}", source: mine}}}}
"""
ASKED = [("good", "one two good film"), (None, "one two film four"), ("bad", "bad film three"), (None, "four five six")]


@pytest.fixture
def prepared(tmp_path):
    """A job on rows of which some have no answer."""
    model = tiny.backbone("bert")
    for part in (model.model, model.text.tokenizer):
        part.save_pretrained(tmp_path / "model")

    def prepared(unanswerable: bool, rows: list[tuple[str | None, str]]) -> Prepared:
        (tmp_path / "mine.yaml").write_text(TASK.format(", unanswerable: true" if unanswerable else ""))
        lines = [json.dumps(row(*asked)) for asked in rows]
        (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress("\n".join(["null", *lines]).encode()))
        words = [f"task={tmp_path}/mine.yaml", f"backbone={tmp_path}/model", f"data.root={tmp_path}", "pattern=p"]
        words += [f"storage={tmp_path}/runs", "protocol=fixed", "seeds=[0]", "dev.rows=none", "train.select=last"]
        return prepare(load_job("vanilla_qa", [*words, "train.epochs=1", "train.max_tokens=24"]))

    return prepared


def row(answer: str | None, context: str) -> dict:
    texts = [] if answer is None else [answer]
    starts = [context.index(text) for text in texts]
    return {"question": "No film", "context": context, "answers": {"text": texts, "answer_start": starts}}


def test_rows_without_an_answer_are_trained_on_and_scored(prepared):
    made = prepared(True, ASKED)
    left_out = [line for line in made.warnings[0] if "null" in line]
    assert len(left_out) == 1
    assert left_out[0].endswith("train.jsonl.gz: 1 rows that are null are left out")
    (((result,),)) = run_jobs([made], lambda *_: None)
    cell: Path = made.folder / "seed-0"
    answered = pa_parquet.read_table(cell / "predictions.parquet").to_pylist()
    assert sorted(map(len, (one["gold"] for one in answered))) == [0, 0, 1, 1]
    right = [one["answer"] in (one["gold"] or [""]) for one in answered]
    assert result["metrics"]["exact_match@1"]["en"] == 100 * sum(right) / 4
    assert left_out[0] in result["warnings"]


def test_that_there_may_be_none_is_in_the_key(prepared):
    answerable = [asked for asked in ASKED if asked[0]]
    keys = [prepared(unanswerable, answerable).keys[0] for unanswerable in (False, True, False)]
    assert keys[0] == keys[2] != keys[1]

"""One run on every family: what check accepts trains, answers its own test rows again, and transformers or peft alone
give its scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pa_parquet
import pytest
import torch
from peft import PeftModel
from test_predict import AUTO, FAMILY, job, label_columns, place, ran, rows, same, scored, written  # noqa: F401  (place)

from raypft.backbones.heads import CLASSES
from raypft.backbones.load import FAMILIES
from raypft.contract import cases, tiny
from raypft.runs.predict import load_trained, predict, rows_of_file

OTHERS = [kind for kind in tiny.MODELS if kind not in ("bert", "xlmr", "gpt2", "llama", "t5")]
HEADED = [kind for kind in OTHERS if FAMILY[kind] != "seq2seq"]


@pytest.fixture
def folder(place, request) -> Path:  # noqa: F811
    """The folder of the tasks, with the tiny model of the test."""
    kind = request.node.callspec.params["kind"]
    if not (place / kind).is_dir():
        made = tiny.backbone(kind, dropout=0.1)
        made.model.save_pretrained(place / kind)
        made.text.tokenizer.save_pretrained(place / kind)
    return place


def answered_again(folder: Path, run: Path) -> Any:
    """The trained model, after its answers to the test rows were seen to be the run's."""
    trained = load_trained(run)
    found = predict(trained, rows_of_file(trained, f"{folder}/choice/test.parquet")).to_pylist()
    expected = {
        (row["language"], row["id"]): row
        for row in pa_parquet.read_table(run / "seed-3" / "predictions.parquet").to_pylist()
    }
    assert [row["id"] for row in found] == [row["id"] for row in rows("choice", 200)]
    for row in found:
        known = expected[row["language"], row["id"]]
        assert row["answer"] == known["answer"]
        for name in set(row) - {"id", "language", "answer"}:
            assert row[name] == pytest.approx(known[name], abs=1e-5)
    return trained


@pytest.mark.parametrize("kind", HEADED)
@torch.no_grad()
def test_a_head_trains_answers_again_and_is_transformers(kind, folder, tmp_path):
    trained = answered_again(
        folder, ran(job(folder, "choice", kind, "full", pattern="vanilla", readout="head", demos=0))
    )
    auto = AUTO["choice"]
    if trained.learner.method.backbone.config.model_type not in CLASSES[auto]:
        return
    alone = auto.from_pretrained(written(trained, tmp_path / "out")).eval()
    for inputs, scores, _ in scored(trained):
        same(alone(**inputs).logits, scores)


@pytest.mark.parametrize("kind", OTHERS)
@torch.no_grad()
def test_label_words_train_answer_again_and_are_pefts(kind, folder, tmp_path):
    trained = answered_again(folder, ran(job(folder, "choice", kind, "lora", demos=0)))
    auto = FAMILIES[FAMILY[kind]].auto
    alone = PeftModel.from_pretrained(auto.from_pretrained(folder / kind), written(trained, tmp_path / "out")).eval()
    for inputs, scores, marks in scored(trained):
        if FAMILY[kind] == "seq2seq":
            inputs["decoder_input_ids"] = torch.tensor([[1, trained.encoder.text._sentinel]])
        same(alone(**inputs).logits[0, marks["slot"]][:, label_columns(trained)], scores)


@pytest.mark.parametrize("kind", ["mdeberta", "opt-350m", "falcon-h1", "gemma3"])
@torch.no_grad()
def test_soft_prompts_and_tickets_answer_again(kind, folder):
    """Methods that reach past the attention: before the blocks, and into single weights that models read raw."""
    answered_again(folder, ran(job(folder, "choice", kind, "soft_prompt", demos=0)))
    if not cases.refusal("lottery", kind):
        answered_again(folder, ran(job(folder, "choice", kind, "lottery", demos=0)))

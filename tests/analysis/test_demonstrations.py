"""Demonstrations: orders, scores against runs of the same rows, calibration by hand."""

from __future__ import annotations

import itertools
import json
import math

import pyarrow.parquet as pa_parquet
import pytest
import torch
from test_analyse import read

from raypft.analysis._runs import open_runs
from raypft.analysis.demonstrations import APART, Options, _asked, orders
from raypft.batch import collate
from raypft.config.load import make_job
from raypft.contract import cases, tiny
from raypft.errors import UserError
from raypft.readouts.base import Answer
from raypft.readouts.verbalizer import CONTENT_FREE
from raypft.runs.predict import load_trained
from raypft.training.loader import PromptDataset

NAMES = ("negative", "positive")
AS_IT_IS = {"epochs": 0, "max_tokens": 64}
FAST = {"epochs": 2, "lr": 1e-2, "batch_size": 8, "max_tokens": 64}


@pytest.fixture
def icl(ran):
    """The folder of a run without training; keys of its readout."""

    def make(**readout):
        more = {"readout": {"name": "verbalizer", **readout}} if readout else {}
        return ran("icl", "frozen", train=AS_IT_IS, dev={"rows": "none"}, **more)

    return make


@pytest.mark.parametrize(("count", "wanted", "found"), [(1, 5, 0), (2, 5, 1), (3, 9, 5), (6, 9, 9), (3, 0, 0)])
def test_orders_are_others_and_distinct(count, wanted, found):
    made = orders(count, wanted)
    assert len(made) == len(set(made)) == found <= max(0, math.factorial(count) - 1)
    assert all(sorted(order) == list(range(count)) for order in made)
    assert tuple(range(count)) not in made


def test_a_run_with_its_own_demonstrations_scores_what_it_scored(icl, ran, finish, tmp_path):
    """Plain and calibrated ones as the two runs did; of two demonstrations there is one other order."""
    plain, calibrated = icl(), icl(calibration="contextual")
    trained = ran("gnnavi", {"name": "gnnavi", "layer": 2})
    assert finish("analyse", "demonstrations", plain, trained, "choices=3", "--out", tmp_path)[0] == 0
    place = tmp_path / "analysis-demonstrations"
    rows = read(place / "demonstrations.csv")

    def score(run):
        return pytest.approx(json.loads((run / "seed-3" / "result.json").read_text())["mean"])

    own = {(row["run"], row["calibrated"]): row for row in rows if row["varied"] == "as run"}
    assert float(own["icl (shown)", "False"]["score"]) == score(plain)
    assert float(own["icl (shown)", "True"]["score"]) == score(calibrated)
    assert float(own["gnnavi (shown)", "False"]["score"]) == score(trained)
    assert ("gnnavi (shown)", "True") not in own
    assert {row["agreement"] for row in own.values()} == {"100.0"}
    varied = [(row["varied"], row["number"]) for row in rows if row["run"] == "gnnavi (shown)"]
    assert varied == [("as run", "0"), ("choice", "1"), ("choice", "2"), ("choice", "3"), ("order", "1")]
    for row in read(place / "summary.csv"):
        keys = ("run", "calibrated", "varied")
        scores = [float(one["score"]) for one in rows if all(one[key] == row[key] for key in keys)]
        assert int(row["n"]) == len(scores)
        assert float(row["mean"]) == pytest.approx(sum(scores) / len(scores))
        assert (float(row["lowest"]), float(row["highest"])) == (min(scores), max(scores))


def test_other_demonstrations_give_what_a_run_with_them_gave(icl, ran):
    """Probabilities of a choice are those of a run whose sample seed drew it; those of another order are others."""
    other = ran("icl", "frozen", train=AS_IT_IS, dev={"rows": "none"}, sample_seed=APART)
    (run,) = open_runs([icl()], {})
    found = {(asked.varied, asked.number): asked.answers for asked in _asked(run, run.trained(), Options(choices=1))}
    expected = pa_parquet.read_table(other / "seed-3" / "predictions.parquet").to_pylist()
    scores = {where: {answer.key: answer.scores[1] for answer in said[False]} for where, said in found.items()}
    assert list(scores) == [("as run", 0), ("choice", 1), ("order", 1)]
    assert len(expected) == len(scores["choice", 1]) == 24
    for row in expected:
        assert scores["choice", 1][f"{row['language']}/{row['id']}"] == pytest.approx(row["p(positive)"], abs=1e-5)
    for varied in ("choice", "order"):
        apart = [abs(scores[varied, 1][key] - score) for key, score in scores["as run", 0].items()]
        assert max(apart) > 1e-4


def test_calibrated_scores_are_quotients(icl, place):
    """Against the model's own answers to the row and to the texts without content."""
    run = icl(calibration="contextual")
    trained = load_trained(run)
    test = pa_parquet.read_table(place / "test.parquet").to_pylist()
    found = trained.predict([{"text": row["text"], "language": row["language"]} for row in test]).to_pylist()
    plain = load_trained(icl())
    free = plain.predict([{"text": text} for text in CONTENT_FREE if text]).to_pylist()
    prompts = trained.encoder(test[0])
    assert [prompt.part for prompt in prompts] == [0, 1, 2, 3]
    with torch.no_grad():
        empty = trained.learner.answer(collate([prompts[2].but(part=0)], 1, [{}]))[0].scores
    prior = [
        sum([*(row[f"p({name})"] for row in free), empty[i]]) / 3 for i, name in enumerate(("negative", "positive"))
    ]
    own = plain.predict([{"text": row["text"], "language": row["language"]} for row in test]).to_pylist()
    for row, before in zip(found, own):
        quotients = [before[f"p({name})"] / prior[i] for i, name in enumerate(NAMES)]
        assert row["p(positive)"] == pytest.approx(quotients[1] / sum(quotients), abs=1e-5)
        assert row["answer"] == NAMES[quotients[1] > quotients[0]]
    assert {row["answer"] for row in found} != {row["answer"] for row in own} or found != own
    predictions = pa_parquet.read_table(run / "seed-3" / "predictions.parquet").to_pylist()
    by_key = {(row["language"], row["id"]): row["p(positive)"] for row in predictions}
    for row, asked in zip(found, test):
        assert row["p(positive)"] == pytest.approx(by_key[asked["language"], asked["id"]], abs=1e-5)


def test_texts_without_content_are_asked_once_an_evaluation(icl):
    """Of all rows of a language, whose prompts about them are the same; N/A and [MASK] are alike here."""
    trained = load_trained(icl(calibration="contextual"))
    rows = [{"id": str(i), "language": "en", "text": text, "label": None} for i, text in enumerate(("a film", "fine"))]
    prompts = list(itertools.chain.from_iterable(map(trained.encoder, rows)))
    assert len(prompts) == 8
    assert len(PromptDataset(prompts, trained.learner.method, 1).distinct(True, range(8))) == 2 + 2


@pytest.mark.parametrize("scores", [[0.0, 1.0], [1.0, 0.0]])
def test_a_label_that_texts_without_content_never_get_is_no_nan(scores):
    readout = cases.cell("frozen", tiny.backbone("gpt2")).learner.readout
    answers = [Answer("a", [0], scores), *[Answer("a", [1], [0.0, 1.0])] * 3]
    name, found = readout.gather([], answers)
    assert found == pytest.approx(scores)
    assert name == NAMES[scores.index(1.0)]


def test_off_it_moves_no_cell_key():
    keys = {"task": "sentiment", "backbone": "gpt2", "method": "frozen", "train": {"epochs": 0}, "pattern": "gnnavi"}
    plain = make_job(keys).job.key()
    assert make_job({**keys, "readout": {"name": "verbalizer", "calibration": None}}).job.key() == plain
    assert make_job({**keys, "readout": {"calibration": "contextual"}}).job.key() != plain


def test_calibration_of_what_trains_is_refused(ran):
    with pytest.raises(UserError, match="found contextual with a model that full trains; expected"):
        ran("fpft", "full", readout={"calibration": "contextual"})


def test_a_run_without_demonstrations_is_refused(ran, finish):
    code, out, err = finish("analyse", "demonstrations", ran("dp", "full", "xlmr", train=FAST))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "shows no demonstrations; expected a run with demos=1 or more" in err

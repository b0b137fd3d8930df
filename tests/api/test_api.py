"""The Python API: every public function has a docstring whose example runs, and importing raypft is light."""

from __future__ import annotations

import doctest
import inspect
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

import raypft
from raypft.contract import tiny

FUNCTIONS = [name for name in raypft.__all__ if inspect.isfunction(getattr(raypft, name))]
ON_RAY = ("tune",)


@pytest.fixture
def model(tmp_path, monkeypatch) -> str:
    """A tiny model on disk, and a working directory of its own."""
    made = tiny.backbone("bert")
    made.model.save_pretrained(tmp_path / "model")
    made.text.tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return str(tmp_path / "model")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.ray] if name in ON_RAY else []) for name in FUNCTIONS]
)
def test_the_example_of_a_function_runs(name, model):
    names = {"raypft": raypft, "Path": Path, "MODEL": model}
    (found,) = doctest.DocTestFinder(recurse=False).find(getattr(raypft, name), name, globs=names)
    assert found.docstring
    assert found.examples or name == "read_campaign"  # shown by tune's
    told: list[str] = []
    failed, _ = doctest.DocTestRunner().run(found, out=told.append)
    assert not failed, "".join(told)


def test_importing_raypft_loads_nothing_heavy():
    code = "import sys, raypft; print(sorted({'torch', 'transformers', 'ray', 'pandas', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_results_as_tables(model):
    results = raypft.run("profit", task="sentiment", backbone=model, shots=2, seeds=2, train={"epochs": 1})
    table = results.to_pandas()
    assert list(table["seed"].unique()) == [0, 1]
    by_seed = cast(Any, table.groupby("seed")["score"].mean())
    assert results.mean == pytest.approx(by_seed.mean())
    assert results.std == pytest.approx(by_seed.std())
    assert len(results.predictions()) == 2 * sum(results.seeds[0]["rows"].values())
    assert raypft.read_results(str(results.folder)) == results


def test_one_seed_has_no_deviation_and_none_no_mean(model):
    job = raypft.load_job("profit", task="sentiment", backbone=model, shots=2, seeds=[7], train={"epochs": 1})
    events: list[dict] = []
    results = raypft.run(job, tell=events.append)
    assert math.isnan(results.std)
    assert [event["event"] for event in events] == ["start", "steps", "epoch", "result"]
    (results.folder / "seed-7" / "result.json").unlink()
    empty = raypft.read_results(results.folder)
    assert math.isnan(empty.mean)
    assert empty.to_arrow().num_rows == 0
    assert empty.predictions().num_rows == 0


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: raypft.load_job("profitt"), 'recipe: "profitt" is unknown; did you mean "profit"?'),
        (lambda: raypft.load_job("profit", task="nli", backbone="x", trian={"lr": 1}), 'unknown key "trian"'),
        (lambda: raypft.load_job("profit", task="nli", backbone="x", **{"train.lrr": 1}), 'unknown key "train.lrr"'),
        (lambda: raypft.read_results("nowhere"), "nowhere holds no job.yaml"),
        (lambda: raypft.load_trained("nowhere"), "nowhere holds no job.yaml"),
        (lambda: raypft.load_campaign("quikstart"), '"quikstart" is unknown; did you mean "quickstart"?'),
        (lambda: raypft.read_campaign("nowhere"), "nowhere holds no campaign.yaml"),
    ],
)
def test_what_can_be_mended_is_one_line(call, line, model):
    with pytest.raises(raypft.UserError) as caught:
        call()
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_keys_beside_a_loaded_job_are_refused(model):
    job = raypft.load_job("profit", task="sentiment", backbone=model)
    with pytest.raises(raypft.UserError, match="run: found shots beside a loaded job; give keys to load_job"):
        raypft.run(job, shots=2)


def test_rows_for_a_prediction_are_texts_mappings_or_a_table(model):
    results = raypft.run("profit", task="nli", backbone=model, shots=2, seeds=1, train={"epochs": 1})
    trained = raypft.load_trained(results.folder)
    rows = [{"premise": "it is good", "hypothesis": "it is bad"}, {"premise": "a film", "hypothesis": "the film"}]
    answers = trained.predict(rows)
    assert answers["language"].to_pylist() == ["en", "en"]
    assert set(answers["answer"].to_pylist()) <= set(trained.task.label.names)
    with pytest.raises(raypft.UserError, match="predict: task nli asks about a, b; found texts; expected mappings"):
        trained.predict(["one text"])

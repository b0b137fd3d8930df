"""A user's own method, readout and metric, by path or module: `own/` beside this file is what a user would write."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pa_parquet
import pytest
import yaml
from safetensors.torch import load_file
from test_cli import call, place, words  # noqa: F401  (a fixture)

from raypft.campaigns.known_keys import KnownKeys
from raypft.config.load import load_job
from raypft.config.resolved import ResolvedJob
from raypft.contract import tiny
from raypft.runs.prepare import prepare
from raypft.schema import split_override

OWN = Path(__file__).parent / "own"


@pytest.fixture
def home(place, monkeypatch):  # noqa: F811
    """A user's folder, the current one: data, tiny models, and `own/` with their files."""
    shutil.copytree(OWN, place / "own", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(place)
    return place


def job_words(*more: str) -> list[str]:
    """A job with all that is one's own, by paths below the current folder."""
    named = ["task=own/reviews.yaml", "backbone=bert", "data.root=.", "storage=runs", "seeds=1"]
    return words(Path(), *named, "method=own/bitfit.py", "readout=own/probe.py", "train.dropout=0.0", *more)


def job(*more: str) -> ResolvedJob:
    """That job, resolved."""
    name, *overrides = job_words(*more)
    return load_job(name, overrides)


def command(home: Path, *arguments: str) -> str:
    """What a command prints, run in a process of its own in a user's folder, where Ray's workers start too."""
    temp = tempfile.mkdtemp(prefix="rp-", dir="/tmp")  # short: sockets lie below it
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_TMPDIR": temp, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "raypft.cli", *arguments]
    done = subprocess.run(words, cwd=home, env=environment, capture_output=True, text=True, check=False, timeout=500)
    shutil.rmtree(temp, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def keys(*more: str) -> dict[int, str]:
    """The keys of its cells."""
    return prepare(job(*more)).keys


def last_line(monkeypatch, capsys, *arguments: str) -> str:
    """The one line that a command ends with, whose exit code is 2."""
    capsys.readouterr()
    assert call(monkeypatch, *arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0].removeprefix("raypft: ")


def test_a_run_from_check_to_export(home, monkeypatch, capsys):
    assert call(monkeypatch, "check", *job_words()) == 0
    assert "trainable parameters of the method: 1,001" in capsys.readouterr().out
    assert call(monkeypatch, "show", *job_words()) == 0
    assert "probabilities before training: negative" in capsys.readouterr().out
    assert call(monkeypatch, "run", *job_words()) == 0
    assert "profit-bitfit-probe" in capsys.readouterr().out
    (folder,) = (home / "runs").glob("profit-bitfit-probe-reviews-all-bert-*")
    result = json.loads((folder / "seed-0" / "result.json").read_text())
    assert result["metric"].startswith("macro_f1@")
    assert set(result["metrics"]) == {result["metric"], "accuracy@1"}
    assert result["trainable_method"] == result["predicted_method"] == 1001
    assert result["trainable"] == 1001 + 2 * tiny.HIDDEN + 2

    assert call(monkeypatch, "report", str(folder)) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"**reviews: {result['metric']}")
    assert "profit-bitfit-probe (plain)" in shown
    assert call(monkeypatch, "predict", str(folder), "--text", "the film was good", "--json") == 0
    assert json.loads(capsys.readouterr().out)["answer"] in ("negative", "positive")

    assert call(monkeypatch, "export", str(folder), "exported") == 0
    assert set(load_file("exported/method/parts.safetensors")) == {"readout.linear.weight", "readout.linear.bias"}
    written = json.loads(Path("exported/method/config.json").read_text())
    assert written["method"] == {"name": "bitfit.py", "biases": "*.bias"}
    assert written["readout"] == {"name": "probe.py", "bias": True}
    assert "tags: [raypft, bitfit]" in Path("exported/README.md").read_text()


def test_macro_f1_is_the_mean_over_labels(home, monkeypatch):
    folder = prepare(job()).folder
    assert call(monkeypatch, "run", *job_words()) == 0
    answers = pa_parquet.read_table(folder / "seed-0" / "predictions.parquet").to_pylist()
    result = json.loads((folder / "seed-0" / "result.json").read_text())
    for language, score in result["scores"].items():
        each = []
        for label in ("negative", "positive"):
            rows = [(row["gold"] == label, row["answer"] == label) for row in answers if row["language"] == language]
            hits = sum(gold and answer for gold, answer in rows)
            each.append(2 * hits / sum(gold + answer for gold, answer in rows))
        assert score == pytest.approx(50 * sum(each))


def test_a_dotted_module_does_as_well(home, monkeypatch, capsys):
    package = home / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    shutil.copy(OWN / "bitfit.py", package / "bitfit.py")
    monkeypatch.syspath_prepend(str(home))
    made = job("method=my_package.bitfit")
    assert made.job.recipe == "profit-bitfit-probe"
    assert prepare(made).skeleton is not None
    assert call(monkeypatch, "contract", "my_package.bitfit", "--on", "gpt2") == 0
    (package / "__init__.py").write_text("raise RuntimeError('not today')")
    sys.modules.pop("my_package")
    sys.modules.pop("my_package.bitfit")
    line = last_line(monkeypatch, capsys, "check", *job_words("method=my_package.bitfit"))
    assert line == "method: my_package.bitfit can't be imported: RuntimeError: not today"


@pytest.mark.parametrize("file", ["bitfit.py", "probe.py", "macro_f1.py"])
def test_an_edited_file_makes_another_cell(file, home, monkeypatch, capsys):
    before = keys()
    assert call(monkeypatch, "run", *job_words()) == 0
    path = home / "own" / file
    os.utime(path, (1, 1))
    assert keys() == before
    path.write_text(path.read_text() + "\n# edited\n")
    assert keys() != before
    line = last_line(monkeypatch, capsys, "run", *job_words())
    assert "seed 0 was begun with other data, model or method version" in line


def test_a_moved_folder_keeps_its_cells(home, tmp_path_factory, monkeypatch):
    before = keys()
    moved = tmp_path_factory.mktemp("elsewhere") / "home"
    shutil.move(home, moved)
    monkeypatch.chdir(moved)
    assert keys() == before


def test_a_name_of_the_recipe_is_kept(home):
    assert job("recipe=mine").job.recipe == "mine"
    assert job("method=full", "readout=verbalizer").job.recipe == "profit"


BASE = "from raypft.methods import base\n"
IDLE = BASE + "class Method(base.Method):\n    def predicted_parameters(self):\n        return 0\n"
BAD = {
    "no file": (None, "method: no file own/bad.py; give the path of a Python file"),
    "no hook": ("x = 1", "method: own/bad.py has no Method; expected its class or function under that name"),
    "raises": ("raise RuntimeError('no luck')", "method: own/bad.py can't be imported: RuntimeError: no luck"),
    "syntax": ("def", "method: own/bad.py can't be imported: SyntaxError: invalid syntax (bad.py, line 1)"),
    "no subclass": ("Method = int", "method: own/bad.py: Method is no subclass of raypft.methods.base.Method"),
    "abstract": (
        BASE + "class Method(base.Method):\n    pass",
        "method: own/bad.py: Method lacks predicted_parameters; see raypft.methods.base.Method",
    ),
    "opens nothing": (
        IDLE,
        "method: own/bad.py opens nothing, no parameter trains; open some through the backbone's seams, "
        "set trains = False in it, or train.epochs=0",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_method_that_cannot_be_used_is_one_line(bad, home, monkeypatch, capsys):
    source, expected = BAD[bad]
    if source is not None:
        (home / "own" / "bad.py").write_text(source)
    more = ("method=own/bad.py", "readout=verbalizer")
    assert last_line(monkeypatch, capsys, "run", *job_words(*more)) == expected
    assert not (home / "runs").exists()


def test_a_method_that_opens_nothing_goes_with_a_readout_that_trains(home, monkeypatch):
    (home / "own" / "idle.py").write_text(IDLE)
    assert call(monkeypatch, "run", *job_words("method=own/idle.py")) == 0


def test_a_module_that_is_not_there_is_one_line(home, monkeypatch, capsys):
    line = last_line(monkeypatch, capsys, "run", *job_words("method=nowhere.bitfit"))
    assert line == "method: no module nowhere.bitfit; install it, or give the path of a Python file"


BAD_METRICS = {
    "def metric(gold, answers, language='en'):\n    return {}['x']": "failed: KeyError: 'x'",
    "def metric(gold, answers, language='en'):\n    return None": (
        "returned None; expected a number, percent from 0 to 100"
    ),
    "def metric(gold, answers, language='en'):\n    return float('nan')": (
        "returned nan; expected a number, percent from 0 to 100"
    ),
    "metric = 3": "metric is no function (gold, answers, language) -> percent",
}


@pytest.mark.parametrize("source", BAD_METRICS)
def test_a_metric_that_gives_no_number_is_one_line(source, home, monkeypatch, capsys):
    path = home / "own" / "macro_f1.py"
    path.write_text(source)
    line = last_line(monkeypatch, capsys, "run", *job_words())
    assert f"metric: {path}" in line
    assert line.endswith(BAD_METRICS[source])


BROKEN = {
    "draws": (
        "micro-batches do not change the losses: UserError: train: the model or the method draws random numbers that "
        "are no row's dropout, so its numbers would depend on workers and micro-batches; use resources.workers=1 (or "
        "0), train.micro_batch=4, all rows of a step at once, and train.shortcuts=false"
    ),
    "undeclared": (
        "the trainable count is the predicted one: 192 parameters are trainable "
        "(backbone.model.bert.encoder.layer.0.attention.self.query.bias and 5 more), predicted_parameters says 96"
    ),
    "writes": (
        "exactly the declared parameters move: method.backbone.model.bert.embeddings.word_embeddings.weight moved in "
        "training but must stay frozen; write to weights through seams only"
    ),
    "shapeless": (
        "states are one row per slot: forward gave [32] for 3 slots; expected [S, H], here [3, 32], "
        "as backbone(batch) gives"
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_contract_names_what_a_method_breaks(name, monkeypatch, capsys):
    path = str(OWN / "broken" / f"{name}.py")
    assert call(monkeypatch, "contract", path, "--on", "bert") == 2
    printed = capsys.readouterr()
    assert f"FAILED  bert  {BROKEN[name]}" in printed.out.splitlines()
    assert printed.err.startswith(f"raypft: contract: {path} breaks promises: ")


def test_the_contract_is_kept(monkeypatch, capsys):
    assert call(monkeypatch, "contract", str(OWN / "bitfit.py")) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == f"{OWN / 'bitfit.py'} keeps its promises: 31 checked, 6 skipped"
    assert "ok      bert  states are one row per slot" in printed
    assert any(line.startswith("skipped llama all promises: open(") for line in printed)


def test_the_contract_over_engines(monkeypatch, capsys):
    """Two processes under every ZeRO stage."""
    path = str(OWN / "bitfit.py")
    assert call(monkeypatch, "contract", path, "--on", "gpt2", "--engines", "method.biases='*ln_1.bias'") == 0
    assert "ok      gpt2  one loss curve: torch and ZeRO, one process and two" in capsys.readouterr().out


CONTRACT_ERRORS = {
    "contract: found 0 names; expected one method or file, e.g. raypft contract lora": ["method.rank=2"],
    'contract: override "train.lr=1": expected a key of the method, e.g. method.layer=2': ["lora", "train.lr=1"],
    'method: "lor" is unknown; did you mean "lora"?': ["lor"],
    'contract: --on: "berd" is unknown; did you mean "bert"?': ["lora", "--on", "berd"],
    "contract: gnnavi works with none of bert; it works with gpt2, llama": ["gnnavi", "--on", "bert"],
    "contract: lora could not be built on any of these models: method: rank: found 0": ["lora", "method.rank=0"],
    'contract: lora could not be built on any of these models: method: unknown key "rang"; did you mean "rank"?': [
        "lora",
        "method.rang=1",
    ],
    "contract: gnnavi could not be built on any of these models: method.layer: found 9": ["gnnavi", "method.layer=9"],
}


@pytest.mark.parametrize("expected", CONTRACT_ERRORS)
def test_what_the_contract_cannot_check_is_one_line(expected, monkeypatch, capsys):
    assert last_line(monkeypatch, capsys, "contract", *CONTRACT_ERRORS[expected]).startswith(expected)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_two_workers_give_the_numbers_of_the_plain_run(home):
    plain = json.loads(command(home, "run", *job_words("storage=plain"), "--json").splitlines()[-1])
    workers = job_words("resources.workers=2", "zero.stage=1")
    result = json.loads(command(home, "run", *workers, "--json").splitlines()[-1])
    assert result["workers"] == 2
    assert result["cell"] == plain["cell"]
    assert result["scores"] == plain["scores"]
    assert result["history"][-1]["loss"] == pytest.approx(plain["history"][-1]["loss"], rel=1e-4)


def campaign(home: Path) -> str:
    """A campaign of two rows, one of them with what is one's own."""
    _, *overrides = job_words("seeds=1", "train.epochs=1")
    defaults = dict(map(split_override, overrides))
    task, method, readout = (defaults.pop(key) for key in ("task", "method", "readout"))
    rows = {"BitFit": {"method": method, "readout": readout}, "all weights": {}}
    written = {
        "about": "test",
        "defaults": defaults,
        "rows": {name: {"recipe": "profit", "set": settings} for name, settings in rows.items()},
        "tasks": [task],
        "search": {"searcher": "grid", "space": {"train.lr": [0.01, 0.02]}, "metric": "macro_f1", "rows": ["BitFit"]},
    }
    (home / "mine.yaml").write_text(yaml.safe_dump(written, sort_keys=False))
    return "mine.yaml"


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_campaign_with_a_row_of_ones_own(home, monkeypatch, capsys):
    path = campaign(home)
    table = command(home, "tune", path)
    assert "macro_f1@" in table
    assert "BitFit" in table
    (folder,) = (home / "runs").glob("mine-*")
    assert call(monkeypatch, "report", str(folder)) == 0
    assert "BitFit" in capsys.readouterr().out

    def todo() -> int:
        capsys.readouterr()
        assert call(monkeypatch, "plan", path, "--json") == 0
        return json.loads(capsys.readouterr().out)["todo"]

    assert todo() == 0
    method = home / "own" / "bitfit.py"
    method.write_text(method.read_text() + "\n# edited\n")
    assert todo() == 2


def test_what_a_campaign_knows_follows_a_module(home, monkeypatch):
    package = home / "my_package"
    shutil.copytree(OWN, package, ignore=shutil.ignore_patterns("__pycache__", "broken"))
    monkeypatch.syspath_prepend(str(home))
    values = {"backbone": "./bert", "task": "own/reviews.yaml", "data": {"root": "."}, "method": "my_package.bitfit"}
    before = KnownKeys(home / "kept").inputs(values)
    assert before is not None
    os.utime(package / "bitfit.py", (1, 1))
    assert KnownKeys(home / "kept").inputs(values) not in (None, before)

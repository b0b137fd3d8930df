"""`raypft check` never says ok where `raypft run` fails on the same machine for a reason that can be known: a walk over
the refusals of `run` in every room. check says the same line with the same exit code, and neither leaves anything."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from filelock import FileLock
from test_cli import call, corrupt, results, rewrite, rows, words
from test_cli import place as place_  # noqa: F401  (a fixture)
from transformers import AutoTokenizer

from raypft.records import opened, sealed
from raypft.runs import inspect, memory

Setup = Callable[[Path], object]


@pytest.fixture
def place(place_):  # noqa: F811
    return place_


def nothing(place: Path) -> None:
    pass


def task(place: Path, before: str, after: str) -> None:
    """Another task of the same name."""
    text = (place / "mytask.yaml").read_text()
    assert before in text
    (place / "mytask.yaml").write_text(text.replace(before, after))


def config(place: Path, **keys: object) -> None:
    """Other keys in the model's config.json."""
    path = place / "bert" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def masked_words(place: Path) -> None:
    """A task of masked-language modelling."""
    (place / "mytask.yaml").write_text(
        "{about: test, kind: mlm, fields: {text: text}, languages: [en], metric: token_accuracy, "
        "sources: {files: {files: {train: train, test: test}}}, patterns: {plain: {text: '{text}', source: test}}}"
    )


def long_wording(place: Path) -> None:
    """German prompts need more tokens than there are; the first of them stands behind 220 others."""
    text = "{text} . it was , so to say , the film , the film and all of it the same and so on and on and on <slot> ."
    wording = '{text: "' + text + '", verbalizer: {negative: bad, positive: good}}'
    task(place, "positive: good}, source: test}\n  soft", "positive: good}, source: test, by_language: {de: " + wording
         + "}}\n  soft")  # fmt: skip
    pa_parquet.write_table(pa.Table.from_pylist(rows(220, "en", 200) + rows(8, "de")), place / "test.parquet")


def own_metric(place: Path) -> None:
    """A metric that fails on what it is given, which run would meet after training."""
    (place / "mine.py").write_text("def metric(gold, answers, language):\n    return sum(map(int, gold))\n")
    task(place, "metric: accuracy", "metric: accuracy\nmetrics: [accuracy, mine.py]")


def begun(place: Path, content: str) -> None:
    """A run of which a seed was begun, whose samples.json says so."""
    (folder,) = place.glob("runs/*")
    (folder / "seed-1").mkdir(exist_ok=True)
    (folder / "samples.json").write_text(content)


def token(place: Path) -> None:
    """A tokenizer of another model: it knows more words than the model has embeddings for."""
    tokenizer = AutoTokenizer.from_pretrained(place / "bert")
    tokenizer.add_tokens([f"word{i}" for i in range(500)])
    tokenizer.save_pretrained(place / "bert")


REFUSED: dict[str, tuple[Setup, list[str], str]] = {
    # config
    "unknown key": (nothing, ["trian.lr=1"], 'profit: unknown key "trian"; did you mean "train"?'),
    "unknown key of resources": (nothing, ["resources.worker=1"], 'unknown key "worker"; did you mean "workers"?'),
    "wrong type": (nothing, ["train.lr=fast"], "profit: train.lr: found 'fast'"),
    "no seeds": (nothing, ["seeds=0"], "seeds: found 0"),
    "a seed too large": (nothing, ["seeds=[18446744073709551616]"], "expected seeds from 0 to 2^63 - 1"),
    "a truth value for a seed": (nothing, ["seeds=[true]"], "expected numbers, found a truth value"),
    "seeds that repeat": (nothing, ["seeds=[1,1]"], "expected distinct seeds"),
    "unknown protocol": (nothing, ["protocol=fixd"], 'protocol: "fixd" is unknown; did you mean "fixed"?'),
    "unknown dev metric": (
        nothing,
        ["dev.metric=acuracy"],
        'dev.metric: "acuracy" is unknown; did you mean "accuracy"',
    ),
    "train language": (nothing, ["train.languages=[fr]"], 'train.languages: task mytask has no language "fr"'),
    "test language": (nothing, ["test.languages=[en,en]"], 'test.languages: "en" stands there twice'),
    "fp16 in this process": (nothing, ["train.precision=fp16"], "train.precision: found fp16 without workers"),
    "fp16 without a GPU": (
        nothing,
        ["train.precision=fp16", "resources.workers=1", "zero.stage=1"],
        "train.precision: found fp16 with workers that have no GPU",
    ),
    "zero without workers": (nothing, ["zero.stage=2"], "zero: found stage 2, offload False without workers"),
    "zero and method": (
        masked_words,
        ["method=ticket_search", "readout=mlm", "resources.workers=1", "zero.stage=3"],
        "zero.stage: found 3; method ticket_search works up to stage 2",
    ),
    "fewest workers": (nothing, ["resources.min_workers=2", "resources.workers=1"], "resources.min_workers: found 2"),
    # data and tasks
    "no data": (nothing, ["data.root=/nowhere"], "data: no file /nowhere/train"),
    "damaged data": (corrupt, [], "train.parquet can't be read: "),
    "label outside the set": (lambda place: rewrite(place, "test", label="x"), [], 'row 0 has label "x", outside'),
    "no rows in a language": (
        lambda place: rewrite(place, "train"),
        ["train.languages=[de]"],
        'languages: train rows of mytask (files) hold none in "de"; found: en',
    ),
    "more shots than rows": (nothing, ["shots=13"], 'shots: train asks for 13 rows of "negative" in en'),
    "a stream and shots": (nothing, ["data.stream=uniform", "shots=2"], "data.stream: found shots=2"),
    "unknown pattern": (nothing, ["pattern=plane"], 'task mytask: no pattern "plane"; did you mean "plain"?'),
    "a metric that fails": (own_metric, [], "mine.py failed: ValueError: invalid literal for int() with base 10"),
    # backbones
    "no model": (nothing, ["backbone=./none"], "backbone: no folder none"),
    "unknown model": (nothing, ["backbone=smolm2-135m"], '"smolm2-135m" is no alias, folder or hub id'),
    "quantized": (lambda place: config(place, quantization_config={"bits": 4}), [], "holds quantized weights"),
    "other sizes": (lambda place: config(place, hidden_size=64), [], "config.json makes it"),
    "cut weights": (
        lambda place: os.truncate(place / "bert" / "model.safetensors", 1000),
        [],
        "backbone: the weights in ",
    ),
    "no weights": (lambda place: (place / "bert" / "model.safetensors").unlink(), [], "backbone: "),
    "another tokenizer": (token, [], "expected a tokenizer and weights of one model"),
    # methods and readouts
    "method and family": (nothing, ["method=gnnavi"], "method: gnnavi works with causal models; "),
    "method and pattern": (nothing, ["method=soft_prompt"], "pattern: method soft_prompt needs <soft>"),
    "pattern and method": (nothing, ["pattern=soft"], "pattern: soft has <soft>, but method full has no soft tokens"),
    "a layer out of range": (nothing, ["method={name: lora, targets: [none]}"], "method.targets"),
    "no ticket": (nothing, ["method=lottery", "pattern=soft"], "method.ticket: none is given"),
    "a ticket that is not there": (
        nothing,
        ["method={name: lottery, ticket: /none}", "pattern=soft"],
        "method.ticket: no file or folder /none",
    ),
    "a prefix too long": (nothing, ["method={name: prefix, length: 150}"], "train.max_tokens: found 32; "),
    "slot and readout": (nothing, ["pattern=vanilla"], "readout: verbalizer reads a label word at <slot>"),
    "label words": (nothing, ["pattern=splits"], '"bad film" is 2 tokens for this backbone'),
    "readout and kind": (nothing, ["readout=span"], "readout: span does not answer tasks of kind choice"),
    # training
    "text cut to nothing": (nothing, ["train.max_tokens=5"], "train.max_tokens: the pattern"),
    "a late row too long": (long_wording, ["train.max_tokens=20"], "train.max_tokens: the pattern (row de/"),
    "more tokens than positions": (nothing, ["train.max_tokens=500"], "train.max_tokens: found 500; "),
    "demonstrations": (nothing, ["demos=1"], "demos: found 1; pattern plain of mytask has no <demos>"),
    # runs and storage
    "a file in the way": (lambda place: (place / "runs").write_text(""), [], "can't be written: Not a directory; give"),
    "a storage that can't be made": (nothing, ["storage=/proc/none"], "storage: /proc/none/profit-mytask-all-bert-"),
    "a name too long": (nothing, ["recipe=" + "a" * 300], "can't be written: File name too long; give another folder"),
    "a null byte": (nothing, ['storage="a\\0b"'], "can't be written: embedded null byte; give another folder"),
    "storage in memory": (nothing, ["storage=memory://x"], "ends with this process; give a folder, or a bucket"),
    "storage of the web": (nothing, ["storage=http://127.0.0.1:1/x"], "can't be written: "),
    "no such store": (nothing, ["storage=foo://x"], "storage: foo://x can't be reached: "),
    "the home of no one": (nothing, ["storage=~no-one/r"], "path: ~no-one/r: there is no such home folder"),
    # scale
    "GPUs": (nothing, ["resources.gpus_per_worker=999"], "resources.gpus_per_worker: the job needs 999 GPUs; "),
    "CPUs": (
        nothing,
        ["resources.workers=2", "resources.cpus_per_worker=999"],
        "resources.cpus_per_worker: 2 workers x 999 + 1 for reading + 0.5 for encoding = 1999.5 CPUs; Ray has ",
    ),
    "a label no node has": (
        nothing,
        ["resources.workers=1", "resources.data_label=pool=data"],
        'resources.data_label: no node has "pool=data"; found: no labels',
    ),
}
WITH_RAY = ("a label no node has",)
"""What run itself asks Ray, which takes seconds to start."""


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch):
    for name in ("RAY_ADDRESS", "RAYPFT_CLUSTER"):
        monkeypatch.delenv(name, raising=False)


def refused(monkeypatch, capsys, verb: str, *arguments: str) -> str:
    """The one line that a command says, which ends with exit code 2."""
    capsys.readouterr()
    assert call(monkeypatch, verb, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("name", REFUSED)
def test_check_refuses_what_run_refuses(name, place, monkeypatch, capsys):
    setup, more, expected = REFUSED[name]
    setup(place)
    before = sorted(place.rglob("*"))
    arguments = words(place, *more)
    line = refused(monkeypatch, capsys, "check", *arguments)
    assert expected in line
    if name not in WITH_RAY:
        assert refused(monkeypatch, capsys, "run", *arguments) == line
    assert sorted(place.rglob("*")) == before, "something was left behind"


@pytest.mark.ray
@pytest.mark.parametrize("name", WITH_RAY)
def test_check_says_what_ray_would_say(name, place, monkeypatch, capsys):
    arguments = words(place, *REFUSED[name][1])
    line = refused(monkeypatch, capsys, "check", *arguments)
    assert refused(monkeypatch, capsys, "run", *arguments) == line


def both(monkeypatch, capsys, *arguments: str) -> str:
    line = refused(monkeypatch, capsys, "check", *arguments)
    assert refused(monkeypatch, capsys, "run", *arguments) == line
    return line


def test_a_run_of_other_data_is_in_the_way(place, monkeypatch, capsys):
    arguments = words(place, "seeds=1", "train.epochs=0")
    assert call(monkeypatch, "run", *arguments) == 0
    before = results(place)
    assert call(monkeypatch, "check", *arguments) == 0
    (folder,) = place.glob("runs/*")
    content = (folder / "samples.json").read_text()
    of_seed = opened(content.encode())
    of_seed["0"]["cell"] = "x" + of_seed["0"]["cell"]
    begun(place, sealed(of_seed))
    line = both(monkeypatch, capsys, *arguments)
    assert "seed 0 was begun with other data, model or method version (cell x" in line
    begun(place, content[:20])
    assert call(monkeypatch, "check", *arguments) == 0, "the result knows its cell, too"
    begun(place, content)
    with FileLock(folder / ".lock"):
        line = both(monkeypatch, capsys, *arguments)
    assert line == f"raypft: run: another process is at work on {folder}; wait for it, or choose another storage="
    assert call(monkeypatch, "check", *arguments) == 0
    assert results(place) == before


def test_a_job_named_twice(place, monkeypatch, capsys):
    arguments = words(place, "seeds=1")
    assert "was asked for twice; name each job once" in both(monkeypatch, capsys, arguments[0], *arguments)


def test_a_job_that_memory_does_not_hold(place, monkeypatch, capsys):
    monkeypatch.setattr(memory, "machine_memory", lambda: 1000)
    line = both(monkeypatch, capsys, *words(place))
    held = "the job holds at least 0.0 GB of weights, gradients and optimizer state"
    assert line.startswith(f"raypft: memory: {held}; this machine has 0.0; choose a smaller backbone")


@pytest.mark.parametrize("before", ["", "ray://"])
def test_a_cluster_that_is_not_there(before, place, monkeypatch, capsys):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"{before}127.0.0.1:{held.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    line = both(monkeypatch, capsys, *words(place, "resources.workers=1"))
    assert line.startswith(
        f"raypft: RAY_ADDRESS: no Ray cluster at {address}: [Errno 111] Connection refused; start it"
    )
    assert call(monkeypatch, "check", *words(place)) == 0, "a job without workers needs none"


def test_rows_are_looked_at_by_language_and_length():
    table = pa.table(
        {
            "language": ["en"] * 30 + ["de"],
            "text": ["a" * (1 + i * 7 % 30) for i in range(30)] + ["b"],
            "words": [["w" * (1 + i * 7 % 30)] * (1 + i % 3) for i in range(30)] + [["b"]],
        }
    )
    sizes = {len(row["text"]) for row in inspect.extremes(table, ["text"])}
    assert sizes == {*range(1, 6), *range(26, 31)}
    looked_at = inspect.extremes(table, ["words"])
    assert max(len(row["words"][0]) for row in looked_at) == 30
    assert looked_at[-1]["language"] == "de"

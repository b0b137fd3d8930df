"""A finished run answers its own test rows as its predictions say, for every method; exported folders give the same
logits alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_cli import call
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DynamicCache,
)

from raypft.backbones.load import load_backbone
from raypft.batch import collate
from raypft.config.load import make_job
from raypft.contract import cases, tiny
from raypft.errors import UserError
from raypft.methods import METHODS
from raypft.report.table import mean_std
from raypft.runs.answers import answered, given, shown
from raypft.runs.predict import load_trained, predict, rows_of_file, rows_of_texts
from raypft.runs.prepare import prepare
from raypft.scale.run import run_jobs

WORDS = {"negative": "bad", "positive": "good"}
FILES = {"files": {"files": {"train": "train", "validation": "validation", "test": "test"}}}
PATTERNS = {
    "choice": {
        "masked": {"text": "{text} . it was <slot> .", "verbalizer": WORDS},
        "seq2seq": {"text": "{text} . it was <slot> .", "verbalizer": WORDS},
        "causal": {"text": "<demos>Review : {text} Sentiment : <slot>", "verbalizer": WORDS},
        "masked soft": {"text": "{text} . it was <soft> <slot> .", "verbalizer": WORDS},
        "seq2seq soft": {"text": "{text} . it was <soft> <slot> .", "verbalizer": WORDS},
        "causal soft": {"text": "<demos>Review : {text} <soft> Sentiment : <slot>", "verbalizer": WORDS},
        "vanilla": {"text": "{text}"},
    },
    "tags": {
        "vanilla": {"text": "{tokens}"},
        "topro": {"text": "{tokens} <sep> {token} is <slot> .", "verbalizer": WORDS},
    },
    "span": {"vanilla": {"text": "{question} <sep> {context}"}},
}
FIELDS = {
    "choice": {"text": "text"},
    "tags": {"tokens": "tokens"},
    "span": {"question": "question", "context": "context"},
}
METRICS = {"choice": "accuracy", "tags": "token_accuracy", "span": "f1"}
VOCABULARY = ["the", "a", "film", "was", "is", "good", "bad", "great", "terrible", "fine", "it"]


def rows(kind: str, start: int) -> list[dict]:
    """A dozen rows; sentences of up to 30 words, so that some are cut and some windows overlap."""
    made = []
    for i in range(start, start + 12):
        words = [VOCABULARY[(i * 7 + j * j) % len(VOCABULARY)] for j in range(4 + 13 * (i % 3))]
        row = {"id": str(i), "language": ("en", "de")[i % 4 == 3]}
        if kind == "choice":
            made.append({**row, "text": " ".join(words), "label": list(WORDS)[i % 2]})
        elif kind == "tags":
            made.append({**row, "tokens": words, "label": [list(WORDS)[len(word) % 2] for word in words]})
        else:
            context = " ".join(words)
            made.append(
                {
                    **row,
                    "question": "was it fine ?",
                    "context": context,
                    "label": {"text": [words[2]], "answer_start": [context.index(words[2])]},
                }
            )
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A task of each kind with its data, and tiny models."""
    folder = tmp_path_factory.mktemp("place")
    for kind, patterns in PATTERNS.items():
        named = {"label": {"names": list(WORDS)}} if kind != "span" else {}
        task = {
            "about": "test",
            "kind": kind,
            "fields": FIELDS[kind],
            **named,
            "languages": ["en", "de"],
            "metric": METRICS[kind],
            "sources": FILES,
        }
        task["patterns"] = {name: {**pattern, "source": "test"} for name, pattern in patterns.items()}
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
        (folder / kind).mkdir()
        for split, start in (("train", 0), ("validation", 100), ("test", 200)):
            pa_parquet.write_table(pa.Table.from_pylist(rows(kind, start)), folder / kind / f"{split}.parquet")
    for model in ("bert", "xlmr", "gpt2", "llama", "t5"):
        made = tiny.backbone(model, dropout=0.1)
        made.model.save_pretrained(folder / model)
        made.text.tokenizer.save_pretrained(folder / model)
    return folder


FAMILY = {kind: family for kind, (family, _, _) in tiny.MODELS.items()}


def job(place: Path, kind: str, model: str, method: str, /, **more):
    """A job of a tiny task; `more` replaces its keys."""
    keys = [key for key in cases.ARTEFACTS if key in METHODS.load(method).Config.model_fields]
    needed = {}
    if keys:
        backbone = load_backbone(f"{place}/{model}")
        needed = {key: cases.ARTEFACTS[key](backbone, revision=backbone.revision) for key in keys}
    soft = " soft" if "soft" in METHODS.load(method).marks else ""
    family = FAMILY[model]
    values = {
        "recipe": f"{method}-{kind}-{model}",
        "task": f"{place}/{kind}.yaml",
        "pattern": f"{family}{soft}" if kind == "choice" else "vanilla",
        "backbone": f"{place}/{model}",
        "method": {"name": method, **needed},
        "seeds": [3],
        "demos": int(family == "causal" and kind == "choice"),
        "data": {"root": f"{place}/{kind}"},
        "storage": f"{place}/runs",
        "train": {
            "epochs": 2,
            "lr": 1e-2,
            "batch_size": 4,
            "max_tokens": 64 if kind == "choice" else 24,
            "languages": ["en"],
            "eval_batch": 5,
        },
    }
    return make_job(values | more)


def ran(made) -> Path:
    """The folder of a job's finished run."""
    prepared = prepare(made)
    if not (prepared.folder / f"seed-{made.job.seeds[-1]}" / "result.json").is_file():
        with torch.enable_grad():
            run_jobs([prepared], lambda event: None)
    return prepared.folder


CASES = {
    **{
        f"{name} {model}": ("choice", model, name, {})
        for name in METHODS.names()
        for model in ("bert", "gpt2", "t5")
        if FAMILY[model] in METHODS.load(name).families
    },
    "head": ("choice", "xlmr", "full", {"pattern": "vanilla", "readout": "head"}),
    "prefix head": (
        "choice",
        "xlmr",
        "prefix",
        {"pattern": "vanilla", "readout": {"name": "head", "trained": "last"}},
    ),
    "lora head": ("choice", "llama", "lora", {"pattern": "vanilla", "readout": "head", "demos": 0}),
    "tags vanilla": ("tags", "bert", "full", {"readout": "head"}),
    "tags vanilla causal": ("tags", "gpt2", "lora", {"readout": "head"}),
    "tags topro": ("tags", "bert", "full", {"pattern": "topro"}),
    "span": ("span", "bert", "full", {"readout": {"name": "span", "window_stride": 5}}),
    "text": ("choice", "t5", "full", {"pattern": "vanilla", "readout": {"name": "text", "longest": 3}}),
}
UNUSABLE = {name for name, (_, _, method, _) in CASES.items() if method == "ticket_search"}


@pytest.fixture(params=sorted(set(CASES) - UNUSABLE))
def case(request):
    return CASES[request.param]


def test_the_runs_own_test_rows_are_answered_the_same(case, place, monkeypatch, tmp_path):
    """Answers equal, probabilities within 1e-5, without the training data."""
    kind, model, method, more = case
    folder = ran(job(place, kind, model, method, **more))
    moved = tmp_path / folder.name
    shutil.copytree(folder, moved)
    settings = yaml.safe_load((moved / "job.yaml").read_text())
    settings["data"]["root"] = "/nowhere"
    (moved / "job.yaml").write_text(yaml.safe_dump(settings))  # as versions wrote it that kept no hashes
    (moved / "samples.json").unlink()
    trained = load_trained(moved)
    found = predict(trained, rows_of_file(trained, f"{place}/{kind}/test.parquet")).to_pylist()
    expected = {
        (row["language"], row["id"]): row
        for row in pa_parquet.read_table(folder / "seed-3" / "predictions.parquet").to_pylist()
    }
    assert [row["id"] for row in found] == [row["id"] for row in rows(kind, 200)]
    assert len(found) == len(expected)
    for row in found:
        known = expected[row["language"], row["id"]]
        assert row["answer"] == known["answer"]
        for name in set(row) - {"id", "language", "answer"}:
            assert row[name] == pytest.approx(known[name], abs=1e-5)
    assert len({str(row["answer"]) for row in found}) > 1 or kind == "choice"


IN_FOUR_BITS = {"epochs": 2, "lr": 1e-2, "batch_size": 4, "max_tokens": 64, "languages": ["en"], "quantize": "nf4"}


def test_a_run_in_four_bits_answers_the_same_and_exports_its_adapter(place, tmp_path):
    pytest.importorskip("bitsandbytes")
    folder = ran(job(place, "choice", "gpt2", "lora", train=IN_FOUR_BITS))
    trained = load_trained(folder)
    assert trained.learner.method.backbone.quantized == "nf4"
    found = predict(trained, rows_of_file(trained, f"{place}/choice/test.parquet")).to_pylist()
    expected = pa_parquet.read_table(folder / "seed-3" / "predictions.parquet").to_pylist()
    known = {(row["language"], row["id"]): row["p(positive)"] for row in expected}
    assert len(found) == len(known)
    assert all(row["p(positive)"] == pytest.approx(known[row["language"], row["id"]], abs=1e-5) for row in found)
    out = written(trained, tmp_path / "out")
    kept = load_file(out / "adapter_model.safetensors")
    values = {name: p.detach() for name, p in trained.learner.named_parameters() if "lora_" in name}
    assert len(kept) == len(values) > 0
    assert sum(float(value.sum()) for value in kept.values()) == pytest.approx(
        sum(float(value.sum()) for value in values.values()), abs=1e-4
    )
    assert "trained on blocks in 4 bits (nf4)" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("method", "more", "line"),
    [
        ("full", {}, r"^train\.quantize: found nf4 with a method that trains weights of the model itself"),
        (
            "lora",
            {"zero": {"stage": 3}, "resources": {"workers": 2}},
            r"^zero\.stage: found 3 with train\.quantize=nf4",
        ),
    ],
    ids=["full", "stage 3"],
)
def test_what_does_not_go_with_four_bits_is_told_before_a_run(place, method, more, line):
    with pytest.raises(UserError, match=line):
        prepare(job(place, "choice", "gpt2", method, train=IN_FOUR_BITS, **more))


def test_a_missing_package_is_told_before_a_run(place, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^train\.quantize: nf4 needs the package bitsandbytes; pip install"):
        prepare(job(place, "choice", "gpt2", "prefix", train=IN_FOUR_BITS))


def test_it_is_the_trained_model_that_answers(place):
    """With other values in the file the probabilities differ; with another seed's too."""
    folder = ran(job(place, "choice", "bert", "full", seeds=[3, 4]))
    first, second = load_trained(folder), load_trained(folder, 4)
    assert (first.seed, second.seed) == (3, 4)
    rows = rows_of_texts(first, ["the film was good"])
    assert predict(first, rows)["p(positive)"][0].as_py() != pytest.approx(
        predict(second, rows)["p(positive)"][0].as_py(), abs=1e-4
    )


def test_what_a_head_drew_and_left_frozen_is_kept(place, monkeypatch, tmp_path):
    """Its dense layer is read from the run, whatever another version of torch would draw; an export has it too."""
    from raypft.runs import predict as using

    kind, model, method, more = CASES["prefix head"]
    folder = ran(job(place, kind, model, method, **more))
    other = using.build_learner
    monkeypatch.setattr(using, "build_learner", lambda resolved, backbone, seed: other(resolved, backbone, seed + 1))
    trained = load_trained(folder)
    found = predict(trained, rows_of_file(trained, f"{place}/{kind}/test.parquet")).to_pylist()
    expected = pa_parquet.read_table(folder / "seed-3" / "predictions.parquet").to_pylist()
    known = {(row["language"], row["id"]): row["p(positive)"] for row in expected}
    assert len(found) == len(known)
    assert all(row["p(positive)"] == pytest.approx(known[row["language"], row["id"]], abs=1e-5) for row in found)
    names = load_file(written(trained, tmp_path / "out") / "parts.safetensors")
    assert {"keys", "values", "readout.head.classifier.dense.weight"} <= set(names)


# rows


@pytest.fixture
def trained(place):
    return lambda kind, **more: load_trained(
        ran(
            job(
                place,
                kind,
                "bert",
                "full",
                **{"tags": {"readout": "head"}, "span": {"readout": "span"}}.get(kind, {}),
                **more,
            )
        )
    )


def test_files_of_every_format_give_the_same(place, trained, tmp_path):
    model = trained("choice")
    own = [{k: v for k, v in row.items() if k != "label"} for row in rows("choice", 200)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    for ending, delimiter in (("tsv", "\t"), ("csv", ",")):
        lines = [delimiter.join(own[0]), *(delimiter.join(row.values()) for row in own)]
        (tmp_path / f"rows.{ending}").write_text("\n".join(lines) + "\n")
    pa_parquet.write_table(pa.Table.from_pylist(own), tmp_path / "rows.parquet")
    tables = [
        predict(model, rows_of_file(model, f"{tmp_path}/rows.{ending}"))
        for ending in ("jsonl", "tsv", "csv", "parquet")
    ]
    assert all(table.equals(tables[0]) for table in tables)
    assert tables[0].column_names == ["id", "language", "answer", "p(negative)", "p(positive)"]


def test_rows_that_are_the_same_are_answered_each(trained, tmp_path):
    """Also where they have one id; and hidden labels are not looked at."""
    model = trained("choice")
    row = {"id": "a", "text": "the film was good", "label": "-1"}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (row, row, {**row, "text": "bad"})))
    found = predict(model, rows_of_file(model, f"{tmp_path}/rows.jsonl", "de")).to_pylist()
    assert [(r["id"], r["language"]) for r in found] == [("a", "de")] * 3
    assert found[0] == found[1] != found[2]


def test_many_rows_are_answered_in_order(trained, monkeypatch):
    from raypft.runs import predict as using

    model = trained("choice")
    table = pa.concat_tables([rows_of_texts(model, [" ".join(VOCABULARY[: 1 + i])]) for i in range(7)])
    whole = predict(model, table)
    monkeypatch.setattr(using, "CHUNK", 3)
    cut = predict(model, table)
    assert cut["id"].to_pylist() == whole["id"].to_pylist()
    assert cut["p(positive)"].to_pylist() == pytest.approx(whole["p(positive)"].to_pylist(), abs=1e-5)


def test_texts(trained):
    tags, span, choice = trained("tags"), trained("span"), trained("choice")
    (tagged,) = predict(tags, rows_of_texts(tags, ["the film  was fine"])).to_pylist()
    assert len(tagged["answer"]) == len(tagged["scores"]) == 4
    assert set(tagged["answer"]) <= set(WORDS)
    assert tagged["language"] == "en"
    texts = ["context=the film was good", "question=was it fine ?"]
    (answered,) = predict(span, rows_of_texts(span, texts)).to_pylist()
    assert answered["answer"] in "the film was good"
    assert rows_of_texts(span, ["was it fine ?", "the film was good"]).equals(rows_of_texts(span, texts))
    assert rows_of_texts(choice, ["text=good"])["text"].to_pylist() == ["good"]
    assert rows_of_texts(choice, ["a=b"])["text"].to_pylist() == ["a=b"]


BAD_ROWS = {
    "ending": ("rows.txt", "", {}, "rows.txt: expected a file that ends in .parquet, .arrow"),
    "no file": ("none.csv", None, {}, "data: no file "),
    "no column": ("rows.jsonl", '{"txt": "a"}\n', {}, 'has no column "text"'),
    "no rows": ("rows.tsv", "text\n", {}, "has no rows"),
    "language": ("rows.jsonl", '{"text": "a", "language": "fr"}\n', {}, 'row 0: task choice has no language "fr"'),
    "language option": ("rows.jsonl", '{"text": "a"}\n', {"language": "fr"}, 'row 0: task choice has no language "fr"'),
    "two languages": (
        "rows.jsonl",
        '{"text": "a", "language": "en"}\n',
        {"language": "en"},
        "says each row's language itself; leave the language en out",
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows(name, trained, tmp_path):
    file, text, more, expected = BAD_ROWS[name]
    if text is not None:
        (tmp_path / file).write_text(text)
    with pytest.raises(UserError) as caught:
        rows_of_file(trained("choice"), f"{tmp_path}/{file}", **more)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_texts(trained):
    with pytest.raises(
        UserError,
        match=r"asks about question, context; found 1 texts; expected one for each, --text question=… --text context=…",
    ):
        rows_of_texts(trained("span"), ["question=a"])
    with pytest.raises(UserError, match="found 2 texts"):
        rows_of_texts(trained("choice"), ["a", "b"])
    with pytest.raises(UserError, match="asks about question, context"):
        rows_of_texts(trained("span"), ["question=a", "question=b"])
    with pytest.raises(UserError, match="row 0 has no words"):
        rows_of_texts(trained("tags"), [" "])


# runs


def test_bad_runs(place, tmp_path):
    folder = ran(job(place, "choice", "gpt2", "gnnavi"))
    copy = tmp_path / "run"

    def line(change, seed=None) -> str:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        change(copy / "seed-3")
        with pytest.raises(UserError) as caught:
            load_trained(copy, seed)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def edit(own: Path, **change) -> None:
        """Another result, as versions wrote it that kept no hashes."""
        found = json.loads((own / "result.json").read_text()) | change
        (own / "result.json").write_text(
            json.dumps({name: found[name] for name in found if name not in ("check", "files")})
        )
        (own.parent / "samples.json").unlink()

    def write(own: Path, change) -> None:
        edit(own)
        save_file(change(load_file(own / "trained.safetensors")), own / "trained.safetensors")

    assert "has no finished seed 7; finished: 3" in line(lambda own: None, 7)
    assert "has no finished seed; none is; run it first" in line(lambda own: (own / "result.json").unlink())
    assert "holds no demos.parquet; start the run once more" in line(lambda own: (own / "demos.parquet").unlink())
    assert "holds no trained.safetensors" in line(lambda own: (own / "trained.safetensors").unlink())
    assert "was trained with another model, task, method version or artefact" in line(
        lambda own: edit(own, cell="0" * 16)
    )
    assert "does not fit the method: method.graph.extra;" in line(
        lambda own: write(own, lambda v: {**v, "method.graph.extra": torch.zeros(1)})
    )
    assert "does not fit the method: method.graph.conv" in line(
        lambda own: write(own, lambda v: {name: value.flatten()[:3] for name, value in v.items()})
    )
    with pytest.raises(UserError, match=r"holds no job.yaml"):
        load_trained(tmp_path)


def test_a_finished_run_without_demonstrations_gets_them_when_started_again(place):
    made = job(place, "choice", "gpt2", "gnnavi", recipe="older")
    demos = ran(made) / "seed-3" / "demos.parquet"
    expected = pa_parquet.read_table(demos)
    demos.unlink()
    told = []
    run_jobs([prepare(made)], told.append)
    assert [event["event"] for event in told] == ["reuse"]
    assert pa_parquet.read_table(demos).equals(expected)


def test_a_changed_model_or_pattern_is_noticed(place, tmp_path):
    shutil.copytree(place / "bert", tmp_path / "bert")
    shutil.copy(place / "choice.yaml", tmp_path / "choice.yaml")
    made = job(
        place,
        "choice",
        "bert",
        "full",
        backbone=f"{tmp_path}/bert",
        task=f"{tmp_path}/choice.yaml",
        storage=f"{tmp_path}/runs",
    )
    folder = ran(made)
    load_trained(folder)
    text = (tmp_path / "choice.yaml").read_text()
    (tmp_path / "choice.yaml").write_text(text.replace("it was <slot>", "it is <slot>"))
    with pytest.raises(UserError, match="was trained with another model, task"):
        load_trained(folder)
    (tmp_path / "choice.yaml").write_text(text)
    tiny.backbone("bert", seed=1).model.save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="restore them, or run the job again"):
        load_trained(folder)


# the command


def test_the_command(place, monkeypatch, tmp_path, capsys):
    folder = str(ran(job(place, "choice", "bert", "full")))
    data = f"{place}/choice/test.parquet"
    assert call(monkeypatch, "predict", folder, "--data", data, "--out", f"{tmp_path}/new/a.parquet") == 0
    assert call(monkeypatch, "predict", folder, "--data", data, "--out", f"{tmp_path}/a.jsonl", "--seed", "3") == 0
    capsys.readouterr()
    assert call(monkeypatch, "predict", folder, "--data", data) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == pa_parquet.read_table(tmp_path / "new" / "a.parquet").to_pylist()
    assert printed == [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert call(monkeypatch, "predict", folder, "--text", "the film was good", "--language", "de", "--json") == 0
    assert json.loads(capsys.readouterr().out)["language"] == "de"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "found neither --data nor --text; expected rows with --data FILE, or one row with --text"),
        (["rows.csv"], "expected rows with --data rows.csv, or one row"),
        (["--text", "a", "--data", "b"], "found both --data and --text"),
        (
            ["--text", "a", "--out", "x.txt"],
            "out: found x.txt; expected a file that ends in .parquet, .jsonl, .csv, .tsv",
        ),
    ],
)
def test_bad_commands(arguments, expected, place, monkeypatch, capsys):
    assert call(monkeypatch, "predict", str(ran(job(place, "choice", "bert", "full"))), *arguments) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.strip().splitlines()) == 1


def test_a_table_for_the_terminal(trained):
    model = trained("tags")
    table = shown("a run", answered(model, given(model, None, ["the film"], None), None))
    assert table.columns == ["tokens", "language", "answer", "scores"]
    assert table.rows[0][0] == "the film"
    assert len(table.rows[0][2].split()) == 2


# exports


def written(model, folder: Path) -> Path:
    from raypft.runs.export import export

    export(model, folder)
    return folder


def scored(model) -> list[tuple[dict, torch.Tensor, dict]]:
    """Prompts of two test rows: inputs of transformers, our scores [S, C], marks."""
    found = []
    kind = model.task.kind
    for row in rows_of_file(model, f"{Path(model.job.data.root)}/test.parquet").slice(0, 2).to_pylist():
        for prompt in model.encoder(row):
            batch = collate([prompt], 1, [model.learner.method.columns(prompt)])
            backbone = model.learner.method.backbone
            segments = backbone.arguments(batch) if backbone.family == "masked" else {}
            with torch.no_grad():
                found.append(
                    (
                        {"input_ids": batch.ids, "attention_mask": batch.mask, **segments},
                        model.learner(batch),
                        prompt.marks,
                    )
                )
    assert found, kind
    return found


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def label_columns(model) -> list[int]:
    return [own[0] for own in model.learner.readout.wordings[0]]


@pytest.mark.parametrize("name", ["full bert", "full gpt2", "full t5"])
@torch.no_grad()
def test_a_language_model_folder_gives_the_same_logits(name, place, tmp_path):
    kind, model, method, more = CASES[name]
    trained = load_trained(ran(job(place, kind, model, method, **more)))
    folder = written(trained, tmp_path / "out")
    auto = {"masked": AutoModelForMaskedLM, "causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM}[
        FAMILY[model]
    ]
    alone = auto.from_pretrained(folder).eval()
    assert f"{auto.__name__}.from_pretrained(FOLDER)" in (folder / "README.md").read_text()
    assert (
        AutoTokenizer.from_pretrained(folder).get_vocab() == trained.learner.method.backbone.text.tokenizer.get_vocab()
    )
    assert not (folder / "method").exists()
    for inputs, scores, marks in scored(trained):
        if model == "t5":
            inputs["decoder_input_ids"] = torch.tensor([[1, cast(Any, trained.encoder.text)._sentinel]])
        logits = alone(**inputs).logits[0, marks["slot"]]
        same(logits[:, label_columns(trained)], scores)


HEADS = {
    "sequence bert": ("choice", "bert", "full", {"pattern": "vanilla", "readout": "head"}),
    "sequence xlmr": ("choice", "xlmr", "full", {"pattern": "vanilla", "readout": "head"}),
    "sequence gpt2": ("choice", "gpt2", "full", {"pattern": "vanilla", "readout": "head", "demos": 0}),
    "token bert": ("tags", "bert", "full", {"readout": "head"}),
    "token llama": ("tags", "llama", "full", {"readout": "head"}),
    "question bert": ("span", "bert", "full", {"readout": "span"}),
    "question gpt2": ("span", "gpt2", "full", {"readout": "span"}),
    "question llama": ("span", "llama", "full", {"readout": "span"}),
}
ADAPTERS = {
    f"lora {name}": (kind, model, "lora", more)
    for name, (kind, model, _, more) in HEADS.items()
    if name != "question llama"
}
AUTO = {
    "choice": AutoModelForSequenceClassification,
    "tags": AutoModelForTokenClassification,
    "span": AutoModelForQuestionAnswering,
}


def head_logits(out, kind: str, slots: list[int]) -> torch.Tensor:
    if kind == "choice":
        return out.logits
    if kind == "tags":
        return out.logits[0, slots]
    return torch.stack([out.start_logits, out.end_logits], dim=-1)[0, slots]


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_a_folder_with_a_head_gives_the_same_logits(name, place, tmp_path):
    kind, model, method, more = HEADS[name]
    trained = load_trained(ran(job(place, kind, model, method, **more)))
    folder = written(trained, tmp_path / "out")
    alone = AUTO[kind].from_pretrained(folder).eval()
    if kind != "span":
        assert alone.config.id2label == {0: "negative", 1: "positive"}
    for inputs, scores, marks in scored(trained):
        same(head_logits(alone(**inputs), kind, marks["slot"]), scores)


@pytest.mark.parametrize("name", ADAPTERS)
@torch.no_grad()
def test_an_adapter_with_a_head_gives_the_same_logits_in_plain_peft(name, place, tmp_path):
    kind, model, method, more = ADAPTERS[name]
    trained = load_trained(ran(job(place, kind, model, method, **more)))
    folder = written(trained, tmp_path / "out")
    base = AUTO[kind].from_pretrained(place / model, **({"num_labels": 2} if kind != "span" else {}), pad_token_id=1)
    alone = PeftModel.from_pretrained(base, folder).eval()
    for inputs, scores, marks in scored(trained):
        same(head_logits(alone(**inputs), kind, marks["slot"]), scores)


@torch.no_grad()
def test_an_adapter_gives_the_same_logits_in_plain_peft(place, tmp_path):
    trained = load_trained(ran(job(place, "choice", "llama", "lora")))
    folder = written(trained, tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place / "llama"), folder).eval()
    for inputs, scores, marks in scored(trained):
        same(alone(**inputs).logits[0, marks["slot"]][:, label_columns(trained)], scores)


@pytest.mark.parametrize("name", ["soft_prompt bert", "lottery bert", "lottery gpt2"])
@torch.no_grad()
def test_a_prompt_and_its_model_give_the_same_logits(name, place, tmp_path):
    """Changed weights in the model folder, sparse ones in their place; the prompt's vectors where <soft> stands."""
    kind, model, method, more = CASES[name]
    trained = load_trained(ran(job(place, kind, model, method, **more)))
    folder = written(trained, tmp_path / "out")
    alone = (
        {"masked": AutoModelForMaskedLM, "causal": AutoModelForCausalLM}[FAMILY[model]].from_pretrained(folder).eval()
    )
    prompt = load_file(folder / "method" / "parts.safetensors")["prompt"]
    assert prompt.shape == (4, tiny.HIDDEN)
    assert json.loads((folder / "method" / "config.json").read_text())["method"]["name"] == method
    assert not [
        path
        for path in folder.rglob("*")
        if path.suffix in (".json", ".md")
        and (str(place) in path.read_text() or str(cases.folder()) in path.read_text())
    ]
    for inputs, scores, marks in scored(trained):
        embedded = alone.get_input_embeddings()(inputs.pop("input_ids"))
        embedded[0, marks["soft"]] = prompt
        same(alone(inputs_embeds=embedded, **inputs).logits[0, marks["slot"]][:, label_columns(trained)], scores)


@pytest.mark.parametrize("mlp", [False, True])
@torch.no_grad()
def test_a_prefix_gives_the_same_logits_as_past_keys_and_values(mlp, place, tmp_path):
    trained = load_trained(
        ran(job(place, "choice", "gpt2", "prefix", method={"name": "prefix", "length": 5, "mlp": mlp}))
    )
    folder = written(trained, tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "parts.safetensors"}
    parts = load_file(folder / "parts.safetensors")
    alone = AutoModelForCausalLM.from_pretrained(place / "gpt2").eval()
    for inputs, scores, marks in scored(trained):
        past = DynamicCache()
        for layer, (keys, values) in enumerate(zip(parts["keys"], parts["values"], strict=True)):
            past.update(keys.unsqueeze(0), values.unsqueeze(0), layer)
        mask = torch.cat([torch.ones(1, 5, dtype=torch.long), inputs["attention_mask"]], dim=1)
        logits = alone(input_ids=inputs["input_ids"], attention_mask=mask, past_key_values=past).logits
        same(logits[0, marks["slot"]][:, label_columns(trained)], scores)


def test_parts_hold_the_whole_of_what_was_trained(place, tmp_path):
    """Modules by their own names, and a head that no model folder could hold."""
    trained = load_trained(ran(job(place, "choice", "bert", "adapter", pattern="vanilla", readout="head")))
    parts = load_file(written(trained, tmp_path / "out") / "parts.safetensors")
    expected = load_file(trained.folder / "seed-3" / "trained.safetensors")
    assert {name.removeprefix("method."): value.tolist() for name, value in expected.items()} == {
        name: value.tolist() for name, value in parts.items()
    }


def test_the_card(place, tmp_path):
    trained = load_trained(ran(job(place, "choice", "bert", "full", seeds=[3, 4])), 4)
    text = (written(trained, tmp_path / "out") / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front == {
        "language": ["en"],
        "license": "unknown",
        "library_name": "transformers",
        "tags": ["raypft", "full"],
    }
    for part in (
        "kind choice, labels negative, positive",
        "tested on en, de",
        "metric: accuracy",
        "negative = bad, positive = good",
        "## Licence\n\nUnknown",
    ):
        assert part in text
    scores = [result["scores"]["de"] for result in trained.results]
    assert f"| de | {scores[1]:.1f} | {mean_std(scores)} |" in text
    assert str(place) not in text


@pytest.mark.parametrize("name", ["frozen bert", "ticket_search bert"])
def test_what_cannot_be_exported_is_one_line(name, place, monkeypatch, tmp_path, capsys):
    kind, model, method, more = CASES[name]
    lines = {
        "frozen": "export: nothing was trained in ",
        "ticket_search": "holds no trained.safetensors; this run did not keep a model that answers",
    }
    assert call(monkeypatch, "export", str(ran(job(place, kind, model, method, **more))), f"{tmp_path}/out") == 2
    error = capsys.readouterr().err
    assert lines[method] in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_transformers_has_no_place_for(place, tmp_path):
    """LlamaForQuestionAnswering calls its body otherwise and starts it anew."""
    trained = load_trained(ran(job(place, "span", "llama", "lora", readout="span")))
    with pytest.raises(
        UserError, match="export: AutoModelForQuestionAnswering of llama does not load the language model"
    ):
        written(trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_export_command(place, monkeypatch, tmp_path, capsys):
    run = str(ran(job(place, "choice", "bert", "full")))
    assert call(monkeypatch, "export", run, f"{tmp_path}/out") == 0
    assert "README.md says how to load it" in capsys.readouterr().out.replace("\n", " ")
    assert call(monkeypatch, "export", run, f"{tmp_path}/out") == 2
    assert "holds something already; give a new folder" in capsys.readouterr().err
    code = "from raypft.cli import app; app()"
    command = [sys.executable, "-W", "ignore", "-c", code, "export", run, f"{tmp_path}/other"]
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("written to "), "no library's chatter"
    assert done.stderr == ""

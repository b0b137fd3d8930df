"""A cell: answers of prompts become answers of rows, metrics and tables; what does not fit is refused; tags and
spans end to end."""

from __future__ import annotations

import hashlib
import json
import resource
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
import torch
from made import write_run, write_task
from test_frozen_states import prompt

from raypft.batch import collate
from raypft.config.job import Train
from raypft.config.load import load_job
from raypft.contract import cases, tiny
from raypft.errors import UserError
from raypft.methods import METHODS
from raypft.methods.base import Result
from raypft.readouts import READOUTS
from raypft.readouts.base import Answer
from raypft.report.table import mean_std
from raypft.runs import cell as cells
from raypft.runs import cell_files, scores
from raypft.runs.cell import build_learner, loaders, rows_to_cache
from raypft.runs.cell_files import conclude, predictions
from raypft.runs.prepare import Prepared, prepare
from raypft.runs.results import PREDICTIONS, PREVIOUS, STATE, TESTED, UNTESTED, is_finished
from raypft.runs.scores import Pairs, RowAnswer, answer_table, by_row, majority, mean_score, measured, try_metrics
from raypft.runs.table import run_table
from raypft.scale.run import run_jobs
from raypft.tasks.kinds import KINDS
from raypft.tasks.metrics import metric
from raypft.tasks.task import Label, Pattern, Source, Task
from raypft.training import loader
from raypft.training.loader import PromptDataset
from raypft.training.loop import evaluate, fit
from raypft.training.states import TrainState
from raypft.training.stepper import Learner, TorchStepper


def task(kind: str, names: list[str], metrics: list[str]) -> Task:
    fields = {"tags": {"tokens": "tokens"}, "span": {"question": "question", "context": "context"}}.get(
        kind, {"text": "text"}
    )
    return Task(
        name="t",
        about="",
        kind=KINDS[kind],
        fields=fields,
        label=Label(names=names),
        languages=["en", "de"],
        metric=metrics[0],
        metrics=metrics,
        sources={"files": Source(files={"train": "x"})},
        patterns={},
    )


def head(own: Task, kind: str = "bert"):
    reads = READOUTS.load("head")
    return reads(reads.Config(), own, Pattern(text="{tokens}", source="test"), tiny.backbone(kind))


def said(prompts, *values: list[int]) -> list[Answer]:
    return [Answer(p.name, list(value), [0.5] * len(value)) for p, value in zip(prompts, values, strict=True)]


# rows


def test_answers_of_parts_are_joined_to_rows_in_order():
    own = task("tags", ["A", "B"], ["token_accuracy"])
    prompts = [prompt("en/1", [0, 1]), prompt("en/1", [1], 1), prompt("de/1", [0]), prompt("en/2", [-1])]
    rows = by_row(head(own), prompts, said(prompts, [0, 0], [1], [1], [0]))
    assert rows == [
        RowAnswer("en/1", "en", ["A", "B", "B"], ["A", "A", "B"], [0.5] * 3),
        RowAnswer("de/1", "de", ["A"], ["B"], [0.5]),
        RowAnswer("en/2", "en", [None], ["A"], [0.5]),
    ]


def test_a_row_that_stands_there_twice_counts_twice():
    """Choice rows without ids of their own are called by their content."""
    own = task("choice", ["A", "B"], ["accuracy"])
    prompts = [prompt("en/1", [0]), prompt("en/1", [1]), prompt("en/2", [1])]
    rows = by_row(head(own), prompts, said(prompts, [0], [0], [1]))
    assert [(row.gold, row.answer) for row in rows] == [("A", "A"), ("B", "A"), ("B", "B")]


def test_rows_of_one_name_keep_their_own_answers():
    """Evaluated in batches by length, two rows of one id are not mixed up."""
    backbone = tiny.backbone("bert")
    own = task("choice", ["A", "B"], ["accuracy"])
    frozen = METHODS.load("frozen")
    learner = Learner(frozen(frozen.Config(), backbone), head(own)).eval()
    prompts = [prompt("en/1", [0], ids=9), prompt("en/1", [1], ids=20), prompt("en/2", [1], ids=30)]
    stepper = TorchStepper(learner, load_job("profit", ["task=sst2", "backbone=x", "pattern=vanilla"]).job.train)
    answers = evaluate(stepper, PromptDataset(prompts, learner.method, 1), Train(eval_batch=2))
    with torch.no_grad():
        alone = [learner.answer(PromptDataset([p], learner.method, 1).batch([0]))[0] for p in prompts]
    for found, expected in zip(answers, alone):
        assert found.scores == pytest.approx(expected.scores, abs=1e-5)
    assert answers[0].scores != pytest.approx(answers[1].scores, abs=1e-5)


# metrics and tables


def rows_of(*found: tuple[str, object, object]) -> list[RowAnswer]:
    return [
        RowAnswer(f"{language}/{i}", language, gold, answer, [0.5]) for i, (language, gold, answer) in enumerate(found)
    ]


def test_every_metric_of_a_task_is_measured_by_name_version_and_language():
    own = task("tags", ["B-A", "O"], ["entity_f1", "token_accuracy"])
    rows = rows_of(("de", ["B-A", "O"], ["O", "O"]), ("en", ["B-A"], ["B-A"]), ("en", ["O", "O"], ["O", "B-A"]))
    found = measured(own, Pairs(rows))
    assert found["metric"] == metric("entity_f1")[0] == "entity_f1@1"
    assert list(found["metrics"]) == ["entity_f1@1", "token_accuracy@1"]
    assert found["metrics"]["token_accuracy@1"] == {"en": pytest.approx(200 / 3), "de": 50}
    assert found["metrics"]["entity_f1@1"] == found["scores"]
    assert list(found["scores"]) == ["en", "de"], "in the task's order"
    assert found["mean"] == pytest.approx(sum(found["scores"].values()) / 2)
    assert found["mean_without_english"] == found["scores"]["de"] == 0
    assert found["rows"] == {"de": 1, "en": 2}
    assert mean_score(own, Pairs(rows)) == found["mean"]
    assert mean_score(own, Pairs(rows), "token_accuracy") == pytest.approx((200 / 3 + 50) / 2)


def test_the_mean_without_the_pivot_is_of_the_others():
    own = task("choice", ["A", "B"], ["accuracy"])
    rows = rows_of(("en", "A", "B"), ("de", "A", "A"), ("fr", "A", "A"), ("fr", "B", "A"))
    own = own.model_copy(update={"languages": ["en", "de", "fr"]})
    found = measured(own, Pairs(rows))
    assert found["scores"] == {"en": 0, "de": 100, "fr": 50}
    assert (found["mean"], found["mean_without_english"]) == (50, 75)


@pytest.mark.parametrize(
    "pairs",
    [
        [("A", "B"), ("A", "A"), ("B", "A"), (None, "A")] * 3,
        [(["A", None, "A"], ["B", "A", "A"]), ([], []), (["B"], ["A"])] * 3,
        [("one text", "another"), ("", "x"), ("y", "")],
        [([], ""), (["one", "two"], "one"), (["x"], "x")],
        [([], ""), ([], "")],
        [([5, 70_000], [5, 4]), ([1], [2])],
    ],
    ids=["labels", "tags", "texts", "gold texts", "no gold text", "token ids"],
)
def test_metrics_read_gold_and_answers_as_they_were_told(pairs):
    told = Pairs()
    rows = rows_of(*(("en", *pair) for pair in pairs))
    german = [replace(row, language="de", written=("right", f"said {row.key}")) for row in rows]
    for some in (rows[:2], [*german[:1], *rows[2:]], [], german[1:]):
        told.add(some)
    assert told.rows == {"en": len(pairs), "de": len(pairs)}
    gold, answers = map(list, zip(*pairs, strict=True))
    assert told.of("en") == {"gold": gold, "answer": answers}
    written = {"right": ["right"] * len(pairs), "written": [f"said {row.key}" for row in rows]}
    assert told.of("de") == {"gold": gold, "answer": answers, **written}
    assert told.of("fr") == {}


def test_what_metrics_read_takes_few_bytes():
    """Two for a row with a label, two for a word with a tag and eight for its sentence."""
    rows = rows_of(*[("en", "negative", "positive"), ("en", "positive", "positive")] * 5000)
    sentences = rows_of(*[("en", ["B-PER", "I-PER", "O", "O"], ["O", "B-LOC", "O", "O"])] * 10_000)
    for some, most in ((rows, 2), (sentences, 16)):
        assert sum(part.nbytes for part in Pairs(some)._parts["en"]) <= most * 10_000 + 200


def test_a_metric_is_told_the_language_of_its_rows():
    """In German its own articles go, not those of English."""
    own = task("span", [], ["mlqa_exact_match"])
    rows = rows_of(("en", ["the house"], "house"), ("de", ["das Haus"], "Haus"))
    assert measured(own, Pairs(rows))["scores"] == {"en": 100, "de": 100}


def test_a_metric_of_written_texts_is_measured_only_where_texts_were_written():
    own = task("tags", ["A", "B"], ["token_accuracy", "span_f1"])
    rows = rows_of(("en", ["A", "B"], ["A", "A"]), ("de", ["A"], ["A"]))
    assert list(measured(own, Pairs(rows))["metrics"]) == ["token_accuracy@1"]
    texts = [("A: x $$ B: y", "A: x $$ A: y"), ("A: z", "A: z")]
    written = [replace(row, written=pair) for row, pair in zip(rows, texts, strict=True)]
    assert measured(own, Pairs(written))["metrics"] == {
        "token_accuracy@1": {"en": 50, "de": 100},
        "span_f1@1": {"en": 50, "de": 100},
    }
    first = measured(task("tags", ["A", "B"], ["span_f1"]), Pairs(written))
    assert (first["scores"], first["majority"]) == ({"en": 50, "de": 100}, {}), "no one writes the majority tag"


def test_a_table_leaves_open_what_a_run_was_not_measured_by(tmp_path):
    """Two runs on the same rows, of which only the second wrote sentences."""
    facts = {"metric": "token_accuracy@1", "scores": {"en": 50.0}, "test_rows": "x", "mean": 50.0, "rows": {"en": 2}}
    facts |= {"mean_without_english": None, "majority": {}, "trainable": 1, "seconds": 1.0, "seed": 10, "cell": "c"}
    facts |= {"notes": [], "sizes": {"train": 1, "dev": 1, "test": 2, "demos": 0}}
    for name, more in (("a", {}), ("b", {"span_f1@1": {"en": 60.0}})):
        job = load_job("profit", ["task=sst2", "backbone=x", "pattern=vanilla", f"recipe={name}"]).job
        (tmp_path / name / "seed-10").mkdir(parents=True)
        (tmp_path / name / "job.yaml").write_text(job.dump())
        result = facts | {"metrics": {"token_accuracy@1": {"en": 50.0}, **more}}
        (tmp_path / name / "seed-10" / "result.json").write_text(json.dumps(result))
    table = run_table([tmp_path / "a", tmp_path / "b"])
    shown = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [row["span_f1"] for row in shown] == ["", "60.0 (n=1)"]


@pytest.mark.parametrize(
    ("override", "dev", "said"),
    [
        ("train.epochs=2", 4, "epoch chosen by best accuracy on 4 dev rows"),
        ("dev.metric=accuracy", 4, "epoch chosen by best accuracy on 4 dev rows"),
        ("train.epochs=2", 0, "last epoch, as there are no dev rows"),
        ("train.select=last", 4, "last epoch"),
        ("train.epochs=0", 4, "nothing trained"),
    ],
)
def test_a_table_says_which_epoch_was_tested(tmp_path, override, dev, said):
    job = load_job("vanilla", ["task=sst2", "backbone=x", "seeds=[10]", override]).job
    facts = {"metric": "accuracy@1", "scores": {"en": 50.0}, "test_rows": "x", "mean": 50.0, "rows": {"en": 2}}
    facts |= {"mean_without_english": None, "majority": {}, "trainable": 1, "seconds": 1.0, "seed": 10, "cell": "c"}
    facts |= {"sizes": {"train": 1, "dev": dev, "test": 2, "demos": 0}, "metrics": {"accuracy@1": {"en": 50.0}}}
    facts |= {"notes": []}
    (tmp_path / "seed-10").mkdir()
    (tmp_path / "job.yaml").write_text(job.dump())
    (tmp_path / "seed-10" / "result.json").write_text(json.dumps(facts))
    assert f"0 demonstrations, {said}; 2 test rows" in run_table([tmp_path]).notes[1]


def test_a_deviation_is_that_of_a_sample():
    """Squares over n - 1: of 80 and 90 it is 7.1, the population's would be 5."""
    assert mean_std([80.0, 90.0]) == "85.0 ± 7.1"
    assert mean_std([80.0]) == "80.0 (n=1)"


def test_the_majority_without_english_is_without_it(tmp_path):
    """The largest class of 3 English rows is 2 of them, of one German row all."""
    own = write_task(tmp_path)
    run = write_run(tmp_path, own, {0: {"en": [True] * 3, "de": [True]}})
    table = run_table([run])
    shown = dict(zip(table.columns, table.rows[-1], strict=True))
    assert (shown["run"], shown["en"], shown["de"]) == ("MAJ", "66.7", "100.0")
    assert (shown["mean"], shown["mean without en"]) == ("83.3", "100.0")


def test_what_is_not_needed_any_more_goes_when_the_result_is_there(tmp_path, monkeypatch):
    """A kill while it is written leaves the state to go on from."""
    for name in (STATE, PREVIOUS, UNTESTED):
        (tmp_path / name).write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(cell_files, "sealed", lambda *told, **more: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            conclude(tmp_path, TESTED, {"files": {}})
    assert {path.name for path in tmp_path.iterdir()} == {STATE, PREVIOUS, UNTESTED}
    conclude(tmp_path, TESTED, {"files": {}})
    assert {path.name for path in tmp_path.iterdir()} == {TESTED}


def test_a_result_counts_for_the_cell_that_it_is_of(tmp_path):
    conclude(tmp_path, TESTED, {"cell": "a", "files": {}})
    assert is_finished(tmp_path, "a")
    assert not is_finished(tmp_path, "b")


def test_a_learner_is_drawn_by_its_seed_alone():
    resolved = load_job("vanilla", ["task=sst2", "backbone=x"])
    backbone = tiny.backbone("bert")

    def drawn(seed: int) -> torch.Tensor:
        torch.rand(1)
        kept = build_learner(resolved, backbone, seed).trainable()
        return torch.cat([value.detach().flatten() for name, value in kept.items() if name.startswith("readout.")])

    first = drawn(0)
    assert torch.equal(drawn(0), first)
    assert not torch.equal(drawn(1), first)


def test_a_learner_finds_its_backbone_as_it_was_before_the_last():
    resolved, backbone = load_job("vanilla", ["task=sst2", "backbone=x"]), tiny.backbone("bert")
    batch = collate([prompt("en/1", [1], ids=9)], 1)

    def answered() -> torch.Tensor:
        learner = build_learner(resolved, backbone, 0).eval()
        with torch.no_grad():
            return torch.tensor(learner.answer(batch)[0].scores)

    first = answered()
    build_learner(load_job("vanilla", ["task=sst2", "backbone=x", "method=prefix"]), backbone, 1)
    assert torch.equal(answered(), first)


def test_what_a_cell_says_of_its_learner_and_its_start():
    resolved = load_job("vanilla", ["task=sst2", "backbone=x", "train.epochs=7"])
    stepper: Any = TorchStepper(build_learner(resolved, tiny.backbone("bert"), 0), cases.SETTINGS)
    own = {name: p.numel() for name, p in stepper.learner.trainable().items()}
    of_method = sum(size for name, size in own.items() if name.startswith("method."))
    sizes = cells._sizes(stepper.learner)
    assert sizes == {"trainable": sum(own.values()), "trainable_method": of_method, "predicted_method": of_method}
    assert sizes["trainable_method"] < sizes["trainable"]
    cell: Any = SimpleNamespace(seed=3, job=resolved.job, facts={"warnings": ["few rows"]})
    start = cells._start(cell, stepper, None, 5, ["a state is lost"])
    assert start == {
        **{"event": "start", "seed": 3, "epochs": 7, "trainable": 5, "workers": 1},
        "notes": ["a state is lost", "few rows"],
    }
    resumed = cells._start(cell, stepper, TrainState(epoch=2, step=4), 5, [])
    assert resumed == start | {"event": "resume", "epoch": 2, "step": 4, "notes": ["few rows"]}
    cell.facts = {}
    stepper.learner.method.trains = False
    assert cells._start(cell, stepper, None, 5, []) == start | {"epochs": 0, "notes": []}


ROWS = {
    "train": [prompt("en/1", [1], ids=9), prompt("en/2", [0], ids=7), prompt("en/3", [1], ids=11)],
    "dev": [prompt("en/4", [0], ids=12)],
    "test": [prompt("en/5", [0], ids=8), prompt("en/6", [1], ids=9)],
}


def small(
    place: Path, *more: str, test: bool = True, rows: dict[str, list] = ROWS, engine: cells.Engine = cells.local_engine
) -> dict[str, Any]:
    """The result of a small cell in memory; its seconds are those that it took here, and of its search before."""
    words = ["task=sst2", "backbone=x", "train.epochs=3", "train.lr=1e-2", "train.batch_size=2", *more]
    folder = place / "seed-3"
    cell = cells.Cell(load_job("vanilla", words), 3, folder, {"cell": "abc"}, test=test)
    before = json.loads((folder / UNTESTED).read_text()) if (folder / UNTESTED).is_file() else {}
    began, cpu = time.perf_counter(), time.process_time()
    found = cells.run_cell(cell, rows, tiny.backbone("bert"), engine)
    took, took_cpu = found["seconds"] - before.get("seconds", 0), found["cpu_seconds"] - before.get("cpu_seconds", 0)
    assert 0 < took <= time.perf_counter() - began
    assert 0 < took_cpu <= time.process_time() - cpu
    assert json.loads((folder / (TESTED if test else UNTESTED)).read_text()) | found == found | {"check": ANY}
    return found


@pytest.mark.parametrize("file", ["trained.safetensors", "own.safetensors"])
def test_a_cell_whose_test_was_withheld_tests_what_it_trained(file, tmp_path, monkeypatch):
    """A method may keep something else of what it trained, once it is tested."""
    full = METHODS.load("full")
    monkeypatch.setattr(full, "result", lambda self, names: Result(file, {name: name for name in names}))
    at_once, searched = (small(tmp_path / str(test), test=test) for test in (True, False))
    assert (searched["dev"], searched["losses"]) == (at_once["dev"], at_once["losses"])
    assert not {"scores", "metric", "memory_halved"} & set(searched)
    assert set(searched["files"]) == {"trained.safetensors"}
    tested = small(tmp_path / "False")
    own = ("seconds", "cpu_seconds", "peak_memory_mb", "train_seconds", "history", "files")
    assert {key: value for key, value in tested.items() if key not in own} == {
        key: value for key, value in at_once.items() if key not in own
    }
    assert [tested[key] for key in ("train_seconds", "history")] == [searched["train_seconds"], searched["history"]]
    assert set(at_once["files"]) == {PREDICTIONS, file}
    assert tested["files"] == searched["files"] | at_once["files"]


def test_a_result_tells_the_most_memory_and_how_often_it_did_not_suffice(tmp_path, monkeypatch):
    monkeypatch.setattr(cells.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=3072))

    def engine(cell: cells.Cell, learner: Learner) -> TorchStepper:
        stepper = TorchStepper(learner, cell.job.train)
        stepper.halvings = 2
        return stepper

    found = small(tmp_path, engine=engine)
    assert (found["peak_memory_mb"], found["memory_halved"], found["workers"]) == (3.0, 2, 1)


def test_the_most_memory_of_a_gpu_is_counted_from_the_cells_start(tmp_path, monkeypatch):
    told = list[bool]()
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: told.append(True))

    def engine(cell: cells.Cell, learner: Learner) -> TorchStepper:
        raise StopIteration

    for there, expected in ((False, []), (True, [True])):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        with pytest.raises(StopIteration):
            small(tmp_path, engine=engine)
        assert told == expected


def test_of_what_does_not_train_no_epoch_is_best(tmp_path):
    found = small(tmp_path, "train.epochs=0")
    assert (found["best_epoch"], found["train_seconds"], found["history"], found["losses"]) == (0, 0.0, [], [])
    assert found["dev"] in (0, 100), "of one row, as the model is"
    for test in (False, True):
        assert small(tmp_path / "frozen", "method=frozen", test=test)["best_epoch"] == 0


@pytest.mark.parametrize(("select", "epoch"), [("best", 2), ("last", 3)])
def test_a_result_tells_the_epoch_that_is_kept_and_its_score(select, epoch, tmp_path, monkeypatch):
    dev = iter([50.0, 90.0, 70.0])
    monkeypatch.setattr(cells, "mean_score", lambda *told: next(dev))
    found = small(tmp_path, f"train.select={select}")
    assert [record["dev"] for record in found["history"]] == [50.0, 90.0, 70.0]
    assert (found["best_epoch"], found["dev"]) == (epoch, found["history"][epoch - 1]["dev"])
    assert found["train_seconds"] == found["history"][-1]["train_seconds"] > 0


@pytest.mark.parametrize("select", ["best", "last"])
def test_without_dev_rows_the_last_epoch_is_kept(select, tmp_path):
    found = small(tmp_path, f"train.select={select}", rows={**ROWS, "dev": []})
    assert (found["best_epoch"], found["dev"], len(found["history"])) == (3, None, 3)
    assert small(tmp_path / "a", "train.epochs=0", rows={**ROWS, "dev": []})["dev"] is None


@pytest.mark.parametrize("dev", [0, 1])
def test_train_rows_that_flow_are_streamed_and_dev_rows_are_in_memory(dev):
    resolved = load_job("vanilla", ["task=sst2", "backbone=x"])
    learner = build_learner(resolved, tiny.backbone("bert"), 0)
    flow: Any = SimpleNamespace(rows=7)
    rows = {"train": ROWS["train"][:1], "dev": ROWS["dev"][:dev]}
    train, found = loaders(resolved.job, learner, TorchStepper(learner, resolved.job.train), rows, flow)
    assert isinstance(train, loader.Streamed)
    assert (train.flow, train.filler, train.steps(2)) == (flow, rows["train"][0], 4)
    assert (0 if found is None else len(found)) == dev


@pytest.mark.parametrize(("count", "world", "kept"), [(10, 2, 6), (9, 2, 6), (9, 4, 4), (3, 4, 2)])
def test_a_rank_keeps_states_of_its_share_of_dev_and_of_the_filler(count, world, kept):
    cell = cases.cell("gnnavi", tiny.backbone("gpt2"))
    rows = PromptDataset([cell.prompts[0]] * count, cell.learner.method, 1)
    each = [rows_to_cache(rows, rank, world, alike=False) for rank in range(world)]
    assert [len(some) for some in each] == [kept] * world
    assert set().union(*each) == set(range(count))
    assert all(0 in some for some in each)


@pytest.mark.parametrize(("stage", "keeps"), [(0, True), (2, True), (3, False)])
def test_a_cell_keeps_freed_memory_unless_parameters_are_parted(stage, keeps, monkeypatch):
    told = list[bool]()

    def keep(keep: bool) -> None:
        told.append(keep)
        raise StopIteration

    monkeypatch.setattr(cells.HEAP, "keep", keep)
    cell: Any = SimpleNamespace(job=SimpleNamespace(zero=SimpleNamespace(stage=stage)))
    with pytest.raises(StopIteration):
        cells.run_cell(cell, {}, tiny.backbone("bert"))
    assert told == [keeps]


def test_flops_of_all_workers_are_added_unless_one_made_none(monkeypatch):
    flops = SimpleNamespace(training=lambda steps: 2.0 * steps)
    learner = SimpleNamespace(method=SimpleNamespace(backbone=SimpleNamespace(flops=flops)))
    for others, expected in (([], 6.0), ([1.0, 0.5], 7.5), ([None], None)):
        stepper: Any = SimpleNamespace(learner=learner, gather=lambda own, others=others: [own, *others], device="cpu")
        assert cells._flops(stepper, 3) == expected
        assert cells._gpu_memory(stepper) == {}
    stepper.device, stepper.gather = "cuda:1", lambda own: [own, 3 * 2**20]
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2**20 if device == "cuda:1" else 2**30)
    assert cells._gpu_memory(stepper) == {"peak_gpu_memory_mb": 3.0}


def test_the_majority_is_a_label_a_tag_a_word_or_nothing():
    assert majority(task("choice", ["A", "B"], ["accuracy"]), ["B", "A", "A", None]) == ["A"] * 4
    tags = [["A", "B", "A"], ["B", "A"], []]
    assert majority(task("tags", ["A", "B"], ["token_accuracy"]), tags) == [["A"] * 3, ["A"] * 2, []]
    spans = rows_of(("en", ["one", "two"], "one"))
    own = task("span", [], ["exact_match", "f1"])
    assert majority(own, [["one", "two"]]) == []
    assert measured(own, Pairs(spans))["majority"] == {}
    assert measured(own, Pairs(spans))["metrics"] == {"exact_match@1": {"en": 100}, "f1@1": {"en": 100}}


def test_the_table_of_predictions_has_the_columns_of_its_kind():
    choice = [RowAnswer("en/a/1", "en", "A", "B", [0.25, 0.75])]
    own = task("choice", ["A", "B"], ["accuracy"])
    assert answer_table(own, choice).to_pylist() == [
        {"id": "a/1", "language": "en", "gold": "A", "answer": "B", "p(A)": 0.25, "p(B)": 0.75}
    ]
    texts = [RowAnswer("en/1", "en", "A", "nonsense", [0.5])]
    assert answer_table(own, texts).to_pylist() == [
        {"id": "1", "language": "en", "gold": "A", "answer": "nonsense", "scores": [0.5]}
    ]
    tags = [RowAnswer("en/1", "en", ["A", "B"], ["A", "A"], [0.5, 0.25])]
    assert answer_table(task("tags", ["A", "B"], ["token_accuracy"]), tags).to_pylist()[0]["scores"] == [0.5, 0.25]
    span = [RowAnswer("en/1", "en", ["one", "two"], "one", [7.5])]
    row = {"id": "1", "language": "en", "gold": ["one", "two"], "answer": "one", "scores": [7.5]}
    assert answer_table(task("span", [], ["f1"]), span).to_pylist() == [row]


@pytest.mark.parametrize(
    ("kind", "labels"), [("choice", ["A", "B", "A"]), ("span", [["one", "two"], ["two"], ["one"]])]
)
def test_metrics_are_tried_on_what_is_right_before_anything_is_trained(kind, labels, monkeypatch):
    """Of a user's own with all rows of a language, else with one; no metric of what is written."""
    asked, own = list[tuple](), task(kind, ["A", "B"] if kind == "choice" else [], ["accuracy"])
    monkeypatch.setattr(
        scores, "metric", lambda name: ("", lambda gold, said, language: asked.append((name, gold, said, language)))
    )
    table = pa.table({"language": ["en", "de", "en"], "label": labels})
    try_metrics(own, ["f1", "span_f1", "own.py", "f1"], table)
    said = {"choice": (["A"], ["B"], ["A", "A"]), "span": (["one"], ["two"], ["one", "one"])}[kind]
    english, german, both = labels[:1], labels[1:2], [labels[0], labels[2]]
    first = [("f1", english, said[0], "en"), ("f1", german, said[1], "de")]
    assert asked == [*first, ("own.py", both, said[2], "en"), ("own.py", german, said[1], "de")]


def test_scores_of_a_sentence_are_one_a_word_even_of_one_word():
    own = task("tags", ["A", "B", "C"], ["token_accuracy"])
    reads = head(own)
    learner = Learner(METHODS.load("frozen")(METHODS.load("frozen").Config(), tiny.backbone("bert")), reads).eval()
    prompts = [prompt("en/1", [0, 1, 2]), prompt("en/2", [1])]
    batch = PromptDataset(prompts, learner.method, 1).batch([0, 1])
    with torch.no_grad():
        rows = by_row(reads, prompts, learner.answer(batch))
    assert [len(row.scores) for row in rows] == [3, 1]


# what fits together, and whole runs

TAGS = """
about: test
kind: tags
fields: {tokens: tokens}
label: {column: tags, names: [Positive, Negative]}
languages: [en, de]
metric: token_accuracy
metrics: [token_accuracy, token_f1]
sources:
  files: {files: {train: tags, validation: tags, test: tags}}
patterns:
  vanilla: {text: "{tokens}", source: test}
  topro: {text: "{tokens} <sep> {token} is <slot> .", verbalizer: {Positive: good, Negative: bad}, source: test}
  ends: {text: "{tokens} . {token} is <slot>", verbalizer: {Positive: good, Negative: bad}, source: test}
  written: {text: "{tokens} <sep> {token} is", source: test}
"""
SPAN = """
about: test
kind: span
fields: {question: question, context: context}
label: {column: answers}
languages: [en]
metric: exact_match
metrics: [exact_match, f1]
sources:
  files: {files: {train: span, validation: span, test: span}}
patterns:
  vanilla: {text: "{question} <sep> {context}", source: test}
"""
THINGS, DOINGS = ("film", "one", "two", "three"), ("was", "is", "good", "bad")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A task of tags and one of spans, their rows, and a tiny model of each family."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "mytags.yaml").write_text(TAGS)
    (folder / "myspan.yaml").write_text(SPAN)
    rows = [
        {
            "id": str(i),
            "language": language,
            "tokens": [THINGS[i % 4], *[DOINGS[i // 2 % 4]] * (i % 3)],
            "tags": ["Positive", *["Negative"] * (i % 3)],
        }
        for language in ("en", "de")
        for i in range(9)
    ]
    (folder / "tags.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    contexts = [f"{'seven eight ' * (i % 4)}{THINGS[i % 4]} was {DOINGS[2 + i % 2]} six" for i in range(8)]
    answers = [f"was {DOINGS[2 + i % 2]}" for i in range(8)]
    rows = [
        {
            "id": str(i),
            "question": "it ?",
            "context": text,
            "answers": {"text": [answer], "answer_start": [text.index(answer)]},
        }
        for i, (text, answer) in enumerate(zip(contexts, answers))
    ]
    (folder / "span.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    for kind in ("xlmr", "llama", "t5"):
        made = tiny.backbone(kind)
        made.model.save_pretrained(folder / kind)
        made.text.tokenizer.save_pretrained(folder / kind)
    return folder


def job(place: Path, name: str, model: str, *more: str):
    base = [
        "seeds=1",
        "train.epochs=60",
        "train.lr=3e-3",
        "train.batch_size=8",
        "train.patience=null",
        "train.languages=[en]",
        "train.max_tokens=20",
    ]
    where = [
        f"task={place}/my{name}.yaml",
        f"backbone={place}/{model}",
        f"data.root={place}",
        f"storage={place}/runs-{name}",
    ]
    return load_job("profit", [*where, *base, "train.dropout=0.0", "protocol=fixed", *more])


@pytest.mark.parametrize(
    ("name", "model", "more", "message"),
    [
        ("span", "xlmr", [], r"readout: verbalizer does not answer tasks of kind span \(myspan\); use readout=span"),
        (
            "tags",
            "xlmr",
            ["readout=span"],
            r"readout: span does not answer tasks of kind tags \(mytags\); use readout=head",
        ),
        (
            "tags",
            "xlmr",
            ["readout=text", "pattern=topro"],
            r"readout: text works with seq2seq models; .*xlmr is masked; use readout=head or verbalizer",
        ),
        (
            "tags",
            "t5",
            ["readout=head", "pattern=topro"],
            r"readout: head works with masked and causal models; .*t5 is seq2seq; use readout=text or verbalizer",
        ),
        (
            "tags",
            "t5",
            [],
            r"readout: verbalizer reads a label word at <slot>; pattern vanilla has none; use readout=text",
        ),
        ("tags", "llama", [], r"pattern vanilla has none; use readout=head"),
        (
            "span",
            "t5",
            ["readout=span"],
            r"span works with masked and causal models; .*t5 is seq2seq; use a masked or causal backbone",
        ),
        ("span", "t5", [], r"verbalizer does not answer tasks of kind span \(myspan\); use readout=span"),
    ],
)
def test_a_readout_that_does_not_fit_is_refused_with_one_that_does(name, model, more, message, place):
    with pytest.raises(
        UserError, match=message
    ) as caught:  # some when the job is loaded, some when the backbone is known
        prepare(job(place, name, model, "pattern=vanilla", *more))
    assert "\n" not in str(caught.value)


def result(made) -> tuple[dict, list[dict], Prepared]:
    """The one result of a job and its predictions."""
    prepared, began, cpu = prepare(made), time.perf_counter(), time.process_time()
    ((found,),) = run_jobs([prepared], lambda event: None)
    assert 0 < found["train_seconds"] < found["seconds"] <= time.perf_counter() - began
    assert 0 < found["cpu_seconds"] <= time.process_time() - cpu
    assert 10 < found["peak_memory_mb"] <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found, pa_parquet.read_table(prepared.folder / "seed-0" / "predictions.parquet").to_pylist(), prepared


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("xlmr", ["pattern=vanilla", "readout=head"]),
        ("llama", ["pattern=vanilla", "readout=head"]),
        ("xlmr", ["pattern=topro"]),
        ("t5", ["pattern=topro"]),
        ("llama", ["pattern=ends"]),
        ("t5", ["pattern=written", "readout={name: text, longest: 3}", "train.epochs=80", "train.lr=1e-2"]),
    ],
)
def test_tags_end_to_end(model, more, place):
    """A slot a word or a prompt a word, for every family: learned, and the scores are those of the predictions."""
    found, predictions, prepared = result(job(place, "tags", model, "dev.rows=none", *more))
    assert list(found["metrics"]) == ["token_accuracy@1", "token_f1@1"]
    assert found["rows"] == {"en": 9, "de": 9}
    assert found["scores"]["en"] == 100
    words = [
        (g, a)
        for row in predictions
        if row["language"] == "de"
        for g, a in zip(row["gold"], row["answer"], strict=True)
    ]
    assert found["scores"]["de"] == pytest.approx(100 * sum(g == a for g, a in words) / len(words))
    assert found["majority"]["en"] == pytest.approx(50)
    assert [len(row["answer"]) for row in predictions[:3]] == [len(row["gold"]) for row in predictions[:3]]
    header, _, own, majority = [
        line.split(" | ") for line in (prepared.folder / "table.md").read_text().splitlines() if line.startswith("|")
    ]
    shown = dict(zip(header, own, strict=True))
    assert shown["token_f1"] == f"{sum(found['metrics']['token_f1@1'].values()) / 2:.1f} (n=1)"
    assert shown["mean"] == f"{found['mean']:.1f} (n=1)"
    assert majority[0] == "| MAJ"


@pytest.mark.parametrize(
    ("name", "more"),
    [("tags", ["pattern=topro"]), ("span", ["pattern=vanilla", "readout=span", "train.max_tokens=12"])],
)
def test_rows_that_are_answered_some_at_a_time_give_the_same_result(name, more, place, monkeypatch):
    """Dev rows and test rows, of several prompts each."""
    results = []
    for size in (1 << 14, 4):
        monkeypatch.setattr(loader, "AT_ONCE", size)
        found, said, _ = result(job(place, name, "xlmr", "train.epochs=3", *more, f"storage={place}/at-once-{size}"))
        kept = ("metrics", "scores", "majority", "rows", "mean", "dev", "best_epoch", "losses")
        results.append(({key: found[key] for key in kept}, [epoch["dev"] for epoch in found["history"]], said))
    assert results[0] == results[1]
    assert len(results[0][1]) == 3


@pytest.mark.parametrize(("model", "max_tokens"), [("xlmr", 12), ("llama", 8)])
def test_spans_end_to_end(model, max_tokens, place):
    """Passages longer than a window; no majority row, since answers are texts."""
    more = [
        "pattern=vanilla",
        "readout={name: span, window_stride: 3, longest: 3}",
        f"train.max_tokens={max_tokens}",
        "train.lr=1e-2",
    ]
    found, predictions, prepared = result(job(place, "span", model, *more))
    assert found["scores"] == {"en": 100}
    assert found["metrics"] == {"exact_match@1": {"en": 100}, "f1@1": {"en": 100}}
    assert found["rows"] == {"en": 8}
    assert found["majority"] == {}
    assert all(row["answer"] == row["gold"][0] for row in predictions)
    assert "MAJ" not in (prepared.folder / "table.md").read_text()


def test_states_are_kept_where_there_are_no_dev_rows():
    cell = cases.cell("gnnavi", tiny.backbone("gpt2"))
    stepper: Any = TorchStepper(cell.learner, cases.SETTINGS)
    train, dev = loaders(SimpleNamespace(train=cases.SETTINGS), cell.learner, stepper, {"train": cell.prompts}, None)  # type: ignore[arg-type]
    assert dev is None
    assert isinstance(train, PromptDataset)
    assert train.lower is not None


def test_states_of_train_and_dev_are_kept_where_all_fit_and_ranks_go_on_from_what_all_know(monkeypatch):
    cell = cases.cell("gnnavi", tiny.backbone("gpt2"))
    stepper: Any = TorchStepper(cell.learner, cases.SETTINGS)
    method, sizes, asked = cell.learner.method, list[int](), list[tuple[int, int, Any]]()
    kept = method.backbone.frozen_states
    monkeypatch.setattr(
        kept, "after", lambda layer, some, device, agree, begun: asked.append((layer, len(some), agree))
    )
    rows = {"train": cell.prompts[:2], "dev": cell.prompts[2:]}
    for fits in (False, True):
        monkeypatch.setattr(kept, "fits", lambda some, hidden, fits=fits: sizes.append(len(some)) or fits)
        loaders(SimpleNamespace(train=cases.SETTINGS), cell.learner, stepper, rows, None)  # type: ignore[arg-type]
        assert [told[:2] for told in asked] == [(method.constant_below, 2), (method.constant_below, 3)] * fits
    assert sizes == [5, 5]
    for depths, expected in (([1, 1], 1), ([1, 2], 0), ([0, 0], 0)):
        stepper.gather = lambda own, depths=depths: depths
        assert {agree(depths[0]) for *_, agree in asked} == {expected}


@pytest.mark.parametrize(("shown", "begun"), [((3, 3), 1), ((3, 4), 2)])
def test_a_beginning_that_train_and_dev_share_is_run_once(shown, begun, monkeypatch):
    cell = cases.cell("gnnavi", tiny.backbone("gpt2"))
    backbone, sizes = cell.learner.method.backbone, list[int]()
    split, begin = {}, backbone.begin
    for number, (name, size) in enumerate(zip(("train", "dev"), shown, strict=True)):
        ids = [[7] * size + [20 + number, 5, row + 9] for row in range(2)]
        marks = {"demo_label": [1], "slot": [size + 2]}
        split[name] = [prompt("en/0", [0]).but(ids=own, segments=[0] * len(own), marks=marks) for own in ids]
        split[name] = [own.but(demo_tokens=size) for own in split[name]]
    monkeypatch.setattr(
        backbone, "begin", lambda batch, *given: sizes.append(batch.ids.shape[1]) or begin(batch, *given)
    )
    stepper: Any = TorchStepper(cell.learner, cases.SETTINGS)
    found = loaders(SimpleNamespace(train=cases.SETTINGS), cell.learner, stepper, split, None)  # type: ignore[arg-type]
    assert sizes == [*shown][:begun]
    for rows, name in zip(found, split, strict=True):
        assert isinstance(rows, PromptDataset)
        assert rows.lower is not None
        for own in split[name]:
            expected = backbone.lower(collate([own], 1), cell.learner.method.constant_below)[0]
            assert torch.allclose(rows.lower.of(own), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "files", "kind"),
    [
        ({}, 0, torch.float32),
        ({"cache_folder": "kept"}, 1, torch.float32),
        ({"cache_folder": "kept", "cache_type": "bf16"}, 1, torch.bfloat16),
        ({"cache_type": "bf16"}, 0, torch.bfloat16),
        ({"shortcuts": False, "cache_folder": "kept"}, 0, None),
    ],
    ids=str,
)
def test_a_job_says_where_states_are_kept_and_in_what(tmp_path, monkeypatch, changes, files, kind):
    """With the losses of states in memory; a folder lies where the job was read."""
    monkeypatch.chdir(tmp_path)
    losses = list[list[float]]()
    settings = Train(**{**cases.SETTINGS.model_dump(), **changes})
    monkeypatch.chdir("/")
    for own in (cases.SETTINGS, settings):
        backbone = tiny.backbone("gpt2")
        backbone.text.source = "some/folder"
        cell = cases.cell("gnnavi", backbone)
        stepper: Any = TorchStepper(cell.learner, own)
        train, _ = loaders(SimpleNamespace(train=own), cell.learner, stepper, {"train": cell.prompts}, None)  # type: ignore[arg-type]
        assert isinstance(train, PromptDataset)
        losses.append(fit(stepper, train, None, own, 0, cell.score).losses)
    assert (train.lower and train.lower.of(cell.prompts[0]).dtype) == kind
    assert len([*tmp_path.rglob("*.safetensors")]) == 2 * files, "what prompts begin with, and the rest of them"
    assert losses[1] == pytest.approx(losses[0], rel=1e-2 if kind == torch.bfloat16 else 1e-5)


def test_predictions_are_written_as_they_come_and_stand_there_whole(tmp_path):
    """Questions without an answer first: the column is one of lists of texts all the same."""
    own = task("span", [], ["f1"])
    stretches = [[RowAnswer("en/1", "en", [], "", [0.5])], [RowAnswer("en/2", "en", ["one"], "one", [7.5])]]
    path = tmp_path / "seed-0" / PREDICTIONS
    with predictions(path.parent, files := {}) as write:
        for rows in stretches:
            write(answer_table(own, rows))
            assert not path.exists()
    assert files == {PREDICTIONS: hashlib.sha256(path.read_bytes()).hexdigest()}
    assert pa_parquet.ParquetFile(path).num_row_groups == 2
    assert pa_parquet.read_table(path).to_pylist() == answer_table(own, [*stretches[0], *stretches[1]]).to_pylist()

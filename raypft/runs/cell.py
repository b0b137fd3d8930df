"""One cell: a job with one seed, from encoded prompts to a result on disk. The same code runs in this process and in a Ray worker."""

from __future__ import annotations

import ctypes
import itertools
import json
import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from raypft.backbones.base import Backbone
from raypft.batch import Encoded
from raypft.config.job import Job, Train, part_config
from raypft.data.sampling import Sample
from raypft.methods.base import Result
from raypft.readouts.base import Answer, Readout
from raypft.storage import Log, on_disk, written
from raypft.tasks.metrics import ENGLISH, metric
from raypft.tasks.task import Task, load_task
from raypft.training.loader import Flow, Rows, Streamed, share
from raypft.training.loop import Learner, Progress, Stepper, TorchStepper, evaluate, fit

MakeStepper = Callable[[Learner, Train, dict[str, Any] | None], Stepper]
Tell = Callable[[dict[str, Any]], None]
TRAINED = "trained.safetensors"
TESTED, UNTESTED = "result.json", "searched.json"
"""The result of a cell, and what it is before the test, where that is withheld."""


@dataclass(frozen=True)
class Cell:
    """A job with one seed: its rows, its folder, and what its result says about its inputs (cell key, manifest hash, ...)."""

    job: Job
    seed: int
    sample: Sample
    folder: Path
    facts: dict[str, Any]
    test: bool = True
    """False withholds the test: a search tests only what it has chosen."""

    @property
    def finished(self) -> bool:
        """Whether its result is on disk."""
        return is_finished(self.folder, self.test)


def is_finished(folder: Path, test: bool = True) -> bool:
    """Whether a cell's folder holds a result; one without a test is enough where none is asked for."""
    return (folder / TESTED).is_file() or (not test and (folder / UNTESTED).is_file())


def recorder(folder: Path) -> Tell:
    """Appends events, with the time, to the cell's events.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    log = Log(folder / "events.jsonl")
    return lambda event: log.append(json.dumps({"time": round(time.time(), 3), **event}).encode() + b"\n")


def keep_freed_memory() -> None:
    """Let glibc keep freed memory: dense gradients of an embedding are some 100 MB each, and giving them back to the kernel
    and faulting them in again costs a fifth of a CPU training step (benchmarks/freed_memory.py)."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no mapping of its own for a large block
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def build_learner(job: Job, backbone: Backbone, seed: int) -> Learner:
    """The method and readout of a cell on a reset backbone, initialised by the seed alone."""
    backbone.reset()
    task = load_task(job.task)
    method, method_config = part_config(job.method, "method")
    readout, readout_config = part_config(job.readout, "readout")
    torch.manual_seed(seed)
    return Learner(method(method_config, backbone), readout(readout_config, task, task.pattern(job.pattern), backbone))


def local_stepper(learner: Learner, settings: Train, state: dict[str, Any] | None) -> Stepper:
    """Plain torch in this process, on a GPU where there is one."""
    return TorchStepper(learner, settings, "cuda" if torch.cuda.is_available() else "cpu", state)


def run_cell(
    job: Job,
    seed: int,
    prompts: Mapping[str, Sequence[Encoded]],
    backbone: Backbone,
    folder: Path,
    facts: Mapping[str, Any],
    make_stepper: MakeStepper = local_stepper,
    tell: Tell = lambda event: None,
    test: bool = True,
    flow: Flow | None = None,
) -> dict[str, Any]:
    """Train, select, test once, and write result.json, predictions.parquet and trained.safetensors into `folder`.

    Goes on from `folder/state.pt` where there is one, and tells from where. With `test` false the test is withheld and the
    result is searched.json; called again with `test` true it tests what was trained then.

    Args:
        prompts: role to encoded prompts.
        facts: what goes into the result as it is (cell key, manifest hash, ...).
        flow: where train rows are streamed; `prompts` then has the first of each language.
    """
    began = time.perf_counter()
    keep_freed_memory()
    task = load_task(job.task)
    learner = build_learner(job, backbone, seed)
    trainable = {name: p.numel() for name, p in learner.trainable().items()}
    sizes = {
        "trainable": sum(trainable.values()),
        "trainable_method": sum(n for name, n in trainable.items() if name.startswith("method.")),
        "predicted_method": learner.method.predicted_parameters(),
    }
    progress = Progress.load(folder / "state.pt")
    if progress is not None:
        with torch.no_grad():
            for name, parameter in learner.trainable().items():
                parameter.copy_(progress.values[name])
    stepper = make_stepper(learner, job.train, progress.optimizer if progress else None)
    before = json.loads((folder / UNTESTED).read_text()) if (folder / UNTESTED).is_file() else None
    if before is None:
        tell(_start(job, seed, stepper, progress, sizes["trainable"]))
        trained = _train(job, seed, prompts, flow, stepper, progress, folder, tell)
    else:
        trained = _trained(before, stepper, folder)
    answers = (
        by_row(learner.readout, prompts["test"], evaluate(stepper, _test_rows(learner, prompts), job.train.eval_batch))
        if test
        else []
    )
    values = stepper.values()
    result = {
        "seed": seed,
        **facts,
        **(measured(task, answers) if test else {}),
        **trained,
        **sizes,
        "seconds": time.perf_counter() - began + (before or {}).get("seconds", 0.0),
        "peak_memory_mb": max(stepper.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)) / 1024,
        "workers": stepper.world,
    }
    if stepper.rank == 0:
        if test:
            write_result(folder, task, result, answers, learner.method.result(values))
        else:
            write_searched(folder, result, values)
    return result


def _start(job: Job, seed: int, stepper: Stepper, progress: Progress | None, trainable: int) -> dict[str, Any]:
    """The event of a cell's start."""
    method = stepper.learner.method
    start = {
        "event": "start",
        "seed": seed,
        "epochs": job.train.epochs if method.trains else 0,
        "trainable": trainable,
        "workers": stepper.world,
    }
    start["notes"] = method.notes()
    return start if progress is None else start | {"event": "resume", "epoch": progress.epoch, "step": progress.step}


def _train(
    job: Job,
    seed: int,
    prompts: Mapping[str, Sequence[Encoded]],
    flow: Flow | None,
    stepper: Stepper,
    progress: Progress | None,
    folder: Path,
    tell: Tell,
) -> dict[str, Any]:
    """Fit the learner, or score it on dev as it is where nothing trains; what the result says about it.

    `dev` is the score of the epoch that is kept.
    """
    task, learner = load_task(job.task), stepper.learner
    train, dev = loaders(job, learner, stepper, prompts, flow)

    def score(answers: Sequence[Answer]) -> float:
        return _mean(scores_by_language(task, task.metric, by_row(learner.readout, prompts["dev"], answers)))

    if learner.method.trains and job.train.epochs:
        progress = fit(
            stepper,
            train,
            dev,
            job.train,
            seed,
            score,
            progress,
            lambda p: p.save(folder / "state.pt"),
            lambda event: tell({"seed": seed, **event}),
        )
        kept = progress.best_score if job.train.select == "best" else progress.history[-1].get("dev")
    else:
        progress = Progress(best_epoch=0)
        kept = score(evaluate(stepper, dev, job.train.eval_batch)) if dev is not None else None
    return {
        "best_epoch": progress.best_epoch
        if job.train.select == "best" or not progress.history
        else progress.history[-1]["epoch"],
        "dev": kept if dev is not None else None,
        "history": progress.history,
        "losses": progress.losses,
        "train_seconds": progress.history[-1]["train_seconds"] if progress.history else 0.0,
    }


def _trained(before: dict[str, Any], stepper: Stepper, folder: Path) -> dict[str, Any]:
    """Put the values of a training whose test was withheld into the learner; what its result said about it."""
    path = folder / TRAINED
    if path.is_file():
        with on_disk(path) as file:
            stepper.set_values(load_file(file))
    return {key: before[key] for key in ("best_epoch", "dev", "history", "losses", "train_seconds")}


def answer_table(task: Task, rows: Sequence[RowAnswer]) -> pa.Table:
    """Rows as predictions.parquet holds them: id, language, gold, answer, and p(label) where a row has one each, scores elsewhere."""
    columns: dict[str, list[Any]] = {
        "id": [row.key.split("/", 1)[1] for row in rows],
        "language": [row.language for row in rows],
        "gold": [row.gold for row in rows],
        "answer": [row.answer for row in rows],
    }
    if task.kind == "choice" and all(len(row.scores) == len(task.label.names) for row in rows):
        columns |= {f"p({name})": [row.scores[i] for row in rows] for i, name in enumerate(task.label.names)}
    else:
        columns["scores"] = [row.scores for row in rows]
    return pa.table(columns)


def _test_rows(learner: Learner, prompts: Mapping[str, Sequence[Encoded]]) -> Rows:
    return Rows(prompts["test"], learner.method, learner.method.backbone.pad)


def loaders(
    job: Job, learner: Learner, stepper: Stepper, prompts: Mapping[str, Sequence[Encoded]], flow: Flow | None
) -> tuple[Rows | Streamed, Rows | None]:
    """The rows of train and dev; in memory with cached states where the method's lower blocks are constant and they fit."""
    method, backbone = learner.method, learner.method.backbone
    dev = Rows(prompts.get("dev", []), method, backbone.pad)
    if flow is not None:
        return Streamed(flow, prompts["train"][0], method, backbone.pad), dev if len(dev) else None
    train = Rows(prompts["train"], method, backbone.pad)
    if (
        method.constant_below
        and job.train.epochs
        and not method.backbone_moves
        and backbone.frozen_states.fits([*train.prompts, *dev.prompts], backbone.hidden)
    ):
        for rows, own in (
            (train, range(len(train))),
            (dev, rows_to_cache(dev, stepper.rank, stepper.world) if len(dev) else ()),
        ):
            rows.lower = backbone.frozen_states.after(
                method.constant_below, [rows.prompts[row] for row in own], stepper.device
            )
    return train, dev if len(dev) else None


def rows_to_cache(rows: Rows, rank: int, world: int) -> list[int]:
    """The rows a rank evaluates and row 0, the filler; as many on every rank."""
    own = {0, *share(rows.by_length(range(len(rows))), rank, world)}
    size = min(len(rows), -(-len(rows) // world) + 1)
    own.update([row for row in range(len(rows)) if row not in own][: size - len(own)])
    return sorted(own)


@dataclass(frozen=True)
class RowAnswer:
    """The answer to a row beside what was right: a label name, a tag a word, or a text (gold is then a list of texts)."""

    key: str
    language: str
    gold: Any
    answer: Any
    scores: list[float]


def by_row(readout: Readout, prompts: Sequence[Encoded], answers: Sequence[Answer]) -> list[RowAnswer]:
    """The answers to rows out of the answers to their prompts, which stand next to each other."""
    begins = [i for i, prompt in enumerate(prompts) if prompt.part == 0]  # not by key: a row may stand there twice
    found = []
    for begin, end in itertools.pairwise([*begins, len(prompts)]):
        own = prompts[begin:end]
        found.append(
            RowAnswer(own[0].key, own[0].language, readout.gold(own), *readout.gather(own, answers[begin:end]))
        )
    return found


def scores_by_language(task: Task, name: str, rows: Sequence[RowAnswer]) -> dict[str, float]:
    """A metric per language, in the task's order."""
    of: dict[str, list[RowAnswer]] = defaultdict(list)
    for row in rows:
        of[row.language].append(row)
    function = metric(name)[1]
    order = [language for language in task.languages if language in of]
    return {
        language: function([r.gold for r in of[language]], [r.answer for r in of[language]], language=language)
        for language in order
    }


def measured(task: Task, rows: Sequence[RowAnswer]) -> dict[str, Any]:
    """The task's metrics per language, the means of the primary one with and without English, and the majority class."""
    scores = scores_by_language(task, task.metric, rows)
    others = [value for language, value in scores.items() if language not in ENGLISH]
    return {
        "metric": metric(task.metric)[0],
        "scores": scores,
        "metrics": {metric(name)[0]: scores_by_language(task, name, rows) for name in task.metrics},
        "majority": scores_by_language(task, task.metric, majority(task, rows)),
        "rows": dict(Counter(row.language for row in rows)),
        "mean": _mean(scores),
        "mean_without_english": sum(others) / len(others) if others else None,
    }


def majority(task: Task, rows: Sequence[RowAnswer]) -> list[RowAnswer]:
    """The rows answered with each language's most frequent label or tag; none where answers are texts."""
    if not task.label.names:
        return []
    of: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        of[row.language].update(row.gold if isinstance(row.gold, list) else [row.gold])
    common = {language: counts.most_common(1)[0][0] for language, counts in of.items()}
    return [
        replace(r, answer=[common[r.language]] * len(r.gold) if isinstance(r.gold, list) else common[r.language])
        for r in rows
    ]


def _mean(scores: Mapping[str, float]) -> float:
    return sum(scores.values()) / len(scores)


def write_result(folder: Path, task: Task, result: dict[str, Any], rows: Sequence[RowAnswer], kept: Result) -> None:
    """Write a finished cell; result.json comes last and says that it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with written(folder / "predictions.parquet") as file:
        pa_parquet.write_table(answer_table(task, rows), file)
    if kept.tensors:
        save_tensors(folder / kept.file, kept)
    _conclude(folder, TESTED, result)
    (folder / UNTESTED).unlink(missing_ok=True)


def write_searched(folder: Path, result: dict[str, Any], values: dict[str, Tensor]) -> None:
    """Write a cell whose test is withheld; searched.json comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    if values:
        save_tensors(folder / TRAINED, Result(TRAINED, values))
    _conclude(folder, UNTESTED, result)


def _conclude(folder: Path, name: str, result: dict[str, Any]) -> None:
    with written(folder / name) as file:
        file.write_text(json.dumps(result, indent=1))
    for rest in (folder / "state.pt", *folder.glob("*.partial.*")):
        rest.unlink(missing_ok=True)


def save_tensors(path: Path, kept: Result) -> None:
    """Write what is kept of the trained parameters, and read it back.

    Raises:
        RuntimeError: the saved values differ from the live ones.
    """
    with written(path) as file:
        save_file({name: value.contiguous() for name, value in kept.tensors.items()}, file, kept.metadata)
    with on_disk(path) as file:
        back = load_file(file)
    if set(back) != set(kept.tensors) or not all(
        torch.equal(back[name], value) for name, value in kept.tensors.items()
    ):
        raise RuntimeError(f"{path}: the saved parameters differ from the live ones when read back")

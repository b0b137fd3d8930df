"""One cell: a job with one seed, from encoded prompts to a result on disk. The same code runs in this process and in a Ray worker."""

from __future__ import annotations

import ctypes
import json
import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import torch
from safetensors.torch import load_file, save_file

from raypft.backbones.base import Backbone
from raypft.batch import Encoded
from raypft.cache import LowerStates
from raypft.data import Rows, share
from raypft.fewshot import Sample
from raypft.job import Job, Train, part_config
from raypft.methods.base import Result
from raypft.metrics import ENGLISH, metric
from raypft.tasks import Task, load_task
from raypft.train import Answer, Learner, Progress, Stepper, TorchStepper, evaluate, fit

MakeStepper = Callable[[Learner, Train, dict[str, Any] | None], Stepper]
Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Cell:
    """A job with one seed: its rows, its folder, and what its result says about its inputs (cell key, manifest hash, ...)."""

    job: Job
    seed: int
    sample: Sample
    folder: Path
    facts: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether its result is on disk."""
        return (self.folder / "result.json").is_file()


def recorder(folder: Path) -> Tell:
    """Appends events, with the time, to the cell's events.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)

    def note(event: dict[str, Any]) -> None:
        with (folder / "events.jsonl").open("a") as stream:
            stream.write(json.dumps({"time": round(time.time(), 3), **event}) + "\n")

    return note


def keep_freed_memory() -> None:
    """Let glibc keep freed memory: dense gradients of an embedding are some 100 MB each, and giving them back to the kernel
    and faulting them in again took a third of a CPU training step (XNLI, 34M parameters)."""
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
) -> dict[str, Any]:
    """Train, select, test once, and write result.json, predictions.parquet and trained.safetensors into `folder`.

    Goes on from `folder/state.pt` where there is one, and tells from where.

    Args:
        prompts: role to encoded prompts.
        facts: what goes into the result as it is (cell key, manifest hash, ...).
    """
    began = time.perf_counter()
    keep_freed_memory()
    task = load_task(job.task)
    learner = build_learner(job, backbone, seed)
    trainable = {name: p.numel() for name, p in learner.trainable().items()}
    method_parameters = sum(n for name, n in trainable.items() if name.startswith("method."))
    progress = Progress.load(folder / "state.pt")
    if progress is not None:
        with torch.no_grad():
            for name, parameter in learner.trainable().items():
                parameter.copy_(progress.values[name])
    stepper = make_stepper(learner, job.train, progress.optimizer if progress else None)
    start = {"event": "start", "seed": seed, "epochs": job.train.epochs if learner.method.trains else 0, "trainable": sum(trainable.values())}
    start["notes"] = learner.method.notes()
    if progress is not None:
        start |= {"event": "resume", "epoch": progress.epoch, "step": progress.step}
    tell(start)
    train, dev, test = rows_of(job, learner, stepper, prompts)
    gold = {p.key: task.label.names[p.gold] for role in prompts.values() for p in role}

    def score(answers: Sequence[Answer]) -> float:
        return metric(task.metric)[1]([gold[a[0]] for a in answers], [task.label.names[a[1]] for a in answers])

    if learner.method.trains and job.train.epochs:
        progress = fit(
            stepper, train, dev, job.train, seed, score, progress, lambda p: p.save(folder / "state.pt"), lambda e: tell({"event": "epoch", "seed": seed, **e})
        )
    answers = evaluate(stepper, test, job.train.eval_batch)
    values = stepper.values()
    result = {
        "seed": seed,
        **facts,
        "metric": metric(task.metric)[0],
        **scores_by_language(task, prompts["test"], answers),
        "best_epoch": progress.best_epoch if progress else 0,
        "dev": progress.best_score if progress and dev is not None else None,
        "history": progress.history if progress else [],
        "losses": progress.losses if progress else [],
        "trainable": sum(trainable.values()),
        "trainable_method": method_parameters,
        "predicted_method": learner.method.predicted_parameters(),
        "seconds": time.perf_counter() - began,
        "train_seconds": progress.history[-1]["train_seconds"] if progress and progress.history else 0.0,
        "peak_memory_mb": max(stepper.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)) / 1024,
        "workers": stepper.world,
    }
    if stepper.rank == 0:
        write_result(folder, task, result, prompts["test"], answers, learner.method.result(values))
    return result


def rows_of(job: Job, learner: Learner, stepper: Stepper, prompts: Mapping[str, Sequence[Encoded]]) -> tuple[Rows, Rows | None, Rows]:
    """The rows of each role; train and dev with cached states where the method's lower blocks are constant and they fit."""
    method, backbone = learner.method, learner.method.backbone
    pad = backbone.tokenizer.pad_token_id
    pad = 0 if pad is None else pad
    cache = None
    train_prompts, dev_prompts = prompts["train"], prompts.get("dev", [])
    if method.constant_below and job.train.epochs and not method.backbone_moves:
        cache = LowerStates(backbone, method.constant_below)
        cache = cache if cache.fits([*train_prompts, *dev_prompts]) else None
    train = Rows(train_prompts, method, pad, cache)
    dev = Rows(dev_prompts, method, pad, cache) if dev_prompts else None
    if cache is not None:
        cache.fill(train_prompts, pad, stepper.device)
        if dev is not None:
            cache.fill([dev.prompts[row] for row in rows_to_cache(dev, stepper.rank, stepper.world)], pad, stepper.device)
    return train, dev, Rows(prompts["test"], method, pad)


def rows_to_cache(rows: Rows, rank: int, world: int) -> list[int]:
    """The rows a rank evaluates and row 0, the filler; as many on every rank."""
    own = {0, *share(rows.by_length(range(len(rows))), rank, world)}
    size = min(len(rows), -(-len(rows) // world) + 1)
    own.update([row for row in range(len(rows)) if row not in own][: size - len(own)])
    return sorted(own)


def scores_by_language(task: Task, prompts: Sequence[Encoded], answers: Sequence[Answer]) -> dict[str, Any]:
    """The metric and the majority class share per language, and their means with and without English."""
    pairs: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for prompt, answer in zip(prompts, answers, strict=True):
        pairs[prompt.language].append((task.label.names[prompt.gold], task.label.names[answer[1]]))
    function = metric(task.metric)[1]
    scores, majority = {}, {}
    for language in [known for known in task.languages if known in pairs]:
        gold, found = zip(*pairs[language], strict=True)
        scores[language] = function(gold, found)
        common = Counter(gold).most_common(1)[0][0]
        majority[language] = function(gold, [common] * len(gold))
    others = [value for language, value in scores.items() if language not in ENGLISH]
    return {
        "scores": scores,
        "majority": majority,
        "rows": {language: len(own) for language, own in pairs.items()},
        "mean": sum(scores.values()) / len(scores),
        "mean_without_english": sum(others) / len(others) if others else None,
    }


def write_result(folder: Path, task: Task, result: dict[str, Any], prompts: Sequence[Encoded], answers: Sequence[Answer], kept: Result) -> None:
    """Write a finished cell; result.json comes last and says that it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    columns: dict[str, list[Any]] = {
        "id": [p.key.split("/", 1)[1] for p in prompts],
        "language": [p.language for p in prompts],
        "gold": [task.label.names[p.gold] for p in prompts],
        "answer": [task.label.names[a[1]] for a in answers],
    }
    for i, name in enumerate(task.label.names):
        columns[f"p({name})"] = [a[2][i] for a in answers]
    pa_parquet.write_table(pa.table(columns), folder / "predictions.parquet")
    if kept.tensors:
        save_tensors(folder / kept.file, kept)
    partial = folder / "result.json.partial"
    partial.write_text(json.dumps(result, indent=1))
    partial.replace(folder / "result.json")
    (folder / "state.pt").unlink(missing_ok=True)


def save_tensors(path: Path, kept: Result) -> None:
    """Write what is kept of the trained parameters, and read it back.

    Raises:
        RuntimeError: the saved values differ from the live ones.
    """
    save_file({name: value.contiguous() for name, value in kept.tensors.items()}, path, kept.metadata)
    back = load_file(path)
    if set(back) != set(kept.tensors) or not all(torch.equal(back[name], value) for name, value in kept.tensors.items()):
        raise RuntimeError(f"{path}: the saved parameters differ from the live ones when read back")

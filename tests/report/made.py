"""Run folders with a known truth, in the layout of real ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pa_parquet
import yaml

from raypft.config.job import Job
from raypft.runs.scores import Pairs, RowAnswer, answer_table, measured
from raypft.tasks.load import load_task
from raypft.tasks.task import Task

NASTY = r"<b>&%_\|"
"""A name that HTML, LaTeX, Markdown and CSV would each take for something else."""


def write_task(folder: Path, labels: Sequence[str] = ("yes", "no"), languages: Sequence[str] = ("en", "de")) -> Task:
    """A task of two labels."""
    path = folder / "mytask.yaml"
    pattern = {"text": "{a} <slot>", "verbalizer": {label: f"w{i}" for i, label in enumerate(labels)}}
    made = {
        "kind": "choice",
        "fields": {"a": "text"},
        "label": {"column": "label", "names": list(labels)},
        "languages": list(languages),
        "metric": "accuracy",
        "sources": {"files": {"files": {"train": "train.jsonl", "test": "test.jsonl"}}},
        "patterns": {"plain": pattern | {"mode": "mean", "source": "a test"}},
    }
    path.write_text(yaml.safe_dump(made, allow_unicode=True, sort_keys=False))
    return load_task(str(path))


def write_run(
    folder: Path,
    task: Task,
    right: Mapping[int, Mapping[str, Sequence[bool]]],
    recipe: str = "profit",
    facts: Mapping[str, Any] = {},
    **job: Any,
) -> Path:
    """A finished run: seed to language to whether each test row was answered right.

    Args:
        facts: of each result, over the usual ones; job: keys of the job.
    """
    asked = {"task": str(folder / "mytask.yaml"), "backbone": "tiny", "method": "full", "pattern": "plain"}
    made = Job(**{**asked, "recipe": recipe, "seeds": list(right), "storage": str(folder), **job})
    run = folder / f"{recipe}-{made.key()[:8]}"
    run.mkdir(parents=True)
    (run / "job.yaml").write_text(made.dump())
    origin = {"command": ["raypft", "run", recipe], "packages": {"torch": "2"}, "data": {"source": "files"}}
    (run / "provenance.json").write_text(json.dumps(origin))
    for seed, by_language in right.items():
        rows = _rows(task, by_language)
        usual = {"seed": seed, "cell": f"{recipe}{seed}", "backbone": "weights", "manifest": f"rows of seed {seed}"}
        usual |= {"sizes": {"train": 8, "dev": 4, "test": len(rows), "demos": 0}, "notes": [], "warnings": []}
        usual |= {"test_rows": "test", "protocol": "fixed"}
        costs = {"best_epoch": 1, "dev": 50.0 + seed, "history": [{"epoch": 1}], "losses": [], "train_seconds": 2.0}
        costs |= {"trainable": 1234, "train_flops": 2e9, "seconds": 3.0, "cpu_seconds": 2.5, "peak_memory_mb": 700.0}
        result = {**usual, **measured(task, Pairs(rows)), **costs, **facts}
        cell = run / f"seed-{seed}"
        cell.mkdir()
        pa_parquet.write_table(answer_table(task, rows), cell / "predictions.parquet")
        (cell / "result.json").write_text(json.dumps(result, indent=1))
    return run


def _rows(task: Task, by_language: Mapping[str, Sequence[bool]]) -> list[RowAnswer]:
    names = task.label.names
    rows = []
    for language, right in by_language.items():
        for number, is_right in enumerate(right):
            gold = number % len(names)
            answer = gold if is_right else (gold + 1) % len(names)
            scores = [0.8 if name == answer else 0.2 / (len(names) - 1) for name in range(len(names))]
            rows.append(RowAnswer(f"{language}/{number}", language, names[gold], names[answer], scores))
    return rows


def answers(
    rng: np.random.Generator, accuracy: float, seeds: int, rows: int, languages: Sequence[str], spread: float = 0.0
) -> dict[int, dict[str, list[bool]]]:
    """Right answers drawn row by row; spread: standard deviation of the accuracy over seeds, shared by languages."""
    drawn: dict[int, dict[str, list[bool]]] = {}
    for seed in range(seeds):
        level = accuracy + rng.normal(0, spread)
        drawn[seed] = {language: list(map(bool, rng.random(rows) < level)) for language in languages}
    return drawn

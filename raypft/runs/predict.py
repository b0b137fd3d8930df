"""Use of what was trained: a finished run scores new rows.

Beside the backbone only the run's folder is read: the job, a seed's trained parameters, its demonstrations.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import torch
from safetensors.torch import load_file

from raypft.backbones.load import load_backbone
from raypft.config.job import Job, make_job
from raypft.data import sources
from raypft.errors import UserError
from raypft.report.table import Table
from raypft.runs.cell import answer_table, build_learner, by_row, local_stepper
from raypft.runs.run import DEMOS, cell_keys, read_job, read_results
from raypft.storage import on_disk, written
from raypft.tasks.task import Task, load_task
from raypft.training.encode import Encoder
from raypft.training.loader import Rows
from raypft.training.loop import Learner, evaluate

CHUNK = 1024
"""Rows that are encoded and scored together, so that a file of any size can be read."""
ENDINGS = (".parquet", ".jsonl")
"""What predictions can be written as."""


@dataclass(frozen=True)
class Trained:
    """One finished seed of a run, ready to answer.

    folder: the run's; results: of all its finished seeds; result: this seed's.
    """

    job: Job
    seed: int
    folder: Path
    results: list[dict[str, Any]]
    learner: Learner
    encoder: Encoder

    @property
    def task(self) -> Task:
        return self.encoder.task

    @property
    def result(self) -> dict[str, Any]:
        return next(result for result in self.results if result["seed"] == self.seed)


def load_trained(folder: Path, seed: int | None = None) -> Trained:
    """A finished seed of a run, the first where None.

    Raises:
        UserError: the folder is no run; the seed is not finished; model, task, method or artefact are not those of the run; the
            run kept no trained parameters or its demonstrations are missing.
    """
    job = make_job(read_job(folder), f"{folder}/job.yaml")
    results = read_results(folder)
    chosen = [result for result in results if seed in (None, result["seed"])]
    if not chosen:
        finished = (
            f"finished: {', '.join(str(result['seed']) for result in results)}" if results else "none is; run it first"
        )
        raise UserError(f"run: {folder} has no finished seed{'' if seed is None else f' {seed}'}; {finished}")
    result = chosen[0]
    seed, own = int(result["seed"]), folder / f"seed-{result['seed']}"
    backbone = load_backbone(job.backbone)
    key = cell_keys(job, {seed: result["manifest"]}, backbone.revision)[seed]
    if key != result["cell"]:
        raise UserError(
            f"run: {folder} seed {seed} was trained with another model, task, method version or artefact (cell {result['cell']}, now {key}); "
            f"its model was {result['backbone']}, {job.backbone} is {backbone.revision}; restore them, or run the job again"
        )
    demos = None
    if job.demos:
        if not (own / DEMOS).is_file():
            raise UserError(
                f"run: {own} holds no {DEMOS}; start the run once more, which writes it and reuses what is finished"
            )
        with on_disk(own / DEMOS) as file:
            demos = pa_parquet.read_table(file)
    learner = build_learner(job, backbone, seed).eval()
    _put(learner, own / "trained.safetensors")
    return Trained(job, seed, folder, results, learner, Encoder.of(job, backbone.text, demos))


@torch.no_grad()
def _put(learner: Learner, path: Path) -> None:
    """Write a file's values into the learner's trainable parameters."""
    wanted = learner.trainable()
    if not wanted:
        return
    if not path.is_file():
        raise UserError(
            f"run: {path.parent} holds no {path.name}; this run did not keep a model that answers (a ticket search keeps its ticket only)"
        )
    with on_disk(path) as file:
        values = load_file(file)
    if {name: value.shape for name, value in values.items()} != {name: p.shape for name, p in wanted.items()}:
        odd = sorted(set(values) ^ set(wanted)) or [name for name, p in wanted.items() if values[name].shape != p.shape]
        raise UserError(
            f"run: {path} does not fit the method: {odd[0]}{f' and {len(odd) - 1} more' if len(odd) > 1 else ''}; run the job again"
        )
    for name, parameter in wanted.items():
        parameter.copy_(values[name])


def rows_of_file(trained: Trained, path: str, language: str | None = None) -> pa.Table:
    """The rows of a data file in the task's columns; labels are not looked at. See `sources.read_rows`."""
    return sources.read_rows(_origin(trained.job), path, language, trained.job.train.languages[0])


def rows_of_texts(trained: Trained, texts: Sequence[str], language: str | None = None) -> pa.Table:
    """One row out of texts: `field=text`, or the texts in the order of the task's fields.

    Raises:
        UserError: not one text for each field; see `sources.rows_of_table`.
    """
    task = trained.task
    pairs = [text.partition("=") for text in texts]
    named = [(name, text) for name, equals, text in pairs if equals and name in task.fields]
    found = dict(named) if named else dict(zip(task.fields, texts, strict=False))
    if len(texts) != len(task.fields) or set(found) != set(task.fields):
        expected = " ".join(f"--text {name}=…" for name in task.fields)
        raise UserError(
            f"text: task {task.name} asks about {', '.join(task.fields)}; found {len(texts)} texts; expected one for each, {expected}"
        )
    table = pa.table({task.fields[name]: pa.array([text], pa.string()) for name, text in found.items()})
    return sources.rows_of_table(_origin(trained.job), table, "--text", language, trained.job.train.languages[0])


def _origin(job: Job) -> sources.Origin:
    return sources.choose(load_task(job.task), job.data.source, job.data.root, job.shots)


def predict(trained: Trained, rows: pa.Table) -> pa.Table:
    """The answers to rows, in their order: id, language, answer, and p(label) where each label has one, scores elsewhere."""
    learner, job = trained.learner, trained.job
    stepper = local_stepper(learner, job.train, None)
    tables = []
    for start in range(0, len(rows), CHUNK):
        prompts = [prompt for row in rows.slice(start, CHUNK).to_pylist() for prompt in trained.encoder(row)]
        answers = evaluate(stepper, Rows(prompts, learner.method, learner.method.backbone.pad), job.train.eval_batch)
        tables.append(answer_table(trained.task, by_row(learner.readout, prompts, answers)).drop_columns("gold"))
    return pa.concat_tables(tables, promote_options="permissive")


def check_ending(path: Path) -> None:
    """Raise a UserError unless predictions can be written to this path."""
    if path.suffix not in ENDINGS:
        raise UserError(f"out: found {path}; expected a file that ends in {' or '.join(ENDINGS)}")


def lines_of(table: pa.Table) -> list[str]:
    """The rows of a table as JSON."""
    return [json.dumps(row, ensure_ascii=False) for row in table.to_pylist()]


def shown(trained: Trained, table: pa.Table) -> Table:
    """Predictions as a table for a person."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.3f}"
        return " ".join(map(cell, value)) if isinstance(value, list) else str(value)

    rows = [[cell(value) for value in row.values()] for row in table.to_pylist()]
    return Table(f"{trained.folder.name}, seed {trained.seed}", table.column_names, rows)


def write(table: pa.Table, path: Path) -> None:
    """Write predictions as parquet or JSON lines, by the path's ending.

    Raises:
        UserError: see `check_ending`.
    """
    check_ending(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        with written(path) as file:
            pa_parquet.write_table(table, file)
    else:
        path.write_text("".join(f"{line}\n" for line in lines_of(table)), encoding="utf-8")

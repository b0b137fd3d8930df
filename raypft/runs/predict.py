"""Use of what was trained: a finished run scores new rows.

Beside the backbone only the run's folder is read: the job, a seed's trained parameters, its demonstrations.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from raypft.backbones.fetch import pinned, revision
from raypft.backbones.load import load_backbone
from raypft.config.job import Job
from raypft.config.load import make_job
from raypft.config.resolved import ResolvedJob
from raypft.data import sources
from raypft.data.formats import Columns
from raypft.errors import UserError
from raypft.heap import HEAP
from raypft.hub import COMMIT
from raypft.progress import Work
from raypft.records import read_or_none
from raypft.runs.cell import build_learner, device_here
from raypft.runs.prepare import cell_keys
from raypft.runs.results import DEMOS, PROVENANCE, TRAINED, damaged, read_job, read_parquet, read_results, rows_digest
from raypft.runs.scores import answer_table, by_row
from raypft.schema import at_key, set_key
from raypft.shards import Saved, file_of
from raypft.storage import absolute, path_of
from raypft.tasks.task import Task
from raypft.training.encode import Encoder
from raypft.training.loader import PromptDataset
from raypft.training.loop import evaluate
from raypft.training.stepper import Learner, TorchStepper

CHUNK = 1024
"""Rows that are encoded and scored together, so that a file of any size can be read."""


def _is_yaml(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _is_python(name: str) -> bool:
    return name.endswith(".py")


def _is_folder(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or name.endswith(".gguf") or name.count("/") > 1


PLACES: dict[str, Callable[[str], bool]] = {
    "backbone": _is_folder,
    "task": _is_yaml,
    "method.name": _is_python,
    "readout.name": _is_python,
    "method.ticket": bool,
}
"""The keys of a job whose value may be a path, and whether it is one."""


@dataclass(frozen=True)
class Trained:
    """One finished seed of a run, ready to answer.

    folder: the run's; results: of all its finished seeds.
    """

    resolved: ResolvedJob
    seed: int
    folder: Path
    results: list[dict[str, Any]]
    learner: Learner
    encoder: Encoder

    @property
    def job(self) -> Job:
        """The run's job."""
        return self.resolved.job

    @property
    def task(self) -> Task:
        """The run's task."""
        return self.resolved.task

    @property
    def result(self) -> dict[str, Any]:
        """The result of this seed."""
        return next(result for result in self.results if result["seed"] == self.seed)

    def predict(
        self, rows: Sequence[str] | Sequence[Mapping[str, Any]] | pa.Table, language: str | None = None
    ) -> pa.Table:
        """The answers to rows, in their order.

        Args:
            rows: texts, where the task has one field; mappings or a table with the task's columns. Labels are not
            looked at. language: of rows that do not say theirs; the training language by default.

        Returns:
            id, language, answer, and p(label) from 0 to 1 where each label has one, scores elsewhere.

        Raises:
            UserError: a column is missing, or a language that the task does not have.
        """
        return predict(self, _task_rows(self, rows, language))


def load_trained(folder: Path | str, seed: int | None = None, moved: Mapping[str, str] | None = None) -> Trained:
    """A finished seed of a run, the first where None.

    Args:
        moved: where what the run was made with lies now, by the keys of `PLACES`; where it lay then otherwise.

    Raises:
        UserError: the folder is no run; the seed is not finished; model, task, method or artefact are not those of the
        run, or not where it had them;
            the run kept no trained parameters or its demonstrations are missing.
    """
    folder = path_of(absolute(folder))
    for key in moved or {}:
        if key not in PLACES:
            raise UserError(f'run: found "{key}"; expected where something lies now: {"=, ".join(PLACES)}=')
    found = {key: absolute(path) if path_of(path).exists() else path for key, path in (moved or {}).items()}
    with started_from(folder):
        return _loaded(folder, seed, found)


def _loaded(folder: Path, seed: int | None, moved: Mapping[str, str]) -> Trained:
    values = read_job(folder)
    placed = copy.deepcopy(values)
    for key, path in moved.items():
        set_key(placed, key, path)
    _check_places(folder, placed)
    resolved = make_job(placed, f"{folder}/job.yaml")
    job, results = resolved.job, read_results(folder)
    result = _chosen(folder, results, seed)
    seed, cell = int(result["seed"]), folder / f"seed-{result['seed']}"
    backbone = load_backbone(pinned(job.backbone, result["backbone"]), quantized=job.train.quantize)
    weights = backbone.revision
    if backbone.hub is not None and not COMMIT.fullmatch(result["backbone"]):
        weights = revision(Path(str(backbone.source)))  # an older run, whose hub model was known by its content
    key = cell_keys(resolved, {seed: result["manifest"]}, weights, _named(values, job, moved))[seed]
    if key != result["cell"]:
        raise UserError(
            f"run: {folder} seed {seed} was trained with another model, task, method version or artefact "
            f"(cell {result['cell']}, now {key}); its model was {result['backbone']}, {job.backbone} is "
            f"{weights}; restore them, or run the job again"
        )
    encoder = Encoder.of(resolved, backbone.text, _demonstrations(cell, result) if job.demos else None)
    HEAP.keep(True)  # of batch after batch, as a training does
    learner = build_learner(resolved, backbone, seed).eval()
    _put(learner, cell / TRAINED, result.get("files"))
    return Trained(resolved, seed, folder, results, learner, encoder)


def _named(values: dict[str, Any], job: Job, moved: Mapping[str, str]) -> Job:
    """The job with the names that its run gave to what has moved: the cell key holds them."""
    named = job.model_dump()
    for key in moved:
        set_key(named, key, at_key(values, key))
    return Job(**named)


def _check_places(folder: Path, values: dict[str, Any]) -> None:
    """Raise a UserError where a file or folder that a run was made with is not where the run had it."""
    told = (read_or_none(folder / PROVENANCE) or {}).get("backbone", {})
    for key, is_path in PLACES.items():
        path = at_key(values, key)
        if not isinstance(path, str) or "://" in path:
            continue
        # a folder was read as it was named, and its revision is no commit of the hub
        as_named = key == "backbone" and path == told.get("name") == told.get("source")
        local = is_path(path) or (as_named and not COMMIT.fullmatch(str(told.get("revision"))))
        if local and not Path(path).expanduser().exists():
            raise UserError(
                f"run: {folder.name} uses {key}={path}, which is not there, seen from {Path.cwd()}; "
                f"say where it is now, e.g. {key}=/new/place/{Path(path).name}"
            )


@contextmanager
def started_from(folder: Path) -> Iterator[None]:
    """The working directory is that in which a run was started, which its relative paths are meant from.

    Where that is not here the present one stays.
    """
    started = str((read_or_none(folder / PROVENANCE) or {}).get("folder", "."))
    with chdir(started if Path(started).is_dir() else "."):
        yield


def _chosen(folder: Path, results: Sequence[dict[str, Any]], seed: int | None) -> dict[str, Any]:
    """The result of a seed, the first where None."""
    for result in results:
        if seed in (None, result["seed"]):
            return result
    seeds = ", ".join(str(result["seed"]) for result in results)
    finished = f"finished: {seeds}" if results else "none is; run it first"
    told = "" if seed is None else f" {seed}"
    raise UserError(f"run: {folder} has no finished seed{told}; {finished}{damaged(folder)}")


def _demonstrations(cell: Path, result: Mapping[str, Any]) -> pa.Table:
    if not (cell / DEMOS).is_file():
        raise UserError(
            f"run: {cell} holds no {DEMOS}; start the run once more, which writes it and reuses what is finished"
        )
    demos = read_parquet(cell / DEMOS)
    if rows_digest(demos) != result.get("files", {}).get(DEMOS, rows_digest(demos)):
        raise UserError(
            f"run: {cell / DEMOS} can't be read: it holds other rows than the run was made with; start the run once "
            "more, which writes it and reuses what is finished"
        )
    return demos


@torch.no_grad()
def _put(learner: Learner, path: Path, digests: Mapping[str, str] | None) -> None:
    """Write a file's values into the learner's parameters that a training keeps; digests: as `Saved` has them."""
    wanted = learner.kept()
    if not wanted:
        return
    if file_of(path) is None:
        raise UserError(
            f"run: {path.parent} holds no {path.name}; this run did not keep a model that answers "
            "(a ticket search keeps its ticket only)"
        )
    with Saved(path, digests) as saved:
        misfits = sorted(set(saved.names) ^ set(wanted))
        for name, value in () if misfits else saved:
            if value.shape == wanted[name].shape:
                wanted[name].copy_(value)
            else:
                misfits.append(name)
    if misfits:
        more = f" and {len(misfits) - 1} more" if len(misfits) > 1 else ""
        raise UserError(f"run: {path} does not fit the method: {misfits[0]}{more}; run the job again")


def columns_of_texts(trained: Trained, texts: Sequence[str]) -> Columns:
    """One row out of texts: `field=text`, or the texts in the order of the task's fields.

    Raises:
        UserError: not one text for each field.
    """
    task = trained.task
    pairs = [text.partition("=") for text in texts]
    named = {name: text for name, equals, text in pairs if equals and name in task.fields}
    values = named or dict(zip(task.fields, texts, strict=False))
    if len(texts) != len(task.fields) or set(values) != set(task.fields):
        expected = " ".join(f"--text {name}=…" for name in task.fields)
        raise UserError(
            f"text: task {task.name} asks about {', '.join(task.fields)}; found {len(texts)} texts; "
            f"expected one for each, {expected}"
        )
    return Columns.of_records([{task.fields[name]: text for name, text in values.items()}])


def rows_of_texts(trained: Trained, texts: Sequence[str], language: str | None = None) -> pa.Table:
    """The row of `columns_of_texts` in the task's columns."""
    return rows_of(trained, columns_of_texts(trained, texts), "--text", language)


def rows_of_file(trained: Trained, path: str, language: str | None = None) -> pa.Table:
    """The rows of a data file in the task's columns, see `rows_of` and `sources.read_rows`."""
    return _all_say(
        trained, path, sources.read_rows(trained.resolved.origin, path, language, trained.job.train.languages[0])
    )


def records_of(trained: Trained, texts: Sequence[str]) -> list[dict[str, Any]]:
    """A row a text.

    Raises:
        UserError: the task has several fields.
    """
    fields = trained.task.fields
    if len(fields) != 1:
        raise UserError(
            f"predict: task {trained.task.name} asks about {', '.join(fields)}; found texts; "
            "expected mappings with these columns"
        )
    (column,) = fields.values()
    return [{column: value} for value in texts]


def _task_rows(
    trained: Trained, rows: Sequence[str] | Sequence[Mapping[str, Any]] | pa.Table, language: str | None
) -> pa.Table:
    """Rows as a program has them, in the task's columns."""
    if not isinstance(rows, pa.Table):
        values: list[Any] = list(rows)
        if values and all(isinstance(value, str) for value in values):
            values = records_of(trained, values)
        if not all(isinstance(value, Mapping) for value in values):
            raise UserError("predict: found rows of several types; expected texts, or mappings from column to value")
        return rows_of(trained, Columns.of_records([dict(value) for value in values]), "rows", language)
    return rows_of(trained, Columns.of_arrow(rows), "rows", language)


def rows_of(trained: Trained, columns: Columns, where: str, language: str | None) -> pa.Table:
    """Rows in the task's columns; labels are not looked at.

    Raises:
        UserError: a row in which no field has a text; see `sources.rows_of_table`.
    """
    otherwise = trained.job.train.languages[0]
    return _all_say(trained, where, sources.rows_of_table(trained.resolved.origin, columns, where, language, otherwise))


def _all_say(trained: Trained, where: str, rows: pa.Table) -> pa.Table:
    """The rows, if each has a text: an empty one would be answered like any other."""
    fields = list(trained.task.fields.values())
    batches = rows.select(fields).to_batches(max_chunksize=CHUNK)
    for number, row in enumerate(itertools.chain.from_iterable(map(pa.RecordBatch.to_pylist, batches))):
        if not any(map(_says, row.values())):
            raise UserError(
                f"data: {where} row {number} has no text in {' or '.join(fields)}; give one, or leave the row out"
            )
    return rows


def _says(value: str | list[str]) -> bool:
    return bool("".join(value).strip())


def predict(trained: Trained, rows: pa.Table) -> pa.Table:
    """The answers to rows in the task's columns, see `Trained.predict`."""
    learner, settings = trained.learner, trained.job.train
    stepper = TorchStepper(learner, settings, device_here())
    tables, far = [], Work("answering", len(rows))
    for start in range(0, len(rows), CHUNK):
        chunk = rows.slice(start, CHUNK).to_pylist()
        prompts = list(itertools.chain.from_iterable(map(trained.encoder, chunk)))
        dataset = PromptDataset(prompts, learner.method, learner.method.backbone.pad)
        answers = evaluate(stepper, dataset, settings)
        tables.append(answer_table(trained.task, by_row(learner.readout, prompts, answers)).drop_columns("gold"))
        far.at(start + len(chunk))
    far.end()
    return pa.concat_tables(tables, promote_options="permissive")

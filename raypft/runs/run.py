"""A run: its folder, what is known before compute is spent, its cells, its table.

runs/<name>/job.yaml            the resolved job
           provenance.json      git, versions, device, model and data revision
           samples.json         the sample manifest of every seed
           seed-<n>/events.jsonl, predictions.parquet, trained.safetensors, result.json   (state.pt while unfinished);
                    demos.parquet where the prompts show demonstrations
           table.md             mean and std over seeds
"""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pa_parquet
import torch
import yaml

from raypft.backbones.base import Backbone
from raypft.backbones.load import load_backbone, load_skeleton
from raypft.config.job import Job, Resources, Train, digest, part_config
from raypft.data import sources
from raypft.data import streaming as stream
from raypft.data.sampling import Sample, draw, protocol
from raypft.errors import UserError
from raypft.runs.cell import Cell, Tell, recorder, run_cell
from raypft.storage import locked, path_of, remove, written
from raypft.tasks.metrics import metric
from raypft.tasks.task import load_task
from raypft.training.encode import ENCODING, Encoder, check_fit, encode_sample

NOT_SAMPLED = set(Train.model_fields) - {"languages"}
"""Keys of `train` that do not decide which rows are drawn."""
PACKAGES = (
    "torch",
    "transformers",
    "deepspeed",
    "ray",
    "peft",
    "torch-geometric",
    "datasets",
    "pyarrow",
    "safetensors",
)
DEMOS = "demos.parquet"
"""A seed's demonstrations, so that a run can be used where its data is not."""


class Shelf:
    """What preparing many jobs has in common, each made once: splits, samples with their manifests, skeletons."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gave, or the UserError it raised, the first time it was asked for under this key."""
        if key not in self._made:
            try:
                self._made[key] = make()
            except UserError as error:  # a hub that can't be reached is not asked for every job
                self._made[key] = error
        if isinstance(self._made[key], UserError):
            raise self._made[key]
        return self._made[key]


@dataclass(frozen=True)
class Prepared:
    """All that can be known before compute is spent: the sample of every seed, the cell keys, the model's skeleton."""

    job: Job
    folder: Path
    samples: dict[int, Sample]
    manifests: dict[int, dict[str, Any]]
    keys: dict[int, str]
    skeleton: Backbone

    def cells(self, test: bool = True) -> list[Cell]:
        """The cells of the job, by seed."""
        return [
            Cell(self.job, seed, self.samples[seed], self.folder / f"seed-{seed}", self._facts(seed), test)
            for seed in self.job.seeds
        ]

    def _facts(self, seed: int) -> dict[str, Any]:
        manifest = self.manifests[seed]
        return {
            "cell": self.keys[seed],
            "backbone": self.skeleton.revision,
            "manifest": manifest["hash"],
            "sizes": manifest["sizes"],
            "notes": manifest["notes"],
            "test_rows": manifest["test_hash"],
            "protocol": self.job.protocol,
        }


def prepare(job: Job, shelf: Shelf | None = None) -> Prepared:
    """Read the rows, draw the samples, check that job, task and backbone fit together.

    Raises:
        UserError: anything that would fail later.
    """
    prepared = identify(job, shelf or Shelf())
    check_fit(job, prepared.skeleton)
    prepared.skeleton.reset()
    for sample in {id(sample): sample for sample in prepared.samples.values()}.values():
        first = Sample(sample.train.slice(0, 1), None, sample.test.slice(0, 1), sample.demos)
        encode_sample(job, prepared.skeleton.text, first)
    return prepared


def identify(job: Job, shelf: Shelf) -> Prepared:
    """The samples and the cell keys of a job, unchecked.

    Raises:
        UserError: data or backbone can't be read.
    """
    samples = draw_samples(job, shelf)
    manifests = {seed: shelf.once(("manifest", id(sample)), sample.manifest) for seed, sample in samples.items()}
    skeleton = shelf.once(("skeleton", job.backbone), functools.partial(load_skeleton, job.backbone))
    keys = cell_keys(job, {seed: manifest["hash"] for seed, manifest in manifests.items()}, skeleton.revision)
    return Prepared(job, path_of(job.storage) / job.run_name, samples, manifests, keys, skeleton)


def cell_keys(job: Job, data: Mapping[int, str], weights: str) -> dict[int, str]:
    """The key of each seed's cell: a hash over all that decides its numbers.

    Args:
        data: hash of the sample manifest by seed; weights: revision of the backbone.
    """
    method, method_config = part_config(job.method, "method")
    task = load_task(job.task)
    asked = {
        "pattern": task.pattern(job.pattern).model_dump(exclude={"source"}),
        "labels": task.label.names,
        "metrics": [metric(name)[0] for name in task.metrics],
    }
    artefact = method_config.artefact()
    if artefact:
        asked["artefact"] = artefact
    if job.train.precision != "fp32":
        asked["cast"] = (
            job.resources.workers > 0
        )  # DeepSpeed casts the weights, plain torch computes on them in half precision
    if job.data.stream is not None:
        asked["order"] = stream.ORDER
    readout, _ = part_config(job.readout, "readout")
    numerics = [method.numerics, readout.numerics, ENCODING]
    common = {**job.scientific(), "backbone": weights, "numerics": numerics, "asked": asked}
    return {seed: digest({**common, "seed": seed, "data": manifest}) for seed, manifest in data.items()}


def draw_samples(job: Job, shelf: Shelf) -> dict[int, Sample]:
    """The sample of every seed."""
    task, rule = load_task(job.task), protocol(job.protocol)
    origin = sources.choose(task, job.data.source, job.data.root, job.shots)
    place = (job.task, origin.name, origin.root, origin.shots if "{shots}" in str(origin.source.files) else None)

    def split(name: str, languages: list[str]) -> Any:
        return shelf.once(("split", *place, name, *languages), lambda: sources.read_split(origin, name, languages))

    index = None
    if job.data.stream is not None:
        _check_streamed(job)
        index = shelf.once(("index", *place, *job.train.languages), lambda: stream.index(origin, job.train.languages))

    def draw_one(sample_seed: int) -> Sample:
        train = split("train", job.train.languages) if index is None else shelf.once(("head", id(index)), index.head)
        test = None if rule.tests_dev else split("test", job.test.languages or sources.languages_of(origin, "test"))
        if train is None or (test is None and not rule.tests_dev):
            raise UserError(
                f"data: source {origin.name} of {task.name} has no {'train' if train is None else 'test'} split; choose another data.source"
            )
        wants_dev = (job.dev.rows or rule.dev) != "none" and not rule.dev_from_train
        validation = split("validation", job.train.languages) if wants_dev else None
        if index is not None and wants_dev and validation is None:
            raise UserError(
                f"data.stream: {task.name} has no validation split in source {origin.name}, and streamed rows are not held out; set dev.rows=none"
            )
        sample = draw(
            train,
            validation,
            test,
            labels=task.label.names if task.kind == "choice" else [],
            rule=rule,
            shots=job.shots,
            demos=job.demos,
            seed=sample_seed,
            dev=job.dev.rows,
            dev_limit=job.dev.limit,
            test_limit=job.test.limit,
        )
        return replace(sample, stream=index)

    asked = job.model_dump_json(
        include={"task", "protocol", "shots", "demos", "dev", "test", "data", "train"}, exclude={"train": NOT_SAMPLED}
    )
    return {
        seed: shelf.once(
            ("sample", asked, job.sample_seed_of(seed)), functools.partial(draw_one, job.sample_seed_of(seed))
        )
        for seed in job.seeds
    }


def _check_streamed(job: Job) -> None:
    for key, found in (("shots", job.shots), ("demos", job.demos or None)):
        if found is not None:
            raise UserError(
                f"data.stream: found {key}={found}; a stream has all rows, none are drawn from it; leave {key} or data.stream out"
            )
    if protocol(job.protocol).dev_from_train and job.dev.rows != "none":
        raise UserError(
            f"data.stream: protocol {job.protocol} holds dev rows out of train, which a stream can't; use protocol=fixed or dev.rows=none"
        )


def run(prepared: Sequence[Prepared], tell: Tell, fresh: bool = False) -> list[list[dict[str, Any]]]:
    """Run the unfinished cells of jobs and return each job's results by seed; finished cells are reused.

    Jobs with the same resources share a worker group.

    Raises:
        UserError: another process works on a run, or its data or model changed since it began.
    """
    folders = [ready.folder for ready in prepared]
    if len(set(folders)) < len(folders):
        raise UserError(
            f"run: {next(f for f in folders if folders.count(f) > 1)} was asked for twice; name each job once"
        )
    with ExitStack() as stack:
        stack.enter_context(_session([ready.job for ready in prepared]))
        for ready in prepared:
            stack.enter_context(begun(ready, fresh))
        todo: dict[Resources, list[Cell]] = {}
        for ready in prepared:
            for cell in ready.cells():
                if cell.finished:
                    tell({"event": "reuse", "run": ready.folder.name, "seed": cell.seed})
                else:
                    todo.setdefault(ready.job.resources, []).append(cell)
        for resources, cells in todo.items():
            if resources.workers:
                from raypft.scale.session import run_on_ray  # noqa: PLC0415  (ray is loaded only where it is used)

                run_on_ray(cells, tell)
            else:
                here = Here()
                for cell in cells:
                    here.run(cell, tell)
        return [conclude(ready) for ready in prepared]


@contextmanager
def begun(prepared: Prepared, fresh: bool, wait: float = 0) -> Iterator[None]:
    """The run's folder, locked (waiting so many seconds for another process) and with its inputs written."""
    with locked(prepared.folder, wait):
        if fresh:
            for cell in prepared.cells():
                remove(cell.folder)
        _check_unchanged(prepared)
        _write_inputs(prepared)
        yield


def conclude(prepared: Prepared) -> list[dict[str, Any]]:
    """Write the run's table, where something of it is tested; its results by seed."""
    from raypft.report.table import run_table  # noqa: PLC0415

    results = read_results(prepared.folder)
    if results:
        (prepared.folder / "table.md").write_text(run_table([prepared.folder]).markdown())
    return [result for result in results if result["seed"] in prepared.job.seeds]


class Here:
    """Runs cells in this process; the backbone stays loaded from one to the next."""

    def __init__(self) -> None:
        self.backbone: Backbone | None = None
        self.loaded: Any = None

    def run(self, cell: Cell, tell: Tell) -> dict[str, Any]:
        """Run one cell; its result."""
        wanted = (cell.job.backbone, cell.job.train.dropout)
        if self.backbone is None or wanted != self.loaded:
            self.backbone, self.loaded = load_backbone(*wanted), wanted
        note, name = recorder(cell.folder), cell.folder.parent.name

        def both(event: dict[str, Any]) -> None:
            note(event)
            tell({"run": name, **event})

        prompts, flow = encode_sample(cell.job, self.backbone.text, cell.sample), None
        if cell.sample.stream is not None and cell.job.data.stream is not None:
            flow = stream.Local(cell.sample.stream, cell.job.data.stream, Encoder.of(cell.job, self.backbone.text))
        result = run_cell(
            cell.job, cell.seed, prompts, self.backbone, cell.folder, cell.facts, tell=both, test=cell.test, flow=flow
        )
        both({"event": "result", "seed": cell.seed, "mean": result.get("mean")})
        return result


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The finished cells of a run, by seed."""
    return sorted(
        (json.loads(path.read_text()) for path in folder.glob("seed-*/result.json")), key=lambda result: result["seed"]
    )


def read_job(folder: Path) -> dict[str, Any]:
    """The resolved job of a run.

    Raises:
        UserError: the folder is no run.
    """
    path = folder / "job.yaml"
    if not path.is_file():
        raise UserError(f"run: {folder} holds no job.yaml; give the folder of a run, e.g. runs/profit-xnli-…")
    return yaml.safe_load(path.read_text())


@contextmanager
def _session(jobs: Sequence[Job]) -> Iterator[None]:
    """One Ray session for several jobs, if any of them has workers; there must be CPUs for them."""
    with_workers = [job for job in jobs if job.resources.workers]
    if not with_workers:
        yield
        return
    from raypft.scale.session import check_resources, ray_session  # noqa: PLC0415

    with ray_session():
        for job in with_workers:
            check_resources(job)
        yield


def _check_unchanged(prepared: Prepared) -> None:
    path = prepared.folder / "samples.json"
    if not path.is_file():
        return
    before = json.loads(path.read_text())
    for seed in [cell.seed for cell in prepared.cells() if cell.folder.is_dir()]:
        stored = before.get(str(seed), {})
        if stored.get("cell") != prepared.keys[seed]:
            raise UserError(
                f"run: {prepared.folder} seed {seed} was begun with other data, model or method version "
                f"(cell {stored.get('cell')}, now {prepared.keys[seed]}); use --fresh to start over, or another storage="
            )


def _write_inputs(prepared: Prepared) -> None:
    folder = prepared.folder
    (folder / "job.yaml").write_text(prepared.job.dump())
    (folder / "provenance.json").write_text(json.dumps(provenance(prepared), indent=1))
    path = folder / "samples.json"
    stored = json.loads(path.read_text()) if path.is_file() else {}
    stored |= {str(seed): {"cell": prepared.keys[seed], **manifest} for seed, manifest in prepared.manifests.items()}
    path.write_text(json.dumps(stored, ensure_ascii=False))
    for cell in prepared.cells():  # after samples.json: a seed's folder says that it was begun
        if cell.sample.demos is not None:
            cell.folder.mkdir(exist_ok=True)
            with written(cell.folder / DEMOS) as file:
                pa_parquet.write_table(cell.sample.demos, file)


def provenance(prepared: Prepared) -> dict[str, Any]:
    """What a result depends on beside the job: code, packages, machine, model, data."""
    job = prepared.job
    origin = sources.choose(load_task(job.task), job.data.source, job.data.root, job.shots)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "git": _git(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("raypft", *PACKAGES)},
        "machine": {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "backbone": {"name": job.backbone, "source": prepared.skeleton.source, "revision": prepared.skeleton.revision},
        "data": {"source": origin.name, "root": origin.root, "hub": origin.source.hub},
        "manifests": {seed: manifest["hash"] for seed, manifest in prepared.manifests.items()},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Commit and dirtiness of the code, None where it is no checkout."""
    here = Path(__file__).parent

    def ask(*words: str) -> str | None:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    return None if commit is None else {"commit": commit, "dirty": bool(ask("status", "--porcelain"))}

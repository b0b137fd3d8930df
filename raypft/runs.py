"""A run: its folder, what is known before compute is spent, its cells, its table.

runs/<name>/job.yaml            the resolved job
           provenance.json      git, versions, device, model and data revision
           samples.json         the sample manifest of every seed
           seed-<n>/events.jsonl, predictions.parquet, trained.safetensors, result.json   (state.pt while unfinished)
           table.md             mean and std over seeds
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout

from raypft import sources
from raypft.backbones import Backbone, load_backbone, load_skeleton, revision
from raypft.cells import run_cell
from raypft.encode import check_fit, encode_sample
from raypft.errors import UserError
from raypft.fewshot import Sample, draw, protocol
from raypft.job import Job, part_config
from raypft.metrics import metric
from raypft.tasks import load_task

Tell = Callable[[dict[str, Any]], None]
PACKAGES = ("torch", "transformers", "deepspeed", "ray", "peft", "torch-geometric", "datasets", "pyarrow", "safetensors")


@dataclass(frozen=True)
class Prepared:
    """All that can be known before compute is spent: the sample of every seed, the cell keys, the model's skeleton."""

    job: Job
    folder: Path
    samples: dict[int, Sample]
    manifests: dict[int, dict[str, Any]]
    keys: dict[int, str]
    skeleton: Backbone

    def facts(self, seed: int) -> dict[str, Any]:
        """What a cell's result says about its inputs."""
        manifest = self.manifests[seed]
        return {
            "cell": self.keys[seed],
            "manifest": manifest["hash"],
            "sizes": manifest["sizes"],
            "notes": manifest["notes"],
            "test_rows": manifest["test_hash"],
        }

    def unfinished(self) -> list[int]:
        """The seeds without a result."""
        return [seed for seed in self.job.seeds if not (cell_folder(self.folder, seed) / "result.json").is_file()]


def cell_folder(folder: Path, seed: int) -> Path:
    """Where a seed's files are."""
    return folder / f"seed-{seed}"


def prepare(job: Job) -> Prepared:
    """Read the rows, draw the samples, check that job, task and backbone fit together.

    Raises:
        UserError: anything that would fail later.
    """
    samples = draw_samples(job)
    skeleton = load_skeleton(job.backbone)
    check_fit(job, skeleton)
    skeleton.reset()
    for sample in samples.values():
        first = Sample(sample.train.slice(0, 1), None, sample.test.slice(0, 1), sample.demos)
        encode_sample(job, skeleton, first)
    manifests = {seed: sample.manifest() for seed, sample in samples.items()}
    method, method_config = part_config(job.method, "method")
    weights = revision(Path(skeleton.source)) if skeleton.source else ""
    task = load_task(job.task)
    asked = {"pattern": task.pattern(job.pattern).model_dump(exclude={"source"}), "labels": task.label.names, "metric": metric(task.metric)[0]}
    artefact = method_config.artefact()
    if artefact:
        asked["artefact"] = artefact
    keys = {seed: job.key(seed=seed, data=manifests[seed]["hash"], backbone=weights, numerics=method.numerics, asked=asked) for seed in job.seeds}
    return Prepared(job, Path(job.storage) / job.run_name, samples, manifests, keys, skeleton)


def draw_samples(job: Job) -> dict[int, Sample]:
    """The sample of every seed."""
    task, rule = load_task(job.task), protocol(job.protocol)
    origin = sources.choose(task, job.data.source, job.data.root, job.shots)
    train = sources.read_split(origin, "train", job.train.languages)
    test = sources.read_split(origin, "test", job.test.languages or sources.languages_of(origin, "test"))
    if train is None or test is None:
        raise UserError(f"data: source {origin.name} of {task.name} has no {'train' if train is None else 'test'} split; choose another data.source")
    wants_dev = (job.dev.rows or rule.dev) != "none" and not rule.dev_from_train
    validation = sources.read_split(origin, "validation", job.train.languages) if wants_dev else None
    drawn: dict[int, Sample] = {}
    by_seed: dict[int, Sample] = {}
    for seed in job.seeds:
        sample_seed = job.sample_seed_of(seed)
        if sample_seed not in drawn:
            drawn[sample_seed] = draw(
                train, validation, test, labels=task.label.names, rule=rule, shots=job.shots, demos=job.demos, seed=sample_seed,
                dev=job.dev.rows, dev_limit=job.dev.limit, test_limit=job.test.limit,
            )  # fmt: skip
        by_seed[seed] = drawn[sample_seed]
    return by_seed


def run(prepared: Prepared, tell: Tell, fresh: bool = False) -> list[dict[str, Any]]:
    """Run the unfinished cells of a job and return the results of all seeds; finished cells are reused.

    Raises:
        UserError: another process works on this run, or its data or model changed since it began.
    """
    job, folder = prepared.job, prepared.folder
    if job.resources.workers:
        from raypft.scale.launch import check_resources  # noqa: PLC0415  (ray is loaded only where it is used)

        check_resources(job)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        if fresh:
            for path in folder.glob("seed-*"):
                shutil.rmtree(path)
        _check_unchanged(prepared)
        _write_inputs(prepared)
        todo = prepared.unfinished()
        for seed in job.seeds:
            if seed not in todo:
                tell({"event": "reuse", "seed": seed})
        if todo and job.resources.workers:
            from raypft.scale.launch import run_on_ray  # noqa: PLC0415

            run_on_ray(prepared, todo, tell)
        elif todo:
            _run_here(prepared, todo, tell)
        results = read_results(folder)
        from raypft.report import run_table  # noqa: PLC0415

        (folder / "table.md").write_text(run_table([folder]).markdown())
    return [result for result in results if result["seed"] in job.seeds]


def _run_here(prepared: Prepared, seeds: list[int], tell: Tell) -> None:
    job = prepared.job
    backbone = load_backbone(job.backbone, job.train.dropout)
    for seed in seeds:
        folder = cell_folder(prepared.folder, seed)
        prompts = encode_sample(job, backbone, prepared.samples[seed])
        note = recorder(folder)

        def both(event: dict[str, Any], note: Tell = note) -> None:
            note(event)
            tell(event)

        result = run_cell(job, seed, prompts, backbone, folder, prepared.facts(seed), tell=both)
        tell({"event": "result", "seed": seed, "mean": result["mean"]})


def recorder(folder: Path) -> Tell:
    """Appends events, with the time, to the cell's events.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)

    def note(event: dict[str, Any]) -> None:
        with (folder / "events.jsonl").open("a") as stream:
            stream.write(json.dumps({"time": round(time.time(), 3), **event}) + "\n")

    return note


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The finished cells of a run, by seed."""
    return sorted((json.loads(path.read_text()) for path in folder.glob("seed-*/result.json")), key=lambda result: result["seed"])


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
def session(jobs: list[Job]) -> Iterator[None]:
    """Keeps one Ray session for several jobs, if any of them has workers."""
    if not any(job.resources.workers for job in jobs):
        yield
        return
    from raypft.scale.launch import ray_session  # noqa: PLC0415

    with ray_session():
        yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise UserError(f"run: another process is at work on {folder}; wait for it, or choose another storage=") from None


def _check_unchanged(prepared: Prepared) -> None:
    path = prepared.folder / "samples.json"
    if not path.is_file():
        return
    before = json.loads(path.read_text())
    started = [s for s in prepared.job.seeds if cell_folder(prepared.folder, s).is_dir()]
    for seed in started:
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
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]},
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

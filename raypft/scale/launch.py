"""Ray Train around `run_cell`: a worker group takes the seeds of a job one after the other; a dead worker costs only what
came after the cell's last state.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.data
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from torch import distributed

from raypft.backbones import load_backbone
from raypft.cells import Cell, Tell, is_finished, recorder, run_cell
from raypft.errors import UserError
from raypft.job import Job
from raypft.scale.cluster.feasible import Infeasible, impossible, job_bundles, shapes_here
from raypft.scale.data import ENCODER_CPUS, encode_on_ray, encoded_file, read_encoded

READER_CPUS = 1.0
STALL_SECONDS = 120


def cpus_per_worker(job: Job, logical: float) -> float:
    """CPUs Ray reserves for each worker, such that workers + encoder + reader fit the machine.

    Raises:
        UserError: the job asks for more than there is; Ray would wait for ever.
    """
    workers, asked = job.resources.workers, job.resources.cpus_per_worker
    free = logical - READER_CPUS - ENCODER_CPUS
    fair = max(0.0, free / workers)
    if free <= 0:
        raise UserError(
            f"resources: Ray has {logical:g} CPUs; reading ({READER_CPUS:g}) and encoding ({ENCODER_CPUS:g}) leave none for workers; use resources.workers=0"
        )
    if asked is not None and asked * workers + READER_CPUS + ENCODER_CPUS > logical:
        needed = asked * workers + READER_CPUS + ENCODER_CPUS
        raise UserError(
            f"resources.cpus_per_worker: {workers} workers x {asked:g} + {READER_CPUS:g} for reading + {ENCODER_CPUS:g} for encoding = {needed:g} CPUs; "
            f"Ray has {logical:g}; use at most {fair:g}"
        )
    return asked if asked is not None else min(1.0, fair)


@contextmanager
def ray_session() -> Iterator[None]:
    """Ray for the time of a command: a running cluster is joined ($RAY_ADDRESS), else one is started here and ended after."""
    started = False
    if not ray.is_initialized():
        threads = str(max(1, (os.cpu_count() or 1) // 2))
        environment = {
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
            "TOKENIZERS_PARALLELISM": "false",
            "RAY_TRAIN_V2_ENABLED": "1",
            "PYTHONWARNINGS": "ignore",
        }
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
        warnings.filterwarnings("ignore", module="ray")
        address = os.environ.get("RAY_ADDRESS")
        ray.init(
            address=address, runtime_env={"env_vars": environment}, logging_level=logging.ERROR, log_to_driver=False,
            **({} if address else {"include_dashboard": False}),
        )  # fmt: skip
        started = True
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    try:
        yield
    finally:
        if started:
            ray.shutdown()


def check_resources(job: Job) -> None:
    """Raise a UserError where Ray has, and can get, too little for the job, before anything is written."""
    with ray_session():
        cpus_per_worker(job, logical_cpus())
    shapes = shapes_here()
    line = impossible(job_bundles(job.resources), shapes, "this cluster") if shapes else None
    if line:
        raise Infeasible(line)


def logical_cpus() -> float:
    """CPUs that Ray counts; on a cluster that grows with demand, those of all nodes that may come."""
    shapes = shapes_here()
    return sum(shape.offers["CPU"] * shape.most for shape in shapes) if shapes else ray.cluster_resources().get("CPU", 0)


def run_on_ray(cells: Sequence[Cell], tell: Tell, stop: Path | None = None) -> None:
    """Run cells, which have the same resources, on one Ray Train worker group; results are on disk when it returns.

    Args:
        stop: where a file appears, the workers end after their epoch; the rest of the cells is left as it is.

    Raises:
        UserError: CPUs do not fit; or training failed, with the worker's own line.
    """
    job = cells[0].job
    resources = job.resources
    with ray_session(), quiet_loggers():
        cpus = cpus_per_worker(job, logical_cpus())
        encode_on_ray(cells)
        storage = Path(job.storage).resolve() / ".ray"
        trainer = TorchTrainer(
            work,
            train_loop_config={"cells": [_packed(cell) for cell in cells], "stop": stop and str(stop)},
            scaling_config=ScalingConfig(
                num_workers=resources.workers,
                use_gpu=resources.gpus_per_worker > 0,
                resources_per_worker={"CPU": cpus, **({"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {})},
            ),
            torch_config=TorchConfig(backend="nccl" if resources.gpus_per_worker else "gloo"),
            run_config=RunConfig(
                name=f"attempt-{time.time_ns()}", storage_path=str(storage), failure_config=FailureConfig(max_failures=resources.max_failures)
            ),
        )
        with _following(cells, tell):
            try:
                trainer.fit()
            except ray.train.TrainingFailedError as error:
                raise _plain(error, storage) from None


def _packed(cell: Cell) -> dict[str, Any]:
    """A cell as workers get it."""
    return {
        "job": cell.job.model_dump(), "seed": cell.seed, "folder": str(cell.folder.resolve()), "encoded": str(encoded_file(cell)), "facts": cell.facts,
        "test": cell.test,
    }  # fmt: skip


class _Stopped(Exception):
    """The cells are no longer wanted; every worker raises it after the same epoch."""


def work(config: dict[str, Any]) -> None:
    """What each worker runs: the unfinished cells, one after the other."""
    with contextlib.suppress(_Stopped):
        _work(config)


def _work(config: dict[str, Any]) -> None:
    from raypft.scale.stepper import DeepSpeedStepper  # noqa: PLC0415  (sets what DeepSpeed reads at import)

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    cells = config["cells"]
    everyone: list[Any] = [None] * distributed.get_world_size()
    done = [is_finished(Path(cell["folder"]), cell["test"]) for cell in cells]
    distributed.all_gather_object(everyone, ([cell["facts"]["cell"] for cell in cells], done))
    if any(keys != everyone[0][0] for keys, _ in everyone):
        raise RuntimeError(f"workers received different jobs: {everyone}")
    device = str(ray.train.torch.get_device())
    backbone, loaded = None, None
    for cell in [cell for cell, is_done in zip(cells, everyone[0][1], strict=True) if not is_done]:
        job, seed, folder = Job(**cell["job"]), cell["seed"], Path(cell["folder"])
        wanted = (job.backbone, job.train.dropout)
        if backbone is None or wanted != loaded:
            backbone, loaded = load_backbone(*wanted), wanted
        steppers = []

        def make_stepper(learner, settings, state, job=job, steppers=steppers):
            steppers.append(DeepSpeedStepper(job, learner, settings, device, state))
            return steppers[-1]

        note = recorder(folder) if distributed.get_rank() == 0 else lambda event: None

        def tell(event: dict[str, Any], note: Tell = note) -> None:
            note(event)
            if event["event"] != "step":  # steps are told by each rank's own clock
                _check_wanted(config["stop"])

        result = run_cell(job, seed, read_encoded(Path(cell["encoded"])), backbone, folder, cell["facts"], make_stepper, tell, cell["test"])
        note({"event": "result", "seed": seed, "mean": result.get("mean")})
        steppers[-1].close()
        if job.zero.stage == 3 or job.train.precision != "fp32":
            backbone = None  # partitioned or cast weights do not come back; the next cell loads anew


def _check_wanted(stop: str | None) -> None:
    """Rank 0 looks for the stop file, all ranks learn what it saw: none is left waiting in a collective."""
    if stop is not None:
        seen = [Path(stop).exists()]
        distributed.broadcast_object_list(seen)
        if seen[0]:
            raise _Stopped


@contextmanager
def _following(cells: Sequence[Cell], tell: Tell) -> Iterator[None]:
    """Pass the workers' events on while they work; say so when nothing has come for a while."""
    over = threading.Event()
    runs = {cell.folder / "events.jsonl": cell.folder.parent.name for cell in cells}
    read = {path: path.stat().st_size if path.is_file() else 0 for path in runs}

    def pass_on() -> bool:
        found = False
        for path, run in runs.items():
            if not path.is_file():
                continue
            with path.open() as stream:
                stream.seek(read[path])
                for line in stream:
                    if not line.endswith("\n"):
                        break
                    read[path] += len(line.encode())
                    found = True
                    tell({"run": run, **json.loads(line)})
        return found

    def follow() -> None:
        last = time.monotonic()
        while not over.wait(0.3):
            if pass_on():
                last = time.monotonic()
            elif time.monotonic() - last > STALL_SECONDS:
                tell({"event": "stall", "text": f"nothing heard from the workers for {STALL_SECONDS} s; Ray's logs: {ray_logs()}"})
                last = time.monotonic()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        pass_on()


def ray_logs() -> str:
    """The folder of this Ray session's logs."""
    return os.path.join(ray._private.worker._global_node.get_session_dir_path(), "logs") if ray.is_initialized() else "not running"


@contextmanager
def quiet_loggers(level: int = logging.ERROR) -> Iterator[None]:
    """Ray's loggers say nothing below `level`."""
    names = ("ray.train", "ray.data", "ray.tune", "ray")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _plain(error: Exception, storage: Path) -> Exception:
    """The worker's own error where it was the user's to mend, else the failure with the place of the logs."""
    causes = list(getattr(error, "worker_failures", {}).values()) or [error]
    for cause in causes:
        origins = (cause, cause.__cause__, getattr(cause, "_base_exc", None))
        for origin in origins:
            if isinstance(origin, UserError):
                return UserError(str(origin))
    log = storage / "failure.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("\n\n".join(map(str, [error, *causes])))
    last = (str(causes[0]).strip().splitlines() or ["no reason given"])[-1]
    return UserError(f"run: training failed on the workers: {last}; the whole traceback is in {log}")

"""Jobs on Ray: the session, the CPUs that workers, reader and encoder share, and a job's cells on one lane of workers."""

from __future__ import annotations

import itertools
import json
import logging
import os
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import ray
import ray.data

from raypft.cells import Cell, Tell
from raypft.errors import UserError
from raypft.job import Job
from raypft.scale.cluster.feasible import Infeasible, Shape, impossible, job_bundles, shapes_here
from raypft.scale.data import ENCODER_CPUS, encode_on_ray
from raypft.scale.lane import Lane

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


def capacity() -> list[Shape]:
    """The nodes that Ray has, as if they were one; on a cluster that grows with demand, the nodes that may come."""
    shapes = shapes_here()
    if shapes:
        return shapes
    with ray_session():
        has = ray.cluster_resources()
    return [Shape("cluster", {"CPU": has.get("CPU", 0), "GPU": has.get("GPU", 0)}, 1)]


def logical_cpus(shapes: Sequence[Shape] | None = None) -> float:
    """CPUs of all nodes."""
    return sum(shape.offers["CPU"] * shape.most for shape in shapes or capacity())


def run_on_ray(cells: Sequence[Cell], tell: Tell) -> None:
    """Run cells, which have the same resources, on Ray Train workers; results are on disk when it returns.

    Raises:
        UserError: CPUs do not fit; or a cell failed, with the worker's own line.
    """
    with ray_session(), quiet_loggers(), _following(cells, tell):
        cpus = cpus_per_worker(cells[0].job, logical_cpus())
        encode_on_ray(cells)
        for _, alike in itertools.groupby(cells, key=lambda cell: Lane.kind(cell.job)):
            own = list(alike)
            with Lane(own[0].job, cpus) as lane:
                for cell in own:
                    lane.run(cell)


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

"""The Ray session, what it must have for a job, and the CPUs that workers, reader and encoder share."""

from __future__ import annotations

import logging
import os
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raypft.cluster.feasible import Infeasible, Shape, impossible, job_bundles, shapes_here
from raypft.config.job import Job
from raypft.errors import UserError
from raypft.scale.data import ENCODER_CPUS
from raypft.storage import absolute, path_of

READER_CPUS = 1.0


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
    """Ray for the time of a command: joins a running cluster ($RAY_ADDRESS), else starts one here and ends it after."""
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
            address=address,
            runtime_env={"env_vars": environment},
            logging_level=logging.ERROR,
            log_to_driver=False,
            **({} if address else {"include_dashboard": False}),
        )
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
    shapes = shapes_here()
    with ray_session():
        cpus_per_worker(job, logical_cpus())
        check_label(job)
    line = impossible(job_bundles(job.resources), shapes, "this cluster") if shapes else None
    if line:
        raise Infeasible(line)


def check_label(job: Job) -> None:
    """Raise a UserError where no node has, or will have, the label of those that read rows: Ray Data would wait for ever."""
    label = job.resources.data_label
    nodes = [shape.labels for shape in shapes_here() or ()] or [node["Labels"] for node in ray.nodes() if node["Alive"]]
    if label and not any(f"{key}={value}" == label for labels in nodes for key, value in labels.items()):
        known = sorted(
            {f"{key}={value}" for labels in nodes for key, value in labels.items() if not key.startswith("ray.io/")}
        )
        raise UserError(
            f'resources.data_label: no node has "{label}"; found: {", ".join(known) or "no labels"}; leave it out, or label nodes that read rows'
        )


def check_storage(storage: str) -> None:
    """Raise a UserError where another node does not see what this process writes there.

    Its workers' results would be lost.
    """
    here = ray.get_runtime_context().get_node_id()
    others = {
        node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here
    }
    if not others:
        return
    folder = path_of(absolute(storage))
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / f".seen-{uuid.uuid4().hex}"
    marker.write_bytes(b"")
    looks = [_miss.options(scheduling_strategy=NodeAffinitySchedulingStrategy(name, soft=True)) for name in others]
    try:
        misses = ray.get([look.remote(str(marker)) for look in looks])
    finally:
        marker.unlink()
    for node, miss in zip(others.values(), misses, strict=True):
        if miss is not None:
            raise UserError(
                f"storage: node {node} does not see {folder}{miss}; "
                "give a folder that all nodes mount, or a URI such as s3://bucket/folder"
            )


@ray.remote(num_cpus=0)
def _miss(path: str) -> str | None:
    """None where a file is seen, else why not, as far as it is known."""
    try:
        return None if path_of(path).exists() else ""
    except Exception as error:  # each client has its own
        return f" ({' '.join(str(error).split())[:200]})"


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

"""The Ray session, and what it must have for a job."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import signal
import threading
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, cast

import ray
import ray.data
from ray._private import worker as rays_worker
from ray._private.utils import get_num_cpus
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raypft.config.job import Resources
from raypft.errors import UserError
from raypft.runs.provenance import COMMAND, command
from raypft.scale.address import check_address, no_cluster
from raypft.scale.resources import Shape, check_possible, cpus_per_worker, job_bundles, logical_cpus, shapes_here
from raypft.storage import absolute, path_of

LOOK_SECONDS = 5.0
"""How often a command looks whether its own node still belongs to the cluster."""
KEPT_BY_RAY = {
    "RAY_maximum_gcs_destroyed_actor_cached_count": "100",
    "RAY_maximum_gcs_dead_worker_cached_count": "100",
    "RAY_task_events_max_num_task_in_gcs": "1000",
    "RAY_enable_metrics_collection": "0",
}
"""Of how many ended actors, workers and tasks a session that is started here remembers what they were, up to 100,000 of
each else; and no metrics of every process that there was, which nobody asks for without a dashboard. Both grow by half
a megabyte to a whole one with each worker group (benchmarks/soak.py)."""


@contextmanager
def ray_session() -> Iterator[None]:
    """Ray for the time of a command: joins a running cluster ($RAY_ADDRESS), else starts one here and ends it after.

    Raises:
        UserError: there is no cluster at the address; or none could be started here; or this node was lost.
    """
    with _unprinted():
        yield from _session()


@contextmanager
def _unprinted() -> Iterator[None]:
    """What Ray prints of workers that die, long and in colours on stdout, is left to its logs; `log_to_driver` does not
    keep it back."""
    prints = rays_worker.print_to_stdstream
    rays_worker.print_to_stdstream = lambda data, ignore_prefix: None
    try:
        yield
    finally:
        rays_worker.print_to_stdstream = prints


@contextmanager
def _ending_with_its_node() -> Iterator[None]:
    """While open, the main thread ends where this node's raylet has died: what it waits for may never be told.

    Raises:
        UserError: it did.
    """
    main, ended, lost = threading.main_thread(), threading.Event(), threading.Event()
    if threading.current_thread() is not main:
        yield
        return
    here = ray.get_runtime_context().get_node_id()

    def look() -> None:
        while not ended.wait(LOOK_SECONDS):
            with suppress(Exception):  # the cluster may not answer: what else is left of Ray tells that
                if any(node["NodeID"] == here and not node["Alive"] for node in ray.nodes()):
                    lost.set()
                    signal.pthread_kill(cast(int, main.ident), signal.SIGURG)  # which else means nothing
                    return

    def lose(number: int, frame: object) -> None:
        raise KeyboardInterrupt  # what is waited for is not waited for any more; Ray makes another one of any

    before = signal.signal(signal.SIGURG, lose)
    looks = threading.Thread(target=look, daemon=True)
    looks.start()
    try:
        try:
            yield
        finally:
            ended.set()
            looks.join()
    except KeyboardInterrupt:
        if not lost.is_set():
            raise
        raise UserError(
            "ray: its process on this node (the raylet) has died, maybe since memory was full; what is finished is "
            "kept and the same command (without --fresh) goes on"
        ) from None
    finally:
        signal.signal(signal.SIGURG, before)


def _session() -> Iterator[None]:
    started = False
    if not ray.is_initialized():
        threads = str(max(1, (os.cpu_count() or 1) // 2))
        environment = {
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
            "TOKENIZERS_PARALLELISM": "false",
            "RAY_TRAIN_V2_ENABLED": "1",
            "PYTHONWARNINGS": "ignore",
            COMMAND: json.dumps(command()),
        }
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
        warnings.filterwarnings("ignore", module=r"ray\.")
        address = os.environ.get("RAY_ADDRESS")
        options: dict[str, Any] = {} if address else {"include_dashboard": False}
        for what, most in () if address else KEPT_BY_RAY.items():
            os.environ.setdefault(what, most)
        check_address(address)
        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                address=address,
                runtime_env={"env_vars": environment},
                logging_level=logging.ERROR,
                log_to_driver=False,
                **options,
            )
        except (ConnectionError, ValueError) as error:  # a ValueError: the address is none
            raise no_cluster(address, " ".join(str(error).split())[:200]) from None
        except Exception as error:  # Ray has no type of its own for it
            if "timed out during startup" not in str(error):
                raise
            raise UserError(
                "ray: it could not be started here in time; this machine is too busy, or its memory full; run again "
                "when there is room, which goes on from what is kept"
            ) from None
        if threading.current_thread() is threading.main_thread() and callable(before):
            signal.signal(signal.SIGTERM, before)  # Ray puts its own in the place of the command's
        started = True
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    try:
        with _ending_with_its_node() if started else nullcontext():
            yield
    finally:
        if started:
            ray.shutdown()


def check_resources(resources: Resources) -> None:
    """Raise a UserError where Ray has, and can get, too little for a job with workers, before anything is written.

    Asked is the cluster that is named. Where none is, and Ray does not run yet, it is not started to be asked: how many
    CPUs it would count here is known.
    """
    if ray.is_initialized() or os.environ.get("RAY_ADDRESS") or shapes_here():
        shapes = capacity()
        check_label(resources)
    else:
        shapes = [
            Shape("here", {"CPU": get_num_cpus(True), "GPU": math.inf}, 1)
        ]  # GPUs: `raypft.scale.machine.check_gpus`
        _check_label(resources, [])
    cpus_per_worker(resources, logical_cpus(shapes))
    asked = resources.gpus_per_worker * resources.workers
    there = sum(shape.offers["GPU"] * shape.most for shape in shapes)
    if asked > there:
        raise UserError(f"resources.gpus_per_worker: the job needs {asked:g} GPUs, Ray has {there:g}; ask for fewer")
    if shapes_here():
        check_possible(job_bundles(resources, logical_cpus(shapes)), shapes, "this cluster")


def check_label(resources: Resources) -> None:
    """Raise a UserError where no node has, or will have, the label of those that read rows: Ray Data would wait for
    ever."""
    if resources.data_label is None:
        return
    if shapes := shapes_here():
        _check_label(resources, [shape.labels for shape in shapes])
        return
    with ray_session():
        _check_label(resources, [node["Labels"] for node in ray.nodes() if node["Alive"]])


def _check_label(resources: Resources, nodes: list[dict[str, str]]) -> None:
    label = resources.data_label
    known: set[str] = set()
    for labels in nodes:
        known |= {f"{key}={value}" for key, value in labels.items()}
    if label and label not in known:
        named = sorted(text for text in known if not text.startswith("ray.io/"))
        raise UserError(
            f'resources.data_label: no node has "{label}"; found: {", ".join(named) or "no labels"}; '
            "leave it out, or label nodes that read rows"
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


def node_memory() -> list[float]:
    """Bytes of memory of each node of the cluster that is named, also of those that may still come, infinite where
    that is not known; nothing where none is named."""
    if not os.environ.get("RAY_ADDRESS"):
        return []
    if shapes := shapes_here():
        return list(itertools.chain.from_iterable([shape.memory or math.inf] * shape.most for shape in shapes))
    with ray_session():
        found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [offers.get("memory", 0) + offers.get("object_store_memory", 0) for offers in found]


def capacity() -> list[Shape]:
    """The nodes that Ray has, as if they were one; on a cluster that grows with demand, the nodes that may come."""
    shapes = shapes_here()
    if shapes:
        return shapes
    with ray_session():
        has = ray.cluster_resources()
    return [Shape("cluster", {"CPU": has.get("CPU", 0), "GPU": has.get("GPU", 0)}, 1)]


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

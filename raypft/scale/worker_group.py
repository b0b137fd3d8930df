"""A Ray Train worker group that takes one cell after another and outlives the trials that bring them.

Starting a group takes longer than a few-shot cell. The workers ask the group's queue, an actor, for the next cell and
wait there, never in a collective. Where a worker dies Ray Train starts the group again, which asks the queue where it
stood; failures are counted there, by cell. Where the queue dies the group is of no use to anyone: its workers end.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import ray
import ray._private.worker
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raypft.config.job import Job
from raypft.errors import UserError
from raypft.scale.cell_queue import CellQueue, last_line
from raypft.scale.process_group import ProcessGroupConfig
from raypft.storage import absolute, owned, path_of

if TYPE_CHECKING:
    from raypft.runs.results import Tell

POLL_SECONDS = 0.2
"""How often the owner of a group looks whether its workers are alive."""
STALL_SECONDS = 120


@functools.cache  # each time it is made Ray keeps a class
def _queue_actor() -> Any:
    return ray.remote(CellQueue)


class WorkerGroup:
    """The owner's side: brings cells, waits for them, and starts the workers when they are needed.

    Args:
        job: one of the jobs whose cells will come; all agree in `kind`.
        cpus: logical CPUs of each worker.
    """

    def __init__(self, job: Job, cpus: float) -> None:
        self.job, self.cpus = job, cpus
        node = ray.get_runtime_context().get_node_id()
        here = NodeAffinitySchedulingStrategy(node, soft=False)  # the queue must outlive the workers' nodes
        remote = _queue_actor().options(num_cpus=0, max_concurrency=1000, scheduling_strategy=here)
        self.queue: Any = remote.remote()
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None
        self.last_heard = 0.0

    @staticmethod
    def kind(job: Job) -> tuple[Any, ...]:
        """What the cells of one group have in common. (A process that has used one ZeRO stage keeps traces of it.)"""
        return job.resources, job.zero, job.train.precision, job.backbone

    def run(self, cell: dict[str, Any], tell: Tell) -> None:
        """Have a cell run; its result is stored when this returns.

        Args:
            cell: as `data.packed` gives it.
            tell: hears the cell's events, and when nothing has come for a while.

        Raises:
            UserError: the cell failed, with the worker's own line; or no workers could be started.
            RayActorError: the queue died.
        """
        self.last_heard = time.monotonic()
        finished = self.queue.wait.remote(ray.get(self.queue.put.remote(cell)))
        while not ray.wait([finished], timeout=POLL_SECONDS)[0]:
            self._pass_on(tell)
            if self.thread is None:
                self.thread = threading.Thread(target=self._train, daemon=True)
                self.thread.start()
            elif not self.thread.is_alive():
                self.thread = None  # the next look starts another, unless the cell has failed by now
                if not ray.get(self.queue.end.remote()):
                    raise UserError(f"run: no workers could be started: {last_line(self.error)}")
        error = ray.get(finished)
        self._pass_on(tell)
        if error is not None:
            raise UserError(error)

    def _pass_on(self, tell: Tell) -> None:
        events = ray.get(self.queue.take_events.remote())
        if not events and time.monotonic() - self.last_heard > STALL_SECONDS:
            workers = "; ".join(ray.get(self.queue.last_heard.remote()) or ["none of them has begun"])
            text = f"no progress for {STALL_SECONDS} s: {workers}; Ray's logs: {ray_logs()}"
            events = [{"event": "stall", "text": text}]
        if events:
            self.last_heard = time.monotonic()
        for event in events:
            tell(event)

    def end(self) -> None:
        """Let the workers go, and wait until they have."""
        if self.thread is not None:
            with suppress(RayActorError):  # then they go by themselves
                ray.get(self.queue.put.remote(None))
            self.thread.join()
        ray.kill(self.queue)

    def _train(self) -> None:
        """The life of the workers."""
        asked = self.job.resources
        os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # a job's relative paths are meant from where the command was given
        per_worker = {"CPU": self.cpus}
        if asked.gpus_per_worker:
            per_worker["GPU"] = asked.gpus_per_worker
        files = path_of(absolute(self.job.storage)) / ".ray" / f"attempt-{time.time_ns()}"
        trainer = DataParallelTrainer(
            work,
            train_loop_config={"queue": self.queue},
            scaling_config=ScalingConfig(
                num_workers=(asked.min_workers, asked.workers) if asked.min_workers else asked.workers,
                use_gpu=asked.gpus_per_worker > 0,
                resources_per_worker=per_worker,
            ),
            backend_config=ProcessGroupConfig("nccl" if asked.gpus_per_worker else "gloo"),
            run_config=RunConfig(
                name=files.name,
                storage_path=str(files.parent),
                failure_config=FailureConfig(max_failures=asked.max_failures),
            ),
        )
        try:
            with owned(files):
                trainer.fit()
        except Exception as error:  # told where the cell is waited for
            self.error = error


def ray_logs() -> str:
    """The folder of this Ray session's logs."""
    node = cast(Any, ray._private.worker._global_node)  # set by ray.init
    return os.path.join(node.get_session_dir_path(), "logs")


def work(config: dict[str, Any]) -> None:
    """What each worker runs."""
    from raypft.scale.worker import run_cells  # noqa: PLC0415  (whoever loads this module needs no torch, the workers do)

    queue = config["queue"]
    try:
        ray.get(queue.last_heard.remote())
    except RayActorError:  # it died while cells ran, and Ray Train has started the workers again
        return
    run_cells(queue)

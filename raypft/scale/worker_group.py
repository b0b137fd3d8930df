"""A lane: a Ray Train worker group that takes one cell after another and outlives the trials that bring them.

Starting a group takes longer than a few-shot cell. The workers ask the lane's desk, an actor, for the next cell and wait there,
never in a collective. Where a worker dies Ray Train starts the group again, which asks the desk where it stood; failures are
counted there, by cell.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raypft.config.job import Job
from raypft.errors import UserError
from raypft.scale.cell_queue import Desk
from raypft.scale.process_group import ProcessGroupConfig
from raypft.storage import absolute, path_of

if TYPE_CHECKING:
    from raypft.runs.results import Tell

LOOK_SECONDS = 0.2
"""How often the owner of a lane looks whether its workers are alive."""
STALL_SECONDS = 120


class Lane:
    """The owner's side: brings cells, waits for them, and starts the worker group when it is needed.

    Args:
        job: one of the jobs whose cells will come; all agree in `kind`.
        cpus: logical CPUs of each worker.
    """

    def __init__(self, job: Job, cpus: float) -> None:
        self.job, self.cpus = job, cpus
        here = NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )  # the desk must outlive the workers' nodes
        self.desk = ray.remote(Desk).options(num_cpus=0, max_concurrency=1000, scheduling_strategy=here).remote()
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None
        self.last = 0.0

    @staticmethod
    def kind(job: Job) -> tuple[Any, ...]:
        """What the cells of one lane have in common. (A process that has used one ZeRO stage keeps traces of it.)"""
        return job.resources, job.zero, job.train.precision, job.backbone

    def run(self, cell: dict[str, Any], tell: Tell = lambda event: None) -> None:
        """Have a cell run; its result is stored when this returns.

        Args:
            cell: as `data.packed` gives it.
            tell: hears the cell's events, and when nothing has come for a while.

        Raises:
            UserError: the cell failed, with the worker's own line; or no worker group can be started.
        """
        self.last = time.monotonic()
        outcome = self.desk.outcome.remote(ray.get(self.desk.put.remote(cell)))
        while not ray.wait([outcome], timeout=LOOK_SECONDS)[0]:
            self._pass_on(tell)
            if self.thread is None:
                self.thread = threading.Thread(target=self._work, daemon=True)
                self.thread.start()
            elif not self.thread.is_alive():
                self.thread = None  # the next look starts another, unless the cell has failed by now
                if not ray.get(self.desk.died.remote()):
                    raise UserError(f"run: no workers could be started: {last_line(self.error)}")
        error = ray.get(outcome)
        self._pass_on(tell)
        if error is not None:
            raise UserError(error)

    def _pass_on(self, tell: Tell) -> None:
        events = ray.get(self.desk.heard.remote())
        if not events and time.monotonic() - self.last > STALL_SECONDS:
            events = [
                {
                    "event": "stall",
                    "text": f"nothing heard from the workers for {STALL_SECONDS} s; Ray's logs: {ray_logs()}",
                }
            ]
        if events:
            self.last = time.monotonic()
        for event in events:
            tell(event)

    def __enter__(self) -> Lane:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None or issubclass(kind, Exception):  # whoever interrupts does not want to wait for a cell
            self.end()

    def end(self) -> None:
        """Let the workers go, and wait until they have."""
        if self.thread is not None:
            ray.get(self.desk.put.remote(None))
            self.thread.join()
        ray.kill(self.desk)

    def _work(self) -> None:
        """The worker group's life."""
        own = self.job.resources
        trainer = DataParallelTrainer(
            work,
            train_loop_config={"desk": self.desk},
            scaling_config=ScalingConfig(
                num_workers=(own.min_workers, own.workers) if own.min_workers else own.workers,
                use_gpu=own.gpus_per_worker > 0,
                resources_per_worker={
                    "CPU": self.cpus,
                    **({"GPU": own.gpus_per_worker} if own.gpus_per_worker else {}),
                },
            ),
            backend_config=ProcessGroupConfig("nccl" if own.gpus_per_worker else "gloo"),
            run_config=RunConfig(
                name=f"attempt-{time.time_ns()}",
                storage_path=str(path_of(absolute(self.job.storage)) / ".ray"),
                failure_config=FailureConfig(max_failures=own.max_failures),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:  # told where the cell is waited for
            self.error = error


def ray_logs() -> str:
    """The folder of this Ray session's logs."""
    return os.path.join(ray._private.worker._global_node.get_session_dir_path(), "logs")


def work(config: dict[str, Any]) -> None:
    """What each worker runs."""
    from raypft.scale.worker import run_cells  # noqa: PLC0415  (whatever loads this module needs no torch, the workers do)

    run_cells(config["desk"])


def last_line(error: Exception | None) -> str:
    """What a failure says at its end."""
    cause = next(iter(getattr(error, "worker_failures", {}).values()), error)
    return (str(cause).strip().splitlines() or ["no reason given"])[-1]

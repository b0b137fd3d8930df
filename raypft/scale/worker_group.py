"""A lane: a Ray Train worker group that takes one cell after another and outlives the trials that bring them.

Starting a group takes longer than a few-shot cell. The workers ask the lane's desk, an actor, for the next cell and wait there,
never in a collective. Where a worker dies Ray Train starts the group again, which asks the desk where it stood; failures are
counted there, by cell.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import threading
import time
import traceback
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import distributed

from raypft.backbones.base import Backbone
from raypft.backbones.load import load_backbone
from raypft.config.job import Job
from raypft.errors import UserError
from raypft.runs.cell import Cell, Tell, is_finished, recorder, run_cell
from raypft.scale.data import OnRay, encoded_file, index_file, read_encoded
from raypft.storage import absolute, path_of

LOOK_SECONDS = 0.2
"""How often the owner of a lane looks whether its workers are alive."""
STALL_SECONDS = 120
LOG = "failure.log"


class Desk:
    """The cells of a lane in the order they were brought, each a turn, and how far the workers are."""

    def __init__(self) -> None:
        self.cells: list[dict[str, Any] | None] = []
        self.over, self.at_work, self.reached = 0, False, False
        self.failures, self.last, self.state = 0, "", 0.0
        self.errors: dict[int, str] = {}
        self.events: list[dict[str, Any]] = []
        self.changed = asyncio.Condition()

    async def put(self, cell: dict[str, Any] | None) -> int:
        """Bring a cell, or None as the last; its turn."""
        self.cells.append(cell)
        await self._tell()
        return len(self.cells) - 1

    async def outcome(self, turn: int) -> str | None:
        """When a turn is over: None, or why it failed."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.over > turn)
        return self.errors.get(turn)

    async def start(self) -> int:
        """A worker group has started: the turn to go on with."""
        await self._count_failure()
        self.reached = True
        return self.over

    async def take(self, turn: int) -> dict[str, Any] | None:
        """The cell of a turn, as soon as it is there."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.cells) > turn)
        self.at_work |= turn == self.over
        return self.cells[turn]

    async def finish(self, turn: int, error: str | None = None) -> None:
        """A turn is over: done, or for an error that would come again."""
        if turn == self.over:
            self.over, self.at_work, self.failures, self.last = turn + 1, False, 0, ""
            if error is not None:
                self.errors[turn] = error
            await self._tell()

    async def tell(self, event: dict[str, Any]) -> None:
        """An event of the cell at work."""
        self.events.append(event)

    async def heard(self) -> list[dict[str, Any]]:
        """The events since this was last asked."""
        events, self.events = self.events, []
        return events

    async def note(self, error: str) -> None:
        """What the cell at work failed with, this time."""
        self.last = error

    async def died(self) -> bool:
        """The worker group is gone for good; whether it had started at all."""
        await self._count_failure()
        reached, self.reached = self.reached, False
        return reached

    async def _count_failure(self) -> None:
        """The cell at work was given up: by a failure, or since a node left or came. Only those in a row count that brought no new
        state, so that a cell whose nodes come and go ends, and one that kills its workers does too."""
        cell = self.cells[self.over] if self.at_work else None
        if cell is None:
            return
        path = path_of(cell["folder"]) / "state.pt"
        before, self.state = self.state, path.stat().st_mtime if path.exists() else 0.0
        self.at_work, self.failures = False, 1 if self.state > before else self.failures + 1
        if self.failures > cell["job"]["resources"]["max_failures"]:
            await self.finish(
                self.over,
                self.last or f"run: a worker died {self.failures} times in this cell; out of memory? Ray's logs tell",
            )

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()


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

    def run(self, cell: Cell, tell: Tell = lambda event: None) -> None:
        """Have a cell run; its result is stored when this returns.

        Args:
            tell: hears the cell's events, and when nothing has come for a while.

        Raises:
            UserError: the cell failed, with the worker's own line; or no worker group can be started.
        """
        self.last = time.monotonic()
        outcome = self.desk.outcome.remote(ray.get(self.desk.put.remote(packed(cell))))
        while not ray.wait([outcome], timeout=LOOK_SECONDS)[0]:
            self._pass_on(tell)
            if self.thread is None:
                self.thread = threading.Thread(target=self._work, daemon=True)
                self.thread.start()
            elif not self.thread.is_alive():
                self.thread = None  # the next look starts another, unless the cell has failed by now
                if not ray.get(self.desk.died.remote()):
                    raise UserError(f"run: no workers could be started: {_last_line(self.error)}")
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
        trainer = TorchTrainer(
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
            torch_config=TorchConfig(backend="nccl" if own.gpus_per_worker else "gloo"),
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


def packed(cell: Cell) -> dict[str, Any]:
    """A cell as workers get it."""
    streamed = cell.sample.stream and {"index": str(index_file(cell)), "rows": cell.sample.stream.rows}
    return {
        "job": cell.job.model_dump(),
        "seed": cell.seed,
        "folder": absolute(cell.folder),
        "encoded": str(encoded_file(cell)),
        "facts": cell.facts,
        "test": cell.test,
        "stream": streamed,
    }


def work(config: dict[str, Any]) -> None:
    """What each worker runs: one cell after the other, until None comes."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    desk, first = config["desk"], distributed.get_rank() == 0
    begin = [ray.get(desk.start.remote()) if first else 0]
    distributed.broadcast_object_list(begin)
    backbones: dict[Any, Backbone] = {}
    for turn in itertools.count(begin[0]):
        cell = ray.get(desk.take.remote(turn))
        if cell is None:
            return
        try:
            _run(cell, backbones, desk)
        except UserError as error:
            told = getattr(error, "cause", error)  # where a task of Ray Data raised it
            ray.get(desk.finish.remote(turn, str(told)))
            raise
        except Exception as error:
            log = path_of(cell["folder"]) / LOG
            log.write_text(traceback.format_exc())
            ray.get(
                desk.note.remote(
                    f"run: training failed on the workers: {_last_line(error)}; the whole traceback is in {log}"
                )
            )
            raise
        if first:
            ray.get(desk.finish.remote(turn))


def _run(cell: dict[str, Any], backbones: dict[Any, Backbone], desk: Any) -> None:
    """Run a cell, unless it was finished by workers that did not live to say so.

    Args:
        backbones: the one that is loaded, by what it was loaded for; changed.
    """
    from raypft.scale.deepspeed import DeepSpeedStepper  # noqa: PLC0415  (sets what DeepSpeed reads at import)

    job, folder = Job(**cell["job"]), path_of(cell["folder"])
    finished = [is_finished(folder, cell["test"])]
    distributed.broadcast_object_list(finished)
    if finished[0]:
        return
    folder.mkdir(parents=True, exist_ok=True)
    wanted = (job.backbone, job.train.dropout)
    if wanted not in backbones:
        backbones.clear()
        backbones[wanted] = load_backbone(*wanted)
    device, steppers = str(ray.train.torch.get_device()), list[DeepSpeedStepper]()

    def make_stepper(learner: Any, settings: Any, state: Any) -> DeepSpeedStepper:
        steppers.append(DeepSpeedStepper(job, learner, settings, device, state))
        return steppers[-1]

    record = recorder(folder)

    def tell(event: dict[str, Any]) -> None:
        if distributed.get_rank() == 0:
            record(event)
            desk.tell.remote({"run": folder.parent.name, **event})

    prompts = read_encoded(path_of(cell["encoded"]))
    flow = OnRay(job, **cell["stream"]) if cell["stream"] else None
    result = run_cell(
        job, cell["seed"], prompts, backbones[wanted], folder, cell["facts"], make_stepper, tell, cell["test"], flow
    )
    tell({"event": "result", "seed": cell["seed"], "mean": result.get("mean")})
    steppers[-1].close()
    if job.zero.stage == 3 or job.train.precision != "fp32":
        backbones.clear()  # partitioned or cast weights do not come back; the next cell loads anew


def _last_line(error: Exception | None) -> str:
    """What a failure says at its end."""
    cause = next(iter(getattr(error, "worker_failures", {}).values()), error)
    return (str(cause).strip().splitlines() or ["no reason given"])[-1]

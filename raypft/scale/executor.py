"""Cells on Ray: encoded by Ray Data, then run by a worker group that stays from one to the next."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import ray
from ray.exceptions import RayActorError

from raypft.config.job import Job
from raypft.errors import UserError
from raypft.runs.cell import Cell
from raypft.runs.results import Tell, read_result
from raypft.scale.data import encode_on_ray, packed
from raypft.scale.resources import cpus_per_worker, logical_cpus
from raypft.scale.session import capacity, check_storage, quiet_loggers, ray_session
from raypft.scale.worker_group import WorkerGroup


class RayExecutor:
    """Runs cells on Ray Train workers; a group is started when it is needed and ends when a cell of another kind comes.

    Ray is joined, or started here, until `close`.

    Args:
        ends_on_failure: whoever runs cells ends where one fails; Ray Train then need not start the group once more.
    """

    def __init__(self, ends_on_failure: bool = False) -> None:
        self.ends_on_failure = ends_on_failure
        self.session = ExitStack()
        self.session.enter_context(ray_session())
        self.session.enter_context(quiet_loggers())
        self.group: WorkerGroup | None = None
        self.checked: set[str] = set()

    def prepare(self, cells: Sequence[Cell]) -> None:
        """Encode what these cells need and is not there yet.

        Raises:
            UserError: a node does not see the storage; or a row does not fit the task.
        """
        for storage in {cell.job.storage for cell in cells} - self.checked:
            check_storage(storage)
            self.checked.add(storage)
        encode_on_ray(cells)

    def run(self, cell: Cell, tell: Tell) -> dict[str, Any]:
        """Run one prepared cell; its result.

        Raises:
            UserError: CPUs do not fit; or the cell failed, with the worker's own line.
        """
        run, most = cell.folder.parent.name, cell.job.resources.max_failures
        for failures in range(most + 1):
            if failures:
                text = f"seed {cell.seed}: what hands out cells died; it and the workers are started again"
                tell({"event": "note", "run": run, "seed": cell.seed, "text": text})
            try:
                return self._run(cell, tell)
            except RayActorError:  # the queue's process was killed, say
                self._end_group()
        raise UserError(f"run: what hands out cells died {most + 1} times in this cell; out of memory? Ray's logs tell")

    def _run(self, cell: Cell, tell: Tell) -> dict[str, Any]:
        group = self._group_for(cell.job)
        try:
            group.run(packed(cell), tell)
        except (KeyboardInterrupt, SystemExit):  # whoever interrupts does not want to wait for the cell
            self.group = None
            raise
        except UserError:
            if self.ends_on_failure:
                ray.kill(group.queue)
                self.group = None
            raise
        return read_result(cell.folder)

    def _group_for(self, job: Job) -> WorkerGroup:
        if self.group is not None and WorkerGroup.kind(self.group.job) != WorkerGroup.kind(job):
            self._end_group()
        if self.group is None:
            cpus = job.resources.cpus_per_worker or cpus_per_worker(job.resources, logical_cpus(capacity()))
            self.group = WorkerGroup(job, cpus)
        return self.group

    def _end_group(self) -> None:
        group, self.group = self.group, None
        if group is not None:
            group.end()

    def close(self) -> None:
        """Let the workers go, and leave Ray."""
        self._end_group()
        self.session.close()

"""Jobs run where they ask to be: in this process, or on Ray's workers, which are loaded only then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from raypft.config.job import Job, Resources
from raypft.runs.executor import Executor, Executors, LocalExecutor
from raypft.runs.inspect import check_start, counted, method_shape
from raypft.runs.memory import check_memory
from raypft.runs.prepare import Prepared
from raypft.runs.results import Tell
from raypft.runs.run import run
from raypft.scale.machine import check_named


def run_jobs(
    prepared: Sequence[Prepared], tell: Tell = lambda event: None, fresh: bool = False
) -> list[list[dict[str, Any]]]:
    """Run the unfinished cells of jobs and return each job's results by seed; see `raypft.runs.run.run`.

    Raises:
        UserError: as `run`; or this machine or Ray has, and can get, too little for a job.
    """
    for ready in prepared:
        check_start(ready)
    with executors([ready.job for ready in prepared]) as executor_of:
        _check_nodes([ready for ready in prepared if ready.job.resources.workers])
        return run(prepared, executor_of, tell, fresh)


def _check_nodes(prepared: Sequence[Prepared]) -> None:
    """Raise a UserError where the nodes of a running cluster don't hold a job."""
    if not prepared:
        return
    from raypft.scale.session import node_memory  # noqa: PLC0415

    nodes = node_memory()
    for ready in prepared if nodes else ():
        check_memory(ready.job, counted(ready, method_shape(ready)), nodes)


@contextmanager
def executors(jobs: Sequence[Job]) -> Iterator[Executors]:
    """Executors for what these jobs ask for; one Ray session lasts as long, where one of them has workers.

    Raises:
        UserError: Ray has, and can get, too little for a job.
    """
    with_workers = [job for job in jobs if job.resources.workers]
    for job in jobs:
        check_named(job.resources)
    if not with_workers:
        yield lambda resources: LocalExecutor()
        return
    from raypft.scale.data import remove_left_in  # noqa: PLC0415  (ray is loaded only where it is used)
    from raypft.scale.executor import RayExecutor  # noqa: PLC0415
    from raypft.scale.session import check_resources, ray_session  # noqa: PLC0415

    def executor_of(resources: Resources) -> Executor:
        return RayExecutor(ends_on_failure=True) if resources.workers else LocalExecutor()

    for storage in {job.storage for job in with_workers}:
        remove_left_in(storage)
    with ray_session():
        for job in with_workers:
            check_resources(job.resources)  # Ray's own count, now that it runs
        yield executor_of

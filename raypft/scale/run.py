"""Jobs run where they ask to be: in this process, or on Ray's workers, which are loaded only then."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from raypft.config.job import Job, Resources
from raypft.errors import UserError
from raypft.runs.executor import Executor, Executors, LocalExecutor
from raypft.runs.inspect import check_start
from raypft.runs.prepare import Prepared
from raypft.runs.results import Tell
from raypft.runs.run import run
from raypft.scale.address import check_address
from raypft.scale.resources import shapes_here


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
        return run(prepared, executor_of, tell, fresh)


def check_machine(resources: Resources) -> None:
    """Raise a UserError where this machine, or the cluster that is named, has too little for a job, or is not there."""
    check_named(resources)
    if resources.workers:
        from raypft.scale.session import check_resources  # noqa: PLC0415  (ray is loaded only where it is used)

        check_resources(resources)


def check_named(resources: Resources) -> None:
    """What of `check_machine` can be told at once, before anything is read and without joining a cluster."""
    check_gpus(resources)
    if resources.workers:
        check_address(os.environ.get("RAY_ADDRESS"))


def check_gpus(resources: Resources) -> None:
    """Raise a UserError where a job asks for more GPUs than this machine has, and no cluster is named to have them.

    Ray would wait for them for ever.
    """
    asked = resources.gpus_per_worker * max(1, resources.workers)
    if not asked or shapes_here() or os.environ.get("RAY_ADDRESS"):
        return
    import torch  # noqa: PLC0415  (only where GPUs are asked for)

    here = torch.cuda.device_count()
    if asked > here:
        raise UserError(
            f"resources.gpus_per_worker: the job needs {asked:g} GPUs; this machine has {here}; "
            "ask for fewer, or name a cluster that has them with RAY_ADDRESS or raypft submit"
        )


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
    from raypft.scale.executor import RayExecutor  # noqa: PLC0415  (ray is loaded only where it is used)
    from raypft.scale.session import check_resources, ray_session  # noqa: PLC0415

    def executor_of(resources: Resources) -> Executor:
        return RayExecutor(ends_on_failure=True) if resources.workers else LocalExecutor()

    with ray_session():
        for job in with_workers:
            check_resources(job.resources)  # Ray's own count, now that it runs
        yield executor_of

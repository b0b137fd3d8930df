"""`raypft cluster check`: what would otherwise be found out by a job that waits for ever or loses its checkpoints."""

from __future__ import annotations

import asyncio
import json
import platform
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raypft.cluster.client import ENDED, JobServer
from raypft.cluster.feasible import asked_for
from raypft.cluster.submit import stop
from raypft.errors import UserError
from raypft.scale.resources import Infeasible, at_a_time, bundle_text, check_possible, shapes_of

PROBE_SECONDS = 60
"""What the check's own job may take beside waiting for a worker."""


class NoStorage(UserError):
    """A worker can't write where results go."""

    code = 73


def fit_lines(words: list[str], definition: Any, where: str) -> Iterator[str]:
    """A line for each job that fits the definition, and how many at once.

    Raises:
        Infeasible: one can never be placed; with what is missing and what would fit.
    """
    shapes = shapes_of(definition.pools)
    for name, bundles in asked_for(words, shapes):
        check_possible(bundles, shapes, where)
        wanted = ", ".join(sorted({bundle_text(bundle) for bundle in bundles}))
        yield (
            f"{name}: fits, {at_a_time(bundles, shapes)} at a time: {len(bundles)} of {wanted}"
            if bundles
            else f"{name}: runs in its driver, without workers"
        )


def server_lines(server: JobServer, definition: Any, timeout: int) -> Iterator[str]:
    """A line for each thing that is right on a running cluster: token, versions, storage.

    Raises:
        UserError: versions differ. NoStorage: a worker can't write to the storage, or no worker comes.
    """
    yield f"{server.address.url}: reached, token {server.token_source if server.headers else 'not asked for'}"
    if not server.headers:
        raise UserError(
            f"{server.address.url}: found a job server that asks for no token; "
            "anyone who reaches it runs code there; start it with RAY_AUTH_MODE=token"
        )
    server.check_version()
    storage = definition.storage if "://" in definition.storage else str(Path(definition.storage).absolute())
    answer = _probe(server, storage, timeout)
    if answer.get("code") == Infeasible.code:
        raise Infeasible(f"{definition.name}: {answer['error']}")
    if "error" in answer:
        raise NoStorage(f"storage {storage}: a worker can't write there: {answer['error']}")
    for role in ("driver", "worker"):
        theirs, ours = answer[role]["python"].rsplit(".", 1)[0], platform.python_version().rsplit(".", 1)[0]
        if theirs != ours:
            raise UserError(f"{server.address.url}: the {role} runs Python {theirs}, here is {ours}; use one version")
        yield f"{role}: Ray {answer[role]['ray']}, Python {answer[role]['python']}, node {answer[role]['node'][:12]}"
    alone = (
        " (driver and worker are one node: that others see it is not shown)"
        if answer["driver"]["node"] == answer["worker"]["node"]
        else ""
    )
    yield f"storage {storage}: a worker wrote, the driver read{alone}"


def _probe(server: JobServer, storage: str, timeout: int) -> dict[str, Any]:
    source = (Path(__file__).parent / "probe.py").read_text()
    name = f"check-{time.time_ns()}"
    server.submit({"entrypoint": shlex.join(["python", "-c", source, storage, str(timeout)]), "submission_id": name})
    until = time.monotonic() + timeout + PROBE_SECONDS
    try:
        while (job := server.job(name))["status"] not in ENDED:
            if time.monotonic() > until:
                raise UserError(
                    f"{server.address.url}: the check did not end within {timeout + PROBE_SECONDS} s; "
                    f"raypft submit logs {name}"
                )
            time.sleep(0.3)
    except BaseException:
        asyncio.run(stop(server, name))
        raise
    lines = server.log(name).strip().splitlines()
    try:
        return json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError):
        message = " ".join((job.get("message") or "").split())[-300:]
        raise UserError(f"{server.address.url}: the check ended {job['status']}: {message}") from None

"""`raypft submit`: a command as a job of a cluster, its output here, its exit code ours.

Exit codes: what the command exits with; 130 stopped or left from here, 143 stopped by someone else, 69 no server, 74
server lost, 75 nodes never came, 77 token, 78 the job's environment could not be made. Ray's own command line returns 1
for all of them and leaves a job running on Ctrl-C.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shlex
import signal
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from raypft._version import __version__
from raypft.cluster.client import ENDED, JobServer, Lost, NoJob, Unreachable
from raypft.cluster.package import pack
from raypft.errors import UserError

STOPPED_HERE, STOPPED_ELSEWHERE, NO_NODES, NO_ENVIRONMENT = 130, 143, 75, 78
BY_ERROR = {
    "RUNTIME_ENV_SETUP_FAILURE": NO_ENVIRONMENT,
    "JOB_SUPERVISOR_ACTOR_START_TIMEOUT": NO_NODES,
    "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE": NO_NODES,
    "JOB_SUPERVISOR_ACTOR_DIED": Lost.code,
}
RECONNECT_SECONDS = 60
PENDING_SECONDS = 6
"""A job that was asked to stop and is still pending then waits for resources: its supervisor must be ended."""
STOP_SECONDS = 60
CANCEL = """
import ray, sys
ray.init(log_to_driver=False)
supervisor = "_ray_internal_job_actor_" + sys.argv[1]
ray.kill(ray.get_actor(supervisor, namespace="SUPERVISOR_ACTOR_RAY_NAMESPACE"), no_restart=True)
"""


@dataclass(frozen=True)
class Order:
    """What to run: words after `raypft`, or a whole command where raw; what it needs beside."""

    words: list[str]
    raw: bool = False
    job_id: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    working_dir: Path | None = Path()
    package_uri: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    stop_wait: int = 60
    gpus: float = 0

    @property
    def entrypoint(self) -> str:
        """The command line that the cluster runs."""
        return shlex.join(self.words if self.raw else ["python", "-m", "raypft.cli", *self.words])


class Tell(Protocol):
    """Hears what happens to a job as {"event": …, "text": …}, and its output as events `log`."""

    def __call__(self, event: dict[str, Any], /) -> None: ...


def submit(server: JobServer, order: Order, tell: Tell) -> str:
    """Package, upload, submit; the job's id. A job of the same id, command and package is taken as this one.

    Raises:
        UserError: versions differ; the package is too large; the id is another job's.
    """
    server.check_version()
    env = {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(order.stop_wait), **order.env}
    runtime: dict[str, Any] = {"env_vars": env}
    metadata = {**order.metadata, "raypft": __version__}
    if order.package_uri:
        runtime["working_dir"] = order.package_uri
    elif order.working_dir:
        package = pack(order.working_dir)
        server.upload(package.name, package.content)
        runtime["working_dir"] = f"gcs://{package.name}"
        metadata |= {"commit": package.commit, "dirty": str(package.dirty), "package": package.sha}
        size, commit = len(package.content) / 2**20, package.commit[:8] + "+" * package.dirty
        text = f"{package.num_files} files, {size:.1f} MiB zipped, commit {commit}"
        tell({"event": "package", "text": text})
    # of all that decides what runs, so that another job of this id is told from the same one
    metadata["order"] = hashlib.sha256(
        json.dumps([order.entrypoint, runtime, order.gpus], sort_keys=True).encode()
    ).hexdigest()[:16]
    job_id = order.job_id or f"{Path(order.words[0]).stem}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{metadata['order'][:6]}"
    if order.job_id and _submitted_before(server, job_id, metadata["order"], tell):
        return job_id
    request = {"entrypoint": order.entrypoint, "submission_id": job_id, "runtime_env": runtime, "metadata": metadata}
    server.submit({**request, **({"entrypoint_num_gpus": order.gpus} if order.gpus else {})})
    tell({"event": "submitted", "text": f"job {job_id}: {order.entrypoint}", "id": job_id})
    return job_id


def _submitted_before(server: JobServer, job_id: str, order: str, tell: Tell) -> bool:
    try:
        job = server.job(job_id)
    except NoJob:
        return False
    if (job.get("metadata") or {}).get("order") != order:
        raise UserError(
            f'job "{job_id}" exists with another command or package ({job["status"]}); '
            f"choose another --id, or raypft submit attach {job_id}"
        )
    tell({"event": "attached", "text": f"job {job_id} was submitted before, {job['status']}", "id": job_id})
    return True


def follow(server: JobServer, job_id: str, tell: Tell, on_interrupt: Literal["stop", "detach"] = "stop") -> int:
    """Show a job's output until it ends; its exit code. Ctrl-C or SIGTERM stops the job, a second one leaves it.

    Raises:
        UserError: no such job. Lost: the server is gone for a minute.
    """
    server.job(job_id)
    return asyncio.run(_follow(server, job_id, tell, on_interrupt))


async def _follow(server: JobServer, job_id: str, tell: Tell, on_interrupt: str) -> int:
    signals: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number)
    watched = asyncio.create_task(_watch(server, job_id, tell))
    asked = asyncio.Event()
    pressed = asyncio.create_task(_pressed(server, job_id, tell, signals, asked, on_interrupt))
    try:
        await asyncio.wait({watched, pressed}, return_when=asyncio.FIRST_COMPLETED)
        if watched.done():
            return told(watched.result(), tell, asked.is_set())
        pressed.result()
        text = f"job {job_id} goes on; raypft submit attach {job_id} --address {server.address.url}"
        tell({"event": "left", "text": text, "id": job_id})
        return STOPPED_HERE
    finally:
        watched.cancel()
        pressed.cancel()


async def _pressed(
    server: JobServer, job_id: str, tell: Tell, signals: asyncio.Queue[int], asked: asyncio.Event, on_interrupt: str
) -> None:
    """Ends when the job is to be left: at the second signal; the first stops the job."""
    await signals.get()
    if on_interrupt == "detach":
        return
    asked.set()
    tell({"event": "stopping", "text": f"stopping job {job_id}; once more leaves it as it is", "id": job_id})
    stopping = asyncio.create_task(stop(server, job_id))
    again = asyncio.create_task(signals.get())
    await asyncio.wait({stopping, again}, return_when=asyncio.FIRST_COMPLETED)
    if stopping.done():
        stopping.result()
    await again


async def _watch(server: JobServer, job_id: str, tell: Tell) -> dict[str, Any]:
    """Shows output as it comes; the job as it ended."""
    noted = asyncio.create_task(_note_pending(server, job_id, tell))
    shown, last_seen = 0, time.monotonic()
    try:
        while True:
            position = 0
            try:
                async for text in server.tail(job_id):  # from the first byte each time
                    tell({"event": "log", "text": text[max(0, shown - position) :]})
                    position += len(text)
                    shown, last_seen = max(shown, position), time.monotonic()
                job = await asyncio.to_thread(server.job, job_id)
                last_seen = time.monotonic()
                if job["status"] in ENDED:
                    return job
            except (ConnectionError, Unreachable) as error:
                if time.monotonic() - last_seen > RECONNECT_SECONDS:
                    where = f"raypft submit attach {job_id} --address {server.address.url}"
                    raise Lost(
                        f"job {job_id}: no answer from {server.address.url} for {RECONNECT_SECONDS} s ({error}); "
                        f"when it is back: {where}"
                    ) from None
            await asyncio.sleep(0.3)
    finally:
        noted.cancel()


async def _note_pending(server: JobServer, job_id: str, tell: Tell) -> None:
    await asyncio.sleep(20)
    job = await asyncio.to_thread(server.job, job_id)
    if job["status"] == "PENDING":
        reason = " ".join((job.get("message") or "no reason given").split())
        tell({"event": "pending", "text": f"job {job_id} has not started: {reason}", "id": job_id})


async def stop(server: JobServer, job_id: str) -> None:
    """Stop a job that runs, or one that waits for resources, which Ray's own stop leaves waiting.

    Raises:
        UserError: no such job.
    """
    if (await asyncio.to_thread(server.job, job_id))["status"] in ENDED:
        return
    await asyncio.to_thread(server.stop, job_id)
    if await _status_after(server, job_id, PENDING_SECONDS, beside="PENDING") == "PENDING":
        helper = f"{job_id}-cancel-{int(time.time())}"
        request = {
            "entrypoint": shlex.join(["python", "-c", CANCEL, job_id]),
            "submission_id": helper,
            "metadata": {"cancels": job_id},
        }
        await asyncio.to_thread(server.submit, request)
        await _status_after(server, job_id, STOP_SECONDS, beside="PENDING")


async def _status_after(server: JobServer, job_id: str, seconds: float, beside: str) -> str:
    """The first status other than one, or that one after so long."""
    until = time.monotonic() + seconds
    while (status := (await asyncio.to_thread(server.job, job_id))["status"]) == beside and time.monotonic() < until:
        await asyncio.sleep(0.3)
    return status


def told(job: dict[str, Any], tell: Tell, asked: bool = False) -> int:
    """The exit code of a job that ended, and a line about it.

    Args:
        asked: it was asked to stop from here.
    """
    job_id, status, error = job["submission_id"], job["status"], job.get("error_type")
    code = job.get("driver_exit_code")
    never_ran = "never ran" in (job.get("message") or "")  # Ray's word for a pending job whose supervisor was ended
    if status == "SUCCEEDED":
        code = 0
    elif status == "STOPPED" or never_ran:
        code = STOPPED_HERE if asked else STOPPED_ELSEWHERE
    else:
        code = code or BY_ERROR.get(error or "", 1)
        code = 128 - code if code < 0 else code
    reason = f": {' '.join((job.get('message') or '').split())[:300]}" if error in BY_ERROR and not never_ran else ""
    text = f"job {job_id} {'CANCELLED' if never_ran else status}, exit code {code}{reason}"
    tell({"event": "ended", "text": text, "id": job_id, "status": status, "code": code})
    return code

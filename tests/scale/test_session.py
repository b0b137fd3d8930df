"""What of Ray reaches the user: nothing that Ray prints; where it can't start, has no memory or loses this node, one
line."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private import worker as rays
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError

from raypft.errors import UserError
from raypft.scale import session
from raypft.scale.session import ray_session
from raypft.scale.tune.run import one_line_of_memory

DIED = (
    "\x1b[33mA worker died or was killed while executing a task by an unexpected system error.\x1b[0m" + " more" * 180
)


def hears(error: str) -> None:
    """What a driver does with an error that its cluster publishes."""
    stopped = threading.Event()

    def poll() -> tuple[None, dict[str, Any]]:
        stopped.set()
        return None, {"job_id": None, "error_message": error, "type": "worker_died"}

    subscriber = SimpleNamespace(subscribe=lambda: None, poll=poll)
    job = SimpleNamespace(binary=lambda: b"\0")
    driver: Any = SimpleNamespace(gcs_error_subscriber=subscriber, current_job_id=job)
    rays.listen_error_messages(driver, stopped)


def test_rays_own_lines_stay_in_its_logs(monkeypatch, capsys):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with ray_session():
        hears(DIED)
    assert "".join(capsys.readouterr()) == ""
    hears(DIED)
    assert "A worker died" in "".join(capsys.readouterr()), "whoever uses Ray beside this hears it"


@pytest.mark.parametrize("address", [None, "elsewhere:6379"])
def test_a_session_that_is_started_here_remembers_little(address, monkeypatch):
    """Of a cluster that others started nothing is changed, nor what a user has set."""
    for what in session.KEPT_BY_RAY:
        monkeypatch.setenv(what, "7")
        monkeypatch.delenv(what)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("RAY_task_events_max_num_task_in_gcs", "5")
    monkeypatch.setattr(session, "check_address", lambda address: None)
    found: dict[str, str | None] = {}

    def start(**more: Any) -> None:
        found.update({what: os.environ.get(what) for what in session.KEPT_BY_RAY})
        raise ConnectionError("not now")

    monkeypatch.setattr(ray, "init", start)
    with pytest.raises(UserError, match="not now"), ray_session():
        pass
    assert found.pop("RAY_task_events_max_num_task_in_gcs") == "5"
    assert set(found.values()) == ({None} if address else {"100", "0"})


def test_a_ray_that_does_not_start_in_time_is_one_line(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    said = "The current node timed out during startup. This could happen because some of the raylet failed to startup"

    def late(**more: Any) -> None:
        raise Exception(said)

    monkeypatch.setattr(ray, "init", late)
    with (
        pytest.raises(UserError, match=r"^ray: it could not be started here in time; .* run again .*\Z"),
        ray_session(),
    ):
        pass


def test_a_campaign_that_ran_out_of_memory_says_so_in_one_line():
    full = OutOfMemoryError("9 worker(s) were killed due to the node running low on memory.\nTop users: …")
    task: Any = SimpleNamespace(_tracked_actor=None)
    manager: Any = SimpleNamespace()
    with pytest.raises(UserError) as told, one_line_of_memory():
        RayActorManager._actor_task_failed(manager, task, full)
    assert str(told.value).startswith(
        "tune: out of memory: 9 worker(s) were killed due to the node running low on memory.;"
    )
    assert "\n" not in str(told.value)
    with pytest.raises(RuntimeError, match="another"), one_line_of_memory():
        raise RuntimeError("another")


def of_node(alive: bool) -> list[dict[str, Any]]:
    """What a cluster tells of two nodes, the first of them this one."""
    return [{"NodeID": "here", "Alive": alive}, {"NodeID": "there", "Alive": not alive}]


@pytest.fixture
def looked(monkeypatch):
    """A cluster without Ray, looked at all the time."""
    context: Any = SimpleNamespace(get_node_id=lambda: "here")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(session, "LOOK_SECONDS", 0.01)


def test_a_command_ends_with_its_own_node_alone(looked, monkeypatch):
    told = iter([of_node(True), ConnectionError("too busy"), of_node(True), of_node(False)])

    def nodes() -> list[dict[str, Any]]:
        found = next(told)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(ray, "nodes", nodes)
    with (
        pytest.raises(UserError, match=r"^ray: its process on this node .* has died.* goes on\Z"),
        session._ending_with_its_node(),
    ):
        time.sleep(30)
    assert next(told, None) is None


def test_an_interrupt_stays_one_while_the_node_lives(looked, monkeypatch):
    monkeypatch.setattr(ray, "nodes", lambda: of_node(True))
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), session._ending_with_its_node():
        raise KeyboardInterrupt
    assert threading.active_count() == before


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_raylet_that_dies_ends_who_waits(monkeypatch):
    folder = tempfile.mkdtemp(prefix="rp-", dir="/tmp")  # short: sockets lie below it
    for name, value in {
        "TMPDIR": folder,
        "health_check_period_ms": "500",
        "health_check_failure_threshold": "2",
    }.items():
        monkeypatch.setenv(f"RAY_{name}", value)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(session, "LOOK_SECONDS", 0.5)
    try:
        with pytest.raises(UserError, match="the raylet"), ray_session():
            _wait_for_a_dead_raylet()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for_a_dead_raylet() -> None:
    node: Any = rays._global_node
    (raylet,) = node.all_processes["raylet"]
    os.kill(raylet.process.pid, signal.SIGKILL)
    ray.wait([ray.ObjectRef.from_random()], timeout=120, fetch_local=False)  # nobody makes it

"""What of Ray reaches the user: nothing that Ray prints, and where it can't start or has no memory, one line. No Ray is
started."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private import worker as rays
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError

from raypft.errors import UserError
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

"""What `raypft cluster check` says of a running cluster, and where Ray of one is looked for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from here import exit_code

from raypft.cluster import nodes
from raypft.cluster.check import preflight
from raypft.cluster.client import Address
from raypft.cluster.definition import load
from raypft.errors import UserError

FOLDER = Path(__file__).parents[2] / "cluster"


def test_where_ray_is_must_be_told_for_other_peoples_clusters(capsys):
    assert exit_code("cluster", "status", str(FOLDER / "aws.yaml")) == 2
    assert "where Ray of raypft-aws is can't be told from kind aws; give --ray HOST:PORT" in capsys.readouterr().err


def fake_server(answer: dict, headers: dict | None = None, status: str = "SUCCEEDED") -> Any:
    """A job server whose check job prints this."""
    job = {"status": status, "message": "it broke"}
    return SimpleNamespace(
        address=Address("http://x", "--address"),
        headers={"Authorization": "t"} if headers is None else headers,
        token_source="t",
        ray_version="2.60.0",
        check_version=lambda: None,
        submit=lambda request: None,
        job=lambda name: job,
        log=lambda name: json.dumps(answer) if answer else "no answer",
    )


OURS = {"ray": "2.60.0", "python": sys.version.split()[0], "node": "a" * 56}


@pytest.mark.parametrize(
    ("server", "line", "code"),
    [
        (
            fake_server({}, headers={}),
            "found a job server that asks for no token; anyone who reaches it runs code there",
            2,
        ),
        (
            fake_server({"driver": OURS, "worker": {**OURS, "python": "3.9.1"}}),
            "the worker runs Python 3.9, here is",
            2,
        ),
        (
            fake_server({"error": "no worker node with a free CPU came within 5 s", "code": 75}),
            "raypft-fake: no worker node with a free CPU came",
            75,
        ),
        (fake_server({"error": "Permission denied"}), "a worker can't write there: Permission denied", 73),
        (fake_server({}, status="FAILED"), "the check ended FAILED: it broke", 2),
    ],
)
def test_what_check_refuses(server, line, code):
    with pytest.raises(UserError, match=line) as raised:
        list(preflight.server_lines(server, load(FOLDER / "fake.yaml"), 5))
    assert raised.value.code == code


def test_a_check_that_never_ends_is_stopped(monkeypatch):
    server, stopped = fake_server({}, status="RUNNING"), []
    monkeypatch.setattr(preflight, "PROBE_SECONDS", -6)

    async def stop(server, name):
        stopped.append(name)

    monkeypatch.setattr(preflight, "stop", stop)
    with pytest.raises(UserError, match="the check did not end within -1 s; raypft submit logs check-"):
        list(preflight.server_lines(server, load(FOLDER / "fake.yaml"), 5))
    assert len(stopped) == 1


def test_no_ray_at_an_address_is_one_line(monkeypatch):
    from ray.autoscaler.v2 import sdk

    def fail(address):
        raise RuntimeError("Failed to connect\nto GCS")

    monkeypatch.setattr(sdk, "get_cluster_status", fail)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(
        UserError, match=r"cluster: no Ray at 127.0.0.1:1: Failed to connect to GCS; is it up, and is the token right"
    ):
        nodes.cluster_status("127.0.0.1:1")

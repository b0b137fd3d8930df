"""Clusters on this machine: start one from a definition, say how it is, end it and nothing else.

What was started is written to a state file; only what it names is ever ended. Ray's own `ray stop` ends every Ray
of the machine.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from raypft.cluster.client import JobServer, Unreachable, find_address, find_token
from raypft.cluster.definition import Fake, Local, num_bytes
from raypft.cluster.processes import end, processes, started_by
from raypft.cluster.render.launcher import FAKE_HEAD, environment, fake, pools_text
from raypft.errors import UserError

READY_SECONDS = 120


def state_file(name: str) -> Path:
    """Where the start of a cluster is remembered."""
    return Path(os.environ.get("XDG_STATE_HOME", "~/.local/state")).expanduser() / "raypft" / f"{name}.json"


def state(definition: Any) -> dict[str, Any] | None:
    """The start of a cluster, if any of its processes is alive."""
    path = state_file(definition.name)
    told = json.loads(path.read_text()) if path.is_file() else None
    return told if told and started_by(told["pid"], told["born"]) else None


def needs_this_machine(definition: Any, verb: str) -> None:
    """Refuse clusters that others start.

    Raises:
        UserError: with the command that does it.
    """
    if isinstance(definition, Local | Fake):
        return
    started = {"kubernetes": "kubectl apply -f cluster/rendered/kubernetes.rayjob.yaml"}
    how = started.get(
        definition.kind, f"ray {'down' if verb == 'down' else 'up'} cluster/rendered/{definition.kind}.ray-up.yaml"
    )
    raise UserError(
        f"cluster {verb}: found kind {definition.kind}; only local and fake clusters live on this machine; use: {how}"
    )


def make_token() -> None:
    """A token in the file where Ray and raypft look for it, readable to its owner only, unless there is one."""
    if find_token()[0]:
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(secrets.token_hex(32))


def head_command(definition: Any, folder: Path) -> list[str]:
    """The command that starts a head in the foreground, reachable from this machine only."""
    loopback, dashboard = "127.0.0.1", definition.dashboard_port
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    words += [
        f"--node-ip-address={loopback}",
        f"--port={definition.port}",
        f"--temp-dir={folder}",
        "--include-dashboard=true",
    ]
    words += [
        f"--dashboard-host={loopback}",
        f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={dashboard + 1}",
    ]
    words += [
        f"--ray-client-server-port={dashboard + 2}",
        f"--object-store-memory={max(num_bytes(definition.object_store), 80 * 2**20)}",
    ]
    if isinstance(definition, Fake):
        return [*words, "--num-cpus=0", f"--autoscaling-config={folder / 'autoscaler.yaml'}"]
    return [*words, f"--num-cpus={definition.cpu}", f"--num-gpus={definition.gpu}"]


def head_environment(definition: Any) -> dict[str, str]:
    """Of the head's process; jobs inherit it."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    made = {**os.environ, **environment(definition), "PATH": path, "RAYPFT_CLUSTER": pools_text(definition)}
    made["RAY_ADDRESS"] = f"127.0.0.1:{definition.port}"  # else a second Ray of this machine confuses Ray Train
    if isinstance(definition, Fake):
        made |= {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD,
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD,
        }
    return made


def up(definition: Any) -> JobServer:
    """Start a cluster and wait until it takes jobs.

    Raises:
        UserError: it is up; a port is taken; or the head ended, with its last line.
    """
    needs_this_machine(definition, "up")
    if state(definition):
        raise UserError(f"cluster up: {definition.name} is up; raypft cluster down ends it")
    _check_ports(definition)
    make_token()
    folder = Path(tempfile.mkdtemp(prefix="rp-"))  # short: sockets below it have at most 107 bytes
    if isinstance(definition, Fake):
        (folder / "autoscaler.yaml").write_text(yaml.safe_dump(fake(definition)))
    with (folder / "head.log").open("w") as log:
        started = subprocess.Popen(
            head_command(definition, folder),
            env=head_environment(definition),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    leader = processes().get(started.pid)  # none where it has ended by now
    told = {"pid": started.pid, "born": leader.born if leader else 0, "folder": str(folder)}
    path = state_file(definition.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told))
    try:
        return _ready(definition, started, folder / "head.log")
    except BaseException:
        down(definition)
        started.wait()
        raise


def _check_ports(definition: Any) -> None:
    # Ray would take the next free port, and whoever has this one would be asked for its jobs
    for key, port in (
        ("port", definition.port),
        *(("dashboard_port", definition.dashboard_port + i) for i in range(3)),
    ):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                raise UserError(
                    f"cluster up: {key} of {definition.name}: port {port} is in use here; "
                    "choose another (dashboard_port takes three)"
                ) from None


def _ready(definition: Any, started: subprocess.Popen[bytes], log: Path) -> JobServer:
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until:
        if started.poll() is not None:
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or ["no output"]
            raise UserError(f"cluster up: the head of {definition.name} ended with {started.returncode}: {lines[-1]}")
        try:
            server = JobServer(find_address(f"http://127.0.0.1:{definition.dashboard_port}"))
            server.jobs()
            return server
        except Unreachable:
            time.sleep(0.3)
    last = log.read_text(errors="replace")[-300:]
    raise UserError(f"cluster up: {definition.name} took no jobs within {READY_SECONDS} s; its log: {last!r}")


def down(definition: Any) -> int:
    """End what `up` started; how many processes there were.

    Raises:
        UserError: it is another kind's.
    """
    needs_this_machine(definition, "down")
    path = state_file(definition.name)
    if not path.is_file():
        return 0
    told = json.loads(path.read_text())
    count = end(told["pid"], told["born"])
    shutil.rmtree(told["folder"], ignore_errors=True)
    path.unlink()
    return count

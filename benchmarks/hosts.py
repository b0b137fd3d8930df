"""Hosts of our own on one machine: each is a network namespace with an address, a disk folder and a Ray node.

A bridge joins them, and a host can be killed, cut off or told that it goes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
PORT = 6379
HEALTH = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
WAIT = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
end = time.monotonic() + 120
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]):
    assert time.monotonic() < end, ray.nodes()
    time.sleep(0.5)
"""
DRAIN = """
import sys, ray
from raypft.cluster.nodes import drain
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
(node,) = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeManagerAddress"] == sys.argv[2]]
drain(sys.argv[1], node, int(sys.argv[3]))
"""


def ip(*words: str) -> str:
    """Output of an `ip` command."""
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout


def not_permitted() -> str | None:
    """Why there can be no hosts here."""
    name = f"rp{os.getpid()}try"
    try:
        ip("netns", "add", name)
        ip("netns", "del", name)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"network namespaces are not permitted here: {getattr(error, 'stderr', '') or error}"
    return None


class Hosts:
    """A bridge and the hosts at it; the first is the Ray cluster's head, with CPUs for driver, reader and encoder."""

    def __init__(self) -> None:
        self.mark, self.net = f"rp{os.getpid()}", f"10.77.{os.getpid() % 250}"
        self.folder = Path(tempfile.mkdtemp(prefix="rp-", dir="/tmp"))  # short: sockets lie below it
        self.env = {**{k: v for k, v in os.environ.items() if not k.startswith("RAY_")}, **HEALTH}
        self.env |= {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "eth0",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
            "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
            "RAY_ADDRESS": f"{self.net}.1:{PORT}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "of-these-hosts-alone",
        }
        self.names: list[str] = []
        self.started: list[subprocess.Popen] = []
        ip("netns", "add", f"{self.mark}sw")
        ip("-n", f"{self.mark}sw", "link", "add", "br0", "type", "bridge")
        ip("-n", f"{self.mark}sw", "link", "set", "br0", "up")
        self.add("head", 2)

    def add(self, name: str, cpus: int, *more: str) -> None:
        """A host more, and its Ray node; more: options of `ray start`."""
        self.names.append(name)
        space, switch, address = f"{self.mark}{name}", f"{self.mark}sw", self.address(name)
        ip("netns", "add", space)
        ip("-n", switch, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("-n", switch, "link", "set", name, "master", "br0", "up")
        ip("-n", space, "link", "set", "lo", "up")
        ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        ip("-n", space, "link", "set", "eth0", "up")
        where = (
            ["--head", "--port", str(PORT), "--include-dashboard=false"]
            if name == "head"
            else ["--address", self.env["RAY_ADDRESS"]]
        )
        node = [
            "--node-ip-address",
            address,
            "--num-cpus",
            str(cpus),
            "--temp-dir",
            str(self.folder / name),
            "--object-store-memory",
            "100000000",
            *more,
        ]
        env = {key: value for key, value in self.env.items() if key != "RAY_ADDRESS"}
        words = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--block",
            "--disable-usage-stats",
            *where,
            *node,
        ]
        self.started.append(self._begin(name, words, env, subprocess.DEVNULL))

    def address(self, name: str) -> str:
        """Where a host is found."""
        return f"{self.net}.{self.names.index(name) + 1}"

    def _begin(self, name: str, words: list[str], env: dict[str, str], output: int | IO[str]) -> subprocess.Popen:
        return subprocess.Popen(
            ["ip", "netns", "exec", f"{self.mark}{name}", *words],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
        )

    def wait(self, count: int) -> None:
        """Until so many hosts are part of the cluster."""
        assert self.python(WAIT, str(count)) == 0, "the hosts did not find each other"

    def python(self, code: str, *words: str) -> int:
        """Exit code of a piece of Python on the head; its first argument is the cluster's address."""
        return self._begin(
            "head", [sys.executable, "-c", code, self.env["RAY_ADDRESS"], *words], self.env, subprocess.DEVNULL
        ).wait(150)

    def raypft(self, *words: str, output: int | IO[str] = subprocess.PIPE) -> subprocess.Popen:
        """A command on the head."""
        return self._begin("head", [sys.executable, "-m", "raypft.cli", *words], self.env, output)

    def processes(self, name: str) -> dict[int, str]:
        """Processes of a host and their titles."""
        titles = {}
        for process in map(int, ip("netns", "pids", f"{self.mark}{name}").split()):
            try:
                titles[process] = Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
        return titles

    def of_workers(self) -> list[str]:
        """Hosts with a Train worker."""
        return [name for name in self.names if self.runs(name, "RayTrainWorker")]

    def runs(self, name: str, title: str) -> bool:
        """Whether a host has a process of such a title."""
        return any(title in running for running in self.processes(name).values())

    def kill(self, name: str) -> None:
        """kill -9 of everything on a host."""
        for process in self.processes(name):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def cut(self, name: str) -> None:
        """No packet comes or goes any more."""
        ip("-n", f"{self.mark}sw", "link", "set", name, "down")

    def heal(self, name: str) -> None:
        """Undo a cut."""
        ip("-n", f"{self.mark}sw", "link", "set", name, "up")

    def drain(self, name: str, seconds: int) -> None:
        """The notice that a spot node gets."""
        assert self.python(DRAIN, self.address(name), str(seconds)) == 0

    def end(self) -> None:
        """End what was started, and only that."""
        for name in reversed(self.names):
            deadline = time.monotonic() + 20
            while self.processes(name) and time.monotonic() < deadline:
                self.kill(name)
                time.sleep(0.2)
            ip("netns", "del", f"{self.mark}{name}")
        for process in self.started:
            process.wait(20)
        ip("netns", "del", f"{self.mark}sw")
        shutil.rmtree(self.folder, ignore_errors=True)

"""Commands as a user runs them: here, or in a fresh home with a cluster of its own ports and state."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from raypft.cli import app, main

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A port nobody listens on, with the next two."""
    while True:
        with socket.socket() as one, socket.socket() as two, socket.socket() as three:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port + 1))
                three.bind(("127.0.0.1", port + 2))
            except (OSError, OverflowError):
                continue
            return port


def exit_code(*words: str) -> int:
    """Exit code of a command that runs in this process."""
    with pytest.raises(SystemExit) as left:
        main(lambda: app(list(words)))
    return int(left.value.code or 0)


class Here:
    """`raypft` as a user of a fresh home runs it, and a definition with free ports."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.file = folder, folder / f"{kind}.yaml"
        values = yaml.safe_load((ROOT / "cluster" / f"{kind}.yaml").read_text())
        ports = {"port": free_port(), "dashboard_port": free_port()}
        self.file.write_text(
            yaml.safe_dump({**values, **ports, "name": f"test-{os.getpid()}-{kind}", "storage": str(folder / "runs")})
        )
        self.url = f"http://127.0.0.1:{ports['dashboard_port']}"
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        self.env = {
            **kept,
            "HOME": str(folder),
            "XDG_STATE_HOME": str(folder / "state"),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
        """A command in the background, a group of its own as under a shell."""
        return subprocess.Popen(
            [sys.executable, "-m", "raypft.cli", *words],
            cwd=self.folder,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __call__(self, *words: str, **env: str) -> tuple[int, str, str]:
        """Exit code, output and messages of a command."""
        started = self.start(*words, **env)
        try:
            out, err = started.communicate(timeout=150)
        finally:
            started.kill()
        return started.returncode, out, err

    def submit(self, *words: str, **env: str) -> tuple[int, str, str]:
        """`raypft submit` to this cluster."""
        return (
            self("submit", words[0], *self.at(words), **env)
            if words[0] in VERBS
            else self("submit", *self.at((None, *words)), **env)
        )

    def at(self, words: tuple) -> tuple[str, ...]:
        """Words after the verb, with this cluster's address."""
        return ("--address", self.url, *words[1:])

    def until(self, job: str, *wanted: str, seconds: float = 60) -> str:
        """The first of the wanted texts that a job's status line shows."""
        end, line = time.monotonic() + seconds, ""
        while time.monotonic() < end:
            line = self.submit("status", job)[1]
            if any(one in line for one in wanted):
                return line
            time.sleep(0.5)
        raise AssertionError(f"{job}: {line}")


VERBS = ("run", "attach", "status", "logs", "stop", "list")

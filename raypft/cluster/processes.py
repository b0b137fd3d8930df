"""Processes of one start, by what Linux says of them: the started one, its descendants, and all in their sessions."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """A line of /proc; `born` tells a process from a later one of the same number."""

    pid: int
    parent: int
    session: int
    born: int


def processes() -> dict[int, Process]:
    """All processes but zombies."""
    running = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # the name in brackets may hold anything
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            pid = int(path.parent.name)
            running[pid] = Process(pid, int(fields[1]), int(fields[3]), int(fields[19]))
    return running


def started_by(leader: int, born: int) -> list[Process]:
    """The process that was started as leader of a session, all below it, and all in their sessions."""
    now = processes()
    if leader in now and now[leader].born != born:
        return []
    ours, sessions = {leader}, {leader}
    while True:
        more = {p.pid for p in now.values() if p.parent in ours or p.session in sessions} | ours
        # a job's driver leads a session of its own
        leads = {pid for pid in more if pid in now and now[pid].session == pid} | sessions
        if more == ours and leads == sessions:
            return [now[pid] for pid in sorted(more) if pid in now]
        ours, sessions = more, leads


def end(leader: int, born: int, patience: float = 15.0) -> int:
    """End what was started: SIGTERM to the first, SIGKILL to what is left; how many there were."""
    started = started_by(leader, born)
    if leader in {process.pid for process in started}:
        os.kill(leader, signal.SIGTERM)
    first = [process for process in started if process.pid == leader]
    for group, seconds in ((first, patience), (started, 2.0)):
        until = time.monotonic() + seconds
        while alive(group) and time.monotonic() < until:
            time.sleep(0.1)
    for process in alive(started):
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    until = time.monotonic() + 5
    while alive(started) and time.monotonic() < until:
        time.sleep(0.05)
    return len(started)


def alive(given: list[Process]) -> list[Process]:
    """Those that still run."""
    now = processes()
    return [process for process in given if process.pid in now and now[process.pid].born == process.born]

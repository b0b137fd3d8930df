"""A small campaign on Ray Tune while workers, trials, the queue of cells, raylets and the driver are killed at drawn
moments; with --hosts (root) on three hosts of one machine, whose links are cut too. In the end stands what stands where
nothing went wrong, times aside.

    OMP_NUM_THREADS=1 python benchmarks/chaos_ray.py [--seed N] [--events N] [--hosts]

Each command meets one event. Only processes that a command of this script started are killed, each by its id.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml
from chaos import CELLS, RECIPES, WORDS, forked, lines, prepare, report, whole
from hosts import Hosts, not_permitted

from raypft.schema import set_key, split_override

VICTIMS = {
    "worker": "ray::RayTrainWorker",
    "trial": "ray::ResourceTrainable",
    "queue": "ray::CellQueue",
    "raylet": "/raylet ",
}
"""What is killed, and how its process is called; beside them the driver and, on hosts, a link."""
LONGEST = 600
"""Seconds after which a command has hung."""
HOST_CPUS, WORKERS_CPUS = 3, 2.5
"""A host has room for a worker beside trials, the head is too small for one: two hosts, and each may be lost."""


def campaign(place: Path, storage: str, cpus: float) -> Path:
    """The file of a campaign over the recipes, its cells on one worker with so many CPUs."""
    defaults: dict[str, object] = {"storage": str(place / storage)}
    more = ["resources.workers=1", f"resources.cpus_per_worker={cpus}", "train.epochs=12", "zero.stage=1"]
    for word in [*WORDS, *more]:
        key, value = split_override(word)
        if key != "task":
            set_key(defaults, key, value)
    rows = {recipe: {"recipe": recipe} for recipe in RECIPES}
    path = place / f"{storage}.yaml"
    path.write_text(yaml.safe_dump({"about": "chaos", "defaults": defaults, "rows": rows, "tasks": ["mine.yaml"]}))
    return path


def called(process: int) -> str:
    """The command of a process."""
    return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def below(process: int) -> dict[int, str]:
    """The processes that a process started, and theirs: id to command."""
    parents, commands = dict[int, int](), dict[int, str]()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                commands[int(entry.name)], parents[int(entry.name)] = called(int(entry.name)), parent
            except (OSError, IndexError):  # it is gone
                continue
    found = {process}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {one: commands.get(one, "") for one in found}


def end(processes: dict[int, str]) -> None:
    """Kill what is left of processes: those whose id still has the same command."""
    for process, command in processes.items():
        try:
            if called(process) == command:
                os.kill(process, signal.SIGKILL)
        except OSError:
            continue


class Alone:
    """A command on this machine that starts a Ray of its own."""

    def __init__(self, file: Path, log: Path) -> None:
        self.temporary, self.known = tempfile.mkdtemp(prefix="rc-", dir="/tmp"), dict[int, str]()
        environment = {**os.environ, "RAY_TMPDIR": self.temporary}
        environment.pop("RAY_ADDRESS", None)
        command = [sys.executable, "-m", "raypft.cli", "tune", file.name]
        with log.open("w") as stream:
            self.command = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)

    def found(self, victim: str) -> list[int]:
        """Processes that a victim may be, none where it is not there yet."""
        self.known |= (now := below(self.command.pid))
        return [self.command.pid] if victim == "driver" else called_so(now, victim)

    def strike(self, victim: str, process: int, heals: float) -> None:
        """kill -9 of a process."""
        os.kill(process, signal.SIGKILL)

    def end(self) -> None:
        """End what is left."""
        self.command.kill()
        self.command.wait()
        self.known.pop(self.command.pid, None)
        time.sleep(1)
        end(self.known)
        shutil.rmtree(self.temporary, ignore_errors=True)


class OnHosts:
    """A command on the head of a cluster of three hosts."""

    def __init__(self, file: Path, log: Path) -> None:
        self.hosts = Hosts()
        try:
            self.hosts.add("one", HOST_CPUS)
            self.hosts.add("two", HOST_CPUS)
            self.hosts.wait(3)
            with log.open("w") as stream:
                self.command = self.hosts.raypft("tune", file.name, output=stream)
        except BaseException:
            self.hosts.end()
            raise

    def found(self, victim: str) -> list[int]:
        """As above; a link's: workers whose host may be cut off."""
        if victim == "driver":
            return [self.command.pid]
        return [process for name in self.hosts.names for process in called_so(self.hosts.processes(name), victim)]

    def strike(self, victim: str, process: int, heals: float) -> None:
        """kill -9 of a process, or its host's link cut for some seconds."""
        if victim != "link":
            os.kill(process, signal.SIGKILL)
            return
        (host,) = [name for name in self.hosts.names if process in self.hosts.processes(name)]
        self.hosts.cut(host)
        time.sleep(heals)
        self.hosts.heal(host)

    def end(self) -> None:
        """End what is left."""
        self.hosts.end()


def called_so(processes: dict[int, str], victim: str) -> list[int]:
    """Those among processes that a victim may be."""
    title = VICTIMS["worker" if victim == "link" else victim]
    return [process for process, command in processes.items() if title in command]


@dataclass(frozen=True)
class Event:
    """What goes wrong: a victim, struck some seconds after it is there; which of those it may be, from 0 to 1; seconds
    after which a cut link heals."""

    victim: str
    after: float
    which: float
    heals: float


def attempt(begin: type[Alone | OnHosts], file: Path, log: Path, event: Event | None) -> tuple[int, float | None]:
    """Run the campaign while an event comes; exit code, and when it came."""
    there, came, deadline = None, None, time.monotonic() + LONGEST
    place = begin(file, log)
    try:
        while (code := place.command.poll()) is None and time.monotonic() < deadline:
            found = place.found(event.victim) if event and came is None else []
            there = there or (time.monotonic() if found else None)
            if event and found and there is not None and time.monotonic() - there > event.after:
                came = time.time()
                place.strike(event.victim, found[int(event.which * len(found))], event.heals)
            time.sleep(0.2)
    finally:
        place.end()
    text = log.read_text()
    if code is None or "Traceback" in text or (code and came is None):
        how = "hangs" if code is None else f"ends with {code}"
        raise SystemExit(f"a command {how}, {event if came else 'nothing'} in its way: {text[-3000:]}")
    return code, came


class Chaos:
    """Campaigns, an event in each command.

    Args:
        source: draws the events; hosts: whether commands run on hosts, whose links are cut too.
    """

    def __init__(self, place: Path, source: random.Random, hosts: bool) -> None:
        self.place, self.source, self.log = place, source, place / "log"
        self.begin, self.cpus = (OnHosts, WORKERS_CPUS) if hosts else (Alone, 0.25)
        self.victims = [*VICTIMS, "driver", *(["link"] if hosts else [])]
        self.events, self.recoveries, self.twice, self.lost = Counter[str](), list[float](), 0, 0
        self.since: float | None = None

    def round(self, storage: str, most: int) -> str:
        """Commands until a campaign is finished, with events until there were so many; its report."""
        folder, code = self.place / storage, 1
        file = campaign(self.place, storage, self.cpus)
        while code:
            event, known = self._event() if self.events.total() < most else None, whole(folder)
            code, came = attempt(self.begin, file, self.log, event)
            self.lost += sum(whole(folder).get(path) != content for path, content in known.items())
            self._look(folder, came)
            if event and came:
                self.events[event.victim] += 1
                print(f"{storage}: {event.victim}, {event.after:.0f} s after it is there; exit code {code}", flush=True)
        for told in lines(folder).values():
            self.twice += sum(one["event"] == "result" for one in told) > 1
        return report(folder).replace(storage, "")

    def _event(self) -> Event:
        draw = self.source
        return Event(draw.choice(self.victims), draw.uniform(0, 12), draw.random(), draw.uniform(1, 60))

    def _look(self, folder: Path, came: float | None) -> None:
        """When it went on: the first that is told may be by a process that does not know yet."""
        self.since = self.since or came
        told = [one["time"] for cell in lines(folder).values() for one in cell]
        after = sorted(at for at in told if self.since and at > self.since)
        if self.since and len(after) > 1:
            self.recoveries.append(after[1] - self.since)
            self.since = None


def main() -> None:
    """Run, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--events", type=int, default=8)
    parser.add_argument("--hosts", action="store_true", help="on three hosts (network namespaces), links are cut too")
    asked = parser.parse_args()
    if asked.hosts and (why := not_permitted()):
        raise SystemExit(f"--hosts: {why}; leave it out, or run as root")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="raypft-chaos-") as folder:
        os.chdir(folder)  # from where the paths of a campaign are meant, on all hosts
        place = Path(folder)
        os.waitpid(forked(lambda: prepare(place)), 0)
        chaos = Chaos(place, random.Random(asked.seed), asked.hosts)
        expected, same, rounds = chaos.round("undisturbed", 0), True, 0
        while chaos.events.total() < asked.events:
            rounds += 1
            same &= chaos.round(f"round-{rounds}", asked.events) == expected
    told = ", ".join(f"{victim} {count}" for victim, count in sorted(chaos.events.items()))
    print(f"{rounds} campaigns of {CELLS} cells in {time.monotonic() - began:.0f} s; {told}")
    if chaos.recoveries:
        middle, worst = statistics.median(chaos.recoveries), max(chaos.recoveries)
        print(f"recoveries {len(chaos.recoveries)}, median {middle:.1f} s, worst {worst:.1f} s")
    done = f"events {chaos.events.total()} lost {chaos.lost} twice {chaos.twice}"
    print(f"{done} same {'yes' if same else 'no'}")


if __name__ == "__main__":
    main()

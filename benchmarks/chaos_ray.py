"""A small campaign on Ray Tune while workers, trials, the raylet and the driver are killed at drawn moments. In the end
stands what stands where nothing was killed, times aside.

    OMP_NUM_THREADS=1 python benchmarks/chaos_ray.py [--seed N] [--events N]

Only processes that a command of this script started are killed, each by its id.
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
from pathlib import Path

import yaml
from chaos import CELLS, RECIPES, WORDS, forked, lines, prepare, report, whole

from raypft.schema import set_key, split_override

VICTIMS = {"worker": "ray::RayTrainWorker", "trial": "ray::ResourceTrainable", "raylet": "/raylet ", "driver": ""}
"""What is killed, and how its process is called."""
LONGEST = 600
"""Seconds after which a command has hung."""


def campaign(place: Path, storage: str) -> Path:
    """The file of a campaign over the recipes, its cells on one worker."""
    defaults: dict[str, object] = {"storage": str(place / storage)}
    more = ["resources.workers=1", "resources.cpus_per_worker=0.25", "train.epochs=12", "zero.stage=1"]
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


def attempt(file: Path, log: Path, victim: str, after: float) -> tuple[int, float | None]:
    """Run the campaign and kill a process of it some seconds after there is one; exit code, and when it was killed."""
    temporary = tempfile.mkdtemp(prefix="rc-", dir="/tmp")
    environment = {**os.environ, "RAY_TMPDIR": temporary}
    environment.pop("RAY_ADDRESS", None)
    command, killed = [sys.executable, "-m", "raypft.cli", "tune", file.name], None
    with (
        log.open("w") as stream,
        subprocess.Popen(command, cwd=file.parent, env=environment, stdout=stream, stderr=stream) as process,
    ):
        known, deadline = dict[int, str](), time.monotonic() + LONGEST
        there: float | None = None
        while process.poll() is None and time.monotonic() < deadline:
            known |= (now := below(process.pid))
            named = [one for one, name in now.items() if VICTIMS[victim] in name] if victim else []
            named = [process.pid] if victim == "driver" else named
            there = there or (time.monotonic() if named else None)
            if killed is None and named and there is not None and time.monotonic() - there > after:
                os.kill(named[-1], signal.SIGKILL)
                killed = time.time()
            time.sleep(0.2)
        known.pop(process.pid, None)
        process.kill()
    time.sleep(1)
    end(known)
    shutil.rmtree(temporary, ignore_errors=True)
    return process.returncode, killed


def main() -> None:
    """Run, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--events", type=int, default=8)
    asked = parser.parse_args()
    source, began = random.Random(asked.seed), time.monotonic()
    events, recoveries, twice, lost = Counter[str](), list[float](), 0, 0
    with tempfile.TemporaryDirectory(prefix="raypft-chaos-") as folder:
        place = Path(folder)
        os.waitpid(forked(lambda: prepare(place)), 0)
        log = place / "log"
        if attempt(campaign(place, "undisturbed"), log, "", 0)[0]:
            raise SystemExit(log.read_text())
        expected, same, rounds = report(place / "undisturbed").replace("undisturbed", ""), True, 0
        while events.total() < asked.events:
            rounds += 1
            storage, code = place / f"round-{rounds}", 1
            file = campaign(place, storage.name)
            while code:
                victim = source.choice(list(VICTIMS)) if events.total() < asked.events else ""
                known = whole(storage)
                code, killed = attempt(file, log, victim, source.uniform(0, 12))
                lost += sum(whole(storage).get(path) != content for path, content in known.items())
                if killed is None and code:
                    raise SystemExit(f"a campaign that nothing disturbs ends with {code}: {log.read_text()[-2000:]}")
                if killed is not None:
                    events[victim] += 1
                    told = [event["time"] for cell in lines(storage).values() for event in cell]
                    recoveries += [min(after) - killed] if (after := [one for one in told if one > killed]) else []
            for cell in lines(storage).values():
                twice += sum(event["event"] == "result" for event in cell) > 1
            same &= report(storage).replace(storage.name, "") == expected
    told = ", ".join(f"{victim} {count}" for victim, count in sorted(events.items()))
    print(f"{rounds} campaigns of {CELLS} cells in {time.monotonic() - began:.0f} s; killed: {told}")
    if recoveries:
        middle, worst = statistics.median(recoveries), max(recoveries)
        print(f"went on {len(recoveries)} times, median {middle:.1f} s, worst {worst:.1f} s")
    print(f"events {events.total()} lost {lost} twice {twice} same {'yes' if same else 'no'}")


if __name__ == "__main__":
    main()

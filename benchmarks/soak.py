"""Tiny trials of a campaign on a ZeRO-1 worker, one after the other for half an hour in one Ray session: what grows.

    OMP_NUM_THREADS=1 python benchmarks/soak.py [--minutes 30] [--only TEXT]

Half of the time worker groups outlive trials (lanes), half of it each trial has its own group. When a trial has ended,
up to about 60 times in a half, this is measured: of each kind of process below this one, and of this one, the driver,
memory of its own (RssAnon, all of that kind together), open handles and threads; how many processes there are; bytes of
files in /dev/shm that these processes hold, or that were not there before; bytes that a trial adds to the folder of the
Ray session, and to the storage with its run folder.

Each line is start (the first after WARM_UP of the half), middle and end, each the median of three, and the slope of a
straight line through all from the start on, for 100 trials, with its standard error, of one number to the next as if
they knew nothing of each other. Flat is: the slope exceeds twice its standard error by no more than the BOUND beside
it. So a growth below the bound is not told from none, nor one that is smaller than the noise; the numbers are there.
Falling is flat. What is not flat and whose processes those are stands in the last line.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from campaigns import campaign, model  # pyright: ignore[reportAttributeAccessIssue]  (this folder's)
from chaos_ray import below, end
from chaos_ray import called as running
from scipy.stats import linregress

from raypft.scale.session import ray_session
from raypft.scale.tune.run import run_campaign

SAMPLES = 60
"""Measured in a half of the time, at most."""
WARM_UP = 0.2
"""Share of a half that is not looked at: caches fill, allocators take what they will need."""
LEAST = 6
"""Measured so often, at least, for a line through it."""
ENDS = 10
"""Seconds in which all of a session is to be gone."""
HALVES = {"lanes": 60, "a group a trial": 12}
"""To how many trials a minute each has at most; it ends early where they are done."""
KINDS = {
    "ray::Trial": "trial",
    "ray::ResourceTrainable": "trial",  # as Tune calls it
    "ray::RayTrainWorker": "worker",
    "ray::CellQueue": "queue of cells",
    "ray::TrainController": "Ray's Train controller",
    "/gcs_server": "Ray's GCS",
    "/raylet": "Ray's raylet",
}
"""Part of a command to what the process is called here; all others are Ray's helpers."""
HELPERS = "Ray's helpers"
MB = 2**20
BOUND = {"MB": 0.5, "handles": 0.5, "threads": 0.5, "processes": 0.5, "shm MB": 0.5, "log KB a trial": 1.0,
         "storage KB a trial": 1.0}  # fmt: skip
"""What 100 trials may add, by unit."""


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # it is gone
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def shared(processes: dict[int, str], before: set[str]) -> int:
    """Bytes of files in /dev/shm that processes hold open, and of those that are there now and were not before."""
    held: dict[int, int] = {}
    paths = [f"/dev/shm/{name}" for name in set(os.listdir("/dev/shm")) - before]
    for process in processes:
        with suppress(OSError):
            handles = [f"/proc/{process}/fd/{handle}" for handle in os.listdir(f"/proc/{process}/fd")]
            paths += [path for path in handles if os.readlink(path).startswith("/dev/shm/")]
    for path in paths:
        with suppress(OSError):
            stat = os.stat(path)
            held[stat.st_ino] = stat.st_blocks * 512
    return sum(held.values())


def called(command: str) -> str:
    """What a process is called here."""
    return next((name for part, name in KINDS.items() if part in command), HELPERS)


def is_there(process: int, command: str) -> bool:
    """Whether a process still runs a command."""
    try:
        return bool(command) and running(process) == command
    except OSError:
        return False


def state_of(process: int) -> tuple[float, float, float]:
    """Memory of a process's own in MB, its handles and its threads."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    handles = len(os.listdir(f"/proc/{process}/fd"))
    return int(values["RssAnon"].split()[0]) / 1024, handles, int(values["Threads"])


class Meter:
    """Hears a campaign's events, measures when trials end, and interrupts it when its time is over.

    Args:
        ray: the folder of the Ray session; storage: where the campaign's runs are.
        before: names that were in /dev/shm before all.
        seconds: how long the campaign may run from the end of its first trial on.
    """

    def __init__(self, ray: Path, storage: Path, before: set[str], seconds: float) -> None:
        self.folders = {"log KB a trial": ray, "storage KB a trial": storage}
        self.before, self.seconds = before, seconds
        self.began = self.last = 0.0
        self.trials = 0
        self.sizes: dict[str, tuple[int, int]] = {}
        self.found: dict[tuple[str, str], list[tuple[float, int, float]]] = defaultdict(list)
        """What and its unit: seconds since the beginning, trials until then, value."""

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] != "cell":
            return
        if event["status"] != "finished":
            raise SystemExit(f"a trial ended otherwise: {event}")
        self.trials += 1
        now = time.monotonic()
        self.began = self.began or now  # what starts before the first trial is not counted
        if now - self.last >= self.seconds / SAMPLES:
            self.last = now
            self._measure(now - self.began)
        if now - self.began > self.seconds:
            raise KeyboardInterrupt

    def _measure(self, now: float) -> None:
        gc.collect()
        processes = below(os.getpid())
        sums: dict[tuple[str, str], float] = defaultdict(float)
        for process, command in processes.items():
            with suppress(OSError, KeyError):  # it is gone, or about to
                kind = "driver" if process == os.getpid() else called(command)
                for unit, value in zip(("MB", "handles", "threads"), state_of(process), strict=True):
                    sums[kind, unit] += value
        sums["all", "processes"] = len(processes)
        sums["all", "shm MB"] = shared(processes, self.before) / MB
        for unit, folder in self.folders.items():
            trials, total = self.sizes.get(unit, (self.trials, 0))
            self.sizes[unit] = self.trials, size(folder)
            if self.trials > trials:
                sums["all", unit] = (self.sizes[unit][1] - total) / 1024 / (self.trials - trials)
        for key, value in sums.items():
            self.found[key].append((now, self.trials, value))

    def table(self, name: str) -> list[str]:
        """Print what was found; what isn't flat."""
        print(f"\n{name}: {self.trials} trials in {self.seconds / 60:g} minutes")
        print(f"{'':44}{'start':>9}{'middle':>9}{'end':>9}{'per 100 trials':>22}")
        growing, too_few = list[str](), list[str]()
        for (what, unit), samples in sorted(self.found.items(), key=lambda one: list(BOUND).index(one[0][1])):
            warm = [(trials, value) for now, trials, value in samples if now > WARM_UP * self.seconds]
            if len(warm) < LEAST:
                too_few.append(f"{what} {unit}")
                continue
            middle = len(warm) // 2 - 1
            start, half, last = (statistics.median(value for _, value in warm[at : at + 3 or None]) for at in
                                 (0, middle, -3))  # fmt: skip
            line: Any = linregress([trials for trials, _ in warm], [value for _, value in warm])
            slope, error = 100 * line.slope, 0.0 if math.isnan(line.stderr) else 100 * line.stderr  # nan: all equal
            flat = slope - 2 * error <= BOUND[unit]
            found = f"{start:9.1f}{half:9.1f}{last:9.1f}{slope:12.2f} ± {error:.2f}{'' if flat else '  !'}"
            print(f"{what:24}{unit:20}{found}", flush=True)
            if not flat:
                growing.append(f"{what} {unit} in {name}")
        if too_few:
            print(f"measured fewer than {LEAST} times after the warm-up: {', '.join(too_few)}")
            growing.append(f"too little was measured in {name}")
        return growing


def main() -> None:
    """Run, and say what grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--only", default="", help="leave out a half whose name has no such text")
    asked = parser.parse_args()
    minutes = asked.minutes
    before, growing, trials = set(os.listdir("/dev/shm")), list[str](), 0
    with tempfile.TemporaryDirectory(prefix="so-", dir="/tmp") as name:
        folder = Path(name)
        os.environ["RAY_TMPDIR"] = str(folder / "ray")
        os.environ.pop("RAY_ADDRESS", None)
        os.environ["RAY_memory_monitor_refresh_ms"] = "0"  # noqa: SIM112  (Ray would kill these where others fill the memory)
        model(folder)
        group = {"defaults": {"resources.workers": 1, "zero.stage": 1}}
        with ray_session():
            for half in filter(lambda half: asked.only in half, HALVES):
                most = max(3, round(HALVES[half] * minutes / 2))
                rates = {"space": {"train.lr": [round(1e-4 + 1e-7 * number, 9) for number in range(most)]}}
                what = campaign(folder, half.split()[-1], 0, 1, lanes=half == "lanes", search=rates, **group)
                meter = Meter(folder / "ray", what.folder.parent, before, 30 * minutes)
                try:
                    run_campaign(what, meter)
                except KeyboardInterrupt:
                    pass
                finally:
                    growing += meter.table(half)
                trials += meter.trials
            started = below(os.getpid())
        started.pop(os.getpid())
        time.sleep(ENDS)
        left = {process: command for process, command in started.items() if is_there(process, command)}
        if left:
            print(f"left {ENDS} s after the session's end: {', '.join(left.values())}")
            end(left)
        shutil.rmtree(folder / "ray", ignore_errors=True)
    told = "" if not growing else f": {'; '.join(growing)}"
    print(f"\nsoak {minutes:g} trials {trials} flat {'no' if growing or left else 'yes'}{told}")


if __name__ == "__main__":
    main()

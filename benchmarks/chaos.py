"""A few runs while everything goes wrong: processes are killed, stopped and interrupted at drawn moments, the disk
takes nothing more, files are damaged. In the end stands what stands where nothing went wrong, times aside.

    OMP_NUM_THREADS=1 python benchmarks/chaos.py [--quick] [--seed N] [--events N]

Each attempt is a process of its own, forked from this one, that runs `raypft run` and meets one event; only these
processes are killed. Events follow from the seed; when a killed process dies is up to the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECONDS = 30
"""After so long a quick run draws no more events."""
TIMES = ("seconds", "cpu_seconds", "peak_memory_mb", "train_seconds", "train_flops")
"""What it cost, operations with it: a training that goes on makes the states again that it keeps."""
RECIPES = ("gnnavi_gcn", "fpft")
CELLS = 3 * len(RECIPES)
WORDS = [
    "task=mine.yaml", "data.root=data", "backbone=model", "pattern=asked", "protocol=fixed", "seeds=3", "demos=1",
    "train.epochs=6", "train.languages=[en]", "train.max_tokens=32", "train.batch_size=4", "train.save_every=1",
    "dev.rows=none", "train.select=last",
]  # fmt: skip
TASK = """
about: mine
kind: choice
fields: {text: text}
label: {names: [bad, good]}
languages: [en]
metric: accuracy
sources: {files: {files: {train: train.jsonl, test: test.jsonl}}}
patterns:
  asked: {text: "<demos>{text} : <slot>", verbalizer: {bad: bad, good: good}, source: mine}
"""
DAMAGED = (
    "job.yaml",
    "samples.json",
    "provenance.json",
    "result.json",
    "state.pt",
    "state.previous.pt",
    "demos.parquet",
)
Hook = Callable[[], None]


def prepare(place: Path) -> None:
    """The task, its rows and a tiny model, made in memory."""
    from raypft.contract import tiny  # noqa: PLC0415  (its threads are not for the process that forks)

    (place / "mine.yaml").write_text(TASK)
    (place / "data").mkdir()
    rows = [{"text": f"{word} film {number}", "label": word} for number in range(12) for word in ("bad", "good")]
    for name, some in (("train", rows[:16]), ("test", rows[16:])):
        (place / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    made = tiny.backbone("gpt2", dropout=0.1)
    made.model.save_pretrained(place / "model")
    made.text.tokenizer.save_pretrained(place / "model")


def forked(work: Callable[[], Any], log: Path | None = None) -> int:
    """Start work in a process of its own, its output in a file; the process."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        if log is not None:
            stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(stream, 1)
            os.dup2(stream, 2)
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(place: Path, storage: str, hook: Hook) -> None:
    """What an attempt does."""
    from raypft.cli.app import main  # noqa: PLC0415  (as above)

    os.chdir(place)
    hook()
    sys.argv = ["raypft", "run", *RECIPES, *WORDS, f"storage={storage}"]
    main()


def dies_at(name: str, call: int, after: bool) -> Hook:
    """A process that kills itself at a call of `os.replace`, `os.fsync` or `os.unlink`, before or after it is done."""

    def hook() -> None:
        function, calls = getattr(os, name), iter(range(1 << 30))

        def dying(*words: Any, **more: Any) -> Any:
            now = next(calls) == call
            if now and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            given = function(*words, **more)
            if now:
                os.kill(os.getpid(), signal.SIGKILL)
            return given

        setattr(os, name, dying)

    return hook


def limited(what: int, most: int) -> Hook:
    """A process that may write no file longer, or open no more files, than so many: as a full disk or table has it."""
    return lambda: resource.setrlimit(what, (most, resource.getrlimit(what)[1]))


@dataclass
class Seen:
    """What came of all attempts."""

    events: Counter[str] = field(default_factory=Counter)
    recoveries: list[float] = field(default_factory=list)
    lost: int = 0
    twice: int = 0
    tracebacks: list[str] = field(default_factory=list)


def without_times(value: Any) -> Any:
    """A result without what differs between equal runs."""
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if key not in (*TIMES, "check")}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def report(storage: Path) -> str:
    """All that a report has, times aside: tables, results, the digests of predictions and trained values."""
    parts = []
    for path in sorted(storage.glob("*/seed-*/result.json")):
        parts.append(f"{path.relative_to(storage)} {json.dumps(without_times(json.loads(path.read_text())))}")
    for path in sorted(storage.glob("*/table.md")):
        scores, cost, _ = path.read_text().partition("**cost**")
        if cost:  # a campaign's, where it stands behind the scores
            parts.append(scores)
            continue
        rows = [line.split("|") for line in scores.splitlines()]
        seconds = rows[2].index(" seconds ")
        parts += ["|".join(cells[:seconds] + cells[seconds + 1 :]) for cells in rows]
    return "\n".join(parts)


def whole(storage: Path) -> dict[Path, bytes]:
    """Results that are what was written."""
    from raypft.runs.results import is_finished, key_of  # noqa: PLC0415  (as above)

    found = {}
    for path in storage.glob("*/seed-*/result.json"):
        if is_finished(path.parent, key_of(path) or ""):
            found[path] = path.read_bytes()
    return found


def lines(storage: Path) -> dict[Path, list[dict[str, Any]]]:
    """The events that cells told."""
    found: dict[Path, list[dict[str, Any]]] = {}
    for path in storage.glob("*/seed-*/events.jsonl"):
        told = []
        for line in path.read_text().splitlines():
            try:
                told.append(json.loads(line))
            except ValueError:  # the line at which a process died
                continue
        found[path.parent] = told
    return found


class Chaos:
    """Attempts at runs, one event in each.

    Args:
        longest: seconds that an attempt takes where nothing goes wrong.
    """

    def __init__(self, place: Path, source: random.Random, longest: float) -> None:
        self.place, self.source, self.longest, self.seen = place, source, longest, Seen()
        self.since: float | None = None
        self.hurt: Counter[Path] = Counter()

    def round(self, storage: str, more: Callable[[], bool]) -> None:
        """Attempts until all is finished."""
        folder, code = self.place / storage, 1
        while code:
            kind = self.source.choice(KINDS) if more() else ""
            known = whole(folder)
            began, log = time.time(), self.place / "log"
            log.write_bytes(b"")
            code = self._attempt(storage, folder, kind, log)
            self._look(folder, known, began)
            text = log.read_text(errors="replace")
            if "Traceback" in text or (code == 2 and len(re.findall("^raypft: ", text, re.MULTILINE)) != 1):
                self.seen.tracebacks.append(f"{kind}: {text[-2000:]}")
            if kind and (code or kind in ("stop", "damage")):
                self.seen.events[kind] += 1
                self.since = self.since or time.time()
            if not kind and code:
                raise SystemExit(f"a run that nothing disturbs ends with {code}: {text[-2000:]}")

    def _attempt(self, storage: str, folder: Path, kind: str, log: Path) -> int:
        draw = self.source
        if kind == "damage":
            self._damage(folder)
        dies = dies_at(draw.choice(("replace", "fsync")), draw.randrange(60), draw.random() < 0.5)
        hooks = {
            **{"die": dies, "damage": dies, "stop": dies},  # what was damaged or stopped is killed soon after
            "disk full": limited(resource.RLIMIT_FSIZE, draw.randrange(1, 1 << 13)),
            "no handles": limited(resource.RLIMIT_NOFILE, draw.randrange(6, 30)),
        }
        hook = hooks.get(kind, lambda: None)
        process = forked(lambda: run(self.place, storage, hook), log)
        if kind in SIGNALS:
            time.sleep(draw.uniform(0, self.longest / 2))
            os.kill(process, SIGNALS[kind])
            if kind == "stop":
                time.sleep(draw.uniform(0, 0.5))
                os.kill(process, signal.SIGCONT)
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    def _damage(self, folder: Path) -> None:
        paths = sorted(path for name in DAMAGED for path in folder.rglob(name))
        if not paths:
            return
        path = self.source.choice(paths)
        content = bytearray(path.read_bytes())
        how = self.source.randrange(4)
        if how == 0:
            content = content[: self.source.randrange(len(content) + 1)]
        elif how == 1:
            content = bytearray(self.source.randbytes(50))
        elif how == 2 and content:
            content[self.source.randrange(len(content))] ^= 1 << self.source.randrange(8)
        else:
            content = bytearray()
        path.write_bytes(content)
        if path.name == "result.json":
            self.hurt[path.parent] += 1

    def _look(self, folder: Path, known: dict[Path, bytes], began: float) -> None:
        """What the attempt lost, did twice, and when it went on."""
        now, events = whole(folder), lines(folder)
        for path, content in known.items():
            if now.get(path) != content and not self.hurt[path.parent]:
                self.seen.lost += 1
        for cell, told in events.items():
            results = sum(event["event"] == "result" for event in told)
            self.seen.twice += results > 1 + self.hurt[cell]
        after = [event["time"] for told in events.values() for event in told if event["time"] >= began]
        if self.since is not None and (after or len(now) == CELLS):
            self.seen.recoveries.append(min(after, default=time.time()) - self.since)
            self.since = None


SIGNALS = {
    "kill": signal.SIGKILL, "stop": signal.SIGSTOP, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT,
}  # fmt: skip
KINDS = ("die", "die", "die", "kill", "kill", "stop", "terminate", "interrupt", "disk full", "no handles", "damage")


def main(words: Sequence[str] | None = None) -> None:
    """Run, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"events for {SECONDS} s instead of --events")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--events", type=int, default=100)
    asked = parser.parse_args(words)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="raypft-chaos-") as folder:
        place = Path(folder)
        os.waitpid(forked(lambda: prepare(place)), 0)
        import raypft.runs.run  # noqa: PLC0415  (once for all attempts)
        import raypft.scale.run  # noqa: F401, PLC0415

        start = time.monotonic()
        process = forked(lambda: run(place, "undisturbed", lambda: None), place / "log")
        if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]):
            raise SystemExit((place / "log").read_text())
        chaos = Chaos(place, random.Random(asked.seed), time.monotonic() - start)
        seen, same, rounds = chaos.seen, True, 0

        def more() -> bool:
            left = time.monotonic() - began < SECONDS if asked.quick else seen.events.total() < asked.events
            return left

        expected = report(place / "undisturbed").replace("undisturbed", "")
        while more():
            rounds += 1
            chaos.round(f"round-{rounds}", more)
            same &= report(place / f"round-{rounds}").replace(f"round-{rounds}", "") == expected
        left = [str(path) for path in place.rglob("*.partial*")]
    told = ", ".join(f"{kind} {count}" for kind, count in sorted(seen.events.items()))
    print(f"{rounds} rounds of {CELLS} cells in {time.monotonic() - began:.0f} s; {told}")
    if seen.recoveries:
        middle, worst = statistics.median(seen.recoveries), max(seen.recoveries)
        print(f"recoveries {len(seen.recoveries)}, median {middle:.1f} s, worst {worst:.1f} s")
    for line in [*seen.tracebacks, *left]:
        print(line)
    print(
        f"events {seen.events.total()} lost {seen.lost} twice {seen.twice} "
        f"same {'yes' if same and not seen.tracebacks and not left else 'no'}"
    )


if __name__ == "__main__":
    main()

"""What a run's events say goes to its tracker, too.

A thread writes, so that a slow network holds nothing up. What fails there is one line, and the run goes on.
A file in a seed's folder knows the tracker run and how far it is: a run that goes on is tracked in the same
one, and what it lacks it gets when the seed ends, or when the command is given again.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from raypft._version import __version__
from raypft.errors import first_line, without_secrets
from raypft.records import read_or_none, sealed
from raypft.report.formats import metric_name
from raypft.runs.prepare import Prepared
from raypft.runs.results import Tell, read_result
from raypft.runs.trackers import WRITERS, Row, Subject, Writer
from raypft.schema import flat
from raypft.storage import write_text

FILE = "tracker/run.json"
"""In a seed's folder; not beside its other files, which the process that trains puts in order."""
LAST_SECONDS = 20
"""How long the end of a run waits for what its tracker has not taken yet."""
COSTS = (
    "trainable", "workers", "seconds", "train_seconds", "cpu_seconds", "train_flops", "peak_memory_mb",
    "peak_gpu_memory_mb",
)  # fmt: skip
"""Keys of a result that say what a seed cost."""


@contextmanager
def tracked(prepared: Sequence[Prepared], tell: Tell) -> Iterator[Tell]:
    """What hears the events of runs for their trackers, and then `tell`, which also hears of what fails there."""
    seeds = {}
    for ready in prepared:
        for cell in ready.cells() if ready.job.tracker else ():
            subject = Subject(cell.folder, ready.folder.name, cell.seed, settings_of(ready, cell.seed))
            seeds[subject.group, subject.seed] = TrackedSeed(str(ready.job.tracker), subject)
    if not seeds:
        yield tell
        return
    tracking = Tracking(seeds, tell)
    try:
        yield tracking.hear
    finally:
        tracking.end()


def settings_of(prepared: Prepared, seed: int) -> dict[str, Any]:
    """What a tracker shows as a seed's configuration, without secrets: the job's keys, dotted, and what it ran on."""
    job = prepared.job.model_dump(exclude={"seeds", "tracker"})
    for part in ("method", "readout"):
        job[part] = dict(job[part])
        job |= {part: job[part].pop("name"), **{f"{part}.{key}": value for key, value in job[part].items()}}
    more = {"seed": seed, "cell": prepared.keys[seed], "folder": str(prepared.folder), "raypft": __version__}
    more["backbone_revision"] = prepared.skeleton.revision
    return {key: _hidden(value) for key, value in (flat(job) | more).items()}


def _hidden(value: Any) -> Any:
    if isinstance(value, str):
        return without_secrets(value)
    return [_hidden(one) for one in value] if isinstance(value, list) else value


class Tracking:
    """The thread that writes what events say, and what hears of them.

    Args:
        seeds: by the names of the run and the seed that events have.
    """

    def __init__(self, seeds: Mapping[tuple[str, int], TrackedSeed], tell: Tell) -> None:
        self.seeds, self.tell = seeds, tell
        self.events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.told, self.placed = set[str](), False
        self.thread = threading.Thread(target=self._work, name="raypft-tracker", daemon=True)
        self.thread.start()

    def hear(self, event: dict[str, Any]) -> None:
        """Take in an event of a run."""
        self.events.put(event)
        self.tell(event)
        self._say()

    def end(self) -> None:
        """Wait for what is not written yet, for a while."""
        self.events.put(None)
        self.thread.join(LAST_SECONDS)
        if self.thread.is_alive():
            names = ", ".join(sorted({seed.name for seed in self.seeds.values()}))
            self.lines.put(
                f"tracker: {names} has not taken all within {LAST_SECONDS} s; the same command makes up for it"
            )
        self._say()

    def _say(self) -> None:
        """Tell what the thread has to say, each line once, where events are told."""
        while not self.lines.empty():
            line = self.lines.get()
            if line not in self.told:
                self.told.add(line)
                self.tell({"event": "note", "text": line})

    def _work(self) -> None:
        while (event := self.events.get()) is not None:
            seed = self.seeds.get((event.get("run", ""), event.get("seed", -1)))
            if seed is not None:
                self._guarded(seed, event)
        for seed in self.seeds.values():
            self._guarded(seed, {"event": "interrupted"})

    def _guarded(self, seed: TrackedSeed, event: dict[str, Any]) -> None:
        if seed.failed:
            return
        try:
            seed.take(event)
            if seed.writer is not None and not self.placed:
                self.placed = True
                self.lines.put(f"tracker: {seed.name}: {without_secrets(seed.writer.place)}")
        except Exception as error:  # each package has its own
            seed.failed = True
            told = without_secrets(first_line(error))
            after = "the run goes on, and the same command, given again, makes up for it"
            self.lines.put(f"tracker: {seed.name}: {told}; {after}")


class TrackedSeed:
    """A seed's tracker run: opened at its first event, closed at its result."""

    def __init__(self, name: str, subject: Subject) -> None:
        self.name, self.subject, self.failed = name, subject, False
        self.writer: Writer | None = None
        self.steps = self.epochs = 0
        self.done = False

    def take(self, event: dict[str, Any]) -> None:
        """Write what an event says and is not written yet."""
        kind = event["event"]
        if kind in ("start", "resume"):
            self._open()
        elif kind == "steps" and self.writer is not None:
            self._write(self._losses(event["losses"], event["lr"], event["first"] - 1))
        elif kind == "epoch" and self.writer is not None:
            self._write(self._history([event], self.steps))
        elif kind in ("result", "reuse"):
            self._open()
            if self.writer is not None:
                self._conclude(self.writer, read_result(self.subject.folder))
        elif kind == "interrupted" and self.writer is not None:
            self.writer.close(None)
            self.writer = None

    def _open(self) -> None:
        """Open the tracker run, that of before where there is one."""
        if self.writer is None and not self.done:
            known = (read_or_none(self.subject.folder / FILE) or {}).get(self.name, {})
            self.steps, self.epochs = known.get("steps", 0), known.get("epochs", 0)
            self.done = known.get("done", False)
            if not self.done:
                self.writer = WRITERS[self.name](self.subject, known.get("id"))
                self._note()

    def _losses(self, losses: Sequence[float], rates: Sequence[float], before: int) -> Iterator[Row]:
        """Rows of steps, the first of which comes after so many."""
        for step, loss in enumerate(losses, start=before + 1):
            if step > self.steps:
                rate = {"train/lr": rates[step - before - 1]} if rates else {}
                self.steps = step
                yield step, {"train/loss": loss} | rate

    def _history(self, records: Sequence[Mapping[str, Any]], steps: int) -> Iterator[Row]:
        """Rows of epochs; steps: that were made when the last of them ended."""
        for record in records:
            if record["epoch"] > self.epochs:
                self.epochs = record["epoch"]
                dev = {"dev/score": record["dev"]} if record.get("dev") is not None else {}
                row = {"epoch": record["epoch"], "epoch/loss": record["loss"]} | dev
                yield round(steps * record["epoch"] / records[-1]["epoch"]), row

    def _conclude(self, writer: Writer, result: Mapping[str, Any]) -> None:
        """Write what is lacking and what the seed came to, and close the tracker run."""
        losses, history = result.get("losses", []), result.get("history", [])
        self._write(self._losses(losses, [], 0))
        self._write(self._history(history, len(losses)))
        found = found_by(result)
        writer.write([(len(losses), found)])
        writer.close(found)
        self.writer, self.done = None, True
        self._note()

    def _write(self, rows: Iterator[Row]) -> None:
        assert self.writer is not None
        made = list(rows)
        if made:
            self.writer.write(made)
            self._note()

    def _note(self) -> None:
        """Keep how far the tracker run is."""
        path = self.subject.folder / FILE
        kept = read_or_none(path) or {}
        mine = kept.get(self.name, {}) if self.writer is None else {"id": self.writer.id}
        mine |= {"steps": self.steps, "epochs": self.epochs, "done": self.done}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, sealed({**kept, self.name: mine}))


def found_by(result: Mapping[str, Any]) -> dict[str, float]:
    """What a result says, by name: the test by metric and language in percent, dev, the kept epoch, costs."""
    numbers = {"test/mean": result.get("mean"), "dev/kept": result.get("dev"), "epoch/kept": result.get("best_epoch")}
    for metric, scores in result.get("metrics", {}).items():
        numbers |= {f"test/{metric_name(metric)}/{language}": score for language, score in scores.items()}
    numbers |= {f"cost/{key}": result.get(key) for key in COSTS}
    return {name: number for name, number in numbers.items() if number is not None}

"""What is told while a run, a campaign or a submitted job goes on: JSON lines with --json, else text for a person.

On a terminal runs have bars and campaigns a live view.
"""

from __future__ import annotations

import json
import shutil
import sys
from abc import ABC, abstractmethod
from typing import Any, Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raypft.errors import visible
from raypft.progress import Far, heard
from raypft.report.formats import duration


class Progress(ABC):
    """Hears events: each is a JSON line, or shown; around them stands what moves on a terminal."""

    live: Live | Bars | None = None

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def __enter__(self) -> Self:
        self.hearing = heard(self.far)
        self.hearing.__enter__()
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *raised: Any) -> None:
        if self.live is not None:
            self.live.stop()
        self.hearing.__exit__(None, None, None)

    def far(self, far: Far | None) -> None:
        """Hear how far work is that has no events; here it is not shown."""
        return

    def __call__(self, event: dict[str, Any]) -> None:
        if self.as_json:
            print(json.dumps(event), flush=True)
        else:
            self.show(event)

    @abstractmethod
    def show(self, event: dict[str, Any]) -> None:
        """Show an event to a person."""


class JobProgress(Progress):
    """A submitted job: its output on stdout, what happens to it on stderr."""

    def show(self, event: dict[str, Any]) -> None:
        if event["event"] == "log":
            print(event["text"], end="", flush=True)
        else:
            print(f"raypft: {event['text']}", file=sys.stderr, flush=True)


class OneLine:
    """How far long work is, as one line that is drawn again and again without an escape code, and taken away when the
    work ends; nothing where the stream is no terminal."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.shown = stream, 0

    def __call__(self, far: Far | None) -> None:
        if not self.stream.isatty():
            return
        line = far_line(far)[: shutil.get_terminal_size().columns - 1] if far is not None else ""
        self.stream.write("\r" + line.ljust(self.shown) + ("" if line else "\r"))
        self.stream.flush()
        self.shown = len(line)


def far_line(far: Far) -> str:
    """`encoding: 1,200 of 3,000 rows, 12 s left`."""
    if far.unit == "bytes":
        done = f"{far.done / 1e6:,.0f} of {far.total / 1e6:,.0f} MB"
    else:
        done = f"{far.done:,.0f} of {far.total:,.0f} {far.unit}"
    return f"{far.what}: {done}" + (f", {duration(far.left)} left" if far.left is not None else "")


class RunProgress(Progress):
    """Runs: a bar for each seed on a terminal, plain lines elsewhere.

    Args:
        labels: folder name of a run to what its lines begin with, where several runs are shown.
    """

    def __init__(self, console: Console, as_json: bool, labels: dict[str, str]) -> None:
        super().__init__(as_json)
        self.console, self.labels = console, labels
        self.live = self.display = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            disable=as_json or not console.is_terminal,
            transient=True,
        )
        self.bars: dict[Any, TaskID] = {}
        self.work: TaskID | None = None

    def show(self, event: dict[str, Any]) -> None:
        label = f"{self.labels.get(event.get('run', ''), '')} seed {event.get('seed')}".lstrip()
        self._move_bar(event, label)
        text = run_line(event, label)
        if text and (event["event"] not in ("epoch", "step") or not self.console.is_terminal):
            self.console.print(visible(text), highlight=False, markup=False, emoji=False, soft_wrap=True)

    def far(self, far: Far | None) -> None:
        """A bar of its own while work goes on."""
        if far is None:
            if self.work is not None:
                self.display.remove_task(self.work)
            self.work = None
            return
        by, unit = (1e6, "MB") if far.unit == "bytes" else (1, far.unit)
        if self.work is None:
            self.work = self.display.add_task(far.what, total=int(far.total / by), unit=unit, note="")
        note = f"{duration(far.left)} left" if far.left is not None else ""
        self.display.update(self.work, completed=int(far.done / by), note=note)

    def _move_bar(self, event: dict[str, Any], label: str) -> None:
        kind, cell = event["event"], (event.get("run"), event.get("seed"))
        if kind in ("start", "resume"):
            done = event.get("epoch", 0)
            self.bars[cell] = self.display.add_task(
                label, total=event["epochs"], completed=done, unit="epochs", note=""
            )
        elif cell not in self.bars:
            return
        elif kind == "epoch":
            dev = f"dev {event['dev']:.1f}" if "dev" in event else ""
            self.display.update(self.bars[cell], completed=event["epoch"], note=f"loss {event['loss']:.3f} {dev}")
        elif kind == "step":
            note = f"step {event['step']} of {event['steps']}, loss {event['loss']:.3f}"
            self.display.update(self.bars[cell], note=note)
        elif kind == "result":
            self.display.remove_task(self.bars.pop(cell))


def run_line(event: dict[str, Any], label: str) -> str:
    """An event of a run as a line for a person; empty where it is none's business."""
    if event["event"] == "start":
        notes = [f"\n{label}: {note}" for note in event.get("notes", [])]
        return f"{label}: {event['trainable']:,} trainable parameters, up to {event['epochs']} epochs" + "".join(notes)
    if event["event"] == "resume":
        return f"{label}: goes on at epoch {event['epoch'] + 1}, step {event['step'] + 1} from its last state"
    if event["event"] == "reuse":
        return f"{label}: finished before, reused"
    if event["event"] == "step":
        return f"{label}: epoch {event['epoch']}, step {event['step']} of {event['steps']}, loss {event['loss']:.4f}"
    if event["event"] == "epoch":
        dev = f", dev {event['dev']:.1f}" if "dev" in event else ""
        return f"{label}: epoch {event['epoch']}, loss {event['loss']:.4f}{dev}"
    if event["event"] == "result":
        return f"{label}: test {event['mean']:.2f}"
    return event.get("text", "")


class CampaignProgress(Progress):
    """A campaign: cells as lines as they end, and on a terminal what runs, the best so far and the time left."""

    def __init__(self, console: Console, as_json: bool) -> None:
        super().__init__(as_json)
        self.console = console
        if console.is_terminal and not as_json:
            self.live = Live(console=console, transient=True, refresh_per_second=4)

    def show(self, event: dict[str, Any]) -> None:
        text = campaign_line(event)
        if text and (event["event"] != "trial" or self.live is None):
            self.console.print(visible(text), highlight=False, markup=False, emoji=False, soft_wrap=True)
        if isinstance(self.live, Live) and "total" in event:
            self.live.update(campaign_view(event))


def campaign_line(event: dict[str, Any]) -> str:
    """An event of a campaign as a line for a person; empty where it is none's business."""
    if event["event"] == "trial":
        return f"{event['label']}: {'chosen on dev, tested now' if event['chosen'] else 'begun'}"
    if event["event"] != "cell":
        return event.get("text", "")
    cell = f"{how_far(event)} {event['label']} seed {event['seed']}"
    if event["status"] != "finished":
        return f"{cell}: {event['status']}: {event['reason']}"
    numbers = [f"{name} {event[name]:.2f}" for name in ("dev", "test") if event.get(name) is not None]
    return f"{cell}: {', '.join(numbers) or 'done'}"


def how_far(event: dict[str, Any]) -> str:
    """`[3/24, 5 min left]`."""
    left = "" if event["left"] is None or event["done"] == event["total"] else f", {duration(event['left'])} left"
    return f"[{event['done']}/{event['total']}{left}]"


def campaign_view(event: dict[str, Any]) -> Group:
    """The live view: how far, what runs, the best so far."""
    head = Table.grid(padding=(0, 1))
    head.add_row(ProgressBar(total=event["total"], completed=event["done"], width=40), Text(f"cells {how_far(event)}"))
    body = Table.grid(padding=(0, 2))
    for label, seeds in event["running"].items():
        body.add_row(Text("running"), Text(label), Text(f"seeds done {seeds}"))
    for place, (label, dev) in event["best"].items():
        body.add_row(Text("best"), Text(label.removeprefix(place).strip() or label), Text(f"{place}: dev {dev:.2f}"))
    return Group(head, body)

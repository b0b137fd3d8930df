"""What a campaign shows while it runs: a live view on a terminal, plain lines elsewhere, JSON lines with --json."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text


class CampaignTeller:
    """Shows a campaign's events: cells as they end as lines, and on a terminal what runs, the best so far and the time left."""

    def __init__(self, console: Console, as_json: bool, prefix: str = "") -> None:
        self.console, self.as_json, self.prefix = console, as_json, prefix
        self.live = (
            Live(console=console, transient=True, refresh_per_second=4) if console.is_terminal and not as_json else None
        )

    def __enter__(self) -> CampaignTeller:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *raised: Any) -> None:
        if self.live is not None:
            self.live.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        if self.as_json:
            print(json.dumps(event), flush=True)
            return
        text = spoken(event)
        if text and (event["event"] != "trial" or self.live is None):
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)
        if self.live is not None and "total" in event:
            self.live.update(view(event))


def spoken(event: dict[str, Any]) -> str:
    """An event as a line for a person; empty where it is none's business."""
    if event["event"] == "trial":
        return f"{event['label']}: {'chosen on dev, tested now' if event['chosen'] else 'begun'}"
    if event["event"] != "cell":
        return event.get("text", "")
    if event["status"] != "finished":
        return f"{progress(event)} {event['label']} seed {event['seed']}: {event['status']}: {event['reason']}"
    numbers = [f"{name} {event[name]:.2f}" for name in ("dev", "test") if event.get(name) is not None]
    return f"{progress(event)} {event['label']} seed {event['seed']}: {', '.join(numbers) or 'done'}"


def progress(event: dict[str, Any]) -> str:
    """`[3/24, 5 min left]`."""
    left = "" if event["left"] is None or event["done"] == event["total"] else f", {duration(event['left'])} left"
    return f"[{event['done']}/{event['total']}{left}]"


def duration(seconds: float) -> str:
    """`40 s`, `5 min`, `3.2 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def view(event: dict[str, Any]) -> Group:
    """The live view: how far, what runs, the best so far."""
    head = Table.grid(padding=(0, 1))
    head.add_row(ProgressBar(total=event["total"], completed=event["done"], width=40), Text(f"cells {progress(event)}"))
    body = Table.grid(padding=(0, 2))
    for label, seeds in event["running"].items():
        body.add_row(Text("running"), Text(label), Text(f"seeds done {seeds}"))
    for place, (label, dev) in event["best"].items():
        body.add_row(Text("best"), Text(label.removeprefix(place).strip() or label), Text(f"{place}: dev {dev:.2f}"))
    return Group(head, body)

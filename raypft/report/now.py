"""What stands on the page of a campaign while it runs: how far its places are, what runs, curves, what failed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raypft.report.figures import Figure, style
from raypft.report.folder import Shown
from raypft.report.formats import duration
from raypft.report.groups import text
from raypft.report.page import rendered
from raypft.report.table import Number, Table, mean_std

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from raypft.report.figures import Drawn

CURVES = 8
"""Cells whose curves are drawn: those that run, then those that ended last."""
STATES = {
    "running": "running",
    "finished": "finished",
    "stopped": "stopped: no process works on it; the command that began it goes on where it ended",
    "silent": "no sign of life; it may have ended, the object store can't tell",
}


def state_line(look: Any) -> str:
    """How far a campaign is, in a line.

    Args:
        look: a `raypft.campaigns.watched.Look`.
    """
    left = "" if look.left is None or look.done >= look.total else f", about {duration(look.left)} left"
    heard = "" if look.heard is None else f"; last sign of life {clock(look.heard)}"
    return f"{look.done} of {look.total} cells{left}; {STATES[look.state]}{heard}"


def now(campaign: Any, look: Any, figures: Sequence[Drawn], place: Path) -> str:
    """The part of the page that is written anew each time.

    Args:
        figures: of `curves`; place: any folder, see `raypft.report.page.rendered`.
    """
    running = [cell for cell in look.cells if cell.row["status"] in ("running", "stopped")]
    tables = {"places": _places(campaign, look), "running": _running(running), "lost": _lost(look)}
    return rendered("now.html.j2", place, figures=figures, **tables)


def clock(seconds: float | None) -> str:
    """Time of day, with the date where it is not today's; empty where it is not known."""
    if seconds is None:
        return ""
    then = time.localtime(seconds)
    today = then[:3] == time.localtime()[:3]
    return time.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M", then)


def _number(shown: str, value: float) -> Number:
    cell = Number(shown)
    cell.value = value
    return cell


def _score(cells: Sequence[Any], key: str) -> str:
    values = [value for cell in cells if (value := (cell.row["result"] or {}).get(key)) is not None]
    return _number(mean_std(values), sum(values) / len(values)) if values else ""


def _places(campaign: Any, look: Any) -> Shown:
    searched = campaign.search is not None
    axes = list(campaign.vary)
    columns = ["row", "task", *axes, "cells done", "running", "failed", "pruned"]
    columns += ["trials", "best on dev", "reached with"] if searched else ["dev"]
    table = Table("cells of the table", [*columns, "test"])
    for at in look.places:
        states = [cell.row["status"] for cell in at.cells]
        named = [at.table_cell.row, text(at.table_cell.task), *(text(at.table_cell.axes[key]) for key in axes)]
        counts = [str(states.count(state) or "") for state in ("running", "failed", "pruned")]
        row = [*named, _number(f"{at.done} of {at.total}", at.done), *counts]
        is_searched = at.table_cell.search is not None
        if searched:
            label, best = at.leader or ("", 0.0)
            told = label.removeprefix(at.table_cell.label).strip()
            row += [_number(f"{at.begun} of {at.trials}", at.begun) if is_searched else ""]
            row += [_number(f"{best:.2f}", best) if at.leader else "", told]
        else:
            row += [_score(at.cells, "dev")]
        table.rows.append([*row, _score(at.cells, "mean")])
    about = "dev and test: the mean over languages, mean ± standard deviation over the seeds that are done"
    return Shown(table, 2 + len(axes), about)


def _running(cells: Sequence[Any]) -> Shown:
    table = Table("cells at work", ["cell", "seed", "state", "epoch", "step", "loss", "dev", "began", "last heard"])
    for cell in cells:
        last = cell.epochs[-1] if cell.epochs else {}
        step = f"{cell.step['step']} of {cell.step['steps']}" if cell.step else ""
        loss = cell.step.get("loss", last.get("loss"))
        epochs = cell.start.get("epochs")
        row = [cell.label, str(cell.row["seed"]), cell.row["status"], f"{len(cell.epochs)} of {epochs}" * bool(epochs)]
        row += [
            step,
            "" if loss is None else f"{loss:.4f}",
            f"{last['dev']:.2f}" if last.get("dev") is not None else "",
        ]
        table.rows.append([*row, clock(cell.began), clock(cell.heard)])
    return Shown(table, 1)


def _lost(look: Any) -> Shown:
    table = Table("failed and pruned", ["cell", "seed", "state", "why"])
    for cell in look.cells:
        if cell.row["status"] in ("failed", "pruned"):
            table.rows.append([cell.label, str(cell.row["seed"]), cell.row["status"], cell.row["reason"] or ""])
    table.rows += [["a trial that does not fit", "", "failed", reason] for reason in look.unfit]
    return Shown(table, 1)


def curves(look: Any) -> list[Figure]:
    """Loss and dev score after each epoch, of cells that run and of those that ended last; those that are told."""
    by_last = sorted(look.cells, key=lambda cell: (cell.row["status"] != "running", -(cell.heard or 0.0)))
    told = {}
    for cell in by_last:
        epochs = cell.epochs or (cell.row["result"] or {}).get("history") or []
        points = [epoch for epoch in epochs if "epoch" in epoch]
        if points:
            told[f"{cell.label} seed {cell.row['seed']}"] = points
    shown = dict(itertools.islice(told.items(), CURVES))
    found = [_curve(shown, "loss", "training loss"), _curve(shown, "dev", "dev score")]
    return [figure for figure in found if figure.data.rows]


def _curve(shown: dict[str, list[dict[str, Any]]], key: str, label: str) -> Figure:
    table = Table(label, ["cell", "epoch", label])
    curves = {}
    for name, points in shown.items():
        known = [point for point in points if point.get(key) is not None]
        curves[name] = [point["epoch"] for point in known], [point[key] for point in known]
        table.rows += [[name, str(point["epoch"]), f"{point[key]:.4f}"] for point in known]

    def fill(panels: list[Axes]) -> None:
        (axes,) = panels
        for number, (name, (epochs, values)) in enumerate(curves.items()):
            axes.plot(epochs, values, markersize=4, label=name, **style(number))
        axes.set(xlabel="epoch", ylabel=label)
        axes.locator_params("x", integer=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6)

    about = f"{label} after each epoch, of the cells that run and of those that ended last"
    return Figure(f"curve-{key}", about, table, fill)

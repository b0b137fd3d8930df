"""What `raypft plan` says of a campaign: trials, cells, steps, hours, memory, disk, and what is missing."""

from __future__ import annotations

import contextlib
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raypft.campaigns.campaign import Campaign, TableCell
from raypft.campaigns.load import check_jobs
from raypft.campaigns.state import CampaignState, Configuration
from raypft.config.job import Resources
from raypft.config.load import resources_of
from raypft.errors import UserError
from raypft.report.formats import duration
from raypft.scale.resources import trials_at_once
from raypft.scale.tune.check import left_as_it_was, nodes, refusals, shapes
from raypft.storage import check_writable, is_remote

GIB = 2**30
Kind = tuple[str, str]
"""Backbone and method: a step takes about as long in all cells of a kind."""


@dataclass(frozen=True)
class Part:
    """Configurations that cost the same.

    How many trials, cells done and to do, optimizer steps of a cell, and what one costs, a `cost.Cost`; None where
    nothing is to do, or nothing could be read.
    """

    kind: Kind
    resources: Resources
    trials: int
    done: int
    todo: int
    steps: int = 0
    cost: Any = None


class Speeds:
    """Seconds an optimizer step took in finished cells, by kind."""

    def __init__(self) -> None:
        self._sums: dict[Kind, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add(self, kind: Kind, result: dict[str, Any]) -> None:
        """Learn from a finished cell."""
        self._sums[kind][0] += result["seconds"]
        self._sums[kind][1] += max(len(result["losses"]), 1)

    def seconds(self, parts: list[Part]) -> float | None:
        """What all cells to do will take, one after the other; None where a kind has no finished cell yet."""
        if any(part.kind not in self._sums or part.steps < 0 for part in parts):
            return None
        each = {kind: seconds / steps for kind, (seconds, steps) in self._sums.items()}
        return sum(part.todo * max(part.steps, 1) * each[part.kind] for part in parts)


def planned(campaign: Campaign, where: str = "campaign") -> dict[str, Any]:
    """Trials, cells done and to do, steps, hours where finished cells tell them, memory, disk, what is lacking, and
    among that why `tune` would refuse it.

    Nothing is run; only the campaign's folder with its ledger is made, and not where `tune` would refuse. Where all is
    finished, no job is made.

    Args:
        where: how messages call the campaign's file.

    Raises:
        UserError: a job does not fit, or the storage can't be written.
    """
    check_writable(campaign.folder)
    with left_as_it_was(campaign.folder) as refused:
        plan = _planned(campaign, where)
        refused += plan["refused"]
    return plan


def _planned(campaign: Campaign, where: str) -> dict[str, Any]:
    lacks, waiting = dict[str, None](), dict[str, None]()
    state = CampaignState(campaign, lambda line: lacks.update({line: None}))
    if not state.all_known():
        check_jobs(campaign, where)
    speeds, parts = Speeds(), list[Part]()
    for table_cell in campaign.table_cells():
        try:
            parts += _parts(table_cell, state, speeds)
        except UserError as error:
            (waiting if table_cell.waits else lacks)[str(error)] = None
            parts.append(_unread(table_cell))
    todo = [part for part in parts if part.todo]
    first = _first(campaign, state) if todo else []
    lacks |= {} if first else waiting  # what is not there yet is no fault
    refused = refusals(campaign, state) if todo or campaign.tracker else []
    for line in [*refused, *_short(campaign, todo)]:
        lacks[line] = None
    seconds = speeds.seconds(todo)
    plan = {
        "folder": str(campaign.folder),
        "trials": sum(part.trials for part in parts),
        "done": sum(part.done for part in parts),
        "todo": sum(part.todo for part in parts),
        "first": first,
        "steps": sum(part.todo * part.steps for part in todo) if all(part.steps >= 0 for part in todo) else None,
        "hours": None if seconds is None else seconds / 3600,
        "memory_gib": max((part.cost.memory.peak for part in todo if part.cost), default=0.0) / GIB,
        "memory": _memory(todo),
        "disk_gib": _disk(todo) / GIB,
        "lacks": list(lacks),
        "refused": refused,
    }
    return {**plan, "lines": _lines(campaign, plan)}


def _first(campaign: Campaign, state: CampaignState) -> list[str]:
    """The jobs of `before` that are not finished; what is wrong with one is told among the refusals."""
    if not campaign.before:
        return []
    from raypft.runs.prepare import identify  # noqa: PLC0415  (needs torch)

    first = []
    for name in campaign.before:
        with contextlib.suppress(UserError):
            cells = identify(campaign.prerequisite(name), state.memo).cells(test=True)
            first += [name] if not all(cell.finished for cell in cells) else []
    return first


def _parts(table_cell: TableCell, state: CampaignState, speeds: Speeds) -> Iterator[Part]:
    """The configurations of a table cell; those that a search has not thought of yet cost what an example costs."""
    search = table_cell.search
    tried = list(state.tried(table_cell))
    more = (search.trials or 0) - len(tried) if search and table_cell.listed() is None else 0
    known: Any = None  # what one cell costs, all of them are like it but for their steps
    for configuration in tried:
        done = [seed for seed in configuration.keys if state.where(configuration, seed, test=search is None)]
        kind, resources = _kind(configuration)
        for seed in done:
            speeds.add(kind, state.result(configuration, seed) or {})
        pruned = any(state.ledger.get(key).get("status") == "pruned" for key in configuration.keys.values())
        todo = 0 if pruned else len(configuration.keys) - len(done)
        if not todo:
            yield Part(kind, resources, 1, len(configuration.keys), 0)
            continue
        steps, known = _cost(configuration, known, state)
        yield Part(kind, resources, 1, len(done), todo, steps, known)
    if more > 0:
        example = tried[0] if tried else state.configuration(table_cell, table_cell.example() or {})
        steps, known = _cost(example, known, state)
        kind, resources = _kind(example)
        yield Part(kind, resources, more, 0, more * len(example.keys), steps, known)


def _unread(table_cell: TableCell) -> Part:
    """A table cell whose data or backbone can't be read here: its trials are known, its costs are not."""
    job = table_cell.resolved(table_cell.example()).job
    listed, search = table_cell.listed(), table_cell.search
    trials = len(listed) if listed is not None else (search.trials or 0) if search else 1
    return Part((job.backbone, job.method["name"]), job.resources, trials, 0, trials * len(job.seeds), -1)


def _kind(configuration: Configuration) -> tuple[Kind, Resources]:
    """The kind of a configuration's cells and what they ask for, without making its job."""
    values = configuration.table_cell.values(configuration.values)
    method = values["method"]
    name = method["name"] if isinstance(method, dict) else method
    return (values["backbone"], name), resources_of(values, configuration.table_cell.where)


def _cost(configuration: Configuration, known: Any, state: CampaignState) -> tuple[int, Any]:
    """Optimizer steps of a cell of a configuration, and its `cost.Cost`: that of its table cell where it is known."""
    from raypft.scale.tune import cost  # noqa: PLC0415  (makes models without weights, which needs torch)

    resolved = configuration.resolved
    known = known or cost.cost_of(resolved, state.memo)
    return cost.steps(resolved, known.prompts), known


def _short(campaign: Campaign, todo: list[Part]) -> Iterator[str]:
    """What is short on this machine for what is to do, though it would be tried."""
    if not todo:
        return
    from raypft.runs.memory import machine_memory  # noqa: PLC0415  (needs torch)

    try:
        together = trials_at_once([part.resources for part in todo], shapes())
    except UserError:  # told among the refusals
        together = 1
    on_cpus = [part for part in todo if part.cost and not part.resources.gpus_per_worker]
    each = [part.cost.memory.on_machine(part.resources.workers) for part in on_cpus]
    memory = sum(nodes()) or machine_memory()
    need = together * max(each, default=0.0)
    if need > memory:
        yield (
            f"memory: {together} trials at once hold at least {need / GIB:.1f} GiB of weights, gradients and optimizer "
            f"state; there are {memory / GIB:.1f}; raise resources.cpus_per_worker, so that fewer run at once"
        )
    if is_remote(campaign.folder):
        return
    disk = _disk(todo)
    free = shutil.disk_usage(_existing(campaign.folder)).free
    if disk > free:
        yield f"disk: results take {disk / GIB:.1f} GiB; {campaign.folder.parent} has {free / GIB:.1f} free"


def _memory(todo: list[Part]) -> str:
    """On the cells that take most memory; nothing where nothing is known."""
    costs = [part.cost for part in todo if part.cost]
    return max(costs, key=lambda cost: cost.memory.peak).told if costs else ""


def _disk(todo: list[Part]) -> float:
    """Bytes of trained parameters to come."""
    return sum(part.todo * part.cost.disk for part in todo if part.cost)


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.absolute().parent)


def _lines(campaign: Campaign, plan: dict[str, Any]) -> list[str]:
    search, hours, steps = campaign.search, "unknown, no cell of some of its kinds is finished yet", "unknown"
    if plan["hours"] is not None:
        hours = f"{duration(3600 * plan['hours'])}, trials one after the other"
    if plan["steps"] is not None:
        steps = f"{plan['steps']:,}"
    budget = []
    if search is not None:
        rule = f"{search.searcher}, {search.scheduler} over seeds"
        budget = [f"search: {rule}, the same trials for every row and task"]
    nothing = "unknown, nothing could be read" if plan["todo"] else "none, nothing is to do"
    return [
        f"{campaign.name}: {campaign.about}",
        *[f"first: {name}, whose run others need: their steps are known when it is done" for name in plan["first"]],
        f"trials: {plan['trials']}; cells: {plan['done']} done, {plan['todo']} to do",
        *budget,
        f"optimizer steps to do: {steps}; expected time: {hours}",
        plan["memory"] or f"memory: {nothing}",
        f"disk: {plan['disk_gib']:.2f} GiB of trained parameters",
        *[f"lacks: {line}" for line in plan["lacks"] if line not in plan["refused"]],
        f"results go to {campaign.folder}",
    ]

"""What `raypft plan` says of a campaign: trials, cells, steps, hours, memory, disk, and what is missing."""

from __future__ import annotations

import math
import os
import random
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from raypft.campaigns.campaign import Campaign, Place
from raypft.campaigns.state import Book
from raypft.cli.progress import duration
from raypft.cluster.feasible import Shape
from raypft.config.job import Job, part_config
from raypft.errors import UserError
from raypft.runs.run import Prepared, identify
from raypft.scale.tune.trackers import tracker
from raypft.storage import is_remote
from raypft.training.encode import Encoder, prompts_an_epoch

LOOKED_AT = 20
"""Rows whose prompts are counted."""
GIB = 2**30


@dataclass(frozen=True)
class Part:
    """Configurations that cost the same.

    How many trials, cells done and to do, optimizer steps of a cell, bytes in memory and on disk.
    """

    job: Job
    trials: int
    done: int
    todo: int
    steps: int
    memory: float
    disk: float

    @property
    def kind(self) -> tuple[str, str]:
        """A step takes about as long in all cells of a kind."""
        return self.job.backbone, self.job.method["name"]


def planned(campaign: Campaign) -> dict[str, Any]:
    """Trials, cells done and to do, steps, hours where finished cells tell them, memory, disk, and what is lacking.

    Nothing is run; only the campaign's folder with its ledger is made.
    """
    lacks: dict[str, None] = {}
    book = Book(campaign, lambda line: lacks.update({line: None}))
    speeds: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    parts: list[Part] = []
    for place in campaign.places():
        try:
            parts += _parts(place, book, speeds)
        except UserError as error:
            lacks[str(error)] = None
            parts.append(_unread(place))
    for line in _missing(campaign, parts, _shapes()):
        lacks[line] = None
    todo = [part for part in parts if part.todo]
    timed = all(part.kind in speeds and part.steps >= 0 for part in todo)
    seconds = sum(_seconds(part, *speeds[part.kind]) for part in todo) if timed else None
    plan = {
        "folder": str(campaign.folder),
        "trials": sum(part.trials for part in parts),
        "done": sum(part.done for part in parts),
        "todo": sum(part.todo for part in parts),
        "steps": sum(part.todo * part.steps for part in todo) if all(part.steps >= 0 for part in todo) else None,
        "hours": None if seconds is None else seconds / 3600,
        "memory_gib": max((part.memory for part in parts), default=0.0) / GIB,
        "disk_gib": sum(part.todo * part.disk for part in parts) / GIB,
        "lacks": list(lacks),
    }
    return {**plan, "lines": _lines(campaign, plan)}


def _seconds(part: Part, seconds: float, steps: float) -> float:
    """What is to do of a part takes so long, where so many steps took so many seconds."""
    return part.todo * max(part.steps, 1) * seconds / steps


def _parts(place: Place, book: Book, speeds: dict[tuple[str, str], list[float]]) -> Iterator[Part]:
    """The configurations of a place; those that a search has not thought of yet cost what an example costs."""
    search = place.search
    tried = list(book.tried(place))
    example = tried[0] if tried else book.configuration(place, _example(place) or {})
    prompts, memory, disk = _sizes(identify(example.job, book.shelf))
    for configuration in tried:
        finished = [seed for seed in configuration.keys if book.where(configuration, seed, test=search is None)]
        pruned = any(book.ledger.get(key).get("status") == "pruned" for key in configuration.keys.values())
        steps = _steps(configuration.job, prompts)
        for seed in finished:
            result = book.result(configuration, seed) or {}
            speed = speeds[configuration.job.backbone, configuration.job.method["name"]]
            speed[0] += result["seconds"]
            speed[1] += max(len(result["losses"]), 1)
        todo = 0 if pruned else len(configuration.keys) - len(finished)
        yield Part(configuration.job, 1, len(configuration.keys) - todo, todo, steps, memory, disk)
    more = (search.trials or 0) - len(tried) if search and place.listed() is None else 0
    if more > 0:
        yield Part(example.job, more, 0, more * len(example.keys), _steps(example.job, prompts), memory, disk)


def _unread(place: Place) -> Part:
    """A place whose data or backbone can't be read here: its trials are known, its costs are not."""
    job = place.job(_example(place))
    listed = place.listed()
    trials = len(listed) if listed is not None else (place.search.trials or 0) if place.search else 1
    return Part(job, trials, 0, trials * len(job.seeds), -1, 0.0, 0.0)


def _example(place: Place) -> dict[str, Any] | None:
    return place.search.drawn(random.Random(0)) if place.search else None


def _sizes(prepared: Prepared) -> tuple[float, float, float]:
    """Training prompts of a cell; bytes of weights, gradients and Adam's moments in fp32; bytes that are kept."""
    job, skeleton = prepared.job, prepared.skeleton
    sample = prepared.samples[job.seeds[0]]
    prompts = prompts_an_epoch(sample, Encoder.of(job, skeleton, sample.demos), LOOKED_AT)
    method, config = part_config(job.method, "method")
    skeleton.reset()
    with torch.device("meta"):
        made = method(config, skeleton)
    trainable = sum(p.numel() for p in made.parameters() if p.requires_grad)
    everything = sum(p.numel() for p in made.parameters())
    skeleton.reset()
    return prompts, 4.0 * (everything + 3 * trainable), 4.0 * trainable


def _steps(job: Job, prompts: float) -> int:
    method, _ = part_config(job.method, "method")
    return math.ceil(prompts / job.train.batch_size) * job.train.epochs if method.trains else 0


def _shapes() -> list[Shape]:
    """Nodes of the cluster that $RAY_ADDRESS names, else this machine."""
    if os.environ.get("RAY_ADDRESS"):
        from raypft.scale.session import capacity  # noqa: PLC0415  (ray is loaded only where it is used)

        return capacity()
    return [Shape("this machine", {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}, 1)]


def _missing(campaign: Campaign, parts: list[Part], shapes: list[Shape]) -> Iterator[str]:
    """What the cluster or this machine lacks for the campaign."""
    from raypft.scale.tune.run import at_once  # noqa: PLC0415

    try:
        tracker(campaign.tracker)
    except UserError as error:
        yield str(error)
    together = 1
    try:
        together = at_once([part.job for part in parts if part.todo], shapes)
    except UserError as error:
        yield str(error)
    needs = [part.memory * max(1, part.job.resources.workers) for part in parts if part.todo]
    need = together * max(needs, default=0.0)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if not os.environ.get("RAY_ADDRESS") and need > memory:
        yield (
            f"memory: {together} trials at once hold at least {need / GIB:.1f} GiB of weights and optimizer state; "
            f"this machine has {memory / GIB:.1f}"
        )
    if is_remote(campaign.folder):
        return
    disk, free = sum(part.todo * part.disk for part in parts), shutil.disk_usage(_existing(campaign.folder)).free
    if disk > free:
        yield f"disk: results take {disk / GIB:.1f} GiB; {campaign.folder.parent} has {free / GIB:.1f} free"


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.absolute().parent)


def _lines(campaign: Campaign, plan: dict[str, Any]) -> list[str]:
    hours = "unknown, no cell of some of its kinds is finished yet"
    if plan["hours"] is not None:
        hours = f"{duration(3600 * plan['hours'])}, trials one after the other"
    steps = "unknown" if plan["steps"] is None else format(plan["steps"], ",")
    size = "unknown, nothing could be read"
    if plan["memory_gib"]:
        size = f"at least {plan['memory_gib']:.2f} GiB a worker"
    lines = [
        f"{campaign.name}: {campaign.about}",
        f"trials: {plan['trials']}; cells: {plan['done']} done, {plan['todo']} to do",
    ]
    if campaign.search:
        way = f"{campaign.search.searcher}, {campaign.search.scheduler} over seeds"
        lines.append(f"search: {way}, the same trials for every row and task")
    return [
        *lines,
        f"optimizer steps to do: {steps}; expected time: {hours}",
        f"memory: {size} (weights, gradients, Adam in fp32; activations not counted)",
        f"disk: {plan['disk_gib']:.2f} GiB of trained parameters",
        *[f"lacks: {line}" for line in plan["lacks"]],
        f"results go to {campaign.folder}",
    ]

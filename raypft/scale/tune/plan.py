"""What `raypft plan` says of a campaign before anything starts: trials, cells, steps, hours, memory, disk, and what is missing."""

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
    """Configurations that cost the same: how many, cells done and to do, steps of a cell, bytes in memory and on disk."""

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
    seconds = (
        sum(part.todo * max(part.steps, 1) * speeds[part.kind][0] / speeds[part.kind][1] for part in todo)
        if timed
        else None
    )
    found = {
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
    return {**found, "lines": _lines(campaign, found)}


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
            own = speeds[configuration.job.backbone, configuration.job.method["name"]]
            own[0] += result["seconds"]
            own[1] += max(len(result["losses"]), 1)
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
    prompts = prompts_an_epoch(sample, Encoder.of(job, skeleton.text, sample.demos), LOOKED_AT)
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
    need = together * max(
        (part.memory * max(1, part.job.resources.workers) for part in parts if part.todo), default=0.0
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if not os.environ.get("RAY_ADDRESS") and need > memory:
        yield f"memory: {together} trials at once hold at least {need / GIB:.1f} GiB of weights and optimizer state; this machine has {memory / GIB:.1f}"
    if is_remote(campaign.folder):
        return
    disk, free = sum(part.todo * part.disk for part in parts), shutil.disk_usage(_existing(campaign.folder)).free
    if disk > free:
        yield f"disk: results take {disk / GIB:.1f} GiB; {campaign.folder.parent} has {free / GIB:.1f} free"


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.absolute().parent)


def _lines(campaign: Campaign, found: dict[str, Any]) -> list[str]:
    hours = (
        "unknown, no cell of some of its kinds is finished yet"
        if found["hours"] is None
        else f"{duration(3600 * found['hours'])}, trials one after the other"
    )
    budget = (
        f"search: {campaign.search.searcher}, {campaign.search.scheduler} over seeds, the same trials for every row and task"
        if campaign.search
        else None
    )
    size = (
        "unknown, nothing could be read"
        if not found["memory_gib"]
        else f"at least {found['memory_gib']:.2f} GiB a worker"
    )
    return [
        f"{campaign.name}: {campaign.about}",
        f"trials: {found['trials']}; cells: {found['done']} done, {found['todo']} to do",
        *([budget] if budget else []),
        f"optimizer steps to do: {'unknown' if found['steps'] is None else format(found['steps'], ',')}; expected time: {hours}",
        f"memory: {size} (weights, gradients, Adam in fp32; activations not counted)",
        f"disk: {found['disk_gib']:.2f} GiB of trained parameters",
        *[f"lacks: {line}" for line in found["lacks"]],
        f"results go to {campaign.folder}",
    ]

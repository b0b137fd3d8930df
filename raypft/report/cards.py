"""The sections of a page that say how numbers came about: configuration, command, provenance, seeds, predictions."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from raypft.records import job_in, read_or_none
from raypft.report.evidence import PREDICTIONS
from raypft.report.groups import Cells, Chosen, Group, text, told
from raypft.report.notes import selected
from raypft.report.table import Table
from raypft.storage import is_remote

FILES = (PREDICTIONS, "result.json", "events.jsonl")
TRIED = 200
"""Configurations of a search that a card lists."""


@dataclass(frozen=True)
class SeedLine:
    """A seed of a configuration: what became of it, its numbers, and where its files are (name, link)."""

    seed: int
    status: str
    test: str
    dev: str
    epoch: str
    seconds: str
    files: list[tuple[str, str]]


@dataclass(frozen=True)
class Card:
    """How one configuration's numbers came about.

    job: job.yaml as it is; facts: name and value; rule: which epoch was tested; tried: what a search chose it from.
    """

    id: str
    title: str
    folder: str
    job: str
    facts: list[tuple[str, str]]
    rule: str
    seeds: list[SeedLine]
    tried: Table | None
    values: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)


class Cards:
    """The cards of all configurations that a report shows, in the order of its tables.

    Args:
        out: the report's folder, from which links are seen.
    """

    def __init__(self, cells: Cells, out: Path) -> None:
        self.cells, self.out = cells, out
        self.of_group: dict[int, Card] = {}
        for task in cells.campaign.tasks:
            for row in cells.campaign.rows:
                for point in cells.every_point:
                    chosen = cells.at(row, task, point)
                    if chosen is not None and (chosen.best.results or chosen.best.unfinished):
                        card = self._card(f"run-{len(self.of_group) + 1}", chosen)
                        self.of_group[id(chosen.best)] = card

    def __iter__(self) -> Iterator[Card]:
        return iter(self.of_group.values())

    @property
    def folders(self) -> list[Path]:
        """The folders of all runs that are shown."""
        found: dict[Path, None] = {}
        for chosen in self.cells.chosen.values():
            found |= dict.fromkeys(folder.parent for folder in chosen.best.folders.values())
        return list(found)

    def id_of(self, group: Group) -> str:
        """The id of a configuration's card."""
        return self.of_group[id(group)].id

    def _card(self, name: str, chosen: Chosen) -> Card:
        group = chosen.best
        placed = zip(self.cells.axes, group.point, strict=True)
        where = [f"{key.rsplit('.', 1)[-1]} {text(value)}" for key, value in placed]
        folders = list(dict.fromkeys(folder.parent for folder in group.folders.values()))
        job, origin, raw = _read(folders[0]) if folders else ({}, {}, "")
        first = next(iter(group.results.values()), {})
        rule = (
            selected(job, first["sizes"]["dev"], first["metric"]) if job and {"sizes", "metric"} <= set(first) else ""
        )
        return Card(
            name,
            ", ".join([f"{group.row} on {text(group.task)}", *where]),
            ", ".join(map(str, folders)),
            raw,
            list(_facts(folders[0], origin, first)) if folders else [],
            rule,
            [*self._finished(group), *_unfinished(group)],
            self._tried(chosen) if len(chosen.tried) > 1 else None,
            job,
            origin,
        )

    def _finished(self, group: Group) -> Iterator[SeedLine]:
        for seed, result in sorted(group.results.items()):
            folder = group.folders.get(seed)
            files = [] if folder is None else [(file, link(folder / file, self.out)) for file in FILES]
            test, dev = _number(result.get("mean"), 2), _number(result.get("dev"), 2)
            epoch, seconds = _number(result.get("best_epoch"), 0), _number(result.get("seconds"), 1)
            yield SeedLine(seed, "finished", test, dev, epoch, seconds, files)

    def _tried(self, chosen: Chosen) -> Table:
        table = Table("configurations tried, by dev", [*self.cells.searched, "dev", "n", "chosen"])
        for group in sorted(chosen.tried, key=lambda group: -group.dev.mean if group.dev.values else 0)[:TRIED]:
            dev = group.dev
            spread = f" ± {dev.std:.1f}" if dev.std is not None else ""
            shown = f"{dev.mean:.1f}{spread}" if dev.values else ", ".join({s for s, _ in group.unfinished.values()})
            mark = "yes" if group is chosen.best else ""
            table.rows.append([*told(self.cells.searched, group.choice), shown, str(len(dev.values)), mark])
        return table


def link(path: Path, out: Path) -> str:
    """A link that works from a page in `out`: relative to it, or a URI as it is."""
    return str(path) if is_remote(path) or is_remote(out) else quote(os.path.relpath(path, out))


def _unfinished(group: Group) -> Iterator[SeedLine]:
    for seed, (status, reason) in sorted(group.unfinished.items()):
        yield SeedLine(seed, f"{status}: {reason}" if reason else status, "", "", "", "", [])


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    """A run's job, its provenance, and its job as text; empty where a file is missing."""
    path, origin = folder / "job.yaml", folder / "provenance.json"
    job = job_in(path) if path.is_file() else {}
    made = read_or_none(origin) or {}
    return job, made, path.read_text(encoding="utf-8") if job else ""


def _facts(folder: Path, origin: dict[str, Any], result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a reader asks of a run, out of its provenance and a result."""
    if origin.get("command"):
        yield "command", shlex.join(map(str, origin["command"]))
    yield "again", f"raypft run {shlex.quote(str(folder / 'job.yaml'))}"
    for name in ("time", "python"):
        if origin.get(name):
            yield name, str(origin[name])
    git = origin.get("git")
    if git:
        yield "code", f"{git['commit']}{', with changes' if git.get('dirty') else ''}"
    for name in ("packages", "machine", "backbone", "data"):
        if origin.get(name):
            known = {key: value for key, value in origin[name].items() if value not in (None, [], "")}
            yield name, ", ".join(f"{key} {_told(value)}" for key, value in known.items())
    for name, key in (("samples (manifest of the first seed)", "manifest"), ("test rows", "test_rows")):
        if result.get(key):
            yield name, str(result[key])
    if result.get("sizes"):
        yield "rows", ", ".join(f"{count} {role}" for role, count in result["sizes"].items())
    yield from (("note", line) for line in [*result.get("notes", []), *result.get("warnings", [])])


def _told(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

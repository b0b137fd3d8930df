"""A campaign as it stands now, from its ledger and its cells' events: looked at again and again, nothing is written.

No job is made, no data or model is read: it can be looked at where those are not. Of campaigns that earlier versions
began, keys have to be worked out once, which needs them.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raypft.campaigns.campaign import TableCell
from raypft.campaigns.known_keys import Known, KnownKeys
from raypft.campaigns.ledger import Ledger
from raypft.campaigns.state import CampaignState, Configuration, reopened
from raypft.config.job import Job
from raypft.records import Log, read_or_none
from raypft.runs.results import EVENTS, TESTED, UNTESTED
from raypft.storage import is_locked, path_of

SILENT = 900.0
"""Seconds without a sign of life after which a campaign is not called running, where no lock tells."""


@dataclass(frozen=True)
class WatchedCell:
    """A cell: what the ledger says of it, and its events while it runs.

    row: as `CampaignState.rows` gives it, status "running" or "stopped" beside the others; began, heard: when it began
    and gave its last sign, in seconds since 1970, None where it is not told; start: its first event; epochs: what it
    told at the end of each; step: its last event of a step since, empty where there is none.
    """

    label: str
    row: dict[str, Any]
    began: float | None = None
    heard: float | None = None
    start: dict[str, Any] = field(default_factory=dict)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    step: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WatchedPlace:
    """A cell of the table: trials begun and in all, cells done and in all (tests of what a search chooses among them),
    the best mean on dev so far and what it was reached with."""

    table_cell: TableCell
    cells: list[WatchedCell]
    begun: int
    trials: int
    done: int
    total: int
    leader: tuple[str, float] | None


@dataclass(frozen=True)
class Look:
    """A campaign at one moment.

    state: running, stopped, finished, or silent where it can't be told whether it runs; left: seconds, None where
    that can't be foreseen; heard: its last sign of life, in seconds since 1970.
    """

    state: str
    places: list[WatchedPlace]
    left: float | None
    heard: float | None
    unfit: list[str]

    @property
    def cells(self) -> list[WatchedCell]:
        """All cells that are planned by now, in the order of the table."""
        return list(itertools.chain.from_iterable(place.cells for place in self.places))

    @property
    def done(self) -> int:
        """Cells that are done."""
        return sum(place.done for place in self.places)

    @property
    def total(self) -> int:
        """Cells in all."""
        return sum(place.total for place in self.places)


class Watched:
    """A campaign's folder.

    Raises:
        UserError: it holds no campaign; or an earlier version began it, and its data or model are not here.
    """

    def __init__(self, folder: Path) -> None:
        self.campaign, self.folder = reopened(folder), folder
        self.table_cells = list(self.campaign.table_cells())
        self._seeds = [_seeds(table_cell) for table_cell in self.table_cells]
        self._results: dict[tuple[str, float], dict[str, Any] | None] = {}
        self._worked_out: dict[str, Known] = {}
        ledger, kept = Ledger(folder), KnownKeys(folder)
        names = {entry.get("config") for entry in ledger if not entry["cell"].startswith("unfit/")}
        told = [kept.asked(table_cell.asked(values)) for table_cell, values in self._begun(ledger)]
        if names - {known.name for known in told if known is not None}:
            self._work_out()

    def _work_out(self) -> None:
        state = CampaignState(self.campaign)
        state.known_keys = KnownKeys(self.folder, keeps=False)
        for table_cell in self.table_cells:
            for one in state.tried(table_cell):
                self._worked_out[table_cell.asked(one.values)] = Known(one.name, str(one.run), one.keys)

    def _begun(self, ledger: Ledger) -> Iterator[tuple[TableCell, dict[str, Any]]]:
        for table_cell in self.table_cells:
            for values in _tried(table_cell, ledger):
                yield table_cell, values

    def look(self) -> Look:
        """What the campaign is now."""
        ledger, kept = Ledger(self.folder), KnownKeys(self.folder)
        alive = is_locked(self.folder)
        unfit = {entry["cell"]: entry["reason"] for entry in ledger if entry["cell"].startswith("unfit/")}
        places = []
        for table_cell, seeds in zip(self.table_cells, self._seeds, strict=True):
            lost = sum(name.startswith(f"unfit/{table_cell.study}-") for name in unfit)
            places.append(self._place(table_cell, seeds, ledger, kept, alive, lost))
        cells = list(itertools.chain.from_iterable(place.cells for place in places))
        signs = [*(entry.get("time") for entry in ledger), *(cell.heard for cell in cells)]
        heard = max((at for at in signs if at is not None), default=None)
        state = _state(alive, places, heard)
        left = _seconds_left(ledger, sum(place.total - place.done for place in places))
        return Look(state, places, left if state == "running" else None, heard, list(unfit.values()))

    def _place(
        self, table_cell: TableCell, seeds: list[int], ledger: Ledger, kept: KnownKeys, alive: bool | None, lost: int
    ) -> WatchedPlace:
        cells, scored = list[WatchedCell](), list[tuple[str, float, int]]()
        tried = _tried(table_cell, ledger)
        for values in tried:
            asked = table_cell.asked(values)
            known = kept.asked(asked) or self._worked_out.get(asked) or Known("", "", {})
            one = Configuration(table_cell, values, known.name, path_of(known.run or "."), known.keys)
            of_one = [self._cell(one, seed, ledger, alive is not False) for seed in seeds]
            pruned = [cell.row["reason"] for cell in of_one if cell.row["status"] == "pruned"]
            for cell in of_one if pruned else ():  # as `CampaignState.rows` tells it
                if cell.row["status"] == "missing":
                    cell.row.update(status="pruned", reason=pruned[0])
            results = [cell.row["result"] or {} for cell in of_one]
            devs = [result["dev"] for result in results if result.get("dev") is not None]
            if len(devs) == len(seeds):
                scored.append((one.label, statistics.fmean(devs), sum("mean" in result for result in results)))
            cells += of_one
        search = table_cell.search
        trials = max(search.trials or 0, len(tried)) if search and table_cell.listed() is None else len(tried)
        done = sum(cell.row["status"] in ("finished", "failed", "pruned") for cell in cells)
        total = max(0, trials - lost) * len(seeds)
        label, best, tested = max(scored, key=lambda score: score[1], default=("", 0.0, 0))
        if search is not None and (scored or done < total):  # where none has a score, none is tested
            done, total = done + tested, total + len(seeds)
            if tested == len(seeds) and table_cell.listed() is None and not alive:
                total = done  # a searcher that asked again for what it knew has begun fewer trials
        leader = (label, best) if search and scored else None
        return WatchedPlace(table_cell, cells, len(tried) + lost, trials, done, total, leader)

    def _cell(self, one: Configuration, seed: int, ledger: Ledger, alive: bool) -> WatchedCell:
        key = one.keys.get(seed, "")
        entry, table_cell = ledger.get(key), one.table_cell
        status, reason = entry.get("status", "missing"), entry.get("reason")
        folder = path_of(entry["folder"]) if entry.get("folder") else None
        place = {"row": table_cell.row, "task": table_cell.task, "axes": {**table_cell.axes, **one.values}}
        row: dict[str, Any] = place | {"seed": seed, "status": status, "reason": reason, "result": None, "folder": None}
        began = ledger.began.get(key)
        if status == "running" and folder is not None:
            row["status"] = "running" if alive else "stopped"
            return WatchedCell(one.label, row, began, *_heard(folder, began or 0.0))
        if status == "finished" and folder is not None:
            row["result"] = self._result(folder, entry.get("time", 0.0))
            row |= {"folder": folder} if row["result"] else {"status": "missing"}
        return WatchedCell(one.label, row, began, entry.get("time"))

    def _result(self, folder: Path, noted: float) -> dict[str, Any] | None:
        """A finished cell's result, read once for each time that the ledger was told of it."""
        key = (str(folder), noted)
        if self._results.get(key) is None:
            self._results[key] = read_or_none(folder / TESTED) or read_or_none(folder / UNTESTED)
        return self._results[key]


def _tried(table_cell: TableCell, ledger: Ledger) -> list[dict[str, Any]]:
    """What a table cell lists, or a search has begun."""
    listed = table_cell.listed()
    if listed is not None:
        return listed
    return [entries[0]["values"] for entries in ledger.study(table_cell.study).values()]


def _seeds(table_cell: TableCell) -> list[int]:
    seeds = table_cell.given("seeds")
    if seeds is None:
        return Job.model_fields["seeds"].default
    return list(range(seeds)) if isinstance(seeds, int) else list(seeds)


def _heard(folder: Path, began: float) -> tuple[float | None, dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """What a running cell said: its last sign of life, first event, epochs, and last step since."""
    heard, start, step = began or None, dict[str, Any](), dict[str, Any]()
    epochs: dict[int, dict[str, Any]] = {}
    for line in Log(folder / EVENTS).read().splitlines():
        try:
            event = json.loads(line)
            heard = max(event["time"], heard or 0.0)
            if event["event"] in ("start", "resume"):
                start, step = event, {}
                epochs = {number: told for number, told in epochs.items() if number <= event.get("epoch", 0)}
            elif event["event"] == "epoch":
                epochs[event["epoch"]], step = event, {}
            elif event["event"] == "step":
                step = event
        except (ValueError, KeyError, TypeError):  # the line that is being written
            continue
    return heard, start, list(epochs.values()), step


def _state(alive: bool | None, places: list[WatchedPlace], heard: float | None) -> str:
    if alive:
        return "running"
    if all(place.done >= place.total for place in places):
        return "finished"
    if alive is False:
        return "stopped"
    return "running" if heard is not None and time.time() - heard < SILENT else "silent"


def _seconds_left(ledger: Ledger, left: int) -> float | None:
    """How long it takes to do so many cells as long as those took that are finished, so many at once as there are
    now."""
    entries = [entry for entry in ledger if entry["status"] == "finished" and entry["cell"] in ledger.began]
    took = [entry.get("time", 0.0) - ledger.began[entry["cell"]] for entry in entries]
    took = [seconds for seconds in took if seconds >= 0]  # between the two the clock was set back
    if not took:
        return None
    at_once = sum(entry["status"] == "running" for entry in ledger)
    return statistics.fmean(took) * left / max(1, at_once)

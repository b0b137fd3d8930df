"""What a campaign knows of its cells: their keys, which are finished and where, and the rows of its table.

A cell is finished where the ledger says so and its folder agrees, or where any run folder of the storage holds a result with
its key: nothing finished is run again, whoever ran it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from raypft.campaigns.campaign import Campaign, Place
from raypft.campaigns.ledger import FILE, Ledger
from raypft.config.job import Job
from raypft.errors import UserError
from raypft.runs.prepare import Memo, identify, prepare
from raypft.runs.results import TESTED, UNTESTED, is_finished
from raypft.storage import Log, absolute, path_of

HEAD = 300
"""Bytes of a result that hold its seed and key: they come first."""


@dataclass(frozen=True)
class Configuration:
    """What a search tries, or what a place of the table is: a job and the keys of its cells by seed."""

    place: Place
    values: dict[str, Any]
    job: Job
    keys: dict[int, str]

    @cached_property
    def name(self) -> str:
        """The key of the job without its seeds."""
        return self.job.key()

    @property
    def label(self) -> str:
        """How the terminal calls it."""
        return " ".join(
            [self.place.label, *(f"{key.split('.')[-1]}={_short(value)}" for key, value in self.values.items())]
        )

    def folder(self, seed: int) -> Path:
        """Where a cell of it runs."""
        return path_of(self.job.storage) / self.job.run_name / f"seed-{seed}"


class Book:
    """The cells of a campaign.

    Args:
        tell: hears a line where the ledger was damaged.
        fresh: forget what is finished.
    """

    def __init__(
        self, campaign: Campaign, tell: Callable[[str], None] = lambda line: None, fresh: bool = False
    ) -> None:
        self.campaign, self.fresh, self.shelf = campaign, fresh, Memo()
        if fresh:
            Log(campaign.folder / FILE).remove()
        self.ledger = Ledger(campaign.folder, tell)

    def configuration(self, place: Place, values: dict[str, Any]) -> Configuration:
        """A configuration with the keys of its cells.

        Raises:
            UserError: it does not fit, or its data or backbone can't be read.
        """
        job = place.job(values)
        return Configuration(place, values, job, identify(job, self.shelf).keys)

    def check(self, configuration: Configuration) -> None:
        """Everything that can be known before compute is spent.

        Raises:
            UserError: anything that would fail later; or a search that has no dev rows to choose by.
        """
        prepared = prepare(configuration.job, self.shelf)
        if configuration.place.search and not all(manifest["sizes"]["dev"] for manifest in prepared.manifests.values()):
            raise UserError(
                f"search: {configuration.place.label} has no dev rows to choose by; set dev.rows: full, or leave the row out of search.rows"
            )

    def tried(self, place: Place) -> Iterator[Configuration]:
        """The configurations of a place: listed ones, or those that a search has begun."""
        listed = place.listed()
        for values in (
            listed
            if listed is not None
            else [entries[0]["values"] for entries in self.ledger.study(place.study).values()]
        ):
            yield self.configuration(place, values)

    def where(self, configuration: Configuration, seed: int, test: bool) -> Path | None:
        """The folder of a finished cell."""
        key = configuration.keys[seed]
        entry = self.ledger.get(key)
        if entry.get("status") == "finished" and is_finished(path_of(entry["folder"]), test):
            return path_of(entry["folder"])
        if self.fresh:
            return None
        own = configuration.folder(seed)
        if any(_key_of(own / name) == key for name in ([TESTED] if test else [TESTED, UNTESTED])):
            return own
        found = self.elsewhere.get(key)
        return found if found and is_finished(found, test) else None

    @cached_property
    def elsewhere(self) -> dict[str, Path]:
        """Finished cells of all runs in the campaign's storage: key to folder."""
        storage = self.campaign.folder.parent
        return {
            key: path.parent
            for name in (UNTESTED, TESTED)
            for path in storage.glob(f"*/seed-*/{name}")
            if (key := _key_of(path))
        }

    def result(self, configuration: Configuration, seed: int) -> dict[str, Any] | None:
        """The result of a finished cell, without test numbers where the test was withheld."""
        folder = self.where(configuration, seed, test=True) or self.where(configuration, seed, test=False)
        if folder is None:
            return None
        return json.loads((folder / (TESTED if is_finished(folder) else UNTESTED)).read_text())

    def note(self, configuration: Configuration, seed: int, status: str, **more: Any) -> None:
        """Write what became of a cell into the ledger."""
        study = configuration.place.study if configuration.place.search else None
        entry = {"seed": seed, "config": configuration.name, "study": study, "values": configuration.values}
        entry |= {"folder": str(configuration.folder(seed))} | more
        self.ledger.note(cell=configuration.keys[seed], status=status, **entry)

    def rows(self) -> list[dict[str, Any]]:
        """One dict a cell, in the order of the table, as `report.campaign` reads them."""
        return [
            row
            for place in self.campaign.places()
            for configuration in self.tried(place)
            for row in self._rows(configuration)
        ]

    def _rows(self, configuration: Configuration) -> Iterator[dict[str, Any]]:
        place = configuration.place
        entries = {seed: self.ledger.get(key) for seed, key in configuration.keys.items()}
        pruned = next((entry["reason"] for entry in entries.values() if entry.get("status") == "pruned"), None)
        for seed, entry in entries.items():
            result = self.result(configuration, seed)
            status, reason = "finished", None
            if result is None:
                status, reason = (
                    ("failed", entry["reason"])
                    if entry.get("status") == "failed"
                    else ("pruned", pruned)
                    if pruned
                    else ("missing", None)
                )
            yield {
                "row": place.row,
                "task": place.task,
                "axes": {**place.axes, **configuration.values},
                "seed": seed,
                "status": status,
                "reason": reason,
                "result": result,
            }

    def write_campaign(self) -> None:
        """Keep the resolved campaign beside its ledger."""
        found = self.campaign.model_dump(mode="json", exclude_none=True, warnings=False)
        found["defaults"] = {
            **found.get("defaults", {}),
            "storage": str(self.campaign.folder.parent),
        }  # it may have come from the cluster
        text = yaml.safe_dump(found, sort_keys=False, allow_unicode=True)
        (self.campaign.folder / "campaign.yaml").write_text(text, encoding="utf-8")


def reopened(folder: Path) -> Campaign:
    """The campaign whose folder this is, as it was last run.

    Raises:
        UserError: the folder holds no campaign, or stands elsewhere than its campaign says.
    """
    path = folder / "campaign.yaml"
    if not path.is_file():
        raise UserError(
            f"report: {folder} holds no campaign.yaml; give folders of campaigns, e.g. runs/quickstart-…, or of runs, not both"
        )
    campaign = Campaign(**yaml.safe_load(path.read_text(encoding="utf-8")))
    if absolute(campaign.folder) != absolute(folder):
        raise UserError(
            f"report: {folder} is the campaign of {campaign.folder}; call raypft from where that is its folder"
        )
    return campaign


def _key_of(path: Path) -> str | None:
    """The cell key that a result begins with."""
    try:
        with path.open("rb") as stream:
            found = re.search(rb'"cell": "(\w+)"', stream.read(HEAD))
    except OSError:
        return None
    return found[1].decode() if found else None


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

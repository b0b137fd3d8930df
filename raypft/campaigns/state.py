"""What a campaign knows of its cells: their keys, which are finished and where, and the rows of its table.

A cell is finished where the ledger says so and its folder agrees, or where any run folder of the storage holds a result
with its key: nothing finished is run again, whoever ran it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from raypft.campaigns.campaign import Campaign, TableCell
from raypft.campaigns.known_keys import Known, KnownKeys
from raypft.campaigns.ledger import FILE, Ledger
from raypft.errors import UserError
from raypft.records import Log, check_yaml, sealed_yaml
from raypft.runs.memo import Memo
from raypft.runs.results import TESTED, UNTESTED, is_finished, key_of, read_result
from raypft.schema import read_yaml, validation_line
from raypft.storage import absolute, path_of, write_text

if TYPE_CHECKING:
    from raypft.config.job import Job
    from raypft.config.resolved import ResolvedJob

FILE_OF_CAMPAIGN = "campaign.yaml"
"""The resolved campaign, in its folder."""


@dataclass(frozen=True)
class Configuration:
    """What a search tries, or what a cell of the table is: a job, and the keys of its cells by seed.

    name: the key of the job without its seeds; run: the folder of its run.
    """

    table_cell: TableCell
    values: dict[str, Any]
    name: str
    run: Path
    keys: dict[int, str]

    @cached_property
    def resolved(self) -> ResolvedJob:
        """The job, made when it is asked for: that loads torch."""
        return self.table_cell.resolved(self.values)

    @property
    def job(self) -> Job:
        """The job, see `resolved`."""
        return self.resolved.job

    @property
    def label(self) -> str:
        """How the terminal calls it."""
        chosen = [f"{key.split('.')[-1]}={_short(value)}" for key, value in self.values.items()]
        return " ".join([self.table_cell.label, *chosen])

    def folder(self, seed: int) -> Path:
        """Where a cell of it runs."""
        return self.run / f"seed-{seed}"


class CampaignState:
    """The cells of a campaign.

    Args:
        tell: hears a line where the ledger was damaged, or a result that it knows.
        fresh: forget what is finished.
    """

    def __init__(
        self, campaign: Campaign, tell: Callable[[str], None] = lambda line: None, fresh: bool = False
    ) -> None:
        self.campaign, self.fresh, self.memo, self.tell = campaign, fresh, Memo(), tell
        self.lost: set[str] = set()
        """Keys of cells whose results are not where the ledger has them, as was told."""
        self.fit: set[str] = set()
        """Names of configurations that were checked and fit."""
        if fresh:
            Log(campaign.folder / FILE).remove()
        self.ledger = Ledger(campaign.folder, tell)
        self.known_keys = KnownKeys(campaign.folder)
        for name in campaign.before:
            known = self.known_keys.get(self.known_keys.inputs(campaign.prerequisite_values(name)))
            if known is not None:
                campaign.set_run_folder(name, known.run)

    def configuration(self, table_cell: TableCell, values: dict[str, Any]) -> Configuration:
        """A configuration with the keys of its cells.

        Raises:
            UserError: it does not fit, or its data or backbone can't be read.
        """
        inputs, asked = self.known_keys.inputs(table_cell.values(values)), table_cell.asked(values)
        known = self.known_keys.get(inputs)
        if known is not None:
            self.known_keys.add(inputs, known, asked)
            return Configuration(table_cell, values, known.name, path_of(known.run), known.keys)
        from raypft.runs.prepare import identify  # noqa: PLC0415  (needs torch)

        resolved = table_cell.resolved(values)
        prepared = identify(resolved, self.memo)
        configuration = Configuration(table_cell, values, resolved.job.key(), prepared.folder, prepared.keys)
        vars(configuration)["resolved"] = resolved
        self.known_keys.add(inputs, Known(configuration.name, str(prepared.folder), prepared.keys), asked)
        return configuration

    def all_known(self) -> bool:
        """Whether the keys of all configurations so far are known without making a job."""
        for table_cell in self.campaign.table_cells():
            for values in self._values(table_cell) or [table_cell.example() or {}]:
                if self.known_keys.get(self.known_keys.inputs(table_cell.values(values))) is None:
                    return False
        return True

    def check(self, configuration: Configuration, nodes: Sequence[float] | None = None) -> None:
        """Everything that can be known before compute is spent.

        Args:
            nodes: see `check_memory`; without them neither memory nor the longest prompts are looked at, which all
                configurations of a table cell have about alike.

        Raises:
            UserError: anything that would fail later; or a search that has no dev rows to choose by.
        """
        if configuration.name in self.fit:
            return
        from raypft.runs.prepare import prepare  # noqa: PLC0415  (needs torch)

        prepared = prepare(configuration.resolved, self.memo)
        has_dev = all(manifest["sizes"]["dev"] for manifest in prepared.manifests.values())
        if configuration.table_cell.search and not has_dev:
            raise UserError(
                f"search: {configuration.table_cell.label} has no dev rows to choose by; "
                "set dev.rows: full, or leave the row out of search.rows"
            )
        if nodes is not None:
            from raypft.runs.inspect import check_start  # noqa: PLC0415

            check_start(prepared, nodes)
        self.fit.add(configuration.name)

    def tried(self, table_cell: TableCell) -> Iterator[Configuration]:
        """The configurations of a table cell: listed ones, or those that a search has begun."""
        for values in self._values(table_cell):
            yield self.configuration(table_cell, values)

    def _values(self, table_cell: TableCell) -> list[dict[str, Any]]:
        listed = table_cell.listed()
        if listed is not None:
            return listed
        return [entries[0]["values"] for entries in self.ledger.study(table_cell.study).values()]

    def where(self, configuration: Configuration, seed: int, test: bool) -> Path | None:
        """The folder of a finished cell."""
        key = configuration.keys[seed]
        entry = self.ledger.get(key)
        if entry.get("status") == "finished" and entry.get("folder"):
            noted = path_of(entry["folder"])
            if is_finished(noted, key, test):
                return noted
            if key not in self.lost and not is_finished(noted, key, test=False):
                self.lost.add(key)
                self.tell(f"ledger: {noted} holds no whole result of its cell any more; it is looked for elsewhere")
        if self.fresh:
            return None
        folder = configuration.folder(seed)
        if is_finished(folder, key, test):
            return folder
        other = self.elsewhere.get(key)
        return other if other and is_finished(other, key, test) else None

    @cached_property
    def elsewhere(self) -> dict[str, Path]:
        """Finished cells of all runs in the campaign's storage: key to folder."""
        storage = self.campaign.folder.parent
        folders: dict[str, Path] = {}
        for name in (UNTESTED, TESTED):
            for path in storage.glob(f"*/seed-*/{name}"):
                key = key_of(path)
                if key is not None:
                    folders[key] = path.parent
        return folders

    def result(self, configuration: Configuration, seed: int) -> dict[str, Any] | None:
        """The result of a finished cell, without test numbers where the test was withheld."""
        folder = self._anywhere(configuration, seed)
        return None if folder is None else read_result(folder)

    def _anywhere(self, configuration: Configuration, seed: int) -> Path | None:
        return self.where(configuration, seed, test=True) or self.where(configuration, seed, test=False)

    def note(self, configuration: Configuration, seed: int, status: str, **more: Any) -> None:
        """Write what became of a cell into the ledger."""
        study = configuration.table_cell.study if configuration.table_cell.search else None
        entry = {"seed": seed, "config": configuration.name, "study": study, "values": configuration.values}
        entry |= {"folder": str(configuration.folder(seed))} | more
        self.ledger.note(cell=configuration.keys[seed], status=status, **entry)

    def rows(self) -> list[dict[str, Any]]:
        """One dict a cell, in the order of the table, as `report.campaign` reads them."""
        rows: list[dict[str, Any]] = []
        for table_cell in self.campaign.table_cells():
            for configuration in self.tried(table_cell):
                rows += self._rows(configuration)
        return rows

    def _rows(self, configuration: Configuration) -> Iterator[dict[str, Any]]:
        table_cell = configuration.table_cell
        entries = {seed: self.ledger.get(key) for seed, key in configuration.keys.items()}
        pruned = next((entry["reason"] for entry in entries.values() if entry.get("status") == "pruned"), None)
        for seed, entry in entries.items():
            folder = self._anywhere(configuration, seed)
            result = None if folder is None else read_result(folder)
            status, reason = "finished", None
            if result is None and entry.get("status") == "failed":
                status, reason = "failed", entry["reason"]
            elif result is None:
                status, reason = ("pruned", pruned) if pruned else ("missing", None)
            yield {
                "row": table_cell.row,
                "task": table_cell.task,
                "axes": {**table_cell.axes, **configuration.values},
                "seed": seed,
                "status": status,
                "reason": reason,
                "result": result,
                "folder": folder,
            }

    def write_campaign(self) -> None:
        """Keep the resolved campaign beside its ledger."""
        campaign = self.campaign.model_dump(mode="json", exclude_none=True, warnings=False)
        # the storage may have come from the cluster
        campaign["defaults"] = {**campaign.get("defaults", {}), "storage": str(self.campaign.folder.parent)}
        text = yaml.safe_dump(campaign, sort_keys=False, allow_unicode=True)
        write_text(self.campaign.folder / FILE_OF_CAMPAIGN, sealed_yaml(text))


def reopened(folder: Path) -> Campaign:
    """The campaign whose folder this is, as it was last run.

    Raises:
        UserError: the folder holds no campaign, or stands elsewhere than its campaign says.
    """
    path = folder / FILE_OF_CAMPAIGN
    if not path.is_file():
        raise UserError(
            f"campaign: {folder} holds no campaign.yaml; "
            "give folders of campaigns, e.g. runs/quickstart-…, or of runs, not both"
        )
    check_yaml(path)
    values = read_yaml(path, str(path))
    try:
        campaign = Campaign(**values)
    except ValidationError as error:
        line = validation_line(str(path), error, values)
        raise UserError(f"{line}; run the campaign again, which writes it") from None
    if absolute(campaign.folder) != absolute(folder):
        raise UserError(
            f"campaign: {folder} is the campaign of {campaign.folder}; call raypft from where that is its folder"
        )
    return campaign


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

"""A campaign is one table or one search of a paper: rows x tasks x further axes x seeds, and the paper's numbers
beside.

Its file becomes cells of the table; a table cell is one configuration (a job), or a search whose best configuration on
dev stands there. Keys of jobs are dotted (`train.lr`) or nested, wherever job keys stand.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, PrivateAttr, WrapValidator, field_validator

from raypft.campaigns.search_space import Search
from raypft.config.job import Resources, Tracker, provenance_keys
from raypft.config.load import load_values, make_job, resources_of
from raypft.errors import UserError, nearest
from raypft.schema import Strict, flat, set_key, validation_root
from raypft.storage import default_storage, path_of

if TYPE_CHECKING:
    from raypft.config.resolved import ResolvedJob

MAJORITY = "majority"
BEFORE = "before:"
PROVENANCE = tuple(provenance_keys())
"""Keys that do not make another campaign: it can be extended by seeds and moved to another machine."""


class Row(Strict, use_attribute_docstrings=True):
    """A row of the table: a recipe or job file and what it sets."""

    recipe: str
    """A name of `raypft list recipes`, or the path of a job's YAML."""
    set: dict[str, Any] = {}
    """Keys of jobs, laid over the defaults."""


class Paper(Strict, use_attribute_docstrings=True):
    """The paper's numbers: row -> column -> number, or row -> value of the further axis -> column -> number."""

    values: dict[str, dict[Any, Any]] = {}
    """The means."""
    std: dict[str, dict[Any, Any]] = {}
    """The deviations, where the paper gives them."""
    differs: dict[str, str] = {}
    """Row to what the paper's protocol has otherwise, said beside the verdict."""
    notes: list[str] = []
    """Lines below the table: misprints, what was read off a figure."""


@validation_root
class Campaign(Strict, use_attribute_docstrings=True):
    """A campaign file as it stands after its scale and the overrides."""

    name: str
    """The file's stem unless it is given."""
    about: str
    """A line for lists and above the table."""
    source: str = ""
    """The paper and table it follows."""
    scale: str | None = None
    """The overlay that was taken; chosen by a word of the command, not in the file."""
    defaults: dict[str, Any] = {}
    """Keys of jobs that all cells have."""
    before: dict[str, Row] = Field(
        default={},
        description="jobs that rows depend on, run first, once; a row's value before:NAME is the run's folder",
    )
    rows: dict[
        str, Annotated[Row, WrapValidator(lambda value, check: value if value == MAJORITY else check(value))]
    ] = Field(min_length=1)
    """Label to recipe and keys; `majority`, the largest class of the test rows, stands in the table without a job."""
    tasks: dict[str, dict[str, Any]] = Field(min_length=1)
    """A list, or task to the keys of jobs that it sets."""
    vary: dict[str, list[Any]] = {}
    """Further axes: key of jobs to its values; each is a cell of the table."""
    columns: str = "task"
    """What the table's columns are: task, language, or a key of vary."""
    speedup_over: str | None = Field(
        default=None, description="a row; the table shows how much faster than it the others train"
    )
    search: Search | None = None
    """A search per row and task; what is best on dev stands in the table."""
    paper: Paper | None = None
    """The paper's numbers, which the table and its report show beside."""
    lanes: bool = Field(default=True, description="whether worker groups outlive trials; the numbers are the same")
    tracker: Tracker | None = None
    """What hears of each trial, beside the ledger."""

    @field_validator("tasks", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return {str(name): {} for name in value} if isinstance(value, list) else value

    _run_folders: dict[str, str] = PrivateAttr(default_factory=dict)
    """Name of a job that comes first to its run's folder, once it is known."""
    _asked: set[str] = PrivateAttr(default_factory=set)
    """Names of those that are being made."""

    @property
    def folder(self) -> Path:
        """Where its ledger and tables go: one folder however rows, tasks, seeds and trials are extended."""
        defaults = flat(self.defaults)
        scientific = sorted((key, value) for key, value in defaults.items() if not key.startswith(PROVENANCE))
        text = json.dumps([self.scale, scientific], default=str)
        scale = f"-{self.scale}" if self.scale else ""
        name = f"{self.name}{scale}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        return path_of(defaults.get("storage") or default_storage()) / name

    def table_cells(self) -> Iterator[TableCell]:
        """The cells of the table in order: row by row, task by task, axis by axis."""
        for row, task in itertools.product(self.rows, self.tasks):
            if self.rows[row] != MAJORITY:
                for values in itertools.product(*self.vary.values()):
                    yield TableCell(self, row, task, dict(zip(self.vary, values, strict=True)))

    def prerequisites(self) -> list[ResolvedJob]:
        """The jobs that come first.

        Raises:
            UserError: the first thing that does not fit.
        """
        return [self.prerequisite(name) for name in self.before]

    def prerequisite(self, name: str) -> ResolvedJob:
        """A job that comes first.

        Raises:
            UserError: what does not fit.
        """
        return make_job(self.prerequisite_values(name), f"{self.name}: before.{name}")

    def prerequisite_values(self, name: str) -> dict[str, Any]:
        """The values of a job that comes first, not validated."""
        row = self.before[name]
        return self.values(row.recipe, [self.defaults, row.set], f"{self.name}: before.{name}")

    def run_folder(self, name: str) -> str:
        """The run's folder of a job that comes first."""
        if name in self._asked:
            raise UserError(
                f"{self.name}: before.{name}: needs its own run, {BEFORE}{name}; name one that comes before"
            )
        if name not in self._run_folders:
            self._asked.add(name)
            try:
                job = self.prerequisite(name).job
            finally:
                self._asked.remove(name)
            self._run_folders[name] = str(path_of(job.storage) / job.run_name)
        return self._run_folders[name]

    def set_run_folder(self, name: str, folder: str) -> None:
        """Say what `run_folder` would find out, so that no job is made for it."""
        self._run_folders[name] = folder

    def values(self, recipe: str, settings: list[dict[str, Any]], where: str) -> dict[str, Any]:
        """The values of a recipe with settings laid over them, the later over the earlier; not validated.

        Raises:
            UserError: no such recipe, or `before:NAME` with an unknown name.
        """
        values, _ = load_values(recipe)
        for group in settings:
            for key, value in flat(group).items():
                set_key(values, key, self._run_of(value, where))
        return values

    def _run_of(self, value: Any, where: str) -> Any:
        """`before:NAME` as the folder of that run, any other value as it is."""
        if not isinstance(value, str) or not value.startswith(BEFORE):
            return value
        name = value.removeprefix(BEFORE)
        if name not in self.before:
            raise UserError(f'{where}: "{value}": before has no "{name}"; {nearest(name, self.before)}')
        return self.run_folder(name)


@dataclass(frozen=True)
class TableCell:
    """One cell of the table: a row, a task, and values of the further axes."""

    campaign: Campaign
    row: str
    task: str
    axes: dict[str, Any]

    @property
    def search(self) -> Search | None:
        """The search that fills the cell, if one does."""
        search = self.campaign.search
        return search.of(self.row) if search and (search.rows is None or self.row in search.rows) else None

    @property
    def waits(self) -> bool:
        """Whether its jobs need a run that comes first."""
        values = itertools.chain.from_iterable(flat(group).values() for group in self._settings())
        return any(isinstance(value, str) and value.startswith(BEFORE) for value in values)

    @property
    def label(self) -> str:
        """How messages and the terminal call it."""
        axes = [f"{key.split('.')[-1]}={value}" for key, value in self.axes.items()]
        return " ".join([self.row, Path(self.task).stem, *axes])

    @property
    def where(self) -> str:
        """How messages about its jobs begin."""
        return f"{self.campaign.name}: {self.label}"

    @property
    def study(self) -> str:
        """What identifies its search: everything but the space, the budget and where it runs."""
        settings: dict[str, Any] = {"recipe": self.campaign.rows[self.row].recipe, "task": self.task}
        for group in self._settings():
            settings |= {key: value for key, value in flat(group).items() if not key.startswith(PROVENANCE)}
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]

    def asked(self, chosen: Mapping[str, Any]) -> str:
        """What identifies it with what a search has chosen, from the campaign's file alone."""
        return f"{self.study} {json.dumps(chosen, sort_keys=True, default=str)}"

    def values(self, chosen: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The values of its job with what a search has chosen, not validated."""
        recipe = self.campaign.rows[self.row].recipe
        return self.campaign.values(recipe, [*self._settings(), dict(chosen or {})], self.where)

    def given(self, key: str) -> Any:
        """What is given for a key of its job, as it is written; None where nothing is.

        Raises:
            UserError: no such recipe.
        """
        values, _ = load_values(self.campaign.rows[self.row].recipe)
        groups = map(flat, reversed([values, *self._settings()]))
        return next((group[key] for group in groups if key in group), None)

    def resolved(self, chosen: Mapping[str, Any] | None = None) -> ResolvedJob:
        """Its job with what a search has chosen.

        Raises:
            UserError: the first thing that does not fit.
        """
        return make_job(self.values(chosen), self.where)

    def resources(self) -> Resources:
        """What its jobs ask for, without the checks of a job, which load torch.

        Raises:
            UserError: a key or type that does not fit.
        """
        return resources_of(self.values(), self.where)

    def _settings(self) -> list[dict[str, Any]]:
        campaign = self.campaign
        row, task = campaign.rows[self.row].set, campaign.tasks[self.task]
        return [{"task": self.task}, campaign.defaults, row, task, self.axes]

    def example(self) -> dict[str, Any] | None:
        """Values of its search's space, where any will do."""
        return self.search.drawn(random.Random(0)) if self.search else None

    def listed(self) -> list[dict[str, Any]] | None:
        """What a search tries, in order; None where it depends on results (tpe)."""
        search = self.search
        if search is None:
            return [{}]
        if search.searcher == "grid":
            return search.grid()[: search.trials]
        if search.searcher == "random":
            return search.sampled(self.study)
        return None

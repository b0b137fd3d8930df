"""A campaign is one table or one search of a paper: rows x tasks x further axes x seeds, and the paper's numbers beside.

A file of `tune_spaces/` becomes places of the table; a place is one configuration (a Job), or a search whose best
configuration on dev stands there. Keys of jobs are dotted (`train.lr`) or nested, wherever job keys stand.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, WrapValidator, field_validator

from raypft.campaigns.search_space import Search
from raypft.config.job import (
    Job,
    Resources,
    load_values,
    make_job,
    number,
    read_yaml,
    resources_of,
    set_key,
    split_override,
)
from raypft.errors import UserError, nearest
from raypft.schema import Strict
from raypft.storage import default_storage, path_of
from raypft.tasks.load import load_task
from raypft.tasks.task import validation_line, validation_root

INSTALLED = Path(__file__).parents[1] / "tune_spaces"
FOLDER = INSTALLED if INSTALLED.is_dir() else Path(__file__).parents[2] / "tune_spaces"
MAJORITY = "majority"
BEFORE = "before:"
PROVENANCE = (
    "seeds",
    "storage",
    "resources",
    "zero",
    "data.root",
    "train.micro_batch",
    "train.eval_batch",
    "train.save_every",
)
"""Keys that do not make another campaign: it can be extended by seeds and moved to another machine."""


class Row(Strict):
    """A row of the table: a recipe or job file and what it sets."""

    recipe: str
    set: dict[str, Any] = {}


class Paper(Strict):
    """The paper's numbers: row -> column -> number, or row -> value of the further axis -> column -> number."""

    values: dict[str, dict[Any, Any]] = {}
    std: dict[str, dict[Any, Any]] = {}
    differs: dict[str, str] = {}
    notes: list[str] = []


@validation_root
class Campaign(Strict):
    """A campaign file as it stands after its scale and the overrides."""

    name: str
    about: str
    source: str = ""
    scale: str | None = None
    defaults: dict[str, Any] = {}
    before: dict[str, Row] = Field(
        default={},
        description="jobs that rows depend on, run first, once; a row's value before:NAME is the run's folder",
    )
    rows: dict[
        str, Annotated[Row, WrapValidator(lambda value, check: value if value == MAJORITY else check(value))]
    ] = Field(min_length=1)
    """`majority`, the largest class of the test rows, stands in the table without a job."""
    tasks: dict[str, dict[str, Any]] = Field(min_length=1)
    vary: dict[str, list[Any]] = {}
    columns: str = "task"
    speedup_over: str | None = Field(
        default=None, description="a row; the table shows how much faster than it the others train"
    )
    search: Search | None = None
    paper: Paper | None = None
    lanes: bool = Field(default=True, description="whether worker groups outlive trials; the numbers are the same")
    tracker: Literal["tensorboard", "mlflow", "wandb"] | None = None

    @field_validator("tasks", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return {str(name): {} for name in value} if isinstance(value, list) else value

    @property
    def folder(self) -> Path:
        """Where its ledger and tables go: one folder however rows, tasks, seeds and trials are extended."""
        own = {key: value for key, value in flat(self.defaults).items() if not key.startswith(PROVENANCE)}
        digest = hashlib.sha256(json.dumps([self.scale, sorted(own.items())], default=str).encode()).hexdigest()[:8]
        scale = f"-{self.scale}" if self.scale else ""
        return path_of(flat(self.defaults).get("storage") or default_storage()) / f"{self.name}{scale}-{digest}"

    def places(self) -> Iterator[Place]:
        """The places of the table in order: row by row, task by task, axis by axis."""
        for row, task in itertools.product(self.rows, self.tasks):
            if self.rows[row] != MAJORITY:
                for values in itertools.product(*self.vary.values()):
                    yield Place(self, row, task, dict(zip(self.vary, values, strict=True)))

    def prerequisites(self) -> list[Job]:
        """The jobs that come first."""
        return [self._prerequisite(name) for name in self.before]

    def _prerequisite(self, name: str) -> Job:
        row = self.before[name]
        return self.job(row.recipe, [self.defaults, row.set], f"{self.name}: before.{name}")

    def job(self, recipe: str, settings: list[dict[str, Any]], where: str) -> Job:
        """A recipe with settings laid over it, the later over the earlier.

        Raises:
            UserError: the first thing that does not fit.
        """
        return make_job(self.values(recipe, settings, where), where)

    def values(self, recipe: str, settings: list[dict[str, Any]], where: str) -> dict[str, Any]:
        """What `job` makes a job of."""
        values, _ = load_values(recipe)
        for own in settings:
            for key, value in flat(own).items():
                set_key(values, key, self._found(value, where))
        return values

    def _found(self, value: Any, where: str) -> Any:
        if not isinstance(value, str) or not value.startswith(BEFORE):
            return value
        name = value.removeprefix(BEFORE)
        if name not in self.before:
            raise UserError(f'{where}: "{value}": before has no "{name}"; {nearest(name, self.before)}')
        job = self._prerequisite(name)
        return str(path_of(job.storage) / job.run_name)


@dataclass(frozen=True)
class Place:
    """One place of the table: a row, a task, and values of the further axes."""

    campaign: Campaign
    row: str
    task: str
    axes: dict[str, Any]

    @property
    def search(self) -> Search | None:
        """The search that fills the place, if one does."""
        search = self.campaign.search
        return search if search and (search.rows is None or self.row in search.rows) else None

    @property
    def label(self) -> str:
        """How messages and the terminal call it."""
        return " ".join(
            [self.row, Path(self.task).stem, *(f"{key.split('.')[-1]}={value}" for key, value in self.axes.items())]
        )

    @property
    def study(self) -> str:
        """What identifies its search: everything but the space, the budget and where it runs."""
        row = self.campaign.rows[self.row]
        settings: dict[str, Any] = {"recipe": row.recipe, "task": self.task}
        for own in self._settings():
            settings |= {key: value for key, value in flat(own).items() if not key.startswith(PROVENANCE)}
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]

    def job(self, values: Mapping[str, Any] | None = None) -> Job:
        """The job of the place, with what a search has chosen.

        Raises:
            UserError: the first thing that does not fit.
        """
        where = f"{self.campaign.name}: {self.label}"
        return self.campaign.job(self.campaign.rows[self.row].recipe, [*self._settings(), dict(values or {})], where)

    def resources(self) -> Resources:
        """What its jobs ask for, without the checks of a job, which load torch.

        Raises:
            UserError: a key or type that does not fit.
        """
        where = f"{self.campaign.name}: {self.label}"
        return resources_of(self.campaign.values(self.campaign.rows[self.row].recipe, self._settings(), where), where)

    def _settings(self) -> list[dict[str, Any]]:
        campaign = self.campaign
        return [
            {"task": self.task},
            campaign.defaults,
            campaign.rows[self.row].set,
            campaign.tasks[self.task],
            self.axes,
        ]

    def listed(self) -> list[dict[str, Any]] | None:
        """What a search tries, in order; None where it depends on results (tpe)."""
        search = self.search
        if search is None:
            return [{}]
        if search.searcher == "grid":
            return search.grid()[: search.trials]
        if search.searcher == "random":
            return [search.drawn(random.Random(f"{self.study}/{number}")) for number in range(search.trials or 0)]
        return None


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested job keys as dotted ones. A method or readout given with its name replaces the one before as a whole."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and "name" not in value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + str(key)] = value
    return found


def numbers(value: Any) -> Any:
    """Values read from YAML, 1e-4 as the number that is meant."""
    if isinstance(value, dict):
        return {key: numbers(below) for key, below in value.items()}
    if isinstance(value, list):
        return [numbers(below) for below in value]
    return number(value) if isinstance(value, str) else value


def campaign_names() -> list[str]:
    """The campaigns shipped with raypft."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_campaign(
    name: str, overrides: list[str] | None = None, scale: str | None = None, tracker: str | None = None
) -> Campaign:
    """A campaign by name or from a path; `scale` names an overlay of the file, overrides go into its defaults.

    Raises:
        UserError: no such campaign or scale; a key or value that does not fit (where, found, expected).
    """
    campaign, where = open_campaign(name, overrides, scale, tracker)
    _check(campaign, where)
    return campaign


def words_of(words: Sequence[str]) -> tuple[str, list[str], str | None, str | None]:
    """The words of a command as `load_campaign` takes them: `scale=` and `tracker=` are the campaign's own, other overrides go into
    its defaults.

    Raises:
        UserError: no name, or more than one.
    """
    names = [word for word in words if "=" not in word and not word.startswith("-")]
    if len(names) != 1:
        raise UserError(f"campaign: found {len(names)} names; expected one, e.g. raypft tune quickstart")
    pairs = [word for word in words if "=" in word]
    own = {key: value for key, _, value in (pair.partition("=") for pair in pairs) if key in ("scale", "tracker")}
    return names[0], [pair for pair in pairs if pair.partition("=")[0] not in own], own.get("scale"), own.get("tracker")


def open_campaign(
    name: str, overrides: list[str] | None = None, scale: str | None = None, tracker: str | None = None
) -> tuple[Campaign, str]:
    """As `load_campaign`, its jobs not checked, which loads torch; and the name of its file for messages."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        if path.parent != FOLDER:
            raise UserError(f"campaign: no file {path}; give the path of a campaign YAML or a name of tune_spaces/")
        raise UserError(f'campaign: "{name}" is unknown; {nearest(name, campaign_names())}')
    where = f"tune_spaces/{path.name}" if path.parent == FOLDER else str(path)
    values = numbers(read_yaml(path, where))
    scales = values.pop("scales", {})
    if scale is not None:
        if not isinstance(scales, dict) or scale not in scales:
            raise UserError(f'{where}: scale: "{scale}" is unknown; {nearest(scale, scales)}')
        values = overlaid(values, scales[scale], f"{where}: scales.{scale}")
    values["defaults"] = flat(values.get("defaults") or {}) | flat(dict(map(split_override, overrides or [])))
    values |= {"name": values.get("name", path.stem), "scale": scale} | ({"tracker": tracker} if tracker else {})
    try:
        campaign = Campaign(**values)
    except (ValidationError, TypeError) as error:
        raise UserError(validation_line(where, error, values)) from None
    return campaign, where


def overlaid(values: dict[str, Any], overlay: dict[str, Any], where: str) -> dict[str, Any]:
    """A file's values with a scale's laid over: groups are merged, lists of rows and tasks choose among the file's.

    Raises:
        UserError: a key that no scale has, or a row that the file hasn't.
    """
    known = ("about", "defaults", "before", "rows", "tasks", "vary", "columns", "search", "tracker")
    merged = dict(values)
    for key, own in overlay.items():
        if key not in known:
            raise UserError(f'{where}: unknown key "{key}"; {nearest(key, known)}')
        before = merged.get(key)
        if key in ("rows", "tasks") and isinstance(own, list):
            names = list(before or {})
            for name in own:
                if key == "rows" and name not in names:
                    raise UserError(f'{where}.rows: "{name}" is no row; {nearest(str(name), names)}')
            merged[key] = {name: before.get(name, {}) for name in own} if isinstance(before, dict) else own
        elif key == "search" and isinstance(before, dict) and isinstance(own, dict):
            merged[key] = {**before, **own}
        elif isinstance(before, dict) and isinstance(own, dict):
            merged[key] = {**flat(before), **flat(own)} if key == "defaults" else {**before, **own}
        else:
            merged[key] = own
    return merged


def _check(campaign: Campaign, where: str) -> None:
    """What pydantic can't see: keys of jobs, columns, metrics, the search."""
    search = campaign.search
    for key, group in (("search.space", search.space if search else {}), ("vary", campaign.vary)):
        for name in group:
            if name in ("seeds", "sample_seed"):
                raise UserError(
                    f"{where}: {key}.{name}: the best seed is luck, not a setting; give seeds in defaults, the mean over them counts"
                )
    for name, values in campaign.vary.items():
        if not values:
            raise UserError(f"{where}: vary.{name}: found an empty list; expected at least one value")
    columns = ["task", "language", *campaign.vary]
    if campaign.columns not in columns:
        raise UserError(f'{where}: columns: found "{campaign.columns}"; {nearest(campaign.columns, columns)}')
    _check_search(campaign, where)
    campaign.prerequisites()
    for place in campaign.places():
        search = place.search
        job = place.job(search.drawn(random.Random(0)) if search else None)
        known = ["dev", load_task(job.task).metric]
        if search and search.metric not in known:
            raise UserError(
                f'{where}: search.metric: no run of {Path(job.task).stem} has "{search.metric}" on dev; {nearest(search.metric, known)}'
            )


def _check_search(campaign: Campaign, where: str) -> None:
    search = campaign.search
    if search is None:
        return
    for row in search.rows or []:
        if row not in campaign.rows and campaign.scale is None:  # a scale may leave rows out
            raise UserError(f'{where}: search.rows: "{row}" is no row; {nearest(row, campaign.rows)}')
    endless = [key for key, dimension in search.space.items() if dimension.listed is None]
    if search.searcher == "grid" and endless:
        raise UserError(
            f"{where}: search.space.{endless[0]}: a grid needs a list or a range; use searcher: random or tpe"
        )
    if search.searcher != "grid" and search.trials is None:
        raise UserError(f"{where}: search.trials: searcher {search.searcher} needs a budget, e.g. trials: 24")

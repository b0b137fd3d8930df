"""From a campaign's file, a scale and overrides to a Campaign; and all that can be wrong with one before anything
runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from raypft.campaigns.campaign import Campaign, TableCell
from raypft.catalogue import is_own, own_name
from raypft.config.load import recipe_names
from raypft.errors import Faults, UserError, nearest
from raypft.schema import (
    file_of,
    find_yaml,
    flat,
    number,
    read_yaml,
    shortened,
    split_override,
    validation_lines,
    yaml_names,
)

if TYPE_CHECKING:
    from raypft.config.resolved import ResolvedJob

INSTALLED = Path(__file__).parents[1] / "tune_spaces"
Overrides = Sequence[str] | Mapping[str, Any]
"""`key=value` as words of a command, or keys and values; keys are dotted or nested."""
FOLDER = INSTALLED if INSTALLED.is_dir() else Path(__file__).parents[2] / "tune_spaces"


def numbers(value: Any) -> Any:
    """Values read from YAML, 1e-4 as the number that is meant."""
    if isinstance(value, dict):
        return {key: numbers(below) for key, below in value.items()}
    if isinstance(value, list):
        return [numbers(below) for below in value]
    return number(value) if isinstance(value, str) else value


def campaign_names() -> list[str]:
    """The campaigns shipped with raypft."""
    return yaml_names(FOLDER)


def names_campaign(name: str) -> bool:
    """Whether a word names a campaign: one shipped with raypft, or the file of one."""
    if not name.endswith((".yaml", ".yml")):
        return name in campaign_names()
    return os.path.isfile(name) and file_of(read_yaml(Path(name), name)) == "campaign"


def load_campaign(
    name: str, overrides: Overrides = (), scale: str | None = None, tracker: str | None = None
) -> Campaign:
    """A campaign by name or from a path; `scale` names an overlay of the file, overrides go into its defaults.

    Raises:
        UserError: no such campaign or scale; a key or value that does not fit (where, found, expected).
    """
    campaign, where = open_campaign(name, overrides, scale, tracker)
    check_jobs(campaign, where)
    return campaign


def words_of(words: Sequence[str]) -> tuple[str, list[str], str | None, str | None]:
    """The words of a command as `load_campaign` takes them: `scale=` and `tracker=` are the campaign's own, other
    overrides go into its defaults.

    Raises:
        UserError: no name, or more than one.
    """
    names = [word for word in words if "=" not in word and not word.startswith("-")]
    if len(names) != 1:
        raise UserError(f"campaign: found {len(names)} names; expected one, e.g. raypft tune quickstart")
    overrides, of_campaign = [], {}
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in ("scale", "tracker"):
            of_campaign[key] = value
        elif equals:
            overrides.append(word)
    return names[0], overrides, of_campaign.get("scale"), of_campaign.get("tracker")


def open_campaign(
    name: str, overrides: Overrides = (), scale: str | None = None, tracker: str | None = None
) -> tuple[Campaign, str]:
    """As `load_campaign`, its jobs not checked, which loads torch; and the name of its file for messages.

    Raises:
        UserError: as `load_campaign`.
    """
    if name in recipe_names() and not names_campaign(name):
        raise UserError(f"campaign: {name} is a recipe; raypft run {name} task=… backbone=… runs it")
    missing = "campaign: no file {}; give the path of a campaign YAML or a name of tune_spaces/"
    path, where = find_yaml(name, FOLDER, "campaign", missing)
    values = numbers(read_yaml(path, where))
    if file_of(values) == "task":
        raise UserError(f"campaign: {where} is a task; raypft run profit task={where} backbone=… runs a recipe on it")
    if file_of(values) == "job":
        raise UserError(f"{where}: found a job; expected a campaign, with rows and tasks; raypft run {name} runs it")
    # what `tune` writes has the name of its scale, and a name, and no scales
    if "scale" in values and ("name" not in values or "scales" in values or isinstance(values["scale"], dict)):
        raise UserError(f'{where}: unknown key "scale"; did you mean "scales"? A scale is chosen by a word: scale=NAME')
    scales = values.pop("scales", None) or {}
    if not isinstance(scales, dict) or not all(isinstance(overlay, dict) for overlay in scales.values()):
        raise UserError(f"{where}: scales: found {shortened(scales)}; expected a name with keys for each scale")
    if scale is not None:
        if scale not in scales:
            raise UserError(f'{where}: scale: "{scale}" is unknown; {nearest(scale, scales)}')
        values = overlaid(values, scales[scale], f"{where}: scales.{scale}")
    laid = overrides if isinstance(overrides, Mapping) else dict(map(split_override, overrides))
    try:
        values["defaults"] = flat(values.get("defaults") or {}) | flat(laid)
    except UserError as error:
        raise UserError(f"{where}: defaults: {error}") from None
    values |= {"name": values.get("name", path.stem), "scale": scale} | ({"tracker": tracker} if tracker else {})
    try:
        campaign = Campaign(**values)
    except (ValidationError, TypeError) as error:
        raise UserError("\n".join(validation_lines(where, error, values))) from None
    faults = Faults()
    faults.add(f"{where}: {line}" for line in _faults(campaign))
    faults.tell()
    return campaign, where


def overlaid(values: dict[str, Any], overlay: dict[str, Any], where: str) -> dict[str, Any]:
    """A file's values with a scale's laid over: groups are merged, lists of rows and tasks choose among the file's.

    Raises:
        UserError: a key that no scale has, or a row that the file hasn't.
    """
    known = ("about", "defaults", "before", "rows", "tasks", "vary", "columns", "search", "tracker")
    merged = dict(values)
    for key, laid in overlay.items():
        if key not in known:
            raise UserError(f'{where}: unknown key "{key}"; {nearest(key, known)}')
        before = merged.get(key)
        if key in ("rows", "tasks") and isinstance(laid, list):
            names = list(before) if isinstance(before, dict | list) else []
            for name in laid:
                if key == "rows" and name not in names:
                    raise UserError(f'{where}.rows: "{name}" is no row; {nearest(str(name), names)}')
            merged[key] = {name: before.get(name, {}) for name in laid} if isinstance(before, dict) else laid
        elif key == "search" and isinstance(before, dict) and isinstance(laid, dict):
            merged[key] = {**before, **laid}
        elif isinstance(before, dict) and isinstance(laid, dict):
            merged[key] = {**flat(before), **flat(laid)} if key == "defaults" else {**before, **laid}
        else:
            merged[key] = laid
    return merged


def _faults(campaign: Campaign) -> Iterator[str]:
    """What pydantic can't see, a line each: keys of jobs, columns, metrics, the search."""
    search = campaign.search
    own = {f"search.rows.{row}": space for row, space in (search.rows or {}).items()} if search else {}
    spaces = {"search.space": search.space, **own} if search else {}
    for key, group in {**spaces, "vary": campaign.vary}.items():
        for name in group:
            if name in ("seeds", "sample_seed"):
                instead = "give seeds in defaults, the mean over them counts"
                yield f"{key}.{name}: the best seed is luck, not a setting; {instead}"
    for name, values in campaign.vary.items():
        if not values:
            yield f"vary.{name}: found an empty list; expected at least one value"
    columns = ["task", "language", *campaign.vary]
    if campaign.columns not in columns:
        yield f'columns: found "{campaign.columns}"; {nearest(campaign.columns, columns)}'
    if search is None:
        return
    for row in search.rows or []:
        if row not in campaign.rows and campaign.scale is None:  # a scale may leave rows out
            yield f'search.rows: "{row}" is no row; {nearest(row, campaign.rows)}'
    for key, space in spaces.items():
        endless = [name for name, dimension in space.items() if dimension.listed is None]
        if search.searcher == "grid" and endless:
            yield f"{key}.{endless[0]}: a grid needs a list or a range; use searcher: random or tpe"
    if search.searcher != "grid" and search.trials is None:
        yield f"search.trials: searcher {search.searcher} needs a budget, e.g. trials: 24"


def check_jobs(campaign: Campaign, where: str) -> None:
    """Make every job of a campaign once, as an example where a search chooses.

    Raises:
        UserError: what does not fit, a line each; what several jobs have in common is told of the first.
    """
    faults, told = Faults(), set[str]()

    def tell(error: UserError, called: str) -> None:
        for line in str(error).split("\n"):
            common = line.removeprefix(called)
            faults.add([line] if common not in told else [])
            told.add(common)

    for name in campaign.before:
        try:
            campaign.prerequisite(name)
        except UserError as error:
            tell(error, f"{campaign.name}: before.{name}")
    unselected = ""
    for table_cell in campaign.table_cells():
        try:
            resolved = table_cell.resolved(table_cell.example())
        except UserError as error:
            tell(error, table_cell.where)
            continue
        if resolved.job.tracker is not None:
            faults.add(
                [f"{where}: tracker: found it among the keys of jobs; a campaign has one of its own, beside rows"]
            )
        unselected = unselected or _unselected(table_cell, resolved)
    faults.add([f"{where}: {unselected}"] if unselected else [])
    faults.tell()


def _unselected(table_cell: TableCell, resolved: ResolvedJob) -> str:
    """Why a search can't choose by its metric; empty where it can."""
    search, task = table_cell.search, resolved.task
    selects = resolved.job.dev.metric or task.metric
    known = ["dev", own_name(selects) if is_own(selects) else selects]
    if search is None or search.metric in known:
        return ""
    return f'search.metric: no run of {task.name} has "{search.metric}" on dev; {nearest(search.metric, known)}'

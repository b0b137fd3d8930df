"""Every campaign file: its recipes, tasks and patterns exist, its jobs are valid, its paper's numbers have a place."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path

import pytest
import yaml

from raypft.config.load import load_job, recipe_names
from raypft.tasks.load import load_task

FOLDER = Path(__file__).parents[2] / "tune_spaces"
FILES = sorted(FOLDER.glob("*.yaml"))
KEYS = {
    "about",
    "source",
    "defaults",
    "before",
    "rows",
    "tasks",
    "vary",
    "columns",
    "speedup_over",
    "search",
    "paper",
    "scales",
}
SEARCHES = ("gnn_layer", "ltp_active_ratio", "prompt_length", "shots")
MAJORITY, MEANS = "majority", ("mean",)


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def scaled(values, name):
    """A file's values with an overlay: lists of rows and tasks choose among the file's, groups are merged."""
    if name is None:
        return values
    merged = dict(values)
    for key, overlay in values["scales"][name].items():
        before = values.get(key)
        if isinstance(overlay, list) and isinstance(before, dict):
            merged[key] = {item: before[item] for item in overlay}
        elif isinstance(before, dict) and isinstance(overlay, dict) and key != "tasks":
            merged[key] = {**before, **overlay}
        else:
            merged[key] = overlay
    return merged


def words(values, prefix=""):
    """Job keys as the overrides of a command line."""
    overrides = []
    for key, value in values.items():
        nested = isinstance(value, dict) and "name" not in value
        overrides += (
            words(value, f"{prefix}{key}.")
            if nested
            else [f"{prefix}{key}={yaml.safe_dump(value, default_flow_style=True).strip().removesuffix('...').strip()}"]
        )
    return overrides


def jobs(values):
    """Every job of a file, at the first point of its search."""
    tasks = values["tasks"] if isinstance(values["tasks"], dict) else {name: {} for name in values["tasks"]}
    vary, search = values.get("vary", {}), values.get("search", {})
    for (name, row), (task, settings_of_task) in itertools.product(values["rows"].items(), tasks.items()):
        if row == MAJORITY:
            continue
        rows = search.get("rows", [name])
        space = {**search.get("space", {}), **(rows.get(name, {}) if isinstance(rows, dict) else {})}
        tried = {key: values[0] for key, values in space.items() if isinstance(values, list) and name in rows}
        for point in itertools.product(*vary.values()):
            axes = dict(zip(vary, point, strict=True))
            settings = [{"task": task}, values.get("defaults", {}), row.get("set", {}), settings_of_task, axes, tried]
            yield load_job(row["recipe"], list(itertools.chain.from_iterable(map(words, settings)))).job


def columns(values, task):
    """The names of a table's columns; a job's test languages, or its task's, where they are languages."""
    kind = values.get("columns", "task")
    if kind == "language":
        asked = [job.test.languages or load_task(job.task).languages for job in jobs(values) if job.task == task]
        return set(itertools.chain.from_iterable(asked))
    return set(values["tasks"]) if kind == "task" else {str(value) for value in values["vary"][kind]}


def leaves(numbers, depth):
    """(axis values, column, number) of a paper's numbers; a row without axes may stand at every point."""
    for key, below in numbers.items():
        if isinstance(below, dict):
            yield from (((str(key), *path), column, number) for path, column, number in leaves(below, depth - 1))
        else:
            yield (), str(key), below


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_has_the_keys_of_the_format_and_a_small_scale(path):
    values = read(path)
    assert set(values) <= KEYS
    assert values["about"]
    assert values["source"]
    assert all(
        row == MAJORITY or (row["recipe"] in recipe_names() and set(row) <= {"recipe", "set"})
        for row in values["rows"].values()
    )
    if path.stem not in ("demo", "quickstart"):  # which are small
        assert "small" in values["scales"]


@pytest.mark.parametrize("scale", [None, "small"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_job_of_a_file_is_valid(path, scale):
    values = read(path)
    if scale and scale not in values.get("scales", {}):
        pytest.skip("has no small scale")
    values = scaled(values, scale)
    made = list(jobs(values))
    assert made
    assert len({job.protocol for job in made}) == 1, "rows of one table must share a protocol"
    for name, row in values.get("before", {}).items():
        job = load_job(row["recipe"], words(values["defaults"]) + words(row["set"])).job
        assert job.seeds == [0], name


@pytest.mark.parametrize(
    "path", [path for path in FILES if read(path).get("paper", {}).get("values")], ids=lambda path: path.stem
)
def test_the_papers_numbers_stand_where_the_table_has_places(path):
    values = read(path)
    paper, vary = values["paper"], values.get("vary", {})
    axes = [list(map(str, choices)) for key, choices in vary.items() if key != values["columns"]]
    names = columns(values, next(iter(values["tasks"])))
    assert set(paper["values"]) <= set(values["rows"])
    assert set(paper.get("differs", {})) <= set(values["rows"])
    for row, numbers in paper["values"].items():
        for point, column, number in leaves(numbers, len(axes)):
            assert isinstance(number, int | float), (row, point, column)
            assert column in names or column in MEANS, (row, column)
            assert len(point) == (0 if values["rows"][row] == MAJORITY else len(axes)), (row, point)
            assert all(value in choices for value, choices in zip(point, axes, strict=False)), (row, point)


@pytest.mark.parametrize(
    "path", [path for path in FILES if read(path).get("paper", {}).get("values")], ids=lambda path: path.stem
)
def test_the_papers_means_are_those_of_its_numbers_or_a_noted_misprint(path):
    values = read(path)
    notes = " ".join(values["paper"].get("notes", []))
    for row, numbers in values["paper"]["values"].items():
        by_point: dict = {}
        for point, column, number in leaves(numbers, 0):
            by_point.setdefault(point, {})[column] = number
        for point, by_column in by_point.items():
            mean = by_column.pop("mean", None)
            if mean is None or not by_column:
                continue
            ours = statistics.fmean(by_column.values())
            assert abs(ours - mean) < 0.0151 or (f"{mean:.2f}" in notes and f"{ours:.2f}" in notes), (
                row,
                point,
                mean,
                ours,
            )


def test_the_four_searches_are_there():
    for name in SEARCHES:
        values = read(FOLDER / f"{name}.yaml")
        assert values.get("search") or values["vary"]


def test_the_engine_loads_every_file():
    campaign = pytest.importorskip("raypft.campaigns.load")
    for path in FILES:
        for scale in [None, *read(path).get("scales", {})]:
            assert list(campaign.load_campaign(path.stem, scale=scale).table_cells())

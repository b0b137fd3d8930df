"""One picture an axis or searched key: score against its values, a line a row, a band of one std over seeds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from raypft.report.figures import Figure, draw, plain_ticks
from raypft.report.formats import metric_name
from raypft.report.groups import Cells, Group, Score, frozen, text
from raypft.report.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as MplFigure

ACROSS, MOST = 3, 12
SIZE = (4.6, 3.4)
"""Panels side by side and in all, and inches of one."""
Point = tuple[Any, Score]
"""A value of the axis or key, and the score there, in percent."""
ValueIn = Callable[[Group], Any]
Panel = tuple[str, tuple[str, ...]]
"""A task and the other axes' values, as text."""


def write_plots(cells: Cells, folder: Path) -> list[Path]:
    """Write plot-<key>.png and .svg for each axis or searched key with two values or more; returns the png files."""
    return [drawn.png for drawn in draw(curves(cells), folder, data=False)]


def curves(cells: Cells) -> Iterator[Figure]:
    """A figure for each axis or searched key with two values or more."""
    for key in [*cells.axes, *cells.searched]:
        panels = _panels(cells, key)
        values = _values(panels)
        if len(values) > 1:
            yield _figure(cells, key, panels, values)


def _figure(cells: Cells, key: str, panels: dict[Panel, dict[str, list[Point]]], values: list[Any]) -> Figure:
    shown = dict(itertools.islice(panels.items(), MOST))
    across = min(ACROSS, len(shown))
    sampled = key in cells.searched and cells.campaign.search.searcher != "grid"

    def fill(grid: list[Axes]) -> None:
        for axes, ((task, others), lines) in zip(grid, shown.items(), strict=False):
            _draw(axes, lines, list(cells.campaign.rows), values, sampled)
            axes.set(title=", ".join([text(task), *others]), xlabel=key, ylabel=_measure(cells, key, task))
        for axes in grid[len(shown) :]:
            axes.set_visible(False)
        figure = cast("MplFigure", grid[0].figure)
        if len(panels) > MOST:
            figure.suptitle(f"the first {MOST} of {len(panels)}", fontsize=9)
        _legend(figure, grid)

    task = next(iter(panels))[0]
    band = "bars" if sampled or not all(_is_number(value) for value in values) else "bands"
    about = f"{_measure(cells, key, task)} against {key}, mean over seeds; {band}: one std over seeds"
    return Figure(f"plot-{key}", about, _data(key, panels), fill, (across, -(-len(shown) // across)), SIZE)


def _data(key: str, panels: dict[Panel, dict[str, list[Point]]]) -> Table:
    """The points of all panels."""
    table = Table(f"score against {key}", ["task", "at", "row", key, "mean", "std", "n"])
    for (task, others), lines in panels.items():
        for row, points in lines.items():
            for value, score in points:
                spread = "" if score.std is None else f"{score.std:.4f}"
                numbers = [f"{score.mean:.4f}", spread, str(len(score.values))]
                table.rows.append([text(task), ", ".join(others), row, text(value), *numbers])
    return table


def _measure(cells: Cells, key: str, task: str) -> str:
    metric = cells.first[task]["metric"] if task in cells.first else "score"
    return f"{metric_name(metric)} on {'dev' if key in cells.searched else 'test'}"


def _panels(cells: Cells, key: str) -> dict[Panel, dict[str, list[Point]]]:
    """Panel to row to points: of an axis the test scores, of a searched key the dev scores tried."""
    searcher = cells.campaign.search.searcher if key in cells.searched else None
    value_in = _value_in(cells, key)
    panels: dict[Panel, dict[str, list[Point]]] = {}
    for panel, rows in _curves(cells, key, value_in).items():
        lines: dict[str, list[Point]] = {}
        for row, groups_by_value in rows.items():
            points: list[Point] = []
            for groups in groups_by_value.values():
                points += _points(groups, value_in, searcher)
            if points:
                lines[row] = points
        if lines:
            panels[panel] = lines
    return panels


def _value_in(cells: Cells, key: str) -> ValueIn:
    """What gives a group's value of an axis or a searched key; None where it has none."""
    if key in cells.searched:
        return lambda group: group.choice.get(key)
    place = cells.axes.index(key)
    return lambda group: group.point[place]


def _curves(cells: Cells, key: str, value_in: ValueIn) -> dict[Panel, dict[str, dict[Hashable, list[Group]]]]:
    """Panel to row to the groups at each value of the key."""
    curves: dict[Panel, dict[str, dict[Hashable, list[Group]]]] = {}
    for task, point, row in itertools.product(cells.campaign.tasks, cells.every_point, cells.campaign.rows):
        chosen = cells.at(row, task, point)
        if chosen is None:
            continue
        panel = (task, _others(cells, key, point))
        for group in chosen.tried if key in cells.searched else [chosen.best]:
            value = value_in(group)
            if value is not None:
                groups_by_value = curves.setdefault(panel, {}).setdefault(row, {})
                groups_by_value.setdefault(frozen(value), []).append(group)
    return curves


def _others(cells: Cells, key: str, point: Sequence[Any]) -> tuple[str, ...]:
    """The values of a point on the other axes that have several."""
    varied = {name for name in cells.axes if name != key and len(cells.campaign.vary[name]) > 1}
    values = zip(cells.axes, point, strict=True)
    return tuple(f"{name.rsplit('.', 1)[-1]} {text(value)}" for name, value in values if name in varied)


def _points(groups: Sequence[Group], value_in: ValueIn, searcher: str | None) -> list[Point]:
    """The points at one value: of an axis the test score; of a sampled search all tried, of a grid the best on dev."""
    if searcher is None:
        tested = [(value_in(group), group.score(lambda result: result.get("mean"))) for group in groups]
        return [(value, score) for value, score in tested if score.values]
    scored = [group for group in groups if group.dev.values]
    if searcher == "grid" and scored:
        most = max(len(group.dev.values) for group in scored)
        whole = [group for group in scored if len(group.dev.values) == most]
        scored = [max(whole, key=lambda group: group.dev.mean)]
    return [(value_in(group), group.dev) for group in scored]


def _values(panels: dict[Panel, dict[str, list[Point]]]) -> list[Any]:
    """Every value that a point has: numbers by size; anything else in the order in which it came."""
    by_key: dict[Hashable, Any] = {}
    for lines in panels.values():
        for value, _ in itertools.chain.from_iterable(lines.values()):
            by_key[frozen(value)] = value
    values = list(by_key.values())
    return sorted(values) if all(_is_number(value) for value in values) else values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _legend(figure: MplFigure, panels: Iterable[Axes]) -> None:
    """One legend for all panels, each row once."""
    handles: dict[str, Any] = {}
    for axes in panels:
        drawn, labels = axes.get_legend_handles_labels()
        handles |= zip(labels, drawn, strict=True)
    across = min(4, len(handles))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=across, frameon=False, fontsize=8)


def _draw(axes: Axes, lines: dict[str, list[Point]], rows: list[str], values: list[Any], sampled: bool) -> None:
    numeric = all(_is_number(value) for value in values)
    place = {frozen(value): value if numeric else i for i, value in enumerate(values)}
    for label, points in lines.items():
        points = sorted(points, key=lambda point: place[frozen(point[0])])
        x = [place[frozen(value)] for value, _ in points]
        mean, std = [score.mean for _, score in points], [score.std or 0.0 for _, score in points]
        number = rows.index(label)
        color, marker = f"C{number % 10}", "osD^vPX*<>"[number % 10]
        if sampled or not numeric:
            axes.errorbar(x, mean, yerr=std, fmt=marker, color=color, label=label, markersize=4, capsize=2, alpha=0.8)
            continue
        axes.plot(x, mean, marker=marker, color=color, label=label, markersize=4, linewidth=1.5)
        axes.fill_between(
            x,
            [m - s for m, s in zip(mean, std, strict=True)],
            [m + s for m, s in zip(mean, std, strict=True)],
            color=color,
            alpha=0.15,
            linewidth=0,
        )
    if numeric and min(values) > 0 and max(values) >= 16 * min(values):
        axes.set_xscale("log")
        plain_ticks(axes)
    if not numeric or len(values) <= 12:
        axes.set_xticks(
            list(place.values()), [text(value) for value in values], rotation=0 if len(values) <= 8 else 45, fontsize=8
        )
    axes.grid(alpha=0.3)

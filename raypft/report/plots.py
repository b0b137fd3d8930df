"""One picture an axis or searched key: score against its values, a line a row, a band of one standard deviation over seeds."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypft.report.groups import Cells, Group, Score, frozen, text
from raypft.storage import written

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACROSS, MOST = 3, 12
SIZE = (4.6, 3.4)
"""Panels side by side and in all, and inches of one."""
Point = tuple[Any, Score]


def write_plots(cells: Cells, folder: Path) -> list[Path]:
    """Write plot-<key>.png and .svg for each axis with two values or more and each searched key; returns the png files."""
    return [path for key in [*cells.axes, *cells.searched] if (path := _plot(cells, key, folder)) is not None]


def _plot(cells: Cells, key: str, folder: Path) -> Path | None:
    panels = _panels(cells, key)
    values = _ordered(
        {frozen(value): value for lines in panels.values() for points in lines.values() for value, _ in points}.values()
    )
    if len(values) < 2:
        return None
    import matplotlib  # noqa: PLC0415  (slow to import)

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "raypft"  # ids of SVG elements, else drawn by chance
    from matplotlib import pyplot  # noqa: PLC0415

    shown = dict(itertools.islice(panels.items(), MOST))
    across = min(ACROSS, len(shown))
    down = -(-len(shown) // across)
    figure, grid = pyplot.subplots(
        down, across, figsize=(SIZE[0] * across, SIZE[1] * down), squeeze=False, layout="constrained"
    )
    for axes, ((task, others), lines) in zip(grid.flat, shown.items(), strict=False):
        _draw(
            axes,
            lines,
            list(cells.campaign.rows),
            values,
            sampled=key in cells.searched and cells.campaign.search.searcher != "grid",
        )
        axes.set(title=", ".join([text(task), *others]), xlabel=key, ylabel=_measure(cells, key, task))
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    if len(panels) > MOST:
        figure.suptitle(f"the first {MOST} of {len(panels)}", fontsize=9)
    handles = {
        label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(4, len(handles)),
        frameon=False,
        fontsize=8,
    )
    path = folder / f"plot-{key}.png"
    for target, how in ((path, {"dpi": 150}), (path.with_suffix(".svg"), {"metadata": {"Date": None}})):
        with written(target) as file:
            figure.savefig(file, **how)
    pyplot.close(figure)
    return path


def _measure(cells: Cells, key: str, task: str) -> str:
    metric = cells.first[task]["metric"] if task in cells.first else "score"
    return f"{metric} on {'dev' if key in cells.searched else 'test'}"


def _panels(cells: Cells, key: str) -> dict[tuple[str, tuple[str, ...]], dict[str, list[Point]]]:
    """(Task, the other axes' values) to row to points: of an axis the test scores, of a searched key the dev scores tried."""
    curves: dict[Any, dict[str, dict[Any, list[Group]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    searched = key in cells.searched
    place = (cells.searched if searched else cells.axes).index(key)
    for task, point, row in itertools.product(cells.campaign.tasks, cells.every_point, cells.campaign.rows):
        chosen = cells.at(row, task, point)
        others = tuple(
            f"{n.rsplit('.', 1)[-1]} {text(v)}"
            for n, v in zip(cells.axes, point, strict=True)
            if n != key and len(cells.campaign.vary[n]) > 1
        )
        for group in (chosen.tried if searched else [chosen.best]) if chosen else []:
            value = (group.choice if searched else group.point)[place]
            if value is not None:
                curves[task, others][row][frozen(value)].append(group)
    searcher = cells.campaign.search.searcher if searched else None
    found = {
        at: {row: [p for groups in of.values() for p in _points(groups, place, searcher)] for row, of in rows.items()}
        for at, rows in curves.items()
    }
    with_points = {at: {row: points for row, points in rows.items() if points} for at, rows in found.items()}
    return {at: rows for at, rows in with_points.items() if rows}


def _points(groups: Sequence[Group], place: int, searcher: str | None) -> list[Point]:
    """The points at one value: of an axis the test score, of a sampled search every configuration, of a grid the best on dev."""
    if searcher is None:
        return [
            (group.point[place], score) for group in groups if (score := group.score(lambda r: r.get("mean"))).values
        ]
    scored = [group for group in groups if group.dev.values]
    if searcher == "grid" and scored:
        most = max(len(group.dev.values) for group in scored)
        scored = [max((group for group in scored if len(group.dev.values) == most), key=lambda group: group.dev.mean)]
    return [(group.choice[place], group.dev) for group in scored]


def _ordered(values: Any) -> list[Any]:
    """Numbers by size; anything else in the order in which it came."""
    values = list(values)
    return sorted(values) if all(_is_number(value) for value in values) else values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
        axes.minorticks_off()
    if not numeric or len(values) <= 12:
        axes.set_xticks(
            list(place.values()), [text(value) for value in values], rotation=0 if len(values) <= 8 else 45, fontsize=8
        )
    axes.grid(alpha=0.3)

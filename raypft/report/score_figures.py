"""Figures of scores: how far languages fall behind the pivot, what a point costs."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from raypft.report.figures import Figure, spread_axis, style
from raypft.report.formats import metric_name
from raypft.report.groups import MAJORITY, Cells, Group, Score, text
from raypft.report.languages import family, script
from raypft.report.table import Table
from raypft.tasks.metrics import pivot_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FRONT = "not surpassed"
COSTS: dict[str, Callable[[Group], float]] = {
    "trainable parameters": lambda group: float(next(iter(group.results.values()))["trainable"]),
    "seconds a seed": lambda group: statistics.fmean(result["seconds"] for result in group.results.values()),
}


def score_figures(cells: Cells, shown: dict[str, dict[str, Group]]) -> Iterator[Figure]:
    """The figures of each task, see `shown_in`."""
    for number, (task, groups) in enumerate(shown.items()):
        suffix = f"-{number + 1}" if len(shown) > 1 else ""
        for figure in (transfer(cells, task, groups, suffix), pareto(cells, task, groups, suffix)):
            if figure is not None:
                yield figure


def shown_in(cells: Cells) -> dict[str, dict[str, Group]]:
    """Task to row to the configuration at the last point of the axes (the most shots, say) where any is tested."""
    return {task: _shown(cells, task) for task in cells.campaign.tasks if task in cells.first}


def _shown(cells: Cells, task: str) -> dict[str, Group]:
    for point in reversed(cells.every_point):
        found = {}
        for row, kind in cells.campaign.rows.items():
            chosen = None if kind == MAJORITY else cells.at(row, task, point)
            if chosen is not None and any("scores" in result for result in chosen.best.results.values()):
                found[row] = chosen.best
        if found:
            return found
    return {}


def _where(cells: Cells, shown: dict[str, Group]) -> str:
    point = next(iter(shown.values())).point
    named = [f"{key.rsplit('.', 1)[-1]} {text(value)}" for key, value in zip(cells.axes, point, strict=True)]
    return f" at {', '.join(named)}" if named else ""


def transfer(cells: Cells, task: str, shown: dict[str, Group], suffix: str) -> Figure | None:
    """The pivot's score minus each language's, seed by seed; languages in groups of family and script."""
    first = cells.first[task]
    pivot = pivot_in(first)
    others = sorted((name for name in first["scores"] if name != pivot), key=lambda n: (family(n), script(n), n))
    if pivot is None or pivot not in first["scores"] or not others:
        return None
    table = Table(f"transfer gap, {text(task)}", ["family", "script", "language", "row", "gap", "std", "n"])
    gaps: dict[str, list[Score]] = {}
    for row, group in shown.items():
        gaps[row] = [group.score(_gap(pivot, language)) for language in others]
        for language, gap in zip(others, gaps[row], strict=True):
            spread = "" if gap.std is None else f"{gap.std:.4f}"
            numbers = [f"{gap.mean:.4f}", spread, str(len(gap.values))]
            table.rows.append([family(language), script(language), language, row, *numbers])

    def fill(panels: list[Axes]) -> None:
        (axes,) = panels
        for number, (row, scores) in enumerate(gaps.items()):
            beside = 0.6 * ((number + 0.5) / len(gaps) - 0.5)
            places = [place + beside for place, gap in enumerate(scores) if gap.values]
            means, spreads = [gap.mean for gap in scores if gap.values], [gap.std or 0 for gap in scores if gap.values]
            axes.errorbar(places, means, yerr=spreads, fmt="none", ecolor=f"C{number % 10}", alpha=0.6)
            axes.plot(places, means, linestyle="", label=row, markersize=5, **style(number))
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xticks(range(len(others)), others, rotation=60, fontsize=8)
        axes.set_xlim(-0.5, len(others) - 0.5)
        begin = 0
        for name, members in itertools.groupby(others, key=lambda code: f"{family(code)}, {script(code)}"):
            size = len(list(members))
            axes.axvline(begin - 0.5, color="grey", linewidth=0.5)
            axes.text(begin - 0.4, 0.98, name, rotation=90, va="top", fontsize=6, transform=axes.get_xaxis_transform())
            begin += size
        axes.set(ylabel=f"{pivot} minus the language, points", title=f"{text(task)}: transfer gap")
        axes.legend(fontsize=7)

    about = f"transfer gap: {metric_name(first['metric'])} in {pivot} minus that in each language{_where(cells, shown)}"
    wide = max(4.6, 0.35 * len(others) + 2)
    return Figure(f"transfer{suffix}", f"{about}; bars: one std over seeds", table, fill, inches=(wide, 4.2))


def _gap(pivot: str, language: str) -> Callable[[dict[str, Any]], float | None]:
    def get(result: dict[str, Any]) -> float | None:
        scores = result.get("scores", {})
        return scores[pivot] - scores[language] if pivot in scores and language in scores else None

    return get


def pareto(cells: Cells, task: str, shown: dict[str, Group], suffix: str) -> Figure | None:
    """Mean score against what a configuration costs; the line joins those that none surpasses in both."""
    if len(shown) < 2:
        return None
    scores = {row: group.score(lambda result: result.get("mean")) for row, group in shown.items()}
    metric = metric_name(cells.first[task]["metric"])
    columns = ["row", f"mean {metric}", "std"]
    for name in COSTS:
        columns += [name, f"{FRONT} by {name}"]
    table = Table(f"score against cost, {text(task)}", columns)
    costs: dict[str, dict[str, float]] = {}
    fronts: dict[str, list[str]] = {}
    for name, cost in COSTS.items():
        costs[name] = {row: cost(group) for row, group in shown.items()}
        fronts[name] = front({row: (costs[name][row], score.mean) for row, score in scores.items()})
    for row, score in scores.items():
        cells_of_row = [row, f"{score.mean:.4f}", "" if score.std is None else f"{score.std:.4f}"]
        for name in COSTS:
            cells_of_row += [f"{costs[name][row]:.6g}", "yes" if row in fronts[name] else ""]
        table.rows.append(cells_of_row)

    def fill(panels: list[Axes]) -> None:
        for axes, (name, of) in zip(panels, costs.items(), strict=True):
            for number, row in enumerate(shown):
                spread = scores[row].std or 0.0
                axes.errorbar([of[row]], [scores[row].mean], yerr=[spread], label=row, capsize=2, **style(number))
            line = sorted((of[row], scores[row].mean) for row in fronts[name])
            axes.step([x for x, _ in line], [y for _, y in line], where="post", color="grey", linewidth=1, zorder=0)
            spread_axis(axes, of.values())
            axes.set(xlabel=name, ylabel=metric)
            axes.grid(alpha=0.3)
        panels[0].legend(fontsize=7)

    about = (
        f"{text(task)}: mean {metric} against cost{_where(cells, shown)}; the grey line joins what nothing surpasses"
    )
    return Figure(f"pareto{suffix}", about, table, fill, (len(COSTS), 1))


def front(points: dict[str, tuple[float, float]]) -> list[str]:
    """Of (cost, score) those that no other surpasses: none is at most as dear and at least as good, and better in
    one."""
    kept = []
    for row, (cost, score) in points.items():
        others = [other for name, other in points.items() if name != row]
        if not any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in others):
            kept.append(row)
    return kept

"""Figures of a search: what was tried, how the best grew, and how much choosing by dev flatters."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from raypft.report.cards import Cards
from raypft.report.figures import Figure, style
from raypft.report.groups import Cells, Group, frozen, text, told
from raypft.report.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def search_figures(cells: Cells, cards: Cards) -> Iterator[Figure]:
    """The figures that a campaign's searches and dev scores give."""
    for figure in (best_so_far(cells), parallel(cells), dev_and_test(cells, cards)):
        if figure is not None:
            yield figure


def _searches(cells: Cells) -> dict[str, list[Group]]:
    """Each search by its name: its configurations with dev scores, in the order in which they were begun."""
    found = {}
    for groups in cells.groups.values():
        tried = [group for group in groups.values() if group.dev.values]
        if len(groups) > 1 and tried:
            point = [text(value) for value in tried[0].point]
            found[", ".join([f"{tried[0].row} on {text(tried[0].task)}", *point])] = tried
    return found


def best_so_far(cells: Cells) -> Figure | None:
    """The best dev score after each trial."""
    searches = _searches(cells)
    if not searches:
        return None
    table = Table("best so far", ["search", "trial", "dev", "best dev so far"])
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for name, tried in searches.items():
        scores = [group.dev.mean for group in tried]
        curves[name] = (scores, list(itertools.accumulate(scores, max)))
        for number, (score, best) in enumerate(zip(*curves[name], strict=True), 1):
            table.rows.append([name, str(number), f"{score:.4f}", f"{best:.4f}"])

    def fill(panels: list[Axes]) -> None:
        (axes,) = panels
        for number, (name, (scores, best)) in enumerate(curves.items()):
            trials = range(1, len(scores) + 1)
            axes.plot(trials, scores, linestyle="", markersize=4, alpha=0.5, **style(number))
            axes.step(trials, best, where="post", color=f"C{number % 10}", label=name)
        most = max(len(scores) for scores, _ in curves.values())
        axes.set(xlabel="trial", ylabel="dev, mean over seeds", xlim=(0.5, most + 0.5))
        axes.locator_params("x", integer=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6)

    return Figure("best-so-far", "the dev score of each trial, and the line of the best so far", table, fill)


def parallel(cells: Cells) -> Figure | None:
    """Every trial as a line through the values of its keys to its dev score."""
    searches = _searches(cells)
    keys = cells.searched
    if len(keys) < 2 or not searches:
        return None
    table = Table("trials", ["search", *keys, "dev"])
    for name, tried in searches.items():
        table.rows += [[name, *told(keys, group.choice), f"{group.dev.mean:.4f}"] for group in tried]
    columns = [*keys, "dev"]
    groups = itertools.chain.from_iterable(searches.values())
    trials = [{**group.choice, "dev": round(group.dev.mean, 1)} for group in groups]
    places: list[dict[int, float]] = []
    labels: list[list[tuple[float, str]]] = []
    for column in columns:
        having = [number for number, trial in enumerate(trials) if column in trial]
        heights, ends = _places([trials[number][column] for number in having])
        places.append(dict(zip(having, heights, strict=True)))
        labels.append(ends)

    def fill(panels: list[Axes]) -> None:
        import matplotlib  # noqa: PLC0415  (slow to import)

        (axes,) = panels
        shade = matplotlib.colormaps["viridis"]
        scores = places[-1]
        for number in sorted(range(len(trials)), key=lambda number: scores[number]):
            x, heights = zip(*((x, at[number]) for x, at in enumerate(places) if number in at), strict=True)
            line = "-" if len(x) == len(columns) else ":"
            axes.plot(x, heights, line, color=shade(scores[number]), alpha=0.7, linewidth=1)
        for x, ends in enumerate(labels):
            axes.axvline(x, color="black", linewidth=0.6)
            for height, label in ends:
                axes.text(x + 0.02, height, label, fontsize=6)
        axes.set_xticks(range(len(columns)), columns, fontsize=8)
        axes.set(yticks=[], ylim=(-0.05, 1.08), xlim=(-0.1, len(columns) - 0.6))

    about = "every trial as a line through what it set, the lighter the better its dev score"
    if any(len(trial) < len(columns) for trial in trials):
        about += "; dotted where its row's search lacks a key, from one that it has to the next"
    return Figure("parallel", about, table, fill, inches=(2.0 * len(columns), 3.8))


def _places(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Where values stand on an axis from 0 to 1 and the labels along it: numbers by size, by their logarithm where they
    span a factor of 16, anything else side by side."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        low, high = min(values), max(values)
        scale = math.log if low > 0 and high >= 16 * low else float
        span = scale(high) - scale(low) or 1.0
        ends = [(0.0, text(low))] + [(1.0, text(high))] * (high > low)
        return [(scale(value) - scale(low)) / span for value in values], ends
    known = {frozen(value): text(value) for value in values}
    height = {key: number / max(1, len(known) - 1) for number, key in enumerate(known)}
    return [height[frozen(value)] for value in values], [(height[key], label) for key, label in known.items()]


def dev_and_test(cells: Cells, cards: Cards) -> Figure | None:
    """Dev against test of the configurations shown, in the languages that were trained on, where both have one
    metric."""
    table = Table("dev and test", ["row", "task", "seed", "dev", "test", "dev minus test"])
    points: dict[str, list[tuple[float, float]]] = {}
    for chosen in cells.chosen.values():
        group = chosen.best
        job = cards.of_group[id(group)].values if id(group) in cards.of_group else {}
        if not job or (job.get("dev") or {}).get("metric"):
            continue
        for seed, result in sorted(group.results.items()):
            scores, languages = result.get("scores", {}), job["train"]["languages"]
            if result.get("dev") is None or not languages or not set(languages) <= set(scores):
                continue
            test = statistics.fmean(scores[language] for language in languages)
            points.setdefault(group.row, []).append((result["dev"], test))
            numbers = [f"{number:.4f}" for number in (result["dev"], test, result["dev"] - test)]
            table.rows.append([group.row, text(group.task), str(seed), *numbers])
    if len(table.rows) < 2:
        return None
    both = list(itertools.chain.from_iterable(points.values()))
    flattered = statistics.fmean(dev - test for dev, test in both)

    def fill(panels: list[Axes]) -> None:
        (axes,) = panels
        for number, (row, pairs) in enumerate(points.items()):
            x, y = zip(*pairs, strict=True)
            axes.plot(x, y, linestyle="", label=row, markersize=5, **style(number))
        ends = [min(map(min, both)), max(map(max, both))]
        axes.plot(ends, ends, color="grey", linewidth=0.8)
        axes.set(xlabel="dev", ylabel="test, languages trained on")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)

    about = (
        f"dev against test, a point a seed: dev is {flattered:+.1f} points higher on average, what choosing by it adds"
    )
    return Figure("dev-test", about, table, fill)

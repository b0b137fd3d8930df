"""Figures of single answers: which labels are taken for which, and whether a probability means what it says."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from scipy import stats

from raypft.errors import visible
from raypft.report.evidence import Evidence
from raypft.report.figures import Figure, style
from raypft.report.groups import Cells, Group, text
from raypft.report.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS, PANELS, METHODS = 20, 6, 4
"""Most labels of a confusion, languages across and methods down that are drawn; the data have all."""
BINS = 10
Answers = dict[str, pa.Table]


def answer_figures(cells: Cells, evidence: Evidence, shown: dict[str, dict[str, Group]]) -> Iterator[Figure]:
    """The figures of each task.

    Args:
        shown: task to row to the configuration that is shown.
    """
    for number, (task, groups) in enumerate(shown.items()):
        suffix = f"-{number + 1}" if len(shown) > 1 else ""
        read = {row: _answers(group, evidence) for row, group in groups.items()}
        answers = {row: table for row, table in read.items() if table is not None}
        for figure in (confusion(task, answers, suffix), calibration(task, answers, suffix)):
            if figure is not None:
                yield figure


def _answers(group: Group, evidence: Evidence) -> pa.Table | None:
    """The answers of all seeds, where each is one label."""
    tables = [evidence.answers(group, seed) for seed in group.folders]
    whole = [table for table in tables if table is not None]
    if not whole or not all(pa.types.is_string(table.schema.field("answer").type) for table in whole):
        return None
    return pa.concat_tables(whole, promote_options="permissive")


def confusion(task: str, answers: Answers, suffix: str) -> Figure | None:
    """Gold labels by answers, in percent of each gold label, per language."""
    counts: dict[tuple[str, str], Counter[tuple[str, str]]] = defaultdict(Counter)
    for row, table in answers.items():
        if not pa.types.is_string(table.schema.field("gold").type):
            return None
        columns = [table[name].to_pylist() for name in ("language", "gold", "answer")]
        for language, gold, answer in zip(*columns, strict=True):
            counts[row, language][gold, answer] += 1
    pairs = itertools.chain.from_iterable(counts.values())
    labels = sorted(set(itertools.chain.from_iterable(pairs)))
    if not 2 <= len(labels) <= LABELS:
        return None
    data = Table(f"confusion, {text(task)}", ["row", "language", "gold", "answer", "rows", "% of gold"])
    for (row, language), pairs in counts.items():
        of_gold: Counter[str] = Counter()
        for (gold, _), count in pairs.items():
            of_gold[gold] += count
        for (gold, answer), count in sorted(pairs.items()):
            data.rows.append([row, language, gold, answer, str(count), f"{100 * count / of_gold[gold]:.2f}"])
    languages = list(dict.fromkeys(language for _, language in counts))[:PANELS]
    rows = list(answers)[:METHODS]

    def fill(panels: list[Axes]) -> None:
        for number, axes in enumerate(panels):
            row, language = rows[number // len(languages)], languages[number % len(languages)]
            pairs = counts[row, language]
            flat = [pairs[place] for place in itertools.product(labels, labels)]
            whole = np.array(flat, float).reshape(len(labels), len(labels))
            shares = 100 * whole / np.maximum(1, whole.sum(axis=1, keepdims=True))
            axes.imshow(shares, vmin=0, vmax=100, cmap="Blues")
            for place, share in np.ndenumerate(shares) if len(labels) <= 6 else ():
                ink = "white" if share > 60 else "black"
                axes.text(place[1], place[0], f"{share:.0f}", ha="center", va="center", fontsize=7, color=ink)
            shown = list(map(visible, labels))
            axes.set_xticks(range(len(labels)), shown, rotation=45, fontsize=6)
            axes.set_yticks(range(len(labels)), shown, fontsize=6)
            axes.set_title(visible(f"{row}, {language}"), fontsize=7)

    more = len(counts) > len(rows) * len(languages)
    about = f"{text(task)}: gold labels (down) by answers (across), percent of each gold label, over all seeds"
    about += f"; the first {len(languages)} languages and {len(rows)} rows, the data have all" * more
    return Figure(f"confusion{suffix}", about, data, fill, (len(languages), len(rows)), (2.2, 2.2))


def calibration(task: str, answers: Answers, suffix: str) -> Figure | None:
    """The share of right answers against the probability that was given them, in ten bins."""
    data = Table(f"calibration, {text(task)}", ["row", "confidence", "right", "rows", "expected calibration error"])
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for row, table in answers.items():
        names = [name for name in table.column_names if name.startswith("p(")]
        if not names:
            continue
        given = np.stack([table[name].to_numpy() for name in names], axis=1)
        if not np.allclose(given.sum(axis=1), 1, atol=1e-3):
            continue
        sure = given.max(axis=1)
        right = np.array(table["gold"].to_pylist()) == np.array(table["answer"].to_pylist())
        edges = {"bins": BINS, "range": (0, 1)}
        share, confidence, count = (
            stats.binned_statistic(sure, values, statistic, **edges).statistic
            for values, statistic in ((100.0 * right, "mean"), (100.0 * sure, "mean"), (sure, "count"))
        )
        filled = count > 0
        error = float((count[filled] * np.abs(share[filled] - confidence[filled])).sum() / count.sum())
        curves[f"{row} (error {error:.1f})"] = (confidence[filled], share[filled])
        for values in zip(confidence[filled], share[filled], count[filled], strict=True):
            data.rows.append([row, f"{values[0]:.4f}", f"{values[1]:.4f}", f"{values[2]:.0f}", f"{error:.4f}"])
    if not curves:
        return None

    def fill(panels: list[Axes]) -> None:
        (axes,) = panels
        axes.plot([0, 100], [0, 100], color="grey", linewidth=0.8)
        for number, (label, (confidence, share)) in enumerate(curves.items()):
            axes.plot(confidence, share, label=label, markersize=4, **style(number))
        axes.set(xlabel="confidence, %", ylabel="right answers, %", title=text(task))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)

    about = (
        f"{text(task)}: right answers against confidence, over all seeds and languages; on the line a probability means"
    )
    return Figure(f"calibration{suffix}", f"{about} what it says", data, fill)

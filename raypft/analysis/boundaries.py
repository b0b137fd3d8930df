"""Whether a boundary between labels that is found in one language holds in others, before and after training.

Source: Tu et al. 2022 (Prompt-Tuning Can Be Much Better Than Fine-Tuning on Cross-lingual Understanding), whose
analysis compares the representations of parallel sentences and their decision boundaries; its code stores them, plots
were not released. A representation is the state at the slot that the run's readout reads (of a classification head the
first token's, as there). Half of the sentences fit, the other half scores; states are standardised by the fitting half
of the pivot language.

    cosine:   of a sentence and its translation in the pivot language, the mean; unrelated: of all pairs that are none
    accuracy: of the pivot's boundary, a logistic regression, on a language's scoring half; own: of its own boundary
    angle:    between the two boundaries, 0 to 180 degrees: between w_a - w_b, the mean over the pairs of labels a, b
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import Field

from raypft.analysis import base
from raypft.analysis._runs import AFTER, AS_IT_IS, BEFORE, Run, spread, stages
from raypft.runs.predict import Trained
from raypft.training.encode import Encoder
from raypft.training.loader import PromptDataset
from raypft.training.stepper import Learner

if TYPE_CHECKING:
    from matplotlib.figure import Figure

States = Mapping[str, NDArray[Any]]
"""Language to the states of its sentences, [N, H], the same sentences in each."""
LEAST = 10
"""Parallel sentences below which nothing is fitted."""
AT_ONCE = 16
"""Prompts that are run together."""


class Options(base.ModelOptions):
    """rows: parallel sentences of each language at most."""

    rows: int = Field(default=200, ge=LEAST, description="parallel sentences a language at most")


class Boundaries(base.Kind):
    """Cosines of translations, boundaries scored across languages, angles between them, a picture of the states."""

    Options: ClassVar[type[base.Options]] = Options

    def compute(self, runs: Sequence[Run], options: Any) -> base.Analysis:
        rows: list[base.Row] = []
        points: list[base.Row] = []
        for run in runs:
            _of_run(run, options, rows, points)
        return base.Analysis(
            name="boundaries",
            title="Boundaries between labels across languages",
            how="Cosine of the states of a sentence and its translation; accuracy of a logistic regression fitted on "
            "the pivot language, on each; angle between it and the language's own. Half of the sentences fit, the "
            "others score; the picture shows the first two principal components. After Tu et al. 2022.",
            tables={"boundaries": rows, "points": points},
            figures={
                "boundaries": lambda figure: _draw(figure, rows),
                "points": lambda figure: _draw_points(figure, points),
            },
        )


def compare(states: States, labels: NDArray[Any], pivot: str) -> list[base.Row]:
    """Cosine, accuracies and angle of each language to the pivot's: a row a language.

    Args:
        labels: of the sentences, [N] int; at least two labels in each half.
    """
    fit, score = (numpy.arange(len(labels)) % 2 == half for half in (0, 1))
    mean, spread_of = states[pivot][fit].mean(0), states[pivot][fit].std(0)
    scaled = {language: (own - mean) / numpy.where(spread_of > 0, spread_of, 1) for language, own in states.items()}
    models = {language: _fitted(own[fit], labels[fit]) for language, own in scaled.items()}
    rows = []
    for language, own in scaled.items():
        alike, unlike = _cosines(states[language], states[pivot])
        rows.append(
            {
                "language": language,
                "cosine": alike,
                "cosine of unrelated": unlike,
                "accuracy": 100 * float(models[pivot].score(own[score], labels[score])),
                "accuracy of own": 100 * float(models[language].score(own[score], labels[score])),
                "angle": _angle(models[pivot].coef_, models[language].coef_),
            }
        )
    return rows


def _fitted(states: NDArray[Any], labels: NDArray[Any]) -> Any:
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415  (slow to import)

    return LogisticRegression(max_iter=2000).fit(states, labels)


def _cosines(one: NDArray[Any], other: NDArray[Any]) -> tuple[float, float]:
    """The mean cosine of rows of the same number, and of all rows of different ones, [N, H] each."""
    one, other = (states / numpy.linalg.norm(states, axis=1, keepdims=True) for states in (one, other))
    same, count = float((one * other).sum()), len(one)
    every = float(one.sum(0) @ other.sum(0))
    return same / count, (every - same) / (count * max(1, count - 1))


def _angle(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Degrees between the normals of two boundaries, [C, H] or [1, H]; the mean over pairs of labels."""
    if len(one) == 1:
        normals = [(one[0], other[0])]
    else:
        normals = [(one[a] - one[b], other[a] - other[b]) for a, b in itertools.combinations(range(len(one)), 2)]
    angles = [math.degrees(math.acos(max(-1.0, min(1.0, _cosines(a[None], b[None])[0])))) for a, b in normals]
    return sum(angles) / len(angles)


def _of_run(run: Run, options: Options, rows: list[base.Row], points: list[base.Row]) -> None:
    """Add a run's rows to both tables."""
    trained = run.trained(options.seed)
    task = trained.task
    if not task.kind.one_label:
        raise run.refused("boundaries", f"is of task {task.name}, whose rows have no label each", "a task of choice")
    asked, labels = _parallel(run, trained, options)
    encoder = Encoder.of(trained.resolved, trained.learner.method.backbone.text, run.drawn(trained.seed).demos)
    pivot = task.pivot_language if task.pivot_language in asked else next(iter(asked))
    names = task.label.names
    numbers = numpy.array([names.index(label) for label in labels])
    of_stage = {}
    for stage, learner in stages(trained):
        of_stage[stage] = {language: _states(learner, encoder, own) for language, own in asked.items()}
    for stage in (BEFORE, AFTER, AS_IT_IS):
        if stage not in of_stage:
            continue
        about = {"run": run.name, "seed": trained.seed, "stage": stage}
        rows += [{**about, **row, "sentences": len(labels)} for row in compare(of_stage[stage], numbers, pivot)]
        for language, places in _plane(of_stage[stage]).items():
            for label, (x, y) in zip(labels, places.tolist(), strict=True):
                points.append({**about, "language": language, "label": label, "x": x, "y": y})


def _parallel(run: Run, trained: Trained, options: Options) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """The test rows that all languages have, by language in one order, and their labels.

    Raises:
        UserError: there are not enough of them, or of one label only.
    """
    by_language: dict[str, dict[str, dict[str, Any]]] = {language: {} for language in trained.task.languages}
    for row in run.drawn(trained.seed).test.to_pylist():
        by_language[row["language"]][row["id"]] = row
    by_language = {language: own for language, own in by_language.items() if own}
    first, *others = by_language.values()
    shared = [key for key, row in first.items() if _is_in(others, key, row["label"])]
    if not others or len(shared) < LEAST:
        found = f"has {len(shared)} test rows with one id and label in all of {', '.join(by_language)}"
        raise run.refused("boundaries", found, f"{LEAST} or more, translations of each other, in two languages or more")
    # neighbours fit and score in turn; by label, so that both halves have each
    ordered = sorted(shared, key=lambda key: first[key]["label"])
    chosen = spread(pa.table({"id": ordered}), options.rows)["id"].to_pylist()
    labels = [first[key]["label"] for key in chosen]
    if len({*labels[::2]}) < 2 or {*labels[::2]} != {*labels[1::2]}:
        raise run.refused(
            "boundaries", f"has too few rows of some label: {', '.join(sorted({*labels}))}", "two of each"
        )
    return {language: list(map(own.__getitem__, chosen)) for language, own in by_language.items()}, labels


def _is_in(others: Sequence[dict[str, dict[str, Any]]], key: str, label: str) -> bool:
    """Whether all other languages have a row of this id with this label."""
    return all(key in own and own[key]["label"] == label for own in others)


@torch.no_grad()
def _states(learner: Learner, encoder: Encoder, rows: Sequence[dict[str, Any]]) -> NDArray[Any]:
    """The states at the slots of rows' first prompts, [N, H]."""
    prompts = [encoder(row)[0] for row in rows]
    method = learner.method
    dataset = PromptDataset(prompts, method, method.backbone.pad)
    device = next(learner.parameters()).device
    found = numpy.zeros((len(rows), method.backbone.state_size), dtype=numpy.float64)
    order = dataset.by_length(range(len(rows)))
    for start in range(0, len(order), AT_ONCE):
        part = order[start : start + AT_ONCE]
        found[part] = method(dataset.batch(part).to(device)).double().cpu().numpy()
    return found


def _plane(states: States) -> dict[str, NDArray[Any]]:
    """The first two principal components of all states, [N, 2] a language; signs are those of the largest entries."""
    every = numpy.concatenate(list(states.values()))
    mean = every.mean(0)
    _, _, axes = numpy.linalg.svd(every - mean, full_matrices=False)
    axes = axes[:2]
    axes = axes * numpy.sign(axes[numpy.arange(len(axes)), numpy.abs(axes).argmax(1)])[:, None]
    return {language: (own - mean) @ axes.T for language, own in states.items()}


def _draw(figure: Figure, rows: Sequence[base.Row]) -> None:
    """Cosine, accuracy and angle by language, a line a run and stage."""
    measures = {
        "cosine": "cosine of translations",
        "accuracy": "% right by the pivot's boundary",
        "angle": "angle, degrees",
    }
    lines = dict.fromkeys((row["run"], row["stage"]) for row in rows)
    names = list(dict.fromkeys(row["language"] for row in rows))
    figure.set_size_inches(max(9.0, 0.5 * len(names) * 3 + 2), 3.2 + 0.2 * len(lines))
    panels = figure.subplots(1, 3)
    for axes, (measure, title) in zip(panels, measures.items(), strict=True):
        for number, (run, stage) in enumerate(lines):
            own = {row["language"]: row[measure] for row in rows if (row["run"], row["stage"]) == (run, stage)}
            style = ":" if stage == BEFORE else "-"
            color = f"C{list(dict.fromkeys(name for name, _ in lines)).index(run)}"
            axes.plot(
                [names.index(name) for name in own],
                list(own.values()),
                style,
                marker="osD^"[number % 4],
                color=color,
                markersize=4,
                label=f"{run}, {stage}",
            )
        axes.set_xticks(range(len(names)), names, rotation=60 if len(names) > 4 else 0, fontsize=8)
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8
    )


def _draw_points(figure: Figure, points: Sequence[base.Row]) -> None:
    """A panel a run and stage: labels by colour, languages by marker."""
    panels: dict[tuple[str, str], list[base.Row]] = {}
    for point in points:
        panels.setdefault((point["run"], point["stage"]), []).append(point)
    labels = sorted({point["label"] for point in points})
    languages = list(dict.fromkeys(point["language"] for point in points))
    across = 2 if len(panels) > 1 else 1
    down = -(-len(panels) // across)
    figure.set_size_inches(4.6 * across, 3.6 * down + 0.5 + 0.15 * len(languages))
    grid = figure.subplots(down, across, squeeze=False)
    for axes, ((run, stage), own) in zip(grid.flat, panels.items(), strict=False):
        for label, language in itertools.product(labels, languages):
            chosen = [point for point in own if (point["label"], point["language"]) == (label, language)]
            axes.scatter(
                [point["x"] for point in chosen],
                [point["y"] for point in chosen],
                s=12,
                alpha=0.6,
                linewidths=0.6,
                color=f"C{labels.index(label) % 10}",
                marker="o^sDvP*X<>"[languages.index(language) % 10],
            )
        axes.set_title(f"{run}: {stage}", fontsize=9)
        axes.set(xticks=[], yticks=[])
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    for number, label in enumerate(labels):
        grid[0, 0].plot([], [], "s", color=f"C{number % 10}", label=label)
    for number, language in enumerate(languages):
        grid[0, 0].plot([], [], "o^sDvP*X<>"[number % 10], color="0.4", label=language)
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False, fontsize=7)


Kind = Boundaries

"""How much answers move with the demonstrations that prompts show: with which rows they are, and with their order.

Source: Zhao et al. 2021 (Calibrate Before Use), sections 3 and 6, whose figures vary both, before and after contextual
calibration; Lu et al. 2022 (Fantastically Ordered Prompts) for the order. A model that was trained with demonstrations,
GNNavi's layer say, is shown others here than it was trained with.

    choice: one a class (or as many as the run showed) out of the training rows, by other sample seeds
    order:  those of the run, permuted
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from raypft.analysis import base
from raypft.analysis._runs import Run, spread
from raypft.encoded import Encoded
from raypft.runs.cell import device_here
from raypft.runs.predict import Trained
from raypft.runs.scores import Pairs, RowAnswer, by_row, mean_score
from raypft.tasks.query import Demonstration
from raypft.training.encode import Encoder
from raypft.training.loader import PromptDataset
from raypft.training.loop import evaluate
from raypft.training.stepper import TorchStepper

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AS_RUN = "as run"
APART = 1_000_003
"""Sample seeds of choices are so far from the run's."""
Shown = tuple[Demonstration, ...]


class Options(base.ModelOptions):
    """choices, orders: how many others of each; rows: test rows."""

    rows: int = Field(default=200, ge=1, description="test rows at most, spread evenly over them")
    choices: int = Field(default=5, ge=0, description="other demonstrations, drawn anew")
    orders: int = Field(default=5, ge=0, description="other orders of the run's demonstrations, if there are so many")


@dataclass(frozen=True)
class Asked:
    """The answers with some demonstrations: plain and, where the model is asked as it is, calibrated."""

    varied: str
    number: int
    answers: dict[bool, list[RowAnswer]]


class Demonstrations(base.Kind):
    """Scores over choices and orders of demonstrations."""

    Options: ClassVar[type[base.Options]] = Options

    def compute(self, runs: Sequence[Run], options: Any) -> base.Analysis:
        rows: list[base.Row] = []
        for run in runs:
            rows += _rows(run, options)
        summary = _summary(rows)
        return base.Analysis(
            name="demonstrations",
            title="Choice and order of demonstrations",
            how="The score of a finished run's model with other demonstrations (choice) and with its own in another "
            "order; agreement: the share of rows answered as with its own; largest: the share of the most frequent "
            "answer; calibrated: contextual calibration. After Zhao et al. 2021 and Lu et al. 2022.",
            tables={"demonstrations": rows, "summary": summary},
            figures={"demonstrations": lambda figure: _draw(figure, rows)},
            notes=["a trained model is shown other demonstrations than it was trained with; it is not trained again"],
        )


def orders(count: int, wanted: int) -> list[tuple[int, ...]]:
    """Other orders of so many things than theirs, none twice; all there are where fewer than wanted."""
    random, first = Random(0), tuple(range(count))
    found = {first: None}
    while len(found) <= min(wanted, math.factorial(count) - 1):
        found[tuple(random.sample(first, count))] = None
    return list(found)[1:]


def _rows(run: Run, options: Options) -> Iterator[base.Row]:
    """A run's rows: its own demonstrations first."""
    if not run.job["demos"]:
        raise run.refused("demonstrations", "shows no demonstrations", "a run with demos=1 or more")
    trained = run.trained(options.seed)
    first: Asked | None = None
    for asked in _asked(run, trained, options):
        first = first or asked
        for calibrated, answers in asked.answers.items():
            said, before = _said(answers), _said(first.answers[calibrated])
            same = sum(one == other for one, other in zip(said, before, strict=True))
            yield {
                "run": run.name,
                "seed": trained.seed,
                "varied": asked.varied,
                "number": asked.number,
                "calibrated": calibrated,
                "score": mean_score(trained.task, Pairs(answers)),
                "agreement": 100 * same / len(said),
                "largest": 100 * Counter(said).most_common(1)[0][1] / len(said),
                "rows": len(said),
            }


def _said(answers: Sequence[RowAnswer]) -> list[str]:
    return [answer.answer for answer in answers]


def _asked(run: Run, trained: Trained, options: Options) -> Iterator[Asked]:
    """The answers with the run's demonstrations, with others, with its own in other orders."""
    sample = run.drawn(trained.seed)
    asked = spread(sample.test, options.rows).to_pylist()
    encoder = _encoder(trained, sample.demos)
    yield Asked(AS_RUN, 0, _answers(trained, encoder, asked))
    for number in range(1, options.choices + 1):
        other = run.drawn(trained.seed, trained.job.sample_seed + APART * number)
        yield Asked("choice", number, _answers(trained, _encoder(trained, other.demos), asked))
    for number, order in enumerate(orders(len(encoder.demos), options.orders), 1):
        shown: Shown = tuple(encoder.demos[place] for place in order)
        yield Asked("order", number, _answers(trained, replace(encoder, demos=shown), asked))


def _encoder(trained: Trained, demos: Any) -> Encoder:
    """The run's encoder with some demonstrations; it asks about texts without content where that is a setting."""
    encoder = Encoder.of(trained.resolved, trained.learner.method.backbone.text, demos)
    config = encoder.readout_config
    as_it_is = not (trained.learner.method.trains and trained.job.train.epochs)
    if as_it_is and "calibration" in type(config).model_fields:
        return replace(encoder, readout_config=config.model_copy(update={"calibration": "contextual"}))
    return encoder


def _answers(trained: Trained, encoder: Encoder, rows: Sequence[dict[str, Any]]) -> dict[bool, list[RowAnswer]]:
    """Whether calibrated to the answers to rows."""
    learner, settings = trained.learner, trained.job.train
    prompts = list(itertools.chain.from_iterable(map(encoder, rows)))
    stepper = TorchStepper(learner, settings, device_here())
    said = evaluate(stepper, PromptDataset(prompts, learner.method, learner.method.backbone.pad), settings)
    first = [number for number, prompt in enumerate(prompts) if prompt.part == 0]
    alone: list[Encoded] = [prompts[number] for number in first]
    found = {False: by_row(learner.readout, alone, [said[number] for number in first])}
    if len(alone) < len(prompts):
        found[True] = by_row(learner.readout, prompts, said)
    return found


def _summary(rows: Sequence[base.Row]) -> list[base.Row]:
    """How far scores lie apart, by run, calibration and what was varied."""
    groups: dict[tuple[Any, ...], list[base.Row]] = {}
    for row in rows:
        if row["varied"] != AS_RUN:
            groups.setdefault((row["run"], row["calibrated"], row["varied"]), []).append(row)
    found = []
    for (run, calibrated, varied), own in groups.items():
        scores = [row["score"] for row in own]
        found.append(
            {
                "run": run,
                "calibrated": calibrated,
                "varied": varied,
                "n": len(scores),
                "mean": statistics.fmean(scores),
                "std": statistics.stdev(scores) if len(scores) > 1 else None,
                "lowest": min(scores),
                "highest": max(scores),
                "agreement": statistics.fmean(row["agreement"] for row in own),
            }
        )
    return found


def _draw(figure: Figure, rows: Sequence[base.Row]) -> None:
    """A place a run and what was varied, a point a score; the run's own demonstrations as a line."""
    places = dict.fromkeys((row["run"], row["varied"]) for row in rows if row["varied"] != AS_RUN)
    places = {place: number for number, place in enumerate(places)}
    figure.set_size_inches(max(4.5, 1.2 * len(places) + 1.5), 3.6)
    axes = figure.subplots()
    for row in rows:
        color, aside = ("C1", 0.15) if row["calibrated"] else ("C0", -0.15)
        if row["varied"] != AS_RUN:
            axes.plot(
                places[row["run"], row["varied"]] + aside, row["score"], "o", color=color, alpha=0.7, markersize=5
            )
            continue
        for (run, _), place in places.items():
            if run == row["run"]:
                axes.hlines(row["score"], place + aside - 0.13, place + aside + 0.13, color=color)
    axes.set_xticks(list(places.values()), [f"{varied}\n{run}" for run, varied in places], fontsize=8)
    axes.set_xlim(-0.6, len(places) - 0.4)
    axes.set_ylabel("score")
    axes.grid(axis="y", alpha=0.3)
    axes.plot([], [], "o", color="C0", label="plain")
    if any(row["calibrated"] for row in rows):
        axes.plot([], [], "o", color="C1", label="calibrated")
    axes.plot([], [], "-", color="0.4", label="the run's own")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)


Kind = Demonstrations

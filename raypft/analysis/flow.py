"""How much of what the answer depends on flows along which path of attention: from the demonstrations into their label
words, from there to the last token, and elsewhere.

Source: Wang et al. 2023 (Label Words are Anchors), section 2.1, whose released code GNNavi's slides follow (Yuan et al.
2024). Of a layer's attention A, [heads, T, T], and the loss L over the labels at the last token t:

    official: I = |sum over heads of A * dL/dA|        slide: I = sum over heads of |A * dL/dA|
    S_wp = sum of I[p, j], j < p, over the label words p of the demonstrations, per pair
    S_pq = sum of I[t, p] over them, per pair          S_ww = the sum of all other pairs j < i, per pair

A is what softmax gives; nothing is dropped. One prompt at a time. A state attends to itself in no path.
Differs: label words are found by the marks of the prompt, where Wang et al. look for the tokens again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from raypft.analysis import base
from raypft.analysis._runs import AFTER, AS_IT_IS, BEFORE, Run, spread, stages
from raypft.backbones.attention import watch
from raypft.encoded import Encoded
from raypft.errors import UserError
from raypft.training.encode import Encoder
from raypft.training.loader import PromptDataset
from raypft.training.stepper import Learner

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PATHS = ("S_wp", "S_pq", "S_ww")
FORMULAS = ("official", "slide")
TOLD = {"S_wp": "into label words", "S_pq": "label words to last token", "S_ww": "elsewhere"}
APART = 1e-3
"""How far what an attention gives may lie from its values as weighted, of their largest."""


def paths(prompt: Encoded) -> dict[str, Tensor]:
    """The pairs (i, j), j < i, of each path, [T, T] bool; a pair is of one path only."""
    size, anchors, target = len(prompt.ids), prompt.marks["demo_label"], prompt.marks["slot"][-1]
    earlier = torch.ones(size, size).tril(-1).bool()
    into, onward = torch.zeros_like(earlier), torch.zeros_like(earlier)
    into[anchors] = True
    onward[target, anchors] = True
    return {"S_wp": into & earlier, "S_pq": onward & earlier, "S_ww": earlier & ~into & ~onward}


def information(learner: Learner, prompt: Encoded, dataset: PromptDataset | None = None) -> dict[int, Tensor]:
    """What flows between the tokens of a prompt, by layer from 1: I by the two formulas, [2, T, T].

    Layers that are not run since their states are kept have none.

    Args:
        dataset: where the prompt is the only row and states below a cut are kept.

    Raises:
        UserError: the attention is none whose weights can be seen.
    """
    backbone = learner.method.backbone
    device = next(learner.parameters()).device
    rows = dataset or PromptDataset([prompt], learner.method, backbone.pad)
    found: dict[int, Tensor] = {}

    def seen(layer: int, weights: Tensor, values: Tensor, output: Tensor) -> None:
        values = values.repeat_interleave(weights.shape[1] // values.shape[1], dim=1)
        _expect_weighted(backbone.config.model_type, weights, values, output)
        if not output.requires_grad:  # the first: no gradient is needed below it
            output.requires_grad_()
        weights, values = weights.detach()[0], values.detach()[0]

        def told(gradient: Tensor) -> None:
            # A * dL/dA of output = A V
            flowing = weights * torch.einsum("tad,akd->atk", gradient[0], values)
            flowing = flowing[..., -len(prompt.ids) :]  # keys of a method are no tokens
            both = torch.stack([flowing.sum(0).abs(), flowing.abs().sum(0)])
            found[layer] = both.tril(-1).float().cpu()

        output.register_hook(told)

    with ExitStack() as stack:
        stack.enter_context(_looked_at(learner))
        for layer, attention in enumerate(backbone.attentions, start=1):
            stack.enter_context(watch(attention, lambda *shown, layer=layer: seen(layer, *shown)))
        batch = rows.batch([0]).to(device)
        loss, _ = learner.readout.loss(learner(batch), batch)
        if not loss.requires_grad:
            raise UserError(
                f"analyse flow: the attention of {backbone.config.model_type} models can't be seen; expected one that "
                "looks its function up by name"
            )
        loss.backward()
    return found


@contextmanager
def _looked_at(learner: Learner) -> Iterator[None]:
    """The learner in eval mode with all its parameters frozen, every token run; then as it was."""
    backbone = learner.method.backbone
    training, shortcuts = learner.training, backbone.shortcuts
    opened = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    learner.eval()
    backbone.shortcuts = False
    for parameter in opened:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in opened:
            parameter.requires_grad_(True)
        backbone.shortcuts = shortcuts
        learner.train(training)


@torch.no_grad()
def _expect_weighted(model_type: str, weights: Tensor, values: Tensor, output: Tensor) -> None:
    """Raise a UserError unless what an attention gives are its values as weighted."""
    apart = (torch.einsum("batk,bakd->btad", weights, values) - output).abs().max()
    if float(apart) > APART * float(values.abs().max()):
        raise UserError(
            f"analyse flow: what the attention of {model_type} models gives is not its values as weighted; "
            "choose a run on another backbone"
        )


def scores(learner: Learner, prompts: Sequence[Encoded]) -> dict[int, Tensor]:
    """S_wp, S_pq and S_ww by layer and formula, [2, 3], means over prompts."""
    sums: dict[int, Tensor] = {}
    for prompt in prompts:
        pairs = torch.stack(list(paths(prompt).values())).float()  # [3, T, T]
        for layer, flowing in information(learner, prompt).items():
            each = torch.einsum("fij,pij->fp", flowing, pairs) / pairs.sum((1, 2)).clamp(min=1)
            sums[layer] = sums.get(layer, 0) + each / len(prompts)
    return dict(sorted(sums.items()))


class Flow(base.Kind):
    """S_wp, S_pq and S_ww per layer, before and after training."""

    Options: ClassVar[type[base.Options]] = base.ModelOptions

    def compute(self, runs: Sequence[Run], options: Any) -> base.Analysis:
        rows: list[base.Row] = []
        cuts: dict[str, int] = {}
        for run in runs:
            found, cuts[run.name] = _rows(run, options)
            rows += found
        cut = "the dotted line is where a method's layer stands; what is below it is frozen"
        return base.Analysis(
            name="flow",
            title="Information flow",
            how="S_wp, S_pq and S_ww, the mean of I over the pairs of a path, where I = |sum over heads of A * dL/dA| "
            "(official) or the sum of |A * dL/dA| (slide), L the loss over the labels at the last token; one test "
            "prompt at a time, in eval mode. Source: Wang et al. 2023, section 2.1; the slides of GNNavi.",
            tables={"flow": rows},
            figures={
                "flow": lambda figure: _draw(figure, rows, "official", cuts),
                "flow-slide": lambda figure: _draw(figure, rows, "slide", cuts),
            },
            notes=[cut] if any(cuts.values()) else [],
        )


def _rows(run: Run, options: base.ModelOptions) -> tuple[list[base.Row], int]:
    """A run's rows of the table, and below which layer its method's stands, 0 where it has none."""
    if not run.job["demos"]:
        raise run.refused("flow", "shows no demonstrations", "a run with demos=1 or more, of icl, fpft or gnnavi")
    trained = run.trained(options.seed)
    sample = run.drawn(trained.seed)
    encoder = Encoder.of(trained.resolved, trained.learner.method.backbone.text, sample.demos)
    asked = spread(sample.test, options.rows).to_pylist()
    prompts = list(itertools.chain.from_iterable(map(encoder, asked)))
    cut = trained.learner.method.constant_below
    rows: list[base.Row] = []
    for stage, learner in stages(trained):
        for layer, found in scores(learner, prompts).items():
            for formula, each in zip(FORMULAS, found.tolist(), strict=True):
                about = {"run": run.name, "seed": trained.seed, "stage": stage, "formula": formula, "layer": layer}
                rows.append({**about, **dict(zip(PATHS, each, strict=True)), "prompts": len(prompts)})
    order = (BEFORE, AFTER, AS_IT_IS)
    return sorted(rows, key=lambda row: (order.index(row["stage"]), FORMULAS.index(row["formula"]))), cut


def _draw(figure: Figure, rows: Sequence[base.Row], formula: str, cuts: dict[str, int]) -> None:
    """A column a run, a line of panels a stage."""
    names = list(cuts)
    shown = [(BEFORE, AS_IT_IS), (AFTER, AS_IT_IS)]
    if all(row["stage"] == AS_IT_IS for row in rows):
        shown = shown[:1]
    figure.set_size_inches(3.6 * len(names) + 1, 2.6 * len(shown) + 0.6)
    grid = figure.subplots(len(shown), len(names), squeeze=False, sharex="col")
    for line, wanted in enumerate(shown):
        for column, name in enumerate(names):
            axes = grid[line, column]
            of_panel = [
                row for row in rows if row["run"] == name and row["stage"] in wanted and row["formula"] == formula
            ]
            for number, path in enumerate(PATHS):
                axes.plot(
                    [row["layer"] for row in of_panel],
                    [row[path] for row in of_panel],
                    marker="os^"[number],
                    markersize=3.5,
                    linewidth=1.3,
                    label=f"{path}, {TOLD[path]}",
                )
            if cuts[name]:
                axes.axvline(cuts[name] + 0.5, color="0.5", linestyle=":", linewidth=1)
            axes.set_title(f"{name}: {of_panel[0]['stage']}", fontsize=9)
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
            axes.locator_params(axis="x", integer=True)
    for axes in grid[-1]:
        axes.set_xlabel("layer")
    for axes in grid[:, 0]:
        axes.set_ylabel(f"mean I of a pair ({formula})", fontsize=8)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)


Kind = Flow

"""What GNNavi's layer does to the states of a real model, and whether it can learn eight rows by heart.

    OMP_NUM_THREADS=1 python benchmarks/gnnavi_layer.py --root ../shared/data --layers 15 21 27 --fit 27 --steps 15

Two Markdown tables. The first, before any training: sizes of the states at the cut, of what the next block adds to
them and of what the layer puts in their place (medians of the 2-norm over tokens), and the loss. The second: the layer
fitted to eight training rows, all in one step. `scale` multiplies the layer's first weights.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from raypft.backbones.base import Backbone
from raypft.backbones.load import load_backbone
from raypft.config.load import load_job
from raypft.config.resolved import ResolvedJob
from raypft.encoded import Encoded
from raypft.readouts.base import Answer
from raypft.runs.cell import build_learner, loaders
from raypft.runs.memo import Memo
from raypft.runs.prepare import draw_samples
from raypft.training.encode import Encoder
from raypft.training.loader import PromptDataset
from raypft.training.loop import evaluate, fit
from raypft.training.stepper import TorchStepper, gradient_norm

SEED = 0
VARIANTS = (
    # residual, activation, scale, learning rate
    (False, "none", 1.0, 1e-2),
    (False, "none", 1.0, 1e-3),
    (False, "none", 1.0, 1e-4),
    (True, "none", 1.0, 1e-3),
    (True, "none", 0.0, 1e-2),
    (True, "none", 0.0, 1e-3),
    (True, "none", 0.0, 1e-4),
    (False, "tanh", 1.0, 1e-3),
)


class Bench:
    """A model, the rows of a task and what a layer does with them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.words = [f"task={options.task}", f"backbone={options.backbone}", f"data.root={options.root}"]
        self.words += ["shots=4", "dev.rows=none", f"seeds=[{SEED}]", f"test.limit={options.test}"]
        self.words += ["train.batch_size=8", "train.select=last", "train.max_tokens=400"]
        self.steps = options.steps
        resolved = self.resolved({"method": "frozen"})
        self.backbone: Backbone = load_backbone(options.backbone)
        sample = draw_samples(resolved, Memo())[SEED]
        encode = Encoder.of(resolved, self.backbone.text, sample.demos)
        self.train, self.test = (
            list(itertools.chain.from_iterable(map(encode, table.to_pylist()))) for table in (sample.train, sample.test)
        )

    def resolved(self, settings: dict[str, Any]) -> ResolvedJob:
        """The job with settings; those of the method by their dotted keys."""
        return load_job("gnnavi_gcn", [*self.words, *(f"{key}={value}" for key, value in settings.items())])

    def stepper(self, resolved: ResolvedJob, scale: float = 1.0) -> TorchStepper:
        """A learner with the seed's weights, the layer's multiplied."""
        learner = build_learner(resolved, self.backbone, SEED)
        with torch.no_grad():
            for parameter in learner.trainable().values():
                parameter *= scale
        return TorchStepper(learner, resolved.job.train)

    def rows(self, stepper: TorchStepper, resolved: ResolvedJob) -> Any:
        """The training rows, with the states below the layer where it has a place."""
        return loaders(resolved.job, stepper.learner, stepper, {"train": self.train}, None)[0]

    def batches(self, stepper: TorchStepper, resolved: ResolvedJob) -> Iterator[Any]:
        """The training rows as one optimizer step has them."""
        for work in self.rows(stepper, resolved).epoch(stepper, resolved.job.train, SEED, 0, 0):
            yield from work.batches

    def loss(self, stepper: TorchStepper, resolved: ResolvedJob) -> Tensor:
        """The mean loss of the training rows."""
        learner = stepper.learner.eval()
        losses = [learner.readout.loss(stepper.scores(batch), batch)[0] for batch in self.batches(stepper, resolved)]
        return torch.stack(losses).sum() / len(self.train)

    def states(self, stepper: TorchStepper, resolved: ResolvedJob, layer: int) -> dict[str, Tensor]:
        """States of all tokens, [N, H]: into the layer and out of it, and out of the block behind."""
        kept: dict[str, list[Tensor]] = {"in": [], "out": [], "next": []}
        graph = getattr(stepper.learner.method, "graph", None)
        block = self.backbone.blocks[layer]

        def keep(name: str, states: Any) -> None:
            kept[name].append((states[0] if isinstance(states, tuple) else states).detach().flatten(0, 1))

        def keep_both(_: Any, given: Any, out: Tensor) -> None:
            keep("in", given[0])
            keep("out", out)

        hooks = [block.register_forward_hook(lambda _, __, out: keep("next", out))]
        if graph is None:
            hooks.append(block.register_forward_pre_hook(lambda _, given: keep("in", given[0])))
        else:
            hooks.append(graph.register_forward_hook(keep_both))
        with torch.no_grad():
            self.loss(stepper, resolved)
        for hook in hooks:
            hook.remove()
        return {name: torch.cat(each) for name, each in kept.items() if each}


def middle(states: Tensor) -> float:
    """The median of the tokens' norms."""
    return float(states.norm(dim=-1).median())


def sizes(bench: Bench, layers: Sequence[int]) -> None:
    """The first table."""
    alone = bench.resolved({"method": "frozen"})
    plain = bench.stepper(alone)
    with torch.no_grad():
        print(f"loss of the {len(bench.train)} rows without a layer: {float(bench.loss(plain, alone)):.2f}\n")
    print("| blocks below | residual | states | most | next block adds | layer gives | cosine | loss |")
    print("|---|---|---|---|---|---|---|---|")
    for layer in layers:
        before = bench.states(bench.stepper(alone), alone, layer)
        for residual in (False, True):
            resolved = bench.resolved({"method.layer": layer, "method.residual": str(residual).lower()})
            stepper = bench.stepper(resolved)
            found = bench.states(stepper, resolved, layer)
            cosine = torch.nn.functional.cosine_similarity(found["in"], found["out"], dim=-1).median()
            with torch.no_grad():
                loss = float(bench.loss(stepper, resolved))
            print(
                f"| {layer} | {'yes' if residual else 'no'} | {middle(before['in']):.0f} | "
                f"{float(before['in'].norm(dim=-1).max()):.0f} | {middle(before['next'] - before['in']):.0f} | "
                f"{middle(found['out']):.0f} | {float(cosine):.2f} | {loss:.2f} |",
                flush=True,
            )


def right(prompts: Sequence[Encoded], answers: Sequence[Answer]) -> tuple[float, float]:
    """Percent of right answers, and of the most frequent one."""
    given = [answer.value for answer in answers]
    good = sum(prompt.labels[0] == value for prompt, value in zip(prompts, given, strict=True))
    return 100 * good / len(given), 100 * Counter(given).most_common(1)[0][1] / len(given)


def fitted(bench: Bench, layer: int, variant: tuple[bool, str, float, float]) -> None:
    """A line of the second table."""
    residual, activation, scale, rate = variant
    settings = {"method.layer": layer, "method.residual": str(residual).lower(), "method.activation": activation}
    resolved = bench.resolved({**settings, "train.lr": rate, "train.epochs": bench.steps})
    stepper = bench.stepper(resolved, scale)
    bench.loss(stepper, resolved).backward()
    norm = float(gradient_norm(stepper.parameters.values()))
    assert stepper.optimizer is not None
    stepper.optimizer.zero_grad()
    train = bench.rows(stepper, resolved)
    before = bench.states(stepper, resolved, layer)
    once = resolved.job.train.model_copy(update={"epochs": 1})
    state = fit(stepper, train, None, once, SEED, lambda answers: 0.0)
    after = bench.states(stepper, resolved, layer)
    moved = middle(after["out"] - before["out"]) / middle(before["out"])
    state = fit(stepper, train, None, resolved.job.train, SEED, lambda answers: 0.0, state)
    told = [state.losses[number] for number in (0, 1, 4, -1)]
    learnt, _ = right(bench.train, evaluate(stepper, train, resolved.job.train))
    tested = PromptDataset(bench.test, stepper.learner.method, bench.backbone.pad)
    score, same = right(bench.test, evaluate(stepper, tested, resolved.job.train))
    print(
        f"| {layer} | {'yes' if residual else 'no'} | {activation} | {scale:g} | {rate:g} | {norm:.2g} | {moved:.2f} | "
        f"{' | '.join(f'{loss:.2f}' for loss in told)} | {learnt:.0f} | {score:.0f} | {same:.0f} |",
        flush=True,
    )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--root", required=True)
    parser.add_argument("--layers", type=int, nargs="+", default=[21, 27])
    parser.add_argument("--fit", type=int, nargs="+", help="layers of the second table; all of them where left out")
    parser.add_argument("--steps", type=int, default=25, help="at least 5")
    parser.add_argument("--test", type=int, default=60)
    options = parser.parse_args()
    bench = Bench(options)
    sizes(bench, options.layers)
    losses = f"loss 1 | 2 | 5 | {options.steps}"
    print("\n| blocks below | residual | activation | scale | rate | gradient | moved by one step ", end="")
    print(f"| {losses} | train % | test % | one answer % |\n{'|---' * 14}|", flush=True)
    for layer, variant in itertools.product(options.fit or options.layers, VARIANTS):
        fitted(bench, layer, variant)


if __name__ == "__main__":
    main()

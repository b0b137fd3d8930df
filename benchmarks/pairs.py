"""A piece of work done by the package and by a reference, with the same first values, tokens and order: both are timed,
and their losses and decisions compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from materials import few_shot, made, material, piece_tokenizer, sentences, tagged_rows
from reference_loops import GNNaviLoop, ToProLoop
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, MT5Config

from raypft.backbones.frozen_states import FrozenStates
from raypft.config.job import Job, Train
from raypft.encoded import Encoded
from raypft.readouts.base import Answer
from raypft.runs.cell import loaders
from raypft.tasks.load import load_task
from raypft.training.loader import PromptDataset, order
from raypft.training.loop import evaluate, fit
from raypft.training.stepper import Learner, TorchStepper

TOLERANCE = 1e-5
"""How far the losses of a step may differ, relative."""


@dataclass(frozen=True)
class Sizes:
    """How much is run: repetitions; train and dev rows and epochs of GNNavi, after how many of these the reference
    validates and on how many rows (each costs the same); test rows, those of the reference; prompts of a ToPro step,
    sentences evaluated and prepared; blocks of the model that shows demonstrations, its rows; answered texts."""

    times: int = 3
    train: int = 10
    dev: int = 40
    epochs: int = 3
    validations: int = 3
    reference_dev: int = 40
    test: int = 40
    reference_test: int = 40
    step: int = 32
    evaluated: int = 8
    prepared: int = 400
    blocks: int = 30
    shown: int = 48
    texts: int = 16


@dataclass(frozen=True)
class Row:
    """A measured row: seconds a unit of work of the reference and of ours, CPU and wall, median over repetitions."""

    name: str
    goal: float
    ours: float
    reference: float | None = None
    ours_wall: float | None = None
    reference_wall: float | None = None

    def line(self) -> str:
        """The row as it is printed."""
        if self.reference is None:
            return f"{self.name} {self.ours:.1f} s goal {self.goal:g} s"
        return f"{self.name} ours/reference {self.reference / self.ours:.1f} goal {self.goal:g}"


class Differs(SystemExit):
    """Ours and the reference gave other numbers: their times mean nothing."""


def expect_equal(name: str, ours: Sequence[Any], reference: Sequence[Any]) -> None:
    """Raise Differs unless losses are equal to TOLERANCE, and all else entirely."""
    for number, (own, other) in enumerate(zip(ours, reference, strict=True)):
        apart = abs(own - other) > TOLERANCE * abs(other) if isinstance(own, float) else own != other
        if apart:
            raise Differs(f"speed: {name}: number {number} is {own}, of the reference {other}; expected the same")


class Clock:
    """Seconds by name, CPU and wall, a list of repetitions each."""

    def __init__(self) -> None:
        self.cpu: dict[str, list[float]] = {}
        self.wall: dict[str, list[float]] = {}

    def __call__(self, name: str, units: float, work: Callable[[], Any]) -> Any:
        """What some work gives; its seconds a unit are noted."""
        cpu, wall = time.process_time(), time.perf_counter()
        result = work()
        self.cpu.setdefault(name, []).append((time.process_time() - cpu) / units)
        self.wall.setdefault(name, []).append((time.perf_counter() - wall) / units)
        return result

    def sum(self, name: str, units: dict[str, float]) -> None:
        """Note the seconds of so many units of several parts, from their last medians."""
        for seconds in (self.cpu, self.wall):
            whole = sum(count * statistics.median(seconds[part]) for part, count in units.items())
            seconds.setdefault(name, []).append(whole)

    def row(self, name: str, goal: float, part: str) -> Row:
        """The row of a part, whose times were noted as "ours PART" and "reference PART"."""
        cpu, wall = ({key: statistics.median(all_) for key, all_ in of.items()} for of in (self.cpu, self.wall))
        ours, reference = f"ours {part}", f"reference {part}"
        return Row(name, goal, cpu[ours], cpu[reference], wall[ours], wall[reference])


def decisions(answers: Sequence[Answer]) -> list[int]:
    """The index of the label of each answer."""
    return [answer.value[0] for answer in answers]


def no_score(answers: Iterable[Answer]) -> float:
    """Where no epoch is selected; answers come as they are asked for."""
    return 0.0 * sum(1 for _ in answers)


class GNNaviPair:
    """A GNNavi fit with its validations and test, by the package and by the reference loop."""

    def __init__(self, task: str, config: GPT2Config, layer: int, sizes: Sizes, tokens: tuple[int, int] | None = None):
        counts = {"train": sizes.train, "dev": sizes.dev, "test": sizes.test}
        self.material, self.prompts = few_shot(task, config, counts, tokens)
        self.layer, self.sizes = layer, sizes
        self.train = Train(epochs=sizes.epochs, lr=1e-2, batch_size=1, optimizer="adam", select="last", max_tokens=1024)
        self.job = Job(task=task, pattern="gnnavi", backbone="random", method={"name": "gnnavi"}, train=self.train)
        self.weights = {name: value.clone() for name, value in self.material.backbone.model.state_dict().items()}
        words = [str(word) for word in (self.material.pattern.verbalizer or {}).values()]
        tokenizer = self.material.backbone.text.tokenizer
        self.labels = [int(tokenizer.convert_tokens_to_ids(word)) for word in words]
        self.model = GPT2LMHeadModel(config)
        self.model.load_state_dict(self.weights)

    def learner(self) -> Learner:
        """The learner with its first values."""
        return self.material.learner("gnnavi", layer=self.layer)

    def reference(self, clock: Clock, rows: PromptDataset) -> tuple[list[float], list[int], list[int]]:
        """Losses, and decisions on dev, after the last epoch, and on test; beside each epoch our steps on `rows` are
        timed, so that both meet the machine alike."""
        graph = self.learner().method.get_submodule("graph.conv").state_dict()
        loop = GNNaviLoop(self.model, self.layer, self.labels, graph, self.train.lr)
        losses, dev = list[float](), list[int]()
        train, validation = self.prompts["train"], self.prompts["dev"][: self.sizes.reference_dev]

        for epoch in range(self.sizes.epochs):
            drawn = [train[row] for row in order(len(train), 0, epoch)]
            losses += clock("reference step", len(train), lambda drawn=drawn: loop.epoch(drawn))
            again = TorchStepper(self.learner(), self.train)
            steps = self.sizes.epochs * len(train)
            clock("ours step", steps, lambda again=again: fit(again, rows, None, self.train, 0, no_score))
            if epoch >= self.sizes.epochs - self.sizes.validations:
                dev = clock("reference validation", len(validation), lambda: loop.answers(validation))
        epochs = {"reference step": len(train), "reference validation": self.sizes.dev}
        clock.sum("reference fit", {part: self.sizes.epochs * size for part, size in epochs.items()})
        asked = self.prompts["test"][: self.sizes.reference_test]
        test = clock("reference test", len(asked), lambda: loop.answers(asked))
        loop.handle.remove()
        return losses, dev, test

    def ours(self, clock: Clock) -> tuple[PromptDataset, tuple[list[float], list[int], list[int]]]:
        """The same, by the package, and its train rows."""
        backbone = self.material.backbone
        backbone.frozen_states = FrozenStates(backbone)
        stepper = TorchStepper(self.learner(), self.train)
        parts: dict[str, Any] = {}

        def whole() -> None:
            parts["rows"] = train, dev = loaders(self.job, stepper.learner, stepper, self.prompts, None)
            parts["state"] = fit(stepper, train, dev, self.train, 0, no_score)

        clock("ours fit", 1, whole)
        train, dev = parts["rows"]
        validated, *_ = [
            clock("ours validation", len(dev), lambda: evaluate(stepper, dev, self.train)) for _ in range(3)
        ]
        pad = backbone.pad

        def tested() -> list[Answer]:
            return evaluate(stepper, PromptDataset(self.prompts["test"], stepper.learner.method, pad), self.train)

        test = clock("ours test", len(self.prompts["test"]), tested)
        shown, tests = validated[: self.sizes.reference_dev], test[: self.sizes.reference_test]
        return train, (parts["state"].losses, decisions(shown), decisions(tests))

    def compared(self, clock: Clock, name: str) -> None:
        """Run both once, and compare."""
        rows, ours = self.ours(clock)
        reference = self.reference(clock, rows)
        for what, own, other in zip(("loss", "dev", "test"), ours, reference, strict=True):
            expect_equal(f"{name}, {what}", own, other)


class ToProPair:
    """ToPro's preparation, training steps and evaluation, by the package and by the reference loop."""

    def __init__(self, config: BertConfig, words: Sequence[Sequence[str]], sizes: Sizes) -> None:
        self.sizes, self.config = sizes, config
        labels = [str(word) for word in (load_task("udpos").pattern("topro").verbalizer or {}).values()]
        texts = [" ".join(sentence) for sentence in words]
        fixed = [*labels, "The", "pos", "tag", "of", "is", "a", "kind"]
        self.tokenizer = piece_tokenizer(texts, fixed)
        backbone = made(config, self.tokenizer)
        self.material = material("udpos", "topro", backbone)
        self.rows = tagged_rows(words, self.material.task.label.names)
        vocabulary = self.tokenizer.get_vocab()
        self.labels = [vocabulary[word] for word in labels]
        self.weights = {name: value.clone() for name, value in backbone.model.state_dict().items()}
        self.train = Train(epochs=1, lr=1e-5, batch_size=sizes.step, clip=1.0, schedule="linear", select="last")

    def prepared(self, clock: Clock) -> None:
        """Prepare sentences; the same tokens."""
        backbone, rows = self.material.backbone, self.rows[: self.sizes.prepared]
        loop = ToProLoop(torch.nn.Linear(1, 1), self.tokenizer, self.labels)
        words = [row["tokens"] for row in rows]
        reference = clock("reference preparation", len(rows), lambda: loop.prepare(words))
        backbone.text._known.clear()  # as in a process that begins
        ours = clock("ours preparation", len(rows), lambda: self.material.encoded(rows))
        sizes = reference["attention_mask"].sum(1).tolist()
        shown = [ids[:size] for ids, size in zip(reference["input_ids"].tolist(), sizes, strict=True)]
        expect_equal("ToPro, tokens", [prompt.ids for prompt in ours], shown)

    def trained(self, clock: Clock) -> None:
        """Train on whole steps of prompts, then answer those of other sentences; the same losses and decisions."""
        sizes, encoded = self.sizes, self.material.encoded
        train, test = encoded(self.rows[sizes.evaluated :])[: 2 * sizes.step], encoded(self.rows[: sizes.evaluated])
        each = len(train) * sizes.evaluated / len(test)  # sentences that so many prompts are
        model = BertForMaskedLM(self.config)
        model.load_state_dict(self.weights)
        loop = ToProLoop(model, self.tokenizer, self.labels, steps=2)
        padded, shown, rows = self._padded(train), self._padded(test), order(len(train), 0, 0)

        def steps() -> list[float]:
            losses = []
            for start in range(0, len(rows), sizes.step):
                chosen = rows[start : start + sizes.step]
                gold = [train[row].gold[0] for row in chosen]
                losses.append(loop.step(chosen, padded, gold))
            return losses

        expected = clock("reference training", each, steps)
        answers = clock("reference evaluation", sizes.evaluated, lambda: loop.answers(shown))
        self.material.backbone.model.load_state_dict(self.weights)
        stepper = TorchStepper(self.material.learner("full"), self.train)
        method, pad = stepper.learner.method, self.material.backbone.pad
        own_train, own_test = PromptDataset(train, method, pad), PromptDataset(test, method, pad)
        state = clock("ours training", each, lambda: fit(stepper, own_train, None, self.train, 0, no_score))
        ours = clock("ours evaluation", sizes.evaluated, lambda: evaluate(stepper, own_test, self.train))
        expect_equal("ToPro, loss", state.losses, expected)
        expect_equal("ToPro, decision", decisions(ours), answers)

    def _padded(self, prompts: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """What the reference is given of prompts."""
        shape = (len(prompts), ToProLoop.length)
        ids = torch.full(shape, self.material.backbone.pad)
        mask, segments, at_mask = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
        for row, prompt in enumerate(prompts):
            size = len(prompt.ids)
            ids[row, :size], segments[row, :size] = torch.tensor(prompt.ids), torch.tensor(prompt.segments)
            mask[row, :size] = 1
            at_mask[row, prompt.marks["slot"]] = 1
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments, "at_mask": at_mask}


class ShortcutPair:
    """Answers of a learner with the package's shortcuts and without them, in the same batches."""

    batch = 16

    def __init__(self, learner: Learner, prompts: Sequence[Encoded]) -> None:
        self.learner, self.prompts = learner, prompts

    def compared(self, clock: Clock, name: str) -> None:
        """Answer without and with, and compare."""
        values = [self._answered(clock, shortcuts) for shortcuts in (False, True)]
        expect_equal(name, values[1], values[0])

    def _answered(self, clock: Clock, shortcuts: bool) -> list[Any]:
        settings = Train(eval_batch=self.batch, shortcuts=shortcuts)
        method = self.learner.method
        method.backbone.shortcuts = shortcuts
        rows, stepper = PromptDataset(self.prompts, method, method.backbone.pad), TorchStepper(self.learner, settings)
        part = "ours answers" if shortcuts else "reference answers"
        answers = clock(part, len(rows), lambda: evaluate(stepper, rows, settings))
        return [answer.value for answer in answers]


class ShownPair(ShortcutPair):
    """In-context learning: the demonstrations of TREC before every question, nothing trained."""

    def __init__(self, config: LlamaConfig, rows: int, tokens: tuple[int, int] | None = None) -> None:
        own, prompts = few_shot("trec", config, {"test": rows}, tokens)
        super().__init__(own.learner("frozen"), prompts["test"])


class TextPair(ShortcutPair):
    """Answers of 8 tokens that a decoder writes."""

    def __init__(self, config: MT5Config, rows: int) -> None:
        words = sentences(40, seed=2)
        tokenizer = piece_tokenizer([" ".join(sentence) for sentence in words], ["Tagging"], sentinel=True)
        own = material("udpos", "topro_mt5", made(config, tokenizer), "text", longest=8)
        prompts = own.encoded(tagged_rows(words, own.task.label.names))
        super().__init__(own.learner("frozen", "text"), prompts[:: len(prompts) // rows][:rows])

"""A tiny task, and a cell of any method on any kind of tiny model; of the catalogue's methods a new file is covered
without a list."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from raypft.backbones.base import Backbone
from raypft.backbones.parameters import parameter_infos
from raypft.config.job import Train
from raypft.contract import tiny
from raypft.encoded import Encoded
from raypft.errors import UserError
from raypft.methods import METHODS
from raypft.methods._tickets import Facts
from raypft.methods.base import Config
from raypft.readouts import READOUTS
from raypft.readouts.base import Answer
from raypft.schema import digest, validation_line, validation_root
from raypft.tasks.kinds import KINDS
from raypft.tasks.prompts import render
from raypft.tasks.query import Demonstration
from raypft.tasks.task import Label, Pattern, Source, Task
from raypft.training.stepper import Learner

TEXT = {
    "masked": "{text} . it was <soft> <slot> .",
    "seq2seq": "{text} . it was <soft> <slot> .",
    "causal": "<demos>Review : {text} <soft> \n Sentiment : <slot>",
}
ROWS = [
    ("the film was good", 1),
    ("terrible one", 0),
    ("a great film it is", 1),
    ("bad bad three", 0),
    ("it was fine yes one two three four", 1),
]
SETTINGS = Train(epochs=5, lr=1e-3, batch_size=4, eval_batch=2)
"""5 rows in steps of 4: two steps an epoch, the second of one row, which leaves a rank of two empty."""


def task() -> Task:
    """A two-label task with one pattern per family."""
    patterns = {
        family: Pattern(text=text, verbalizer={"negative": "bad", "positive": "good"}, source="test")
        for family, text in TEXT.items()
    }
    return Task(
        name="tiny",
        about="test",
        kind=KINDS["choice"],
        fields={"text": "text"},
        label=Label(names=["negative", "positive"]),
        languages=["en"],
        metric="accuracy",
        sources={"files": Source(files={"train": "x", "test": "x"})},
        patterns=patterns,
    )


@dataclass
class Cell:
    """A learner on a tiny backbone with its encoded rows."""

    learner: Learner
    prompts: list[Encoded]

    def score(self, answers: Iterable[Answer]) -> float:
        """Percent of right answers."""
        return 100 * sum(a.value == p.gold for a, p in zip(answers, self.prompts, strict=True)) / len(self.prompts)


def kinds_of(method: str) -> list[str]:
    """The kinds of tiny models that a method says it works with."""
    kinds: list[str] = []
    for family in METHODS.load(method).families:
        kinds += tiny.FAMILIES[family]
    return kinds


@functools.cache
def refusal(method: str, kind: str) -> str:
    """What a method says to a kind of tiny model that it does not fit; empty where it fits."""
    try:
        cell(method, tiny.backbone(kind))
    except UserError as error:
        return str(error)
    return ""


def supported() -> list[tuple[str, str]]:
    """Every (method of the catalogue, kind of tiny model) that goes together."""
    pairs: list[tuple[str, str]] = []
    for method in METHODS.names():
        pairs += [(method, kind) for kind in kinds_of(method) if not refusal(method, kind)]
    return pairs


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="raypft-contract-")


def folder() -> Path:
    """Where the files lie that methods start from; lives as long as the process."""
    return Path(_temporary().name)


def save_ticket(path: Path, differences: dict[str, torch.Tensor], revision: str, strategy: str, settings: dict) -> None:
    """What a search writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = Facts(revision, strategy, settings)
    for name, difference in differences.items():
        facts.seen(name, difference)
    save_file(differences, path, facts.metadata())


def ticket(backbone: Backbone, strategy: str = "decoupled", revision: str | None = None) -> str:
    """The file of a ticket search on a tiny model: random differences of the body's parameters, the same for the same
    model."""
    revision = revision or backbone.revision
    infos = parameter_infos(backbone)
    model = f"{type(backbone.model).__name__}-{backbone.embedding_size}-{digest(dict.fromkeys(infos))[:8]}"
    path = folder() / model / f"{strategy}-{revision}.safetensors"
    if not path.is_file():
        generator = torch.Generator().manual_seed(1)
        shapes = {name: p.shape for name, p in backbone.model.named_parameters(remove_duplicate=False)}
        differences = {
            name: torch.randn(shapes[name], generator=generator) for name, info in infos.items() if info.in_body
        }
        save_ticket(path, differences, revision, strategy, {"seed": 1})
    return str(path)


ARTEFACTS = {"ticket": ticket}
"""A method that starts from a file of another run has a key for it; here is who makes that file."""


def config_of(method: str, backbone: Backbone, **options: Any) -> Config:
    """A method's configuration with its defaults, the artefacts it needs, and dropout off.

    Raises:
        UserError: a key that has no default is not among the options, or an option does not fit.
    """
    config = validation_root(METHODS.load(method).Config)
    needed = {key: make(backbone) for key, make in ARTEFACTS.items() if key in config.model_fields}
    values = needed | {name: 0.0 for name in config.model_fields if name == "dropout"} | options
    try:
        return config(**values)
    except ValidationError as error:
        raise UserError(validation_line("method", error, values)) from None


def cell(method: str, backbone: Backbone, seed: int = 0, readout: str = "verbalizer", **options: Any) -> Cell:
    """A cell on a reset backbone, initialised by the seed; `options` are keys of the method, dropout is off.

    Raises:
        UserError: the method does not go with these options or this model.
    """
    backbone.reset()
    torch.manual_seed(seed)
    made, kind = METHODS.load(method), task()
    config = config_of(method, backbone, **options)
    pattern = kind.pattern(backbone.family)
    text = pattern.text if config.soft_tokens else pattern.text.replace(" <soft>", "")
    pattern = pattern.model_copy(update={"text": text})
    reads = READOUTS.load(readout)
    learner = Learner(made(config, backbone), reads(reads.Config(), kind, pattern, backbone))
    demos = [
        Demonstration({"text": "a bad film"}, "negative", "en"),
        Demonstration({"text": "great film"}, "positive", "en"),
    ]
    demos = demos if backbone.text.takes_demos else []
    prompts = [
        replace(
            backbone.text.encode(
                render(kind, pattern, {"text": text}, "en", config.soft_tokens, demos), key=f"en/{i}", language="en"
            ),
            gold=[gold],
        )
        for i, (text, gold) in enumerate(ROWS)
    ]
    return Cell(learner, prompts)

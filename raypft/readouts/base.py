"""What a readout is: the only place that knows how slot states become scores, a loss and an answer."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from raypft.backbones.text import PromptTokenizer
from raypft.batch import Batch
from raypft.encoded import Encoded
from raypft.schema import Strict
from raypft.tasks.task import Pattern, Task

if TYPE_CHECKING:
    from raypft.backbones.base import Backbone


class Config(Strict):
    """A readout's YAML keys; a readout subclasses this."""

    def step(self, room: int) -> int:
        """Tokens from one window of a passage to the next where each has room for so many; windows do not overlap."""
        return room

    @property
    def content_free(self) -> tuple[str, ...]:
        """Texts without content that every row is also asked about, in place of all its fields."""
        return ()


class Answer(NamedTuple):
    """What a model says to one prompt: the prompt's name, the readout's own value, and the scores behind it."""

    prompt: str
    value: Any
    scores: list[float]


class Readout(nn.Module, ABC):
    """The interface of a readout, with the behaviour of one label per slot.

    Class attributes:
        Config: the YAML keys with their defaults.
        kinds, families: the task kinds and backbone families it works with.
        needs_slot: whether the pattern must have a <slot>; writes: whether answers are texts it makes, see `written`.
        reads_vocabulary: whether the language-model head answers.
        numerics: raised when a change alters results; part of the cell key.
    """

    Config: type[Config] = Config
    kinds: tuple[str, ...] = ("choice", "tags")
    families: tuple[str, ...] = ("masked", "causal", "seq2seq")
    needs_slot: bool = True
    reads_vocabulary: bool = False
    writes: bool = False
    numerics: int = 1

    def __init__(self, config: Config, task: Task, pattern: Pattern, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.task = task

    @staticmethod
    def prepare(config: Any, prompt: Encoded, text: PromptTokenizer) -> Encoded:
        """A prompt with what this readout needs beside: targets of a decoder, say. Called once, while encoding."""
        return prompt

    @staticmethod
    def scored(config: Any, tokens: int) -> float:
        """At how many positions of a prompt of so many tokens a training scores the whole vocabulary, about."""
        return 0.0

    def redraw(self, prompt: Encoded, seed: int, epoch: int) -> Encoded:
        """The prompt as an epoch of training sees it, of the same length; must depend on nothing but prompt, seed and
        epoch."""
        return prompt

    def exported_head(self) -> tuple[str, nn.Module] | None:
        """What transformers' model with such a head reads ("sequence", "token" or "question") and the trained module;
        None where the language-model head answers."""
        return None

    @abstractmethod
    def scores(self, states: Tensor, batch: Batch) -> Tensor:
        """[S, H] -> [S, C]."""

    def weight(self, prompt: Encoded) -> float:
        """How much a prompt weighs in the loss: its number of slots."""
        return float(len(prompt.marks["slot"]))

    def loss(self, scores: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross-entropy over the C labels, summed over the slots, and the sum of their weights."""
        each = functional.cross_entropy(scores.float(), batch.gold, reduction="none")
        return (each * batch.weight).sum(), batch.weight.sum()

    def answer(self, method: nn.Module, batch: Batch) -> list[Answer]:
        """One answer per prompt, by running the method."""
        return self.decide(self.scores(method(batch), batch), batch)

    def decide(self, scores: Tensor, batch: Batch) -> list[Answer]:
        """One answer per prompt: the label index of each of its slots; scores are the probabilities [C] of a row's
        label, that of the chosen tag for each word."""
        probabilities = scores.float().softmax(-1)
        best, chosen = probabilities.max(-1)
        answers = []
        for name, slots in zip(batch.names, slots_of(batch), strict=True):
            shown = best[slots] if self.task.kind.answers_words else probabilities[slots].flatten()
            answers.append(Answer(name, chosen[slots].tolist(), shown.tolist()))
        return answers

    def gather(self, prompts: Sequence[Encoded], answers: Sequence[Answer]) -> tuple[Any, list[float]]:
        """The answer to a row out of the answers to its prompts: a label name, or a tag a word; and its scores."""
        return self._named(values_of(answers)), scores_of(answers)

    def written(self, prompts: Sequence[Encoded], answers: Sequence[Answer]) -> tuple[str, str] | None:
        """The text that should have been written for a row and the one that was, where sentences are written with
        their tags; None elsewhere. The metrics of `tasks.metrics.OF_WRITTEN` read them."""
        return None

    def gold(self, prompts: Sequence[Encoded]) -> Any:
        """What `gather` should have given."""
        return self._named(list(itertools.chain.from_iterable(prompt.gold for prompt in prompts)))

    def _named(self, indices: Sequence[int]) -> Any:
        names = [self.task.label.names[i] if i >= 0 else None for i in indices]
        return names if self.task.kind.answers_words else names[0]


def slots_of(batch: Batch) -> list[slice]:
    """The slots of each prompt."""
    sizes = batch.slots[:, 0].bincount(minlength=len(batch.names)).tolist()
    return [slice(end - size, end) for end, size in zip(itertools.accumulate(sizes), sizes, strict=True)]


def values_of(answers: Sequence[Answer]) -> list[Any]:
    """The values of answers that have one each slot, joined."""
    return list(itertools.chain.from_iterable(answer.value for answer in answers))


def scores_of(answers: Sequence[Answer]) -> list[float]:
    """The scores of all answers, joined."""
    return list(itertools.chain.from_iterable(answer.scores for answer in answers))

"""What a readout is: the only place that knows how slot states become scores, a loss and an answer."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional

from raypft.backbones.base import Backbone
from raypft.batch import Batch, Encoded
from raypft.tasks import Pattern, Task


class Config(BaseModel):
    """A readout's YAML keys; a readout subclasses this."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseReadout(nn.Module, ABC):
    """The interface of a readout, with the behaviour of one label per slot.

    `needs_slot` says whether the pattern must have a <slot>; `wordings` are the languages' verbalizers in the order of
    `Encoded.wording`.
    """

    Config: type[Config] = Config
    needs_slot: bool = True

    def __init__(self, config: Config, task: Task, pattern: Pattern, backbone: Backbone) -> None:
        super().__init__()
        self.config = config

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

    def decide(self, scores: Tensor, batch: Batch) -> list[tuple[str, int, list[float]]]:
        """(key, label index, probabilities [C]) per slot."""
        probabilities = scores.float().softmax(-1)
        keys = [batch.keys[row] for row in batch.slots[:, 0].tolist()]
        return list(zip(keys, probabilities.argmax(-1).tolist(), probabilities.tolist(), strict=True))

"""The family's own head, newly initialised where the checkpoint has none (vanilla fine-tuning): for a row, or for each
word."""

from __future__ import annotations

from torch import Tensor, nn

from raypft.backbones.base import Backbone
from raypft.batch import Batch
from raypft.errors import UserError
from raypft.readouts import base
from raypft.tasks.task import Pattern, Task


class HeadReadout(base.Readout):
    """mBERT's pooler and classifier, RoBERTa's dense, tanh and classifier, a causal model's score layer; of words,
    dropout and a linear layer as AutoModelForTokenClassification has them. All of it trains."""

    families = ("masked", "causal")
    needs_slot = False

    def __init__(self, config: base.Config, task: Task, pattern: Pattern, backbone: Backbone) -> None:
        super().__init__(config, task, pattern, backbone)
        make = backbone.word_head if task.kind.answers_words else backbone.head
        head = make(len(task.label.names))
        if head is None:
            raise UserError(
                f"readout: {backbone.family} models have no classification head; use readout=verbalizer or readout=text"
            )
        self.head = head

    def exported_head(self) -> tuple[str, nn.Module] | None:
        return "token" if self.task.kind.answers_words else "sequence", self.head

    def scores(self, states: Tensor, batch: Batch) -> Tensor:
        return self.head(states)


Readout = HeadReadout

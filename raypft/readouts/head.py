"""The family's own head, newly initialised where the checkpoint has none (vanilla fine-tuning): for a row, or for each
word.

Source: Devlin et al. 2019, section 4.1; Tu et al. 2022 with `trained: last`, whose prompts read a frozen pooler.
Differs: of XLM-R that pooler is the checkpoint's, which nothing ever trained; ours is the family's dense layer, drawn
by the seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from raypft.batch import Batch
from raypft.errors import UserError
from raypft.readouts import base
from raypft.tasks.task import Pattern, Task

if TYPE_CHECKING:
    from raypft.backbones.base import Backbone


class Config(base.Config):
    """trained: the whole head, or only its last linear layer."""

    trained: Literal["all", "last"] = "all"


class HeadReadout(base.Readout):
    """mBERT's pooler and classifier, RoBERTa's dense, tanh and classifier, a causal model's score layer; of words,
    dropout and a linear layer as AutoModelForTokenClassification has them."""

    Config = Config
    families = ("masked", "causal")
    needs_slot = False
    numerics = 2  # the last layer is new even where the folder holds a classifier of another task

    def __init__(self, config: Config, task: Task, pattern: Pattern, backbone: Backbone) -> None:
        super().__init__(config, task, pattern, backbone)
        make = backbone.word_head if task.kind.answers_words else backbone.head
        head = make(len(task.label.names))
        if head is None:
            raise UserError(
                f"readout: {backbone.family} models have no classification head; use readout=verbalizer or readout=text"
            )
        if config.trained == "last":
            *_, last = (module for module in head.modules() if isinstance(module, nn.Linear))
            head.requires_grad_(False)
            last.requires_grad_(True)
        self.head = head

    def exported_head(self) -> tuple[str, nn.Module] | None:
        return "token" if self.task.kind.answers_words else "sequence", self.head

    def scores(self, states: Tensor, batch: Batch) -> Tensor:
        return self.head(states)


Readout = HeadReadout

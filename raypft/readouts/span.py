"""Extractive question answering: every passage token is a slot, a linear layer scores it as start and as end of the
answer.

Source: Devlin et al. 2019, section 4.2; XTREME's run_squad. Windows that do not hold the answer train towards their
first token; the best start and end of all windows of a passage, at most `longest` tokens apart, make the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from raypft.batch import Batch
from raypft.encoded import Encoded
from raypft.errors import UserError
from raypft.readouts import base
from raypft.readouts.base import Answer, slots_of
from raypft.tasks.task import Pattern, Task

if TYPE_CHECKING:
    from raypft.backbones.base import Backbone

START, END = 1, 2
"""The flags of a slot's gold."""


class Config(base.Config):
    """window_stride: tokens from one window of a passage to the next (XTREME's doc_stride); window_overlap: in its
    place, tokens that a window shares with the next (the stride of transformers' tokenizers, which Tu et al. set);
    longest: tokens of an answer at most."""

    window_stride: int = Field(default=128, ge=1)
    window_overlap: int | None = Field(default=None, ge=0)
    longest: int = Field(default=30, ge=1)

    def step(self, room: int) -> int:
        """See `base.Config`.

        Raises:
            UserError: windows would share all they have room for.
        """
        if self.window_overlap is None:
            return min(room, self.window_stride)
        if self.window_overlap >= room:
            raise UserError(
                f"readout.window_overlap: found {self.window_overlap}; a window may have room for only {room} tokens "
                "of a passage; lower it, or raise train.max_tokens"
            )
        return room - self.window_overlap


class SpanReadout(base.Readout):
    """Start and end scores, [S, 2]; the loss of a window is the mean of its two cross-entropies over its slots.

    Where questions may have no answer, none is given if every window's first slot scores more than the best span of all
    windows (Devlin et al. 2019, section 4.3, with the threshold 0).
    """

    Config = Config
    kinds = ("span",)
    families = ("masked", "causal")
    needs_slot = False

    def __init__(self, config: Config, task: Task, pattern: Pattern, backbone: Backbone) -> None:
        super().__init__(config, task, pattern, backbone)
        self.longest = config.longest
        self.unanswerable = task.label.unanswerable
        self.ends = nn.Linear(backbone.state_size, 2)
        nn.init.normal_(self.ends.weight, std=getattr(backbone.config, "initializer_range", 0.02))
        nn.init.zeros_(self.ends.bias)

    def exported_head(self) -> tuple[str, nn.Module] | None:
        return "question", self.ends

    def scores(self, states: Tensor, batch: Batch) -> Tensor:
        return self.ends(states)

    def weight(self, prompt: Encoded) -> float:
        return 1.0

    def loss(self, scores: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        total, weights = scores.new_zeros((), dtype=torch.float32), scores.new_zeros((), dtype=torch.float32)
        for slots in slots_of(batch):
            gold, weight = batch.gold[slots], batch.weight[slots][0]
            for column, flag in enumerate((START, END)):
                at = (gold & flag).argmax()  # the first slot where no answer is marked
                loss = functional.cross_entropy(scores[slots, column].float().unsqueeze(0), at.unsqueeze(0))
                total = total + weight * loss / 2
            weights = weights + weight
        return total, weights

    def decide(self, scores: Tensor, batch: Batch) -> list[Answer]:
        answers = []
        for name, slots in zip(batch.names, slots_of(batch), strict=True):
            of_window = scores[slots].float()
            start, end = of_window[1:].unbind(-1)
            size = len(start)
            none = [float(of_window[0].sum())] if self.unanswerable or not size else []
            if not size:  # an empty passage
                answers.append(Answer(name, [0, 0], none * (1 + self.unanswerable)))
                continue
            both = start.unsqueeze(1) + end.unsqueeze(0)  # [size, size]
            allowed = torch.ones(size, size, dtype=torch.bool, device=both.device).triu().tril(self.longest - 1)
            best = int(both.masked_fill(~allowed, -torch.inf).argmax())
            score = float(both.flatten()[best])
            answers.append(Answer(name, [best // size + 1, best % size + 1], [score, *none]))
        return answers

    def gather(self, prompts: Sequence[Encoded], answers: Sequence[Answer]) -> tuple[Any, list[float]]:
        prompt, answer = max(zip(prompts, answers, strict=True), key=lambda pair: pair[1].scores[0])
        if self.unanswerable:
            none = min(answer.scores[1] for answer in answers)
            answer = answer._replace(scores=[answer.scores[0], none])
            if none > answer.scores[0]:
                return "", answer.scores
        first, last = answer.value
        assert prompt.passage is not None
        return prompt.passage.text[prompt.passage.starts[first] : prompt.passage.ends[last]], answer.scores

    def gold(self, prompts: Sequence[Encoded]) -> Any:
        return prompts[0].answers


Readout = SpanReadout

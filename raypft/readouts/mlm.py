"""Masked-language modelling: every masked token is a slot, its gold the token that stood there; scores over the
vocabulary.

Source: Devlin et al. 2019, section 3.1: a share of the tokens is chosen; of these 80 % become the mask token, 10 % a
random token, 10 % stay. Loss: mean cross-entropy per chosen token.
Differs: each token is chosen on its own (the collator of Hugging Face does so too), but at least one a prompt. Training
draws anew in every epoch, by (seed, epoch, row); what is held out keeps one draw.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor

from raypft.backbones.text import PromptTokenizer
from raypft.batch import Batch
from raypft.encoded import Encoded
from raypft.errors import UserError
from raypft.readouts import base
from raypft.tasks.task import Pattern, Task

if TYPE_CHECKING:
    from raypft.backbones.base import Backbone

MASK, RANDOM = 0.8, 0.1
"""Shares of the chosen tokens; the rest stay."""


class Config(base.Config):
    """share: of the tokens that are asked about."""

    share: float = Field(default=0.15, gt=0, le=1)


def masked(prompt: Encoded, draw: str, share: float, text: PromptTokenizer) -> Encoded:
    """The prompt with tokens chosen by `draw` masked; an earlier draw is undone first.

    Raises:
        UserError: the prompt has special tokens only.
    """
    ids = list(prompt.ids)
    for position, token in zip(prompt.marks["slot"], prompt.gold, strict=True):
        ids[position] = token if token >= 0 else ids[position]
    special = set(text.tokenizer.all_special_ids)
    usable = [position for position, token in enumerate(ids) if token not in special]
    if not usable:
        raise UserError(f"data: row {prompt.key} has no known token that could be masked; leave it out")
    digest = hashlib.sha256(f"{draw}/{prompt.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    chances = torch.rand(len(usable), generator=generator).tolist()
    chosen = [position for position, chance in zip(usable, chances, strict=True) if chance < share] or [
        usable[chances.index(min(chances))]
    ]
    gold = [ids[position] for position in chosen]
    fates = torch.rand(len(chosen), generator=generator).tolist()
    others = torch.randint(text.vocab_size, (len(chosen),), generator=generator).tolist()
    for position, fate, other in zip(chosen, fates, others, strict=True):
        if fate < MASK + RANDOM:
            ids[position] = text.tokenizer.mask_token_id if fate < MASK else other
    return replace(prompt, ids=ids, marks={**prompt.marks, "slot": chosen}, gold=gold)


class MaskedLanguageModel(base.Readout):
    """Scores of the language-model head over all V tokens; the answer to a row is a token id a slot."""

    Config = Config
    kinds = ("mlm",)
    families = ("masked",)
    needs_slot = False
    reads_vocabulary = True
    backbone: Backbone

    def __init__(self, config: Config, task: Task, pattern: Pattern, backbone: Backbone) -> None:
        super().__init__(config, task, pattern, backbone)
        self.share = config.share
        vars(self)["backbone"] = backbone  # its parameters belong to the method

    @staticmethod
    def prepare(config: Any, prompt: Encoded, text: PromptTokenizer) -> Encoded:
        return masked(prompt, "held out", config.share, text)

    @staticmethod
    def scored(config: Any, tokens: int) -> float:
        return config.share * tokens

    def redraw(self, prompt: Encoded, seed: int, epoch: int) -> Encoded:
        return masked(prompt, f"{seed}/{epoch}", self.share, self.backbone.text)

    def scores(self, states: Tensor, batch: Batch) -> Tensor:
        return self.backbone.vocabulary_scores(states)  # [S, V]

    def decide(self, scores: Tensor, batch: Batch) -> list[base.Answer]:
        """The likeliest token of each slot, and its probability."""
        best, chosen = scores.float().softmax(-1).max(-1)
        return [
            base.Answer(name, chosen[slots].tolist(), best[slots].tolist())
            for name, slots in zip(batch.names, base.slots_of(batch), strict=True)
        ]

    def gather(self, prompts: Sequence[Encoded], answers: Sequence[base.Answer]) -> tuple[Any, list[float]]:
        return base.values_of(answers), base.scores_of(answers)

    def gold(self, prompts: Sequence[Encoded]) -> Any:
        return list(itertools.chain.from_iterable(prompt.gold for prompt in prompts))


Readout = MaskedLanguageModel

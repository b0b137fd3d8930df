"""What a decoder says: token by token, the likeliest or the best of several beams.

The encoder runs once, keys and values of what was said are kept; an answer of a batch is over when all its prompts have
ended, on all ranks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed, nn

from raypft.batch import Batch

if TYPE_CHECKING:
    from raypft.backbones.base import Backbone

NEVER = -1e9
"""The log-probability of what can't be."""


class Speaker:
    """A decoder on its way through the answers to a batch, of which it says `beams` at once.

    said: [B K, U] tokens so far, the decoder's start first.
    """

    def __init__(self, method: nn.Module, backbone: Backbone, batch: Batch, beams: int = 1) -> None:
        assert batch.target is not None
        self.method, self.backbone, self.batch = method, backbone, _repeated(batch, beams)
        self.said = batch.target[:, :1].repeat_interleave(beams, 0)
        self.beginning = backbone.encode(self.batch) if backbone.shortcuts and method.runs_the_backbone else None

    def scores(self) -> Tensor:
        """Of the next token, [B K, V], log-probabilities."""
        target = self.said if self.beginning is None else self.said[:, -1:]
        last = torch.full((len(target),), target.shape[1] - 1, device=target.device)
        slots = torch.stack([torch.arange(len(target), device=target.device), last], dim=1)
        states = self.method(replace(self.batch, target=target, slots=slots, beginning=self.beginning))
        return self.backbone.vocabulary_scores(states).float().log_softmax(-1)

    def say(self, tokens: Tensor, after: Tensor | None = None) -> None:
        """Go on with tokens, [B K], each after the answer with this number, [B K]; after its own where None."""
        if after is not None:
            self.said = self.said[after]
            if self.beginning is not None:
                self.beginning.cache.self_attention_cache.reorder_cache(after)
        self.said = torch.cat([self.said, tokens.unsqueeze(1)], dim=1)


def greedy(speaker: Speaker, longest: int, end: int) -> tuple[Tensor, Tensor]:
    """The likeliest token each time: what was said behind the start, [B, U], and its log-probability, [B]."""
    size, device = len(speaker.said), speaker.said.device
    chance = torch.zeros(size, device=device)
    ended = torch.zeros(size, dtype=torch.bool, device=device)
    for _ in range(longest):
        best, token = speaker.scores().max(-1)
        chance = torch.where(ended, chance, chance + best)
        ended |= token == end
        speaker.say(token)
        if all_agree(ended.all()):
            break
    return speaker.said[:, 1:], chance


def beam_search(speaker: Speaker, beams: int, longest: int, end: int, pad: int) -> tuple[Tensor, Tensor]:
    """The answer with the highest log-probability a token among those that beams ended with, [B, U], and its
    log-probability, [B].

    Source: transformers' generate(num_beams=K) with its defaults (length_penalty 1, early_stopping false), which the
    released code of ToPro calls.
    """
    device, size = speaker.said.device, len(speaker.said) // beams
    running = torch.full((size, beams), NEVER, device=device)
    running[:, 0] = 0.0  # all beams begin alike
    finished = torch.full((size, beams), NEVER, device=device)
    known = torch.zeros((size, beams), dtype=torch.bool, device=device)
    texts = torch.full((size, beams, longest), pad, device=device)
    open_rows = torch.ones((size, 1), dtype=torch.bool, device=device)
    first = (torch.arange(size, device=device) * beams).unsqueeze(1)
    for length in range(1, longest + 1):
        scores = speaker.scores()
        words = scores.shape[-1]
        each = (running.view(-1, 1) + scores).view(size, -1)
        best, place = each.topk(2 * beams)
        beam, token = place // words, place % words
        ends = (token == end) | (length == longest)
        here = speaker.said[(first + beam).flatten(), 1:].view(size, 2 * beams, -1)
        written = torch.full((size, 2 * beams, longest), pad, device=device)
        written[..., : length - 1], written[..., length - 1] = here, token
        counts = ends & (torch.arange(2 * beams, device=device) < beams) & open_rows
        finished, kept = torch.cat([finished, torch.where(counts, best / length, NEVER)], 1).topk(beams)
        known = torch.cat([known, counts], 1).gather(1, kept)
        texts = torch.cat([texts, written], 1).gather(1, kept.unsqueeze(-1).expand(-1, -1, longest))
        running, on = torch.where(ends, best + NEVER, best).topk(beams)
        speaker.say(token.gather(1, on).flatten(), (first + beam.gather(1, on)).flatten())
        worst = torch.where(known, finished.min(1, keepdim=True)[0], NEVER)
        open_rows &= (running[:, :1] / length > worst).any(1, keepdim=True)
        if all_agree(~open_rows.any()):
            break
    chosen = texts[:, 0]
    lengths = (chosen == end).int().argmax(1) + 1
    lengths = torch.where((chosen == end).any(1), lengths, longest)
    return chosen, finished[:, 0] * lengths


def all_agree(here: Tensor) -> bool:
    """Whether it is so on all ranks: where weights are shared out, all must run equally many steps."""
    if distributed.is_available() and distributed.is_initialized():
        agreed = here.int()
        distributed.all_reduce(agreed, distributed.ReduceOp.MIN)
        return bool(agreed)
    return bool(here)


def _repeated(batch: Batch, beams: int) -> Batch:
    """Each prompt so many times, one after the other; what is of slots stays as it is, no one reads it here."""
    if beams == 1:
        return batch
    numbers = torch.arange(len(batch.ids), device=batch.ids.device).repeat_interleave(beams)
    soft = None if batch.soft is None else batch.soft[numbers]
    rows = numbers.tolist()
    extra = dict[str, list]()
    for name, values in batch.extra.items():
        extra[name] = [values[row] for row in rows]
    return replace(
        batch,
        names=[batch.names[row] for row in rows],
        ids=batch.ids[numbers],
        mask=batch.mask[numbers],
        segments=batch.segments[numbers],
        soft=soft,
        extra=extra,
    )

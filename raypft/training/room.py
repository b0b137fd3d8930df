"""How many prompts a worker runs at once: as many as so many padded tokens allow.

Rows of a step, or of an evaluation, are sorted by length and cut into runs; every rank computes the same cuts, so that
all run equally many batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from raypft.config.job import Train
from raypft.training.stepper import Stepper

USUAL_TOKENS = 1024
"""At once on a CPU: more at once are not faster there, and prompts of unlike length stand together in fewer batches."""
MOST_TOKENS = 1 << 16
"""At once on a GPU, which is busy with fewer."""
PER_BLOCK = 34
"""Numbers that a block keeps of a token for its backward pass, in states' widths (Korthikanti et al. 2022, section
4.1, equation 1, without what attention keeps of pairs)."""


@dataclass(frozen=True)
class Room:
    """What a worker runs at once: at most so many rows and padded tokens, but one row at least; None: any number."""

    rows: int | None = None
    tokens: int | None = None

    def cuts(self, lengths: Sequence[int], world: int = 1) -> list[range]:
        """Runs of rows with ascending lengths; of each run every rank takes every world-th row."""
        runs, start = list[range](), 0
        for place in range(0, len(lengths), world):
            each, longest = (place - start) // world + 1, max(lengths[place : place + world])
            full = self.rows is not None and each > self.rows
            if place > start and (full or (self.tokens is not None and each * longest > self.tokens)):
                runs.append(range(start, place))
                start = place
        return [*runs, range(start, len(lengths))] if lengths else []

    def parts(self, rows: Sequence[int], lengths: Sequence[int], rank: int = 0, world: int = 1) -> list[list[int]]:
        """What a rank runs of rows with ascending lengths, batch by batch; one without rows is empty."""
        own = [slice(run.start + rank, run.stop, world) for run in self.cuts(lengths, world)]
        return [list(rows[part]) for part in own]


def room_for(stepper: Stepper, settings: Train, rows: int | None, trains: bool) -> Room:
    """What the workers of a stepper run at once; every rank calls it, and gets the same.

    Args:
        rows: at most so many, if said; trains: whether a backward pass follows.
    """
    tokens = settings.tokens_at_once
    if tokens is None and rows is None:
        tokens = min(stepper.gather(_tokens(stepper, trains)))
    return Room(_halved(rows, stepper.halvings), _halved(tokens, stepper.halvings))


def _halved(count: int | None, times: int) -> int | None:
    return None if count is None else max(1, count >> times)


def _tokens(stepper: Stepper, trains: bool) -> int:
    """How many tokens this worker's memory allows at once."""
    if not stepper.device.startswith("cuda"):
        return USUAL_TOKENS
    backbone = stepper.learner.method.backbone
    free, _ = torch.cuda.mem_get_info(stepper.device)
    free += torch.cuda.memory_reserved(stepper.device) - torch.cuda.memory_allocated(stepper.device)  # torch's, unused
    kept = backbone.num_layers if trains else 1
    return max(USUAL_TOKENS, min(MOST_TOKENS, free // 2 // (kept * PER_BLOCK * backbone.hidden * 4)))

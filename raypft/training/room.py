"""How many prompts a worker runs at once: as many as so many padded tokens allow."""

from __future__ import annotations

import torch

from raypft.batch import Room, padding_on
from raypft.config.job import Train
from raypft.training.stepper import Stepper

USUAL_TOKENS = 1024
"""At once on a CPU: more at once are not faster there, and prompts of unlike length stand together in fewer batches."""
MOST_TOKENS = 1 << 16
"""At once on a GPU, which is busy with fewer."""
PER_BLOCK = 34
"""Numbers that a block keeps of a token for its backward pass, in states' widths (Korthikanti et al. 2022, section
4.1, equation 1, without what attention keeps of pairs)."""


def room_for(stepper: Stepper, settings: Train, rows: int | None, trains: bool) -> Room:
    """What the workers of a stepper run at once; every rank calls it, and gets the same.

    Only an evaluation is cut where much would pad: of a step in several passes some dropouts are refused (see `fit`).

    Args:
        rows: at most so many, if said; trains: whether a backward pass follows.
    """
    tokens, padding = settings.tokens_at_once, None
    if tokens is None and rows is None:
        tokens = min(stepper.gather(_tokens(stepper, trains)))
        padding = None if trains else padding_on(stepper.device)
    return Room(_halved(rows, stepper.halvings), _halved(tokens, stepper.halvings), padding)


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

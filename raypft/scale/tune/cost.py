"""What a cell costs, from a model without weights and a few encoded rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from raypft.config.resolved import ResolvedJob
from raypft.runs.inspect import counted, memory_told, method_shape
from raypft.runs.memory import Foreseen, foreseen
from raypft.runs.prepare import Memo, identify
from raypft.training.encode import Encoder, expected, prompts_an_epoch

LOOKED_AT = 20
"""Rows whose prompts are counted."""


@dataclass(frozen=True)
class Cost:
    """Training prompts an epoch; memory, and a line on it; bytes kept."""

    prompts: float
    memory: Foreseen
    told: str
    disk: float


def cost_of(resolved: ResolvedJob, memo: Memo) -> Cost:
    """What a cell of a job costs.

    Raises:
        UserError: its data or backbone can't be read.
    """
    prepared = identify(resolved, memo)
    sample = prepared.samples[resolved.job.seeds[0]]
    encoder = Encoder.of(resolved, prepared.skeleton.text, sample.demos)
    found = expected(sample, encoder, LOOKED_AT)
    method = method_shape(prepared)
    counts, told = counted(prepared, method), memory_told(prepared, method, found)
    return Cost(prompts_an_epoch(sample, found), foreseen(resolved.job, counts), told, 4.0 * counts.trainable)


def steps(resolved: ResolvedJob, prompts: float) -> int:
    """Optimizer steps of a cell."""
    train = resolved.job.train
    return math.ceil(prompts / train.batch_size) * train.epochs if resolved.method.trains else 0

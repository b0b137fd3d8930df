"""What memory a job's workers will hold, foreseen from shapes alone, and whether this machine has it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from raypft.backbones import four_bit
from raypft.backbones.anatomy import at_opening, largest_layer
from raypft.config.job import Job
from raypft.errors import UserError
from raypft.methods.base import Method
from raypft.training.room import PER_BLOCK, USUAL_TOKENS

GB = 1e9
LIBRARIES = 0.45e9
"""Bytes of a worker before it opens a model: torch, transformers, DeepSpeed (measured, benchmarks/memory.py)."""
PASSING = 4
"""Times the largest layer that ZeRO-3 holds for a moment beside that layer's values: its gradient, the bucket in which
it is reduced, what the optimizer reads, what gloo sends (measured, as above)."""
PER_SCORE = 3
"""Numbers that a step keeps of each score: itself, its logarithm after the softmax, its gradient; in fp32."""
PER_TOKEN, PER_PROMPT = 8, 300
"""Bytes of an encoded prompt in Arrow columns (measured, benchmarks/rows.py); that of a passage has its text, too."""
FLAT = (1, 2, 2)
"""Times what trains that ZeRO-0, 1 and 2 hold for a moment: gradients laid flat to be added up; from 1 on values that
are laid flat, or gathered (measured, as above)."""


@dataclass(frozen=True)
class Counts:
    """Parameters of a model with its method: all, those that train, those of its largest layer; what a token's states
    take in its blocks, in numbers; bytes of a number in the model's files; what a token's scores of the vocabulary
    take, in numbers, where a readout makes them; what is held in 4 bits, which is no parameter: bytes in all, and
    weights of the largest layer; and those that are fp32 for a moment where files in half precision are opened."""

    everything: int
    trainable: int
    largest: int
    states: int
    stored: int = 4
    scores: float = 0
    packed: int = 0
    unpacked: int = 0
    opened: int = 0

    @classmethod
    def of(cls, method: Method, scored: float = 0) -> Counts:
        """Of a method on a model, with or without weights.

        Args:
            scored: the share of a prompt's tokens at which the whole vocabulary is scored.
        """
        parameters, backbone = list(method.parameters()), method.backbone
        trainable = sum(p.numel() for p in parameters if p.requires_grad)
        states = backbone.num_layers * PER_BLOCK * backbone.hidden
        stored = getattr(backbone.config, "dtype", None) or torch.float32
        everything = sum(p.numel() for p in parameters)
        scores = PER_SCORE * scored * backbone.text.vocab_size
        packed = sum(layer.nbytes for layer in four_bit.layers(method))
        unpacked = max((layer.shape.numel() for layer in four_bit.layers(method)), default=0)
        opened = at_opening(backbone.model) if stored.itemsize < 4 else 0
        return cls(
            everything, trainable, largest_layer(method), states, stored.itemsize, scores, packed, unpacked, opened
        )


@dataclass(frozen=True)
class Foreseen:
    """Bytes: of one worker's weights that train, are its share or are of another type than in the files, their
    gradients, the optimizer's state, activations; what passes through it; frozen weights that the workers of a
    machine have in common, as pages of the model's files; and, before all these, what opening the model takes."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    passing: float
    common: float
    opening: float

    @property
    def lasting(self) -> float:
        """Of a worker, whatever a step holds beside."""
        return self.weights + self.gradients + self.optimizer

    @property
    def least(self) -> float:
        """Of a worker, at one time or another, without activations."""
        return max(self.opening, self.lasting)

    @property
    def training(self) -> float:
        """Of a worker, once the model is open."""
        return self.lasting + self.activations + self.passing

    @property
    def peak(self) -> float:
        """Of a worker's own, at most: pages of files are not in it."""
        return LIBRARIES + max(self.opening, self.training)

    def on_machine(self, workers: int) -> float:
        """Of so many workers on one machine, without activations."""
        return max(1, workers) * self.least + self.common


def foreseen(job: Job, counts: Counts) -> Foreseen:
    """What one worker of a job holds: gradients in the weights' type, Adam's moments in fp32, in half precision on
    workers a copy of what trains in fp32, each whole or shared as the ZeRO stage says (Rajbhandari et al. 2020,
    section 5)."""
    workers, stage = job.resources.workers, job.zero.stage if job.resources.workers else 0
    each = 4 if job.train.precision == "fp32" or not workers else 2
    copies = each < 4 or stage in (1, 2)  # there DeepSpeed keeps a flat copy of its share in fp32, too
    share = 1 / max(1, workers)
    whole, frozen = counts.trainable, counts.everything - counts.trainable
    weights, common = each * whole, each * frozen
    if stage == 3:
        weights, common = each * (share * counts.everything + counts.largest), 0
    elif each != counts.stored:  # made in each worker
        weights, common = each * counts.everything, 0
    weights += counts.packed  # made in each worker, too
    cast = workers and (stage == 3 or each < 4)  # opened as stored: DeepSpeed makes what trains of it
    rows = -(-job.train.batch_size // max(1, workers))
    tokens = min(job.train.tokens_at_once or USUAL_TOKENS, rows * job.train.max_tokens)
    number = each if workers else 4  # autocast keeps some states in fp32
    states = counts.states // PER_BLOCK if job.train.checkpointing else counts.states
    return Foreseen(
        weights,
        each * whole * (share if stage >= 2 else 1),
        (12 if copies else 8) * whole * (share if stage >= 1 else 1),
        tokens * (number * states + 4 * counts.scores) if whole else 0,
        each * (PASSING * counts.largest if stage == 3 else FLAT[stage] * whole if workers else 0)
        + each * counts.unpacked,  # one weight at a time
        common,
        counts.packed + 4 * counts.opened if cast else 0,
    )


def rows_held(prompts: float, tokens: float) -> float:
    """Bytes of encoded prompts of so many tokens in all; mapped files, which the workers of a machine share and the
    kernel takes back where memory is short, and in a process without workers up to 64 MB of each split its own."""
    return prompts * PER_PROMPT + tokens * PER_TOKEN


def told(job: Job, found: Foreseen, rows: float = 0) -> str:
    """A line on it.

    Args:
        rows: bytes of encoded prompts, see `rows_held`; they are told beside the peak, not in it.
    """
    parts = ("weights", "gradients", "optimizer", "activations", "passing")
    each = ", ".join(f"{part} {getattr(found, part) / GB:.2f}" for part in parts)
    each += f", libraries {LIBRARIES / GB:.2f}"
    common = f"; {found.common / GB:.2f} GB of frozen weights in common" if found.common else ""
    whose = f"a worker, ZeRO {job.zero.stage}, {job.resources.workers} in all" if job.resources.workers else "in all"
    whose += " while the model is opened" if found.opening > found.training else ""
    encoded = f"; rows {rows / GB:.2f} GB a machine" if rows else ""
    return f"memory: about {found.peak / GB:.2f} GB {whose} ({each}){common}{encoded}"


def check_memory(job: Job, counts: Counts, nodes: Sequence[float] = ()) -> None:
    """Whether this machine, and its GPUs where they are used, hold a job, activations not counted; or the nodes of a
    cluster, whose GPUs' memory is not known.

    Args:
        nodes: bytes of each node that the job may run on, infinite where that is not known; where it is this machine,
            or not looked up yet, none.

    Raises:
        UserError: they don't; with what would.
    """
    elsewhere = nodes or (job.resources.workers and os.environ.get("RAY_ADDRESS"))
    if elsewhere and (not nodes or job.resources.gpus_per_worker):
        return
    missing = lacking(job, counts, nodes)
    if missing is None:
        return
    place, needed, there = missing
    found = foreseen(job, counts)
    what = "while its model is opened" if found.opening > found.lasting else "of weights, gradients and optimizer state"
    fitting = next((way for way, other in ways(job) if lacking(other, counts, nodes) is None), None)
    do = f"use {fitting}" if fitting else "choose a smaller backbone or a method that trains less"
    raise UserError(f"memory: the job holds at least {needed / GB:.1f} GB {what}; {place} has {there / GB:.1f}; {do}")


def lacking(job: Job, counts: Counts, nodes: Sequence[float] = ()) -> tuple[str, float, float] | None:
    """Which place is too small for a job, what that needs and has, in bytes; None where all hold it."""
    found = foreseen(job, counts)
    if nodes:
        workers = max(1, job.resources.workers)
        needed = workers * found.least + len(nodes) * found.common
        place = f"the cluster, with {max(nodes) / GB:.1f} on its largest node,"
        return None if _hold(nodes, found, workers) else (place, needed, sum(nodes))
    places = [("this machine", found.on_machine(job.resources.workers), machine_memory())]
    if torch.cuda.is_available() and (job.resources.gpus_per_worker or not job.resources.workers):
        optimizer = found.optimizer if not (job.zero.offload and job.resources.workers) else 0.0
        on_gpu = found.weights + found.gradients + optimizer + found.common
        places = [
            ("this machine", found.common + (found.optimizer - optimizer), machine_memory()),
            ("its GPU", on_gpu, torch.cuda.get_device_properties(0).total_memory),
        ]
    return next(((place, needed, there) for place, needed, there in places if needed > there), None)


def _hold(nodes: Sequence[float], found: Foreseen, workers: int) -> bool:
    """Whether nodes hold so many workers, and each of them what its workers have in common."""
    return math.inf in nodes or sum(max(0, (node - found.common) // max(1, found.least)) for node in nodes) >= workers


def ways(job: Job) -> Iterator[tuple[str, Job]]:
    """What else to try with a job's workers, cheapest first, and the job then."""
    if not job.resources.workers:
        return
    for stage in range(job.zero.stage + 1, 3 if job.train.quantize else 4):
        yield f"zero.stage={stage}", job.model_copy(update={"zero": job.zero.model_copy(update={"stage": stage})})
    if job.train.quantize:
        return
    shared = job.zero.model_copy(update={"stage": 3})
    for workers in (2, 4, 8, 16):
        if workers > job.resources.workers:
            resources = job.resources.model_copy(update={"workers": workers})
            other = job.model_copy(update={"zero": shared, "resources": resources})
            yield f"zero.stage=3 with resources.workers={workers}", other


def machine_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

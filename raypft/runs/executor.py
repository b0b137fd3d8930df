"""Where cells run: in this process, or on the workers of a group (`raypft.scale.executor`)."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from raypft.backbones.base import Backbone, Known
from raypft.backbones.load import load_again, load_backbone
from raypft.config.job import Resources
from raypft.data.streaming import Index
from raypft.errors import UserError, first_line
from raypft.heap import HEAP
from raypft.runs.cell import Cell, Engine, Prompts, local_engine, run_cell
from raypft.runs.results import Tell, recorder
from raypft.storage import one_line_of_disk
from raypft.training.encode import Encoder, encode_sample
from raypft.training.flow import Flow, Local
from raypft.training.stepper import Learner, Stepper


class Executor(Protocol):
    """Runs cells one after the other."""

    def prepare(self, cells: Sequence[Cell]) -> None:
        """Make ready what these cells need, where that is better done for all at once."""
        ...

    def run(self, cell: Cell, tell: Tell) -> dict[str, Any]:
        """Run a cell; its result.

        Args:
            tell: hears the cell's events, with the run's name.

        Raises:
            UserError: what the user can mend.
        """
        ...

    def close(self) -> None:
        """Let go of what is held."""
        ...


TOLD = ("mean", "dev", "best_epoch", "metrics", "trainable", "seconds", "cpu_seconds", "peak_memory_mb")
"""Keys of a result that its event has; None where the test is withheld."""
MOST_HALVINGS = 10
"""After so many a row alone does not fit."""
Executors = Callable[[Resources], Executor]
"""The executor for what a job asks for."""


class LocalExecutor:
    """Runs cells in this process; the backbone stays loaded from one to the next."""

    def __init__(self) -> None:
        self.backbones = LoadedBackbone()

    def prepare(self, cells: Sequence[Cell]) -> None:
        """Nothing: each cell is encoded when it runs."""

    def run(self, cell: Cell, tell: Tell) -> dict[str, Any]:
        """See `Executor.run`."""
        backbone, sample = self.backbones.of(cell), cell.sample
        assert sample is not None
        prompts, flow = encode_sample(cell.resolved, backbone.text, sample), None
        if cell.job.data.stream is not None:
            assert isinstance(sample.stream, Index)
            flow = Local(sample.stream, cell.job.data.stream, Encoder.of(cell.resolved, backbone.text))
        return run_recorded(cell, prompts, backbone, tell, flow=flow)

    def close(self) -> None:
        """Forget the backbone, and give back what memory it took."""
        self.backbones.forget()
        HEAP.give_back()


def is_out_of_memory(error: Exception) -> bool:
    """Whether a failure says that memory did not suffice, that of a GPU or this machine's."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "not enough memory" in str(error)  # of torch's allocator for the CPU
    )


def _told(halvings: int) -> str:
    return (
        f"out of memory; 1/{2**halvings} of the rows or tokens go through the model at once from here on, "
        "the batch of a step stays as it is"
    )


class LoadedBackbone:
    """The backbone that a process has loaded last.

    Args:
        as_stored: see `load_backbone`; each cell gets one of its own then, of the same files.
    """

    def __init__(self, as_stored: bool = False) -> None:
        self.as_stored = as_stored
        self._loaded: tuple[Any, Backbone | None, Known] | None = None

    def of(self, cell: Cell) -> Backbone:
        """The backbone of a cell, loaded unless it is the last one.

        Raises:
            UserError: see `load_backbone`; this machine has another model under the name.
        """
        train = cell.job.train
        wanted = (cell.job.backbone, train.dropout, self.as_stored, train.quantize)
        if self._loaded is None or self._loaded[0] != wanted:
            self._loaded = None  # one at a time in memory
            first = load_backbone(*wanted)
            self._loaded = (wanted, first, first.known)
        _, backbone, known = self._loaded
        backbone = backbone or load_again(known)
        if self.as_stored:
            self._loaded = (wanted, None, known)
        expected = cell.facts["backbone"]
        if backbone.revision != expected:
            raise UserError(
                f"backbone: {cell.job.backbone} is revision {backbone.revision} on this machine; expected {expected}, "
                "as where the run was started; give every machine the same files"
            )
        return backbone

    def forget(self) -> None:
        """Load anew the next time."""
        self._loaded = None


def run_recorded(
    cell: Cell,
    prompts: Prompts,
    backbone: Backbone,
    tell: Tell,
    engine: Engine = local_engine,
    flow: Flow | None = None,
    is_first: bool = True,
    halvings: int = 0,
    retries: bool = True,
) -> dict[str, Any]:
    """Run a cell on a loaded backbone; its events go to its folder and, with the run's name, to `tell`.

    Where memory does not suffice, half as many rows go through the model at once, from the last state on: more sums are
    accumulated, the batch of a step stays what it was.

    Args:
        is_first: whether this is the process that speaks for the cell; others say nothing.
        halvings: how often memory did not suffice before; retries: False where other processes would have to begin
            again, too.

    Raises:
        UserError: a disk takes nothing more.
    """
    record, name = recorder(cell.folder), cell.folder.parent.name

    def with_less(cell: Cell, learner: Learner) -> Stepper:
        stepper = engine(cell, learner)
        stepper.halvings = halvings
        return stepper

    def both(event: dict[str, Any]) -> None:
        if is_first:
            if event["event"] != "steps":  # the result has them
                record(event)
            tell({"run": name, **event})

    while True:
        if halvings:
            both({"event": "note", "seed": cell.seed, "text": f"seed {cell.seed}: {_told(halvings)}"})
        try:
            with one_line_of_disk():
                result = run_cell(cell, prompts, backbone, with_less, both, flow)
            break
        except Exception as error:
            if not (retries and is_out_of_memory(error)):
                raise
            if halvings == MOST_HALVINGS:
                raise UserError(
                    f"run: seed {cell.seed} of {name} does not fit into memory, even with 1/{2**halvings} of the rows "
                    f"at once: {first_line(error)}; take a smaller backbone or train.max_tokens, more workers with "
                    "zero.stage=3, or train.checkpointing=true"
                ) from None
            halvings += 1
        gc.collect()
        torch.cuda.empty_cache()
    both({"event": "result", "seed": cell.seed, **{key: result.get(key) for key in TOLD}})
    return result

"""Where cells run: an executor takes one cell after another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from raypft.backbones.base import Backbone
from raypft.backbones.load import load_backbone
from raypft.batch import Encoded
from raypft.data import streaming as stream
from raypft.runs.cell import (
    TESTED,
    UNTESTED,
    Cell,
    MakeStepper,
    Tell,
    is_finished,
    local_stepper,
    recorder,
    run_cell,
)
from raypft.training.encode import Encoder, encode_sample
from raypft.training.loader import Flow


class Executor(Protocol):
    """Runs cells, in this process or elsewhere; what the next cell can use stays loaded."""

    def prepare(self, cells: Sequence[Cell]) -> None:
        """Make what these cells need, in one pass."""
        ...

    def run(self, cell: Cell, tell: Tell) -> dict[str, Any]:
        """Run one cell; its result."""
        ...

    def close(self) -> None:
        """Let go of all that stays loaded."""
        ...


class LocalExecutor:
    """Runs cells in this process; the backbone stays loaded from one to the next."""

    def __init__(self) -> None:
        self.backbone: Backbone | None = None
        self.loaded: Any = None

    def prepare(self, cells: Sequence[Cell]) -> None:
        """Nothing: a cell's rows are encoded when it runs."""

    def run(self, cell: Cell, tell: Tell) -> dict[str, Any]:
        """Run one cell; its result."""
        wanted = (cell.job.backbone, cell.job.train.dropout)
        if self.backbone is None or wanted != self.loaded:
            self.backbone, self.loaded = load_backbone(*wanted), wanted
        prompts, flow = encode_sample(cell.job, self.backbone, cell.sample), None
        if cell.sample.stream is not None and cell.job.data.stream is not None:
            flow = stream.Local(cell.sample.stream, cell.job.data.stream, Encoder.of(cell.job, self.backbone))
        return run_on(self.backbone, cell, prompts, tell, flow)

    def close(self) -> None:
        """Let the backbone go."""
        self.backbone = None


def run_on(
    backbone: Backbone,
    cell: Cell,
    prompts: Mapping[str, Sequence[Encoded]],
    tell: Tell,
    flow: Flow | None = None,
    make_stepper: MakeStepper = local_stepper,
    rank: int = 0,
) -> dict[str, Any]:
    """Run a cell on a loaded backbone; its result.

    Args:
        tell: hears the events that go into the cell's events.jsonl, with the name of the run; on rank 0 only.
    """
    record, name = recorder(cell.folder), cell.folder.parent.name

    def both(event: dict[str, Any]) -> None:
        if rank == 0:
            record(event)
            tell({"run": name, **event})

    result = run_cell(
        cell.job, cell.seed, prompts, backbone, cell.folder, cell.facts, make_stepper, both, cell.test, flow
    )
    both({"event": "result", "seed": cell.seed, "mean": result.get("mean")})
    return result


def read_result(folder: Path) -> dict[str, Any]:
    """The result of a finished cell, tested or not."""
    return json.loads((folder / (TESTED if is_finished(folder) else UNTESTED)).read_text())

"""A persistent group of processes without Ray: every rank runs the same list of cells under DeepSpeed or plain
torch."""

from __future__ import annotations

import gc
import os
import socket
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import distributed, multiprocessing

from raypft.backbones.base import Backbone
from raypft.backbones.load import load_backbone
from raypft.config.job import Job, Resources, Train, Zero
from raypft.contract import cases
from raypft.contract.checks import DROPOUT, dropping
from raypft.training.checkpoint import StateWriter
from raypft.training.kept import copied
from raypft.training.loader import PromptDataset
from raypft.training.loop import fit
from raypft.training.states import States
from raypft.training.stepper import Learner, Stepper, TorchStepper


@dataclass(frozen=True)
class Case:
    """One training run: which cell, which engine ("torch" or a ZeRO stage), where to stop and what to go on from."""

    method: str
    kind: str
    engine: str | int
    precision: str = "fp32"
    offload: bool = False
    micro_batch: int | None = None
    checkpointing: bool = False
    clip: float | None = None
    epochs: int = 5
    resume: str = ""
    """A folder with the state to go on from."""
    keep: str = ""
    """A folder for the state after the last step."""
    parts: bool = False
    """That state is kept in parts, as of what is large."""
    weight_decay: float = 0.0
    probe: Callable[[cases.Cell, Stepper], dict[str, Any]] | None = field(default=None, repr=False)
    """A module's function, asked after the last step on every rank."""
    options: tuple[tuple[str, Any], ...] = ()
    """Keys of the method that differ from their defaults."""
    files: str | None = None
    """The folder that the model is read from; None: made in memory."""
    quantized: str | None = None
    """See `load_backbone`."""


def run_case(case: Case) -> dict[str, Any]:
    """Losses, and what else was asked for, of one case in this process's group."""
    cell = dropping(case.method, case.kind, _from_files(case), **dict(case.options))
    cell.learner.method.backbone.checkpointing = case.checkpointing
    of_case = ("precision", "micro_batch", "clip", "epochs", "weight_decay")
    settings = cases.SETTINGS.model_copy(update={"select": "last", **{key: getattr(case, key) for key in of_case}})
    stepper = _stepper(case, cell.learner, settings)
    progress = states_in(case.resume).resume(stepper)[0] if case.resume else None
    rows = PromptDataset(cell.prompts, cell.learner.method, 1)
    named: dict[str, Any] = dict(cell.learner.named_parameters())
    shares = {name: (p.ds_tensor.numel(), p.ds_numel) for name, p in named.items() if hasattr(p, "ds_tensor")}
    progress = fit(stepper, rows, rows, settings, 0, cell.score, progress)
    out = {"losses": progress.losses, "dev": [record["dev"] for record in progress.history], "shares": shares}
    if case.keep:
        writer = StateWriter(stepper, settings, states_in(case.keep))
        writer.large |= case.parts
        writer.write(progress)
    if case.probe is not None:
        out["probe"] = case.probe(cell, stepper)
    out["values"] = stepper.values()
    before = copied(stepper.held())
    stepper.put(lambda *where: before.give(*where) + 1)
    out["given"] = stepper.values()
    stepper.close()
    return out


def _from_files(case: Case) -> Backbone | None:
    """The backbone as a worker reads it, None where no folder is given."""
    if case.files is None:
        return None
    as_stored = case.engine != "torch" and (case.engine == 3 or case.precision != "fp32")
    return load_backbone(case.files, DROPOUT, as_stored, case.quantized)


def states_in(folder: str) -> States:
    """The states of a case."""
    place = Path(folder)
    return States(place / "state.pt", place / "state.previous.pt", place / "state", "case")


def _stepper(case: Case, learner: Learner, settings: Train) -> Stepper:
    """Plain torch, or DeepSpeed at the case's stage."""
    if case.engine == "torch":
        return TorchStepper(learner, settings)
    from raypft.scale.deepspeed import DeepSpeedStepper  # noqa: PLC0415  (deepspeed takes seconds to import)

    job = Job(
        task="tiny",
        pattern="x",
        backbone="x",
        method={"name": case.method},
        train=settings,
        zero=Zero.model_validate({"stage": case.engine, "offload": case.offload}),
        resources=Resources(workers=1),
    )
    return DeepSpeedStepper(job, learner, "cpu")


def _member(rank: int, world: int, port: int, cases_: Sequence[Case], results: str) -> None:
    os.environ.update(
        {
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    )
    warnings.simplefilter("ignore", FutureWarning)  # torch's, about calls in DeepSpeed
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=world)
    try:
        found = list[dict[str, Any]]()
        for case in cases_:
            found.append(run_case(case))
            if len(found) == 1:
                gc.collect()
                gc.freeze()  # modules: what an engine leaves behind is found without looking through them
        if rank == 0:
            torch.save(found, f"{results}.partial")
            os.replace(f"{results}.partial", results)
    except BaseException:
        if rank == 0:
            Path(f"{results}.failed").write_text(traceback.format_exc())
        raise
    finally:
        distributed.destroy_process_group()


def run_group(world: int, cases_: Sequence[Case]) -> list[dict[str, Any]]:
    """Run the cases one after the other in one group of `world` processes; rank 0's results."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="raypft-group-") as folder:
        results = Path(folder) / "results.pt"
        spawned = multiprocessing.spawn(_member, (world, port, list(cases_), str(results)), nprocs=world, join=False)
        assert spawned is not None
        ended = ""
        try:
            while not spawned.join(timeout=1):
                pass
        except Exception:
            ended = traceback.format_exc()
        finally:
            for process in cast("list[Any]", spawned.processes):
                process.kill()  # a member may wait for ever for one that failed
        if results.is_file():  # all cases ran on every rank; how the processes ended after does not matter
            return torch.load(results, weights_only=False)
        failed = Path(f"{results}.failed")
        raise AssertionError(failed.read_text() if failed.is_file() else ended or "the group ended without results")

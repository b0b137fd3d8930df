"""What it costs a worker to write a state and a result: memory beyond what training holds, seconds that training stands
still, and seconds until they count. Full fine-tuning of a stack of linear layers on two workers under ZeRO-3.

    OMP_NUM_THREADS=1 python benchmarks/states.py [millions of parameters, 120]
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing, nn

from raypft import shards
from raypft.config.job import Job, Resources, Train, Zero
from raypft.training.checkpoint import StateWriter
from raypft.training.states import States, TrainState

WIDTH, WORKERS = 2000, 2


class Stack(nn.Module):
    """Linear layers of 4 million weights each; as much of a learner as a stepper asks for."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            states = layer(states)
        return states.square().mean()

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())


def resident(what: str) -> float:
    """MB of this process, now (VmRSS) or at most since `forget_peak` (VmHWM)."""
    return int(re.findall(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024


def growth(call: Callable[[], Any]) -> tuple[float, float]:
    """MB by which the process grew while this ran, at most; and its seconds."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before, began = resident("VmRSS"), time.perf_counter()
    call()
    return resident("VmHWM") - before, time.perf_counter() - began


def member(rank: int, layers: int, port: int, place: str) -> None:
    """One worker."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(WORKERS), "LOCAL_RANK": str(rank)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(WORKERS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=WORKERS)
    from raypft.scale.deepspeed import DeepSpeedStepper  # noqa: PLC0415  (reads the environment)

    settings = Train(epochs=1)
    job = Job(
        task="x", pattern="x", backbone="x", method={"name": "full"}, train=settings, resources=Resources(workers=2)
    )
    stepper: Any = DeepSpeedStepper(job.model_copy(update={"zero": Zero(stage=3)}), Stack(layers), "cpu")  # type: ignore[arg-type]
    stepper.backward(stepper.engine(torch.ones(1, WIDTH)), last=True)
    stepper.step(1e-4)
    folder = Path(place)
    writer = StateWriter(stepper, settings, States(folder / "a", folder / "b", folder / "state", "x"))
    state, rows = TrainState(), []
    rows.append(("state begun", *growth(lambda: writer._write(state))))
    rows.append(("state counts", *growth(writer._settle)))
    rows.append(
        ("state read", *growth(lambda: States(folder / "a", folder / "b", folder / "state", "x").resume(stepper)))
    )

    def result() -> None:
        values: Any = stepper.trained()
        if rank == 0:
            shards.save(folder / "trained.safetensors", stepper.shapes, values)
        for _ in values:
            pass

    rows.append(("result", *growth(result)))
    found: list[Any] = [None] * WORKERS
    distributed.all_gather_object(found, (rows, resident("VmRSS")))
    if rank == 0:
        print(f"{4 * layers} million parameters, {WORKERS} workers, ZeRO-3, {found[0][1]:.0f} MB a worker")
        for number, (name, _, seconds) in enumerate(rows):
            grown = ", ".join(f"{own[number][1]:.0f}" for own, _ in found)
            print(f"{name:13} grows by {grown} MB, {seconds:.1f} s")


if __name__ == "__main__":
    layers = int(sys.argv[1] if len(sys.argv) > 1 else 120) // 4
    with tempfile.TemporaryDirectory() as place:
        multiprocessing.spawn(member, (layers, 29517, place), nprocs=WORKERS)

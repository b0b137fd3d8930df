"""What a worker of a group runs: one cell after the other, on a backbone that stays loaded."""

from __future__ import annotations

import itertools
import logging
import traceback
from typing import Any

import ray
import ray.train.torch
import torch
from torch import distributed

from raypft.backbones.base import Backbone
from raypft.backbones.load import load_backbone
from raypft.config.job import Job
from raypft.errors import UserError
from raypft.runs.cell import is_finished, recorder, run_cell
from raypft.scale.data import RayFlow, read_encoded
from raypft.scale.deepspeed import DeepSpeedStepper
from raypft.scale.worker_group import last_line
from raypft.storage import path_of

LOG = "failure.log"


def run_cells(queue: Any) -> None:
    """Run the cells of the queue, until None comes."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    device, first = ray.train.torch.get_device(), distributed.get_rank() == 0
    if device.type == "cuda":
        torch.cuda.set_device(device)
    begin = [ray.get(queue.start.remote()) if first else 0]
    distributed.broadcast_object_list(begin)
    backbones: dict[Any, Backbone] = {}
    for number in itertools.count(begin[0]):
        cell = ray.get(queue.take.remote(number))
        if cell is None:
            return
        try:
            _run(cell, backbones, queue, str(device))
        except UserError as error:
            told = getattr(error, "cause", error)  # where a task of Ray Data raised it
            ray.get(queue.finish.remote(number, str(told)))
            raise
        except Exception as error:
            log = path_of(cell["folder"]) / LOG
            log.write_text(traceback.format_exc())
            ray.get(
                queue.note_error.remote(
                    f"run: training failed on the workers: {last_line(error)}; the whole traceback is in {log}"
                )
            )
            raise
        if first:
            ray.get(queue.finish.remote(number))


def _run(cell: dict[str, Any], backbones: dict[Any, Backbone], queue: Any, device: str) -> None:
    """Run a cell, unless it was finished by workers that did not live to say so.

    Args:
        backbones: the one that is loaded, by what it was loaded for; changed.
    """
    job, folder = Job(**cell["job"]), path_of(cell["folder"])
    finished = [is_finished(folder, cell["test"])]
    distributed.broadcast_object_list(finished)
    if finished[0]:
        return
    folder.mkdir(parents=True, exist_ok=True)
    wanted = (job.backbone, job.train.dropout)
    if wanted not in backbones:
        backbones.clear()
        backbones[wanted] = load_backbone(*wanted)
    steppers: list[DeepSpeedStepper] = []

    def make_stepper(learner: Any, settings: Any, state: Any) -> DeepSpeedStepper:
        steppers.append(DeepSpeedStepper(job, learner, settings, device, state))
        return steppers[-1]

    record = recorder(folder)

    def tell(event: dict[str, Any]) -> None:
        if distributed.get_rank() == 0:
            record(event)
            queue.add_event.remote({"run": folder.parent.name, **event})

    prompts = read_encoded(path_of(cell["encoded"]))
    flow = RayFlow(job, **cell["stream"]) if cell["stream"] else None
    result = run_cell(
        job, cell["seed"], prompts, backbones[wanted], folder, cell["facts"], make_stepper, tell, cell["test"], flow
    )
    tell({"event": "result", "seed": cell["seed"], "mean": result.get("mean")})
    steppers[-1].close()
    if job.zero.stage == 3 or job.train.precision != "fp32":
        backbones.clear()  # partitioned or cast weights do not come back; the next cell loads anew

"""What a worker of a group runs: one cell after the other, on a backbone that stays loaded."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import platform
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, cast

import ray
import ray.train.torch
import torch
from torch import distributed

from raypft.errors import UserError
from raypft.runs.cell import Cell
from raypft.runs.executor import LoadedBackbone, is_out_of_memory, run_recorded
from raypft.runs.results import LOG, Tell
from raypft.scale.cell_queue import last_line
from raypft.scale.data import RayFlow, read_encoded, unpacked
from raypft.scale.deepspeed import DeepSpeedStepper, gives_up_weights
from raypft.storage import path_of
from raypft.training.stepper import Learner, Stepper

BEAT_SECONDS = 10
PACKAGE = str(Path(__file__).parents[1])
GONE = ("Connection reset by peer", "Connection closed by peer", "remote process exited")
"""What gloo and NCCL say where another worker has gone: why it went it tells itself, or Ray does."""


def run_cells(queue: Any) -> None:
    """Run the cells of the queue, until None comes."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    device, first = ray.train.torch.get_device(), distributed.get_rank() == 0
    if device.type == "cuda":
        torch.cuda.set_device(device)
    me = f"rank {distributed.get_rank()} (process {os.getpid()} on {platform.node()})"
    threading.Thread(target=_beat, args=(queue, me, threading.get_ident()), daemon=True).start()
    begin = [cast(int, ray.get(queue.start.remote())) if first else 0]
    distributed.broadcast_object_list(begin)
    backbones: LoadedBackbone | None = None
    gc.freeze()  # modules: what cells leave behind is found without looking through them
    for number in itertools.count(begin[0]):
        message = cast("dict[str, Any] | None", ray.get(queue.take.remote(number)))
        if message is None:
            return
        try:
            cell = unpacked(message)
            backbones = backbones or LoadedBackbone(gives_up_weights(cell.job))
            _run(message, cell, backbones, queue, str(device))
        except UserError as error:
            told = getattr(error, "cause", error)  # where a task of Ray Data raised it
            ray.get(queue.finish.remote(number, str(told)))
            raise
        except Exception as error:
            if is_out_of_memory(error):
                ray.get(queue.note_out_of_memory.remote(number))
            log = path_of(message["folder"]) / LOG
            log.write_text(traceback.format_exc())
            if not any(said in str(error) for said in GONE):
                failed = f"run: training failed on the workers: {last_line(error)}; the whole traceback is in {log}"
                ray.get(queue.note_error.remote(failed))
            raise
        if first:
            ray.get(queue.finish.remote(number))
        del cell, message
        gc.collect()  # learners and engines hold themselves in circles, which else pile up for long


def _beat(queue: Any, me: str, thread: int) -> None:
    """Tell the queue, again and again, that this worker lives, and where a thread of it is."""
    while (frame := sys._current_frames().get(thread)) is not None:
        queue.beat.remote(me, place_of(frame))
        time.sleep(BEAT_SECONDS)


def place_of(frame: FrameType) -> str:
    """Where a thread is: the innermost line of this package, and the function that it waits in."""
    inner, own = frame.f_code.co_name, frame
    while own.f_back is not None and not own.f_code.co_filename.startswith(PACKAGE):
        own = own.f_back
    return f"{Path(own.f_code.co_filename).name}:{own.f_lineno} {own.f_code.co_name} ({inner})"


def _run(message: dict[str, Any], cell: Cell, backbones: LoadedBackbone, queue: Any, device: str) -> None:
    """Run a cell, unless it was finished by workers that did not live to say so.

    Args:
        message: as `data.packed` gives it.
    """
    job, finished = cell.job, [cell.finished]
    distributed.broadcast_object_list(finished)
    if finished[0]:
        return
    cell.folder.mkdir(parents=True, exist_ok=True)
    backbone = backbones.of(cell)
    prompts = read_encoded(path_of(message["encoded"]))
    flow = RayFlow(job, **message["stream"]) if message["stream"] else None
    steppers: list[DeepSpeedStepper] = []

    def engine(cell: Cell, learner: Learner) -> Stepper:
        steppers.append(DeepSpeedStepper(cell.job, learner, device))
        return steppers[-1]

    first = distributed.get_rank() == 0
    less = {"halvings": message["halvings"], "retries": False}
    run_recorded(cell, prompts, backbone, teller(queue), engine, flow, is_first=first, **less)
    steppers[-1].close()


def teller(queue: Any) -> Tell:
    """Gives the queue each event before the next: calls that nobody waits for it may take in any order."""

    def tell(event: dict[str, Any]) -> None:
        ray.get(queue.add_event.remote(event))

    return tell

"""One cell: a job with one seed, from encoded prompts to a result on disk. The same code runs in this process and in
a Ray worker."""

from __future__ import annotations

import ctypes
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from raypft.backbones.base import Backbone
from raypft.backbones.states_folder import StatesFolder
from raypft.config.job import Job
from raypft.config.resolved import ResolvedJob
from raypft.data.sampling import Sample
from raypft.encoded import Encoded
from raypft.errors import UserError
from raypft.methods.base import Result
from raypft.readouts.base import Answer
from raypft.runs.results import PREDICTIONS, STATE, TESTED, TRAINED, UNTESTED, Tell, is_finished, read_json
from raypft.runs.scores import RowAnswer, answer_table, by_row, mean_score, measured
from raypft.storage import on_disk, written
from raypft.training.checkpoint import TrainState
from raypft.training.loader import Flow, PromptDataset, Streamed
from raypft.training.loop import answered, evaluate, fit
from raypft.training.stepper import Learner, Stepper, TorchStepper

Prompts = Mapping[str, Sequence[Encoded]]
"""Role to encoded prompts."""


@dataclass(frozen=True)
class Cell:
    """A job with one seed: its folder, what its result says about its inputs (cell key, manifest hash, ...), its rows.

    test: False withholds the test: a search tests only what it has chosen; sample: None where the rows are encoded
    already.
    """

    resolved: ResolvedJob
    seed: int
    folder: Path
    facts: dict[str, Any]
    sample: Sample | None = None
    test: bool = True

    @property
    def job(self) -> Job:
        """Its job."""
        return self.resolved.job

    @property
    def finished(self) -> bool:
        """Whether its result is on disk."""
        return is_finished(self.folder, self.test)


Engine = Callable[[Cell, Learner, dict[str, Any] | None], Stepper]
"""Makes the stepper of a cell's learner; the last argument is an `optimizer_state` to go on from."""


def device_here() -> str:
    """The GPU of this process, else its CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def local_engine(cell: Cell, learner: Learner, state: dict[str, Any] | None) -> Stepper:
    """Plain torch in this process, on a GPU where there is one."""
    return TorchStepper(learner, cell.job.train, device_here(), state)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory: dense gradients of an embedding are some 100 MB each, and giving them back to the
    kernel and faulting them in again costs a fifth of a CPU training step (benchmarks/freed_memory.py)."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no mapping of its own for a large block
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def build_learner(resolved: ResolvedJob, backbone: Backbone, seed: int) -> Learner:
    """The method and readout of a cell on a reset backbone, initialised by the seed alone."""
    backbone.reset()
    torch.manual_seed(seed)
    method = resolved.method(resolved.method_config, backbone)
    return Learner(method, resolved.readout(resolved.readout_config, resolved.task, resolved.pattern, backbone))


def run_cell(
    cell: Cell,
    prompts: Prompts,
    backbone: Backbone,
    engine: Engine = local_engine,
    tell: Tell = lambda event: None,
    flow: Flow | None = None,
) -> dict[str, Any]:
    """Train, select, test once, and write result.json, predictions.parquet and trained.safetensors into the cell's
    folder.

    Goes on from its state.pt where there is one, and tells from where. A cell whose test is withheld writes
    searched.json; the same cell with its test then tests what was trained.

    Args:
        flow: where train rows are streamed; `prompts` then has the first of each language.
    """
    began = time.perf_counter()
    keep_freed_memory()
    task, folder = cell.resolved.task, cell.folder
    backbone.shortcuts = cell.job.train.shortcuts
    learner = build_learner(cell.resolved, backbone, cell.seed)
    sizes = _sizes(learner)
    drawn = {name: p.detach().clone() for name, p in learner.kept().items() if not p.requires_grad}
    state, lost = _state(folder / STATE)
    if state is not None:
        with torch.no_grad():
            for name, parameter in learner.trainable().items():
                parameter.copy_(state.values[name])
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    stepper = engine(cell, learner, state.optimizer if state else None)
    before = read_json(folder / UNTESTED)
    if before is None:
        tell(_start(cell, stepper, state, sizes["trainable"], lost))
        trained = _train(cell, prompts, flow, stepper, state, tell)
    else:
        trained = _trained(before, stepper, folder)
    rows = _tested(cell, prompts["test"], stepper) if cell.test else []
    values = stepper.values() | drawn
    result = {
        "seed": cell.seed,
        **cell.facts,
        **(measured(task, rows) if cell.test else {}),
        **trained,
        **sizes,
        "seconds": time.perf_counter() - began + (before or {}).get("seconds", 0.0),
        "peak_memory_mb": max(stepper.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)) / 1024,
        **_gpu_memory(stepper),
        "workers": stepper.world,
    }
    if stepper.rank == 0:
        if cell.test:
            write_result(folder, result, learner.method.result(values))
        else:
            write_searched(folder, result, values)
    return result


def _gpu_memory(stepper: Stepper) -> dict[str, float]:
    """The most memory of a GPU that any worker used since the cell's start; nothing where they have none."""
    if not stepper.device.startswith("cuda"):
        return {}
    return {"peak_gpu_memory_mb": max(stepper.gather(torch.cuda.max_memory_allocated(stepper.device))) / 2**20}


def _sizes(learner: Learner) -> dict[str, int]:
    """Trainable parameters: all, the method's, and how many its formula predicts."""
    counts = {name: p.numel() for name, p in learner.trainable().items()}
    return {
        "trainable": sum(counts.values()),
        "trainable_method": sum(count for name, count in counts.items() if name.startswith("method.")),
        "predicted_method": learner.method.predicted_parameters(),
    }


def _state(path: Path) -> tuple[TrainState | None, list[str]]:
    """Where a cell stands, None at its beginning; and what to say where its state file is not whole."""
    if not path.is_file():
        return None, []
    with on_disk(path) as file:  # a store that fails to give it is no reason to train again
        try:
            return TrainState.load(file), []
        except Exception as error:  # what torch raises depends on where the file ends
            reason = " ".join(str(error).split())[:100] or type(error).__name__
            return None, [f"{path.name} can't be read ({reason}); trained from the beginning"]


def _start(
    cell: Cell, stepper: Stepper, state: TrainState | None, trainable: int, lost: Sequence[str]
) -> dict[str, Any]:
    """The event of a cell's start."""
    method = stepper.learner.method
    start = {
        "event": "start",
        "seed": cell.seed,
        "epochs": cell.job.train.epochs if method.trains else 0,
        "trainable": trainable,
        "workers": stepper.world,
        "notes": [*lost, *cell.facts.get("warnings", []), *method.notes()],
    }
    return start if state is None else start | {"event": "resume", "epoch": state.epoch, "step": state.step}


def _train(
    cell: Cell, prompts: Prompts, flow: Flow | None, stepper: Stepper, state: TrainState | None, tell: Tell
) -> dict[str, Any]:
    """Fit the learner, or score it on dev as it is where nothing trains; what the result says about it.

    `dev` is the score of the epoch that is kept.
    """
    settings, learner = cell.job.train, stepper.learner
    train, dev = loaders(cell.job, learner, stepper, prompts, flow)

    def score(answers: Sequence[Answer]) -> float:
        rows = by_row(learner.readout, prompts["dev"], answers)
        return mean_score(cell.resolved.task, rows, cell.job.dev.metric)

    def save(state: TrainState) -> None:
        state.save(cell.folder / STATE)

    def tell_seed(event: dict[str, Any]) -> None:
        tell({"seed": cell.seed, **event})

    if learner.method.trains and settings.epochs:
        state = fit(stepper, train, dev, settings, cell.seed, score, state, save, tell_seed)
        kept = state.best_score if settings.select == "best" else state.history[-1].get("dev")
    else:
        state = TrainState(best_epoch=0)
        kept = score(evaluate(stepper, dev, settings)) if dev is not None else None
    last = state.history[-1] if state.history else None
    return {
        "best_epoch": state.best_epoch if settings.select == "best" or last is None else last["epoch"],
        "dev": kept if dev is not None else None,
        "history": state.history,
        "losses": state.losses,
        "train_seconds": last["train_seconds"] if last else 0.0,
    }


def _trained(before: dict[str, Any], stepper: Stepper, folder: Path) -> dict[str, Any]:
    """Put the values of a training whose test was withheld into the learner; what its result said about it."""
    path = folder / TRAINED
    if path.is_file():
        stepper.set_values(read_tensors(path))
    return {key: before[key] for key in ("best_epoch", "dev", "history", "losses", "train_seconds")}


def _tested(cell: Cell, prompts: Sequence[Encoded], stepper: Stepper) -> list[RowAnswer]:
    """The answers to the test rows, written as they come; of them comes back what metrics read."""
    learner, rows = stepper.learner, list[RowAnswer]()
    dataset = PromptDataset(prompts, learner.method, learner.method.backbone.pad)
    with ExitStack() as stack:
        write = stack.enter_context(predictions(cell.folder)) if stepper.rank == 0 else None
        for some, answers in answered(stepper, dataset, cell.job.train):
            found = by_row(learner.readout, dataset.prompts[some.start : some.stop], answers)
            if write is not None:
                write(answer_table(cell.resolved.task, found))
            rows += [replace(row, key="", scores=[]) for row in found]
    return rows


@contextmanager
def predictions(folder: Path) -> Iterator[Callable[[pa.Table], None]]:
    """What writes the next rows of a cell's predictions, which stand there whole in the end."""
    folder.mkdir(parents=True, exist_ok=True)
    writers = list[pa_parquet.ParquetWriter]()
    with written(folder / PREDICTIONS) as file, ExitStack() as stack:

        def write(table: pa.Table) -> None:
            if not writers:
                writers.append(stack.enter_context(pa_parquet.ParquetWriter(file, table.schema)))
            writers[0].write_table(table.cast(writers[0].schema))

        yield write


def loaders(
    job: Job, learner: Learner, stepper: Stepper, prompts: Prompts, flow: Flow | None
) -> tuple[PromptDataset | Streamed, PromptDataset | None]:
    """The rows of train and dev; in memory with cached states where the method's lower blocks are constant and they
    fit.

    Raises:
        UserError: states can't be kept in the folder of the job.
    """
    method, backbone = learner.method, learner.method.backbone
    dev = PromptDataset(prompts.get("dev", []), method, backbone.pad)
    if flow is not None:
        return Streamed(flow, prompts["train"][0], method, backbone.pad), dev if len(dev) else None
    train = PromptDataset(prompts["train"], method, backbone.pad)
    constant = method.constant_below and not method.backbone_moves
    cached = constant and job.train.epochs and job.train.shortcuts
    kept, folder = backbone.frozen_states, job.train.cache_folder
    kept.folder = None if folder is None else StatesFolder(Path(folder))
    kept.dtype = torch.bfloat16 if job.train.cache_type == "bf16" else None

    def agree(depth: int) -> int:
        return depth if len(set(stepper.gather(depth))) == 1 else 0

    if cached and kept.fits(train.prompts + dev.prompts, backbone.hidden):
        asked = rows_to_cache(dev, stepper.rank, stepper.world, job.train.shortcuts) if len(dev) else []
        for dataset, numbers in ((train, range(len(train))), (dev, asked)):
            if numbers:  # there may be no dev
                chosen = [dataset.prompts[number] for number in numbers]
                dataset.lower = kept.after(method.constant_below, chosen, stepper.device, agree)
    return train, dev if len(dev) else None


def rows_to_cache(dataset: PromptDataset, rank: int, world: int, alike: bool = True) -> list[int]:
    """The rows a rank evaluates and row 0, the filler; as many on every rank."""
    chosen = {0}
    for some in dataset.stretches():
        chosen.update(dataset.distinct(alike, some)[rank::world])
    size = min(len(dataset), sum(-(-len(some) // world) for some in dataset.stretches()) + 1)
    others = [row for row in range(len(dataset)) if row not in chosen]
    return sorted(chosen.union(others[: size - len(chosen)]))


def write_result(folder: Path, result: dict[str, Any], kept: Result) -> None:
    """Write a finished cell; result.json comes last and says that it is whole."""
    if kept.tensors:
        save_tensors(folder / kept.file, kept)
    _conclude(folder, TESTED, result)
    (folder / UNTESTED).unlink(missing_ok=True)


def write_searched(folder: Path, result: dict[str, Any], values: dict[str, Tensor]) -> None:
    """Write a cell whose test is withheld; searched.json comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    if values:
        save_tensors(folder / TRAINED, Result(TRAINED, values))
    _conclude(folder, UNTESTED, result)


def _conclude(folder: Path, name: str, result: dict[str, Any]) -> None:
    with written(folder / name) as file:
        file.write_text(json.dumps(result, indent=1))
    for rest in (folder / STATE, *folder.glob("*.partial.*")):
        rest.unlink(missing_ok=True)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        UserError: it is not whole.
    """
    try:
        with on_disk(path) as file:
            return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"run: {path} can't be read: {error}; train the seed again with --fresh") from None


def save_tensors(path: Path, kept: Result) -> None:
    """Write what is kept of the trained parameters, and read it back.

    Raises:
        RuntimeError: the saved values differ from the live ones.
    """
    with written(path) as file:
        save_file({name: value.contiguous() for name, value in kept.tensors.items()}, file, kept.metadata)
    with on_disk(path) as file:
        back = load_file(file)
    same_names = set(back) == set(kept.tensors)
    if not same_names or not all(torch.equal(back[name], value) for name, value in kept.tensors.items()):
        raise RuntimeError(f"{path}: the saved parameters differ from the live ones when read back")

"""One cell: a job with one seed, from encoded prompts to a result on disk. The same code runs in this process and in
a Ray worker."""

from __future__ import annotations

import itertools
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from raypft import shards
from raypft.backbones.base import Backbone
from raypft.backbones.flops import Meter
from raypft.backbones.states_folder import StatesFolder
from raypft.batch import Beginning
from raypft.config.job import Job
from raypft.config.resolved import ResolvedJob
from raypft.data.sampling import Sample
from raypft.encoded import Encoded
from raypft.heap import HEAP
from raypft.methods.base import Result
from raypft.readouts.base import Answer
from raypft.runs.cell_files import conclude, predictions, save_kept
from raypft.runs.results import (
    PARTS,
    PREVIOUS,
    STATE,
    TESTED,
    TRAINED,
    UNTESTED,
    Tell,
    is_finished,
    result_in,
)
from raypft.runs.scores import Pairs, answer_table, by_row, mean_score, measured
from raypft.training.flow import Flow
from raypft.training.loader import PromptDataset, Streamed
from raypft.training.loop import answered, each, fit
from raypft.training.states import States, TrainState
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
        return is_finished(self.folder, self.facts["cell"], self.test)


Engine = Callable[[Cell, Learner], Stepper]
"""Makes the stepper of a cell's learner."""


def device_here() -> str:
    """The GPU of this process, else its CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def local_engine(cell: Cell, learner: Learner) -> Stepper:
    """Plain torch in this process, on a GPU where there is one."""
    return TorchStepper(learner, cell.job.train, device_here())


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

    Goes on from its last state where there is one, and tells from where. A cell whose test is withheld writes
    searched.json; the same cell with its test then tests what was trained.

    Args:
        flow: where train rows are streamed; `prompts` then has the first of each language.
    """
    began, began_cpu = time.perf_counter(), time.process_time()
    HEAP.keep(cell.job.zero.stage < 3)
    task, folder = cell.resolved.task, cell.folder
    backbone.shortcuts, backbone.checkpointing = cell.job.train.shortcuts, cell.job.train.checkpointing
    backbone.flops = Meter()
    learner = build_learner(cell.resolved, backbone, cell.seed)
    sizes = _sizes(learner)
    drawn = {name: p.detach().clone() for name, p in learner.kept().items() if not p.requires_grad}
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    stepper = engine(cell, learner)
    before = result_in(folder / UNTESTED)
    if before is None:
        states = States(folder / STATE, folder / PREVIOUS, folder / PARTS, cell.facts["cell"])
        state, lost = states.resume(stepper)
        tell(_start(cell, stepper, state, sizes["trainable"], lost))
        trained = _train(cell, prompts, flow, stepper, state, states, tell)
    else:
        trained = _trained(before, stepper, folder)
    files = dict((before or {}).get("files", {}))
    pairs = _tested(cell, prompts["test"], stepper, files) if cell.test else None
    result = {
        "seed": cell.seed,
        **cell.facts,
        **(measured(task, pairs) if pairs else {}),
        **trained,
        **sizes,
        "seconds": time.perf_counter() - began + (before or {}).get("seconds", 0.0),
        "cpu_seconds": sum(stepper.gather(time.process_time() - began_cpu)) + (before or {}).get("cpu_seconds", 0.0),
        "peak_memory_mb": max(stepper.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)) / 1024,
        **_gpu_memory(stepper),
        "workers": stepper.world,
        **({"memory_halved": stepper.halvings} if stepper.halvings else {}),
    }
    names = [*stepper.shapes, *drawn]
    kept = learner.method.result(names) if cell.test else Result(TRAINED, {name: name for name in names})
    values = itertools.chain(stepper.trained(), drawn.items())
    shapes = stepper.shapes | {name: value.shape for name, value in drawn.items()}
    if stepper.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        files |= save_kept(folder / kept.file, kept, shapes, values)
    for _ in values:  # each is gathered, whoever needs it
        pass
    if stepper.rank == 0:
        result["files"] = files
        conclude(folder, TESTED if cell.test else UNTESTED, result)
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
    cell: Cell,
    prompts: Prompts,
    flow: Flow | None,
    stepper: Stepper,
    state: TrainState | None,
    states: States,
    tell: Tell,
) -> dict[str, Any]:
    """Fit the learner, or score it on dev as it is where nothing trains; what the result says about it.

    `dev` is the score of the epoch that is kept.
    """
    settings, learner = cell.job.train, stepper.learner
    train, dev = loaders(cell.job, learner, stepper, prompts, flow)

    def score(answers: Iterator[Answer]) -> float:
        assert dev is not None
        pairs = Pairs()
        for some in dev.stretches():
            theirs = list(itertools.islice(answers, len(some)))
            pairs.add(by_row(learner.readout, dev.prompts[some.start : some.stop], theirs))
        return mean_score(cell.resolved.task, pairs, cell.job.dev.metric)

    def tell_seed(event: dict[str, Any]) -> None:
        tell({"seed": cell.seed, **event})

    if learner.method.trains and settings.epochs:
        state = fit(stepper, train, dev, settings, cell.seed, score, state, states, tell_seed)
        kept = state.best_score if settings.select == "best" else state.history[-1].get("dev")
    else:
        state = TrainState(best_epoch=0)
        kept = score(each(answered(stepper, dev, settings))) if dev is not None else None
    last = state.history[-1] if state.history else None
    return {
        "best_epoch": state.best_epoch if settings.select == "best" or last is None else last["epoch"],
        "dev": kept if dev is not None else None,
        "history": state.history,
        "losses": state.losses,
        "train_seconds": last["train_seconds"] if last else 0.0,
        "train_flops": _flops(stepper, len(state.losses)),
    }


def _flops(stepper: Stepper, steps: int) -> float | None:
    """What all workers computed for a training of so many steps; None where one made none of them, having gone on from
    the last."""
    each = stepper.gather(stepper.learner.method.backbone.flops.training(steps))
    return None if None in each else sum(each)


def _trained(before: dict[str, Any], stepper: Stepper, folder: Path) -> dict[str, Any]:
    """Put the values of a training whose test was withheld into the learner; what its result said about it."""
    if stepper.shapes:
        with shards.Saved(folder / TRAINED, before.get("files")) as saved:
            stepper.put(lambda key, name, start, end: saved[name].reshape(-1)[start:end])
    kept = ("best_epoch", "dev", "history", "losses", "train_seconds", "train_flops")
    return {key: before[key] for key in kept if key in before}


def _tested(cell: Cell, prompts: Sequence[Encoded], stepper: Stepper, files: dict[str, str]) -> Pairs:
    """The answers to the test rows, written as they come; of them comes back what metrics read.

    Args:
        files: gets the sha256 of what is written.
    """
    learner, pairs = stepper.learner, Pairs()
    dataset = PromptDataset(prompts, learner.method, learner.method.backbone.pad)
    with ExitStack() as stack:
        write = stack.enter_context(predictions(cell.folder, files)) if stepper.rank == 0 else None
        for some, answers in answered(stepper, dataset, cell.job.train):
            found = by_row(learner.readout, dataset.prompts[some.start : some.stop], answers)
            if write is not None:
                write(answer_table(cell.resolved.task, found))
            pairs.add(found)
    return pairs


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

    def agree(number: int) -> int:
        return number if len(set(stepper.gather(number))) == 1 else 0

    if cached and kept.fits(train.prompts + dev.prompts, backbone.hidden):
        asked = rows_to_cache(dev, stepper.rank, stepper.world, job.train.shortcuts) if len(dev) else []
        begun = dict[Any, Beginning]()
        for dataset, numbers in ((train, range(len(train))), (dev, asked)):
            if numbers:  # there may be no dev
                chosen = [dataset.prompts[number] for number in numbers]
                dataset.lower = kept.after(method.constant_below, chosen, stepper.device, agree, begun)
    return train, dev if len(dev) else None


def rows_to_cache(dataset: PromptDataset, rank: int, world: int, alike: bool = True) -> list[int]:
    """The rows a rank evaluates and row 0, the filler; as many on every rank."""
    chosen = {0}
    for some in dataset.stretches():
        chosen.update(dataset.distinct(alike, some)[rank::world])
    size = min(len(dataset), sum(-(-len(some) // world) for some in dataset.stretches()) + 1)
    others = [row for row in range(len(dataset)) if row not in chosen]
    return sorted(chosen.union(others[: size - len(chosen)]))

"""The learner (method and readout), and one way or another to run its optimizer steps.

A `Stepper` hides how gradients meet and parameters are stored; `TorchStepper` is one process, or several that average
gradients by all-reduce.
"""

from __future__ import annotations

import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

from raypft.backbones.parameters import is_norm
from raypft.batch import Batch
from raypft.config.job import Train
from raypft.methods.base import Method
from raypft.readouts.base import Answer, Readout

TRAINING = 2
"""Raised when a change of the training loop alters results; part of the cell key."""
VALUE, MOMENTS = "value", ("exp_avg", "exp_avg_sq")
"""What is kept of a parameter: its value and Adam's moments."""


class Learner(nn.Module):
    """A method and a readout: batch -> scores [S, C]."""

    def __init__(self, method: Method, readout: Readout) -> None:
        super().__init__()
        self.method = method
        self.readout = readout

    def __repr__(self) -> str:
        """Short: DeepSpeed asks for it again and again, and modules whose weight is sparse can't say theirs."""
        return f"Learner({type(self.method).__name__}, {type(self.readout).__name__})"

    def forward(self, batch: Batch) -> Tensor:
        return self.readout.scores(self.method(batch), batch)

    def answer(self, batch: Batch) -> list[Answer]:
        """One answer per prompt."""
        return self.readout.answer(self.method, batch)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name to trainable parameter, in a fixed order."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def kept(self) -> dict[str, nn.Parameter]:
        """What is kept of a training: what trains, and what a readout has drawn and leaves frozen."""
        own = {f"readout.{name}": p for name, p in self.readout.named_parameters()}
        return self.trainable() | own


class Held(NamedTuple):
    """What a process holds of a trainable parameter: entries of the flat tensor, from `start` on.

    tensors: under VALUE the fp32 values, under the names of `MOMENTS`, once a gradient was there, Adam's moments; [n]
    each, no copies. step: how many steps Adam has made with them.
    """

    start: int
    tensors: dict[str, Tensor]
    step: int = 0


Give = Callable[[str, str, int, int], Tensor]
"""One of VALUE and MOMENTS, a parameter's name, start and end to these entries of its flat tensor, [end - start]."""


class Stepper(ABC):
    """One way to run optimizer steps.

    shapes: of the trainable parameters; replicated: every rank holds all of them; halvings: how often memory did not
    suffice, each time half as many rows go through the model at once from then on.
    """

    learner: Learner
    shapes: dict[str, torch.Size]
    rank: int = 0
    world: int = 1
    device: str = "cpu"
    replicated: bool = True
    halvings: int = 0

    @abstractmethod
    def scores(self, batch: Batch) -> Tensor:
        """Forward pass, [S, C]."""

    @abstractmethod
    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulate gradients; `last` marks the step's final micro-batch."""

    @abstractmethod
    def step(self, lr: float) -> bool | Tensor:
        """Average gradients over workers, clip, update, clear.

        False, on every rank, where the gradient was not finite: nothing was updated then, nor ever will be. It is not
        read where a GPU says so.
        """

    @abstractmethod
    def held(self) -> dict[str, Held]:
        """Name to what this process holds of a trainable parameter and of Adam's moments; one of which it holds nothing
        is left out."""

    @abstractmethod
    def put(self, give: Give, steps: Mapping[str, int] | None = None) -> None:
        """Give the trainable parameters these values. Every rank calls it.

        Args:
            steps: how many steps Adam has made with each; it gets its moments too, none of a parameter that is missing.
        """

    def scaling(self) -> dict[str, float]:
        """How fp16's loss is scaled, the same on every rank; nothing where it is not."""
        return {}

    def scale(self, found: Mapping[str, float]) -> None:  # noqa: B027  (most do not)
        """Go on scaling the loss as it was found."""

    def gathered(self, pieces: Mapping[str, tuple[int, Tensor]]) -> Iterator[tuple[str, Tensor | None]]:
        """Tensors whole, fp32 on CPU, on rank 0, and None elsewhere; one at a time. Every rank goes through all of it.

        Args:
            pieces: name to what this process holds, flat, and where that begins.
        """
        tables = [{name: (start, len(flat)) for name, (start, flat) in pieces.items()}]
        if self.world > 1 and not self.replicated:
            tables = self.gather(tables[0])
        held = set().union(*tables)
        for name in [name for name in self.shapes if name in held]:
            if self.rank:
                if not self.replicated and name in pieces:
                    distributed.send(pieces[name][1].float().to(self.device).contiguous(), 0)
                yield name, None
                continue
            whole = torch.empty(self.shapes[name].numel())
            for rank, table in enumerate(tables):
                start, count = table.get(name, (0, 0))
                if rank and count:
                    piece = torch.empty(count, device=self.device)
                    distributed.recv(piece, rank)
                else:
                    piece = pieces[name][1] if count else whole[:0]
                whole[start : start + count] = piece
            yield name, whole.view(self.shapes[name])

    def trained(self) -> Iterator[tuple[str, Tensor | None]]:
        """The trainable parameters as `gathered`."""
        return self.gathered({name: (own.start, own.tensors[VALUE]) for name, own in self.held().items()})

    def values(self) -> dict[str, Tensor]:
        """The trainable parameters, whole, on rank 0, none elsewhere; for what is small. Every rank calls it."""
        return {name: value for name, value in self.trained() if value is not None}

    def close(self) -> None:  # noqa: B027  (most hold nothing)
        """Let go of what the stepper holds."""

    def leaving(self) -> bool:
        """Whether this worker's node was told to go away soon."""
        return False

    def sum(self, numbers: Tensor) -> Tensor:
        """Numbers, [n], added up over the ranks; a GPU has not been waited for."""
        if self.world > 1:
            distributed.all_reduce(numbers)
        return numbers

    def gather_numbers(self, *numbers: float) -> list[list[float]]:
        """Numbers of each rank, on every rank."""
        told = torch.zeros(self.world, len(numbers), dtype=torch.float64)
        told[self.rank] = torch.tensor(numbers, dtype=torch.float64)
        return self.sum(told.to(self.device)).tolist()

    def gather(self, value: Any) -> list[Any]:
        """One value per rank, on every rank."""
        if self.world == 1:
            return [value]
        out: list[Any] = [None] * self.world
        distributed.all_gather_object(out, value)
        return out


def make_optimizer(learner: Learner, settings: Train) -> torch.optim.Optimizer:
    """Adam or AdamW with eps 1e-8, betas (0.9, 0.999); biases and normalisations do not decay.

    Source: the released codes of Zhao & Schuetze 2021 and XTREME, which spare parameters with "bias" or
    "LayerNorm.weight" in their names.
    Differs: normalisations of other names (XLM-R's `lm_head.layer_norm`, RMSNorm) are spared too.
    """
    trainable, spared = learner.trainable(), dict[str, nn.Parameter]()
    if settings.weight_decay:  # else one group, which is updated in one call
        norms = [module.parameters() for module in learner.modules() if is_norm(module)]
        of_norms = set(map(id, itertools.chain.from_iterable(norms)))
        spared = {name: p for name, p in trainable.items() if "bias" in name or id(p) in of_norms}
    decaying = [p for name, p in trainable.items() if name not in spared]
    groups = ((decaying, settings.weight_decay), (list(spared.values()), 0.0))
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    own_groups = [{"params": own, "weight_decay": decay} for own, decay in groups if own]
    return kind(own_groups, lr=settings.lr, eps=1e-8, fused=True)


class TorchStepper(Stepper):
    """Plain torch; where a process group exists, gradients are averaged over its ranks."""

    def __init__(self, learner: Learner, settings: Train, device: str = "cpu") -> None:
        self.learner, self.settings, self.device = learner.to(device), settings, device
        if distributed.is_available() and distributed.is_initialized():
            self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        self.parameters = learner.trainable()
        self.shapes = {name: p.shape for name, p in self.parameters.items()}
        self.optimizer = make_optimizer(learner, settings) if self.parameters else None

    def scores(self, batch: Batch) -> Tensor:
        context = (
            torch.autocast(self.device.split(":")[0], torch.bfloat16)
            if self.settings.precision == "bf16"
            else contextlib.nullcontext()
        )
        with context:
            return self.learner(batch)

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()

    def step(self, lr: float) -> Tensor:
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.world > 1:
            for parameter in self.parameters.values():
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                distributed.all_reduce(parameter.grad)
                parameter.grad /= self.world
        norm = gradient_norm(self.parameters.values())
        finite = spare(self.optimizer, norm)
        if self.settings.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.settings.clip, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return finite

    def held(self) -> dict[str, Held]:
        return held_whole(self.parameters, self.optimizer)

    def put(self, give: Give, steps: Mapping[str, int] | None = None) -> None:
        put_whole(self.parameters, self.optimizer, give, steps)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The 2-norm of all gradients as one vector, a number."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def spare(optimizer: torch.optim.Optimizer, norm: Tensor) -> Tensor:
    """Whether a gradient's norm is finite; where it is not, no step of a fused optimizer does anything from now on.

    `found_inf` is what torch's gradient scaler sets, and what the fused kernels look at where the gradients are.
    """
    finite = norm.isfinite()
    found = (~finite).to(torch.float32)
    before = getattr(optimizer, "found_inf", None)
    setattr(optimizer, "found_inf", found if before is None else found.maximum(before))  # noqa: B010  (no field of its type)
    return finite


def held_whole(parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None) -> dict[str, Held]:
    """What an Adam that nothing partitions holds of these parameters."""
    state, held = optimizer.state if optimizer is not None else {}, {}
    for name, parameter in parameters.items():
        own = state.get(parameter, {})
        tensors = {VALUE: parameter.detach().reshape(-1)} | {key: own[key].reshape(-1) for key in MOMENTS if key in own}
        held[name] = Held(0, tensors, int(own["step"]) if own else 0)
    return held


@torch.no_grad()
def put_whole(
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer | None,
    give: Give,
    steps: Mapping[str, int] | None,
) -> None:
    """See `Stepper.put`, of what `held_whole` reads."""
    for name, parameter in parameters.items():
        parameter.copy_(give(VALUE, name, 0, parameter.numel()).view(parameter.shape))
        if optimizer is None or steps is None or name not in steps:
            continue
        own = optimizer.state[parameter]
        own["step"] = torch.tensor(float(steps[name]), device=parameter.device)  # where a fused Adam counts
        for key in MOMENTS:
            given = give(key, name, 0, parameter.numel()).view(parameter.shape)
            own[key] = torch.empty_like(parameter).copy_(given)

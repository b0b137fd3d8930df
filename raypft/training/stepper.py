"""The learner (method and readout), and one way or another to run its optimizer steps.

A `Stepper` hides how gradients meet and parameters are stored; `TorchStepper` is one process, or several that average
gradients by all-reduce.
"""

from __future__ import annotations

import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn

from raypft.backbones.parameters import is_norm
from raypft.batch import Batch
from raypft.config.job import Train
from raypft.methods.base import Method
from raypft.readouts.base import Answer, Readout

TRAINING = 2
"""Raised when a change of the training loop alters results; part of the cell key."""


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


class Stepper(ABC):
    """One way to run optimizer steps."""

    learner: Learner
    rank: int = 0
    world: int = 1
    device: str = "cpu"

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
    def values(self) -> dict[str, Tensor]:
        """The trainable parameters, whole, fp32, on CPU. Every rank calls it."""

    @abstractmethod
    def set_values(self, values: dict[str, Tensor]) -> None:
        """Write the trainable parameters of the model (not the optimizer's copies): for the end of training."""

    @abstractmethod
    def optimizer_state(self) -> dict[str, Any]:
        """Adam's state whole, by parameter name, and its step count. Every rank calls it."""

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
    norms = [module.parameters() for module in learner.modules() if is_norm(module)]
    of_norms = set(map(id, itertools.chain.from_iterable(norms)))
    spared = {name: p for name, p in learner.trainable().items() if "bias" in name or id(p) in of_norms}
    decaying = [p for name, p in learner.trainable().items() if name not in spared]
    groups = ((decaying, settings.weight_decay), (list(spared.values()), 0.0))
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    own_groups = [{"params": own, "weight_decay": decay} for own, decay in groups if own]
    return kind(own_groups, lr=settings.lr, eps=1e-8, fused=True)


class TorchStepper(Stepper):
    """Plain torch; where a process group exists, gradients are averaged over its ranks.

    Args:
        state: an `optimizer_state` to go on from (the parameter values are put into the learner before).
    """

    def __init__(
        self, learner: Learner, settings: Train, device: str = "cpu", state: dict[str, Any] | None = None
    ) -> None:
        self.learner, self.settings, self.device = learner.to(device), settings, device
        if distributed.is_available() and distributed.is_initialized():
            self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        self.parameters = learner.trainable()
        self.optimizer = make_optimizer(learner, settings) if self.parameters else None
        if state is not None and self.optimizer is not None:
            set_adam_state(self.optimizer, self.parameters, state)

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

    def values(self) -> dict[str, Tensor]:
        return {name: p.detach().float().cpu().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def set_values(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def optimizer_state(self) -> dict[str, Any]:
        return adam_state(self.optimizer, self.parameters)


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


def adam_state(optimizer: torch.optim.Optimizer | None, parameters: dict[str, nn.Parameter]) -> dict[str, Any]:
    """Adam's moments by parameter name and its step count, on CPU."""
    state = optimizer.state if optimizer is not None else {}
    moments, steps = {}, []
    for name, parameter in parameters.items():
        if parameter in state:
            of_parameter = state[parameter]
            moments[name] = {key: of_parameter[key].detach().cpu().clone() for key in ("exp_avg", "exp_avg_sq")}
            steps.append(int(of_parameter["step"]))
    return {"step": max(steps, default=0), "moments": moments}


def set_adam_state(
    optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], state: dict[str, Any]
) -> None:
    """Give a fresh Adam the state that `adam_state` read."""
    for name, parameter in parameters.items():
        if name in state["moments"]:
            own = {key: value.to(parameter.device).clone() for key, value in state["moments"][name].items()}
            step = torch.tensor(float(state["step"]), device=parameter.device)  # where a fused Adam counts
            optimizer.state[parameter] = {"step": step, **own}

"""`DeepSpeedStepper`: optimizer steps under ZeRO 0 to 3, with state that is whole and free of stage and world size."""

from __future__ import annotations

import functools
import itertools
import time
from typing import Any

import ray
import ray._private.state
import torch
from torch import Tensor, distributed

from raypft.batch import Batch
from raypft.config.job import Job
from raypft.scale.zero import prepare_environment, zero_config
from raypft.training.stepper import Learner, Stepper, adam_state, gradient_norm, make_optimizer, set_adam_state, spare

prepare_environment()

import deepspeed  # noqa: E402
from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK  # noqa: E402
from deepspeed.utils import (  # noqa: E402
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)

NOTICE_SECONDS = 2.0
"""How often Ray is asked whether the node goes away."""
SKIPS = 8
"""Steps in a row that fp16's loss scaling may leave out while it looks for its scale, 2^16 at first."""
MOMENTS = ("exp_avg", "exp_avg_sq")


class DrainNotice:
    """Whether Ray drains this process's node (a spot notice, `raypft cluster drain`); asked now and then."""

    def __init__(self) -> None:
        self.asked_at, self.seen = 0.0, False

    def given(self) -> bool:
        """True from the first time that Ray says so."""
        if not self.seen and ray.is_initialized() and time.monotonic() - self.asked_at > NOTICE_SECONDS:
            self.asked_at = time.monotonic()
            self.seen = ray.get_runtime_context().get_node_id() in ray._private.state.state.get_draining_nodes()
        return self.seen


class DeepSpeedStepper(Stepper):
    """Steps through a DeepSpeed engine; a process group must exist.

    Without trainable parameters the engine only partitions (stage 3) or is left out (other stages, which then have
    nothing to partition).

    Args:
        state: an `optimizer_state` to go on from; the parameter values are in the learner already, so that every stage
            and precision starts from them.
    """

    def __init__(self, job: Job, learner: Learner, device: str, state: dict[str, Any] | None = None) -> None:
        going_on = {} if state is None else learner.trainable()
        exact = {name: p.detach().float().cpu().clone() for name, p in going_on.items()}
        self.learner, self.device = learner.to(device), device
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        self.stage = job.zero.stage
        self.parameters = learner.trainable()
        self.engine: Any = None
        self.skipped, self.may_skip = 0, SKIPS if job.train.precision == "fp16" else 0
        self.notice = DrainNotice()
        self._given: dict[str, Tensor] | None = None
        if self.parameters or self.stage == 3:
            optimizer = make_optimizer(learner, job.train) if self.parameters else None
            self.engine, *_ = deepspeed.initialize(
                model=learner,
                optimizer=optimizer,
                model_parameters=list(self.parameters.values()) or None,  # pyright: ignore[reportArgumentType]  # a list
                config=zero_config(job),
                dist_init_required=False,
            )
        if self.stage == 0 and self.parameters:
            self._inner().state.clear()  # DeepSpeed has taken a step without gradients, which Adam would count
            for parameter, copy in self._moved.items():
                copy.data.copy_(parameter)
        if state is not None and self.parameters:
            self._restore(state, exact)

    def leaving(self) -> bool:
        return self.notice.given()

    def scores(self, batch: Batch) -> Tensor:
        return self.learner(batch) if self.engine is None else self.engine(batch)

    def backward(self, loss: Tensor, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        running = len(FWD_MODULE_STACK)
        self.engine.backward(loss, scale_wrt_gas=False)
        del FWD_MODULE_STACK[running:]  # a block that runs again ends before the hooks behind it

    def step(self, lr: float) -> bool | Tensor:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        if self.stage == 0:
            finite = spare(self._inner(), gradient_norm(self.parameters.values()))
            self.engine.step()
        else:
            finite = self._step_unless_overflow()
        self._given = None
        return finite

    def _step_unless_overflow(self) -> bool:
        """A step of ZeRO 1 to 3, which these leave out without a word where the gradient is not finite."""
        optimizer = self.engine.optimizer
        optimizer.overflow = False
        try:
            self.engine.step()
        except Exception:  # DeepSpeed has no type of its own for: the loss scale can't be lowered any more
            if not optimizer.overflow:
                raise
            return False
        self.skipped = self.skipped + 1 if optimizer.overflow else 0
        return self.skipped <= self.may_skip

    def values(self) -> dict[str, Tensor]:
        if self._given is not None:  # the optimizer's copies, which are read below, do not have them
            return {name: value.clone() for name, value in self._given.items()}
        return {
            name: self._whole(parameter).detach().float().cpu().clone() for name, parameter in self.parameters.items()
        }

    def _whole(self, parameter: torch.nn.Parameter) -> Tensor:
        if self.stage == 0:
            return self._moved.get(parameter, parameter)
        whole = safe_get_full_fp32_param(parameter)
        if whole is None:
            raise RuntimeError(
                "a trainable parameter has no fp32 copy in the ZeRO optimizer; its values can't be saved"
            )
        return whole

    @torch.no_grad()
    def set_values(self, values: dict[str, Tensor]) -> None:
        self._given = {name: values[name].detach().float().cpu().clone() for name in self.parameters}
        for name, parameter in self.parameters.items():
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self.stage == 3):
                if self.stage < 3 or self.rank == 0:
                    parameter.copy_(values[name].to(parameter))

    def optimizer_state(self) -> dict[str, Any]:
        if self.stage == 0:
            return adam_state(self._inner(), self._masters())
        if self.stage < 3:
            self._link_moments()
        moments = {name: self._moments(parameter) for name, parameter in self.parameters.items()}
        steps = [int(entry["step"]) for entry in self._inner().state.values()]
        return {"step": max(steps, default=0), "moments": moments}

    def _moments(self, parameter: torch.nn.Parameter) -> dict[str, Tensor]:
        moments = {}
        for key in MOMENTS:
            moment = safe_get_full_optimizer_state(parameter, key)
            assert moment is not None
            moments[key] = moment.detach().cpu().clone()
        return moments

    def _link_moments(self) -> None:
        """Let stages 1 and 2 know where in Adam's flat state each parameter's moments are. DeepSpeed does so once, when
        its first group has taken its first step; the groups behind it have no state then."""
        wrapper = self.engine.optimizer
        wrapper._hp_optimizer_states_linked = False
        wrapper._lazy_init_hp_params_optimizer_state()

    def _inner(self) -> torch.optim.Optimizer:
        """The torch optimizer that ZeRO wraps."""
        inner = self.engine.optimizer
        while hasattr(inner, "optimizer"):
            inner = inner.optimizer
        return inner

    def _masters(self) -> dict[str, torch.nn.Parameter]:
        """Stage 0: what Adam moves, by name; in half precision fp32 copies of the model's parameters."""
        return {name: self._moved.get(parameter, parameter) for name, parameter in self.parameters.items()}

    @functools.cached_property
    def _moved(self) -> dict[torch.nn.Parameter, torch.nn.Parameter]:
        """Stage 0 in half precision: parameters to their fp32 copies."""
        groups = (getattr(self.engine.optimizer, name, []) for name in ("fp16_groups", "fp32_groups"))
        own, copies = map(itertools.chain.from_iterable, groups)
        return dict(zip(own, copies, strict=True))

    def _restore(self, state: dict[str, Any], values: dict[str, Tensor]) -> None:
        """Go on from an `optimizer_state` and fp32 values, which DeepSpeed has rounded to the model's precision."""
        if self.stage == 0:
            masters = self._masters()
            for name, master in masters.items():
                master.data.copy_(values[name])
            set_adam_state(self._inner(), masters, state)
            return
        # the flat Adam state exists only after a first step; make it, and let stages 1 and 2 map the parameters into it
        wrapper, inner = self.engine.optimizer, self._inner()
        groups = wrapper.fp32_partitioned_groups_flat if self.stage == 3 else wrapper.single_partition_of_fp32_groups
        for flat in groups:
            zeros = {key: torch.zeros_like(flat) for key in MOMENTS}
            inner.state[flat] = {"step": torch.tensor(float(state["step"])), **zeros}
        if self.stage < 3:
            self._link_moments()
        for name, parameter in self.parameters.items():
            self._set_master(parameter, values[name].to(self.device))
            for key in MOMENTS if name in state["moments"] else ():  # none where there never was a gradient
                self._set_moment(parameter, state["moments"][name][key].to(self.device), key)

    def _set_moment(self, parameter: torch.nn.Parameter, value: Tensor, key: str) -> None:
        if self.stage < 3:
            safe_set_full_optimizer_state(parameter, value, key)
            return
        safe_set_local_optimizer_state(parameter, self._part(parameter, value), key)

    def _set_master(self, parameter: torch.nn.Parameter, value: Tensor) -> None:
        if self.stage < 3:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_local_fp32_param(parameter, self._part(parameter, value))

    def _part(self, parameter: torch.nn.Parameter, value: Tensor) -> Tensor:
        """Stage 3: this rank's part of a whole value; the full setters fail where it does not divide by the workers."""
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = torch.nn.functional.pad(value.flatten(), (0, size * self.world - value.numel()))
        return padded[self.rank * size : (self.rank + 1) * size]

    def close(self) -> None:
        """Let the engine go; a module partitioned by stage 3 or cast to half precision can't be used again."""
        if self.engine is not None:
            self.engine.destroy()

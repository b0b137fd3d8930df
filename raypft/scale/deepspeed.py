"""`DeepSpeedStepper`: optimizer steps under ZeRO 0 to 3, with state that is whole and free of stage and world size."""

from __future__ import annotations

import gc
import inspect
import time
from typing import Any

import ray
import ray._private.state
import torch
from torch import Tensor, distributed

from raypft.backbones.anatomy import largest_layer
from raypft.batch import Batch
from raypft.config.job import Job
from raypft.scale.zero import prepare_environment, zero_config
from raypft.training.stepper import Learner, Stepper, adam_state, gradient_norm, make_optimizer, set_adam_state, spare

prepare_environment()

import deepspeed  # noqa: E402
from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK  # noqa: E402
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator  # noqa: E402
from deepspeed.utils import (  # noqa: E402
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
    safe_set_local_optimizer_state,
)

NOTICE_SECONDS = 2.0
"""How often Ray is asked whether the node goes away."""
SKIPS = 8
"""Steps in a row that fp16's loss scaling may leave out while it looks for its scale, 2^16 at first."""
MOMENTS = ("exp_avg", "exp_avg_sq")
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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


def gives_up_weights(job: Job) -> bool:
    """Whether a model can't be used again after a cell: partitioned or cast weights do not come back."""
    return job.zero.stage == 3 or job.train.precision != "fp32"


def partition(learner: Learner, device: str, dtype: torch.dtype, config: dict[str, Any]) -> None:
    """Share every parameter out over the workers, one after the other, so that only one at a time is whole.

    All ranks have equal values already: they read the same files and draw from the same seed. DeepSpeed itself would
    send each from the first to the others, into what may be the pages of a file.
    """
    for module in learner.modules():
        module._buffers.update(
            {name: value if value is None else value.to(device) for name, value in module._buffers.items()}
        )
    init = deepspeed.zero.Init(torch.nn.Module(), config_dict_or_path=config, dtype=dtype)
    for parameter in learner.parameters():
        parameter.data = parameter.data.to(device, dtype)
        init._convert_to_deepspeed_param(parameter)
        parameter.partition()  # type: ignore[attr-defined]


class DeepSpeedStepper(Stepper):
    """Steps through a DeepSpeed engine; a process group must exist.

    Without trainable parameters the engine only partitions (stage 3) or is left out (other stages, which then have
    nothing to partition).

    Args:
        state: an `optimizer_state` to go on from; the parameter values are in the learner already, so that every stage
            and precision starts from them.
    """

    def __init__(self, job: Job, learner: Learner, device: str, state: dict[str, Any] | None = None) -> None:
        self.learner, self.device = learner, device
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        self.stage = job.zero.stage
        self.parameters = learner.trainable()
        self.engine: Any = None
        self.skipped, self.may_skip = 0, SKIPS if job.train.precision == "fp16" else 0
        self.notice = DrainNotice()
        self._given: dict[str, Tensor] | None = None
        config = zero_config(job, largest_layer(learner))
        if self.stage == 3:
            partition(learner, device, TYPES[job.train.precision], config)
        else:
            if gives_up_weights(job):
                for parameter in self.parameters.values():
                    parameter.data = parameter.data.clone()
            learner.to(device)
        if self.parameters or self.stage == 3:
            optimizer = make_optimizer(learner, job.train) if self.parameters else None
            self.engine, *_ = deepspeed.initialize(
                model=learner,
                optimizer=optimizer,
                model_parameters=list(self.parameters.values()) or None,  # pyright: ignore[reportArgumentType]  # a list
                config=config,
                dist_init_required=False,
            )
        if self.stage == 3 and self.parameters:
            for own, master in zip(
                self.engine.optimizer.fp16_partitioned_groups_flat,
                self.engine.optimizer.fp32_partitioned_groups_flat,
                strict=True,
            ):
                if own.dtype == master.dtype and own.device == master.device:
                    master.data = own.data  # two copies of one thing; DeepSpeed compares the device to its name
        if state is not None and self.parameters:
            self._restore(state)

    def leaving(self) -> bool:
        return self.notice.given()

    def scores(self, batch: Batch) -> Tensor:
        return self.learner(batch) if self.engine is None else self.engine(batch)

    def backward(self, loss: Tensor, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss, scale_wrt_gas=False)

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
            return parameter
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
            return adam_state(self.engine.optimizer, self.parameters)
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

    def _restore(self, state: dict[str, Any]) -> None:
        if self.stage == 0:
            set_adam_state(self.engine.optimizer, self.parameters, state)
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
            for key in MOMENTS if name in state["moments"] else ():  # none where there never was a gradient
                self._set_moment(parameter, state["moments"][name][key].to(self.device), key)

    def _set_moment(self, parameter: torch.nn.Parameter, value: Tensor, key: str) -> None:
        if self.stage < 3:
            safe_set_full_optimizer_state(parameter, value, key)
            return
        # the full setter of stage 3 fails where a parameter does not divide by the workers; each rank sets its own part
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = torch.nn.functional.pad(value.flatten(), (0, size * self.world - value.numel()))
        safe_set_local_optimizer_state(parameter, padded[self.rank * size : (self.rank + 1) * size], key)

    def close(self) -> None:
        """Let the engine go; a module partitioned by stage 3 or cast to half precision can't be used again."""
        if self.engine is not None:
            self.engine.destroy()
            # these would hold the learner for ever
            FWD_MODULE_STACK.clear()
            cached = vars(PartitionedParameterCoordinator)["_PartitionedParameterCoordinator__params_to_release"]
            inspect.getclosurevars(cached).nonlocals["func"].cache_clear()
            self.engine = None
            gc.collect()

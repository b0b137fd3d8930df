"""`DeepSpeedStepper`: optimizer steps under ZeRO 0 to 3, whose state is read and given by ranges of whole parameters,
free of stage and world size."""

from __future__ import annotations

import gc
import inspect
import itertools
import time
from collections.abc import Mapping
from typing import Any

import ray
import ray._private.state
import torch
from torch import Tensor, distributed

from raypft.backbones.anatomy import largest_layer
from raypft.batch import Batch
from raypft.config.job import Job
from raypft.scale.zero import prepare_environment, zero_config
from raypft.training.stepper import (
    MOMENTS,
    VALUE,
    Give,
    Held,
    Learner,
    Stepper,
    gradient_norm,
    held_whole,
    make_optimizer,
    put_whole,
    spare,
)

prepare_environment()

import deepspeed  # noqa: E402
from deepspeed.runtime.engine import DeepSpeedEngine  # noqa: E402
from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK  # noqa: E402
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator  # noqa: E402

NOTICE_SECONDS = 2.0
"""How often Ray is asked whether the node goes away."""
SKIPS = 8
"""Steps in a row that fp16's loss scaling may leave out while it looks for its scale, 2^16 at first."""
SCALING = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What DeepSpeed's loss scaling goes on from; stage 0 knows no hysteresis."""
DeepSpeedEngine._broadcast_model = lambda self: None
"""All ranks have equal values already: they read the same files and draw from the same seed. DeepSpeed would send those
of the first, and write them into pages of a file, each of which becomes a copy."""
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
    """Share every parameter out over the workers, one after the other, so that only one at a time is whole. As in
    `_broadcast_model` nothing is sent."""
    for module in learner.modules():
        module._buffers.update(
            {name: value if value is None else value.to(device) for name, value in module._buffers.items()}
        )
    init = deepspeed.zero.Init(torch.nn.Module(), config_dict_or_path=config, dtype=dtype)
    for parameter in learner.parameters():
        parameter.data = parameter.data.to(device, dtype if parameter.is_floating_point() else None)
        init._convert_to_deepspeed_param(parameter)
        parameter.partition()  # type: ignore[attr-defined]


class DeepSpeedStepper(Stepper):
    """Steps through a DeepSpeed engine; a process group must exist.

    Without trainable parameters the engine only partitions (stage 3) or is left out (other stages, which then have
    nothing to partition).
    """

    def __init__(self, job: Job, learner: Learner, device: str) -> None:
        self.learner, self.device = learner, device
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        self.stage = job.zero.stage
        self.replicated = self.stage == 0
        self.parameters = learner.trainable()
        self.shapes = {name: getattr(p, "ds_shape", p.shape) for name, p in self.parameters.items()}
        self.engine: Any = None
        self.skipped, self.may_skip = 0, SKIPS if job.train.precision == "fp16" else 0
        self.notice = DrainNotice()
        config = zero_config(job, largest_layer(learner), device)
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
            self._keep_one_copy()
            self._forget_first_step()

    def _keep_one_copy(self) -> None:
        """Let stage 3 train the parameters' own parts where they are fp32: it copies them, since it compares a device
        with a device's name."""
        if self.stage == 3 and self.parameters:
            wrapper = self.engine.optimizer
            pairs = zip(wrapper.fp16_partitioned_groups_flat, wrapper.fp32_partitioned_groups_flat, strict=True)
            for own, master in pairs:
                if own.dtype == master.dtype and own.device == master.device:
                    master.data = own.data

    @torch.no_grad()
    def _forget_first_step(self) -> None:
        """Undo the step without gradients that DeepSpeed makes at stage 0 in half precision: it decays the weights, and
        Adam counts it."""
        masters = self._masters() if self.stage == 0 and self.parameters else {}
        if any(masters[name] is not parameter for name, parameter in self.parameters.items() if masters):
            self._inner().state.clear()
            for name, parameter in self.parameters.items():
                masters[name].copy_(parameter)

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
        if self.stage == 0 and not self.may_skip:
            finite = spare(self._inner(), gradient_norm(self.parameters.values()))
            self.engine.step()
        else:
            finite = self._step_unless_overflow()
        return finite

    def _step_unless_overflow(self) -> bool:
        """A step of ZeRO 1 to 3, or in fp16, which is left out without a word where the gradient is not finite."""
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

    def held(self) -> dict[str, Held]:
        if self.engine is None or not self.parameters:
            return {}
        inner = self._inner()
        if self.stage == 0:
            return held_whole(self._masters(), inner)
        held = {}
        for name, (flat, first, count, start) in self._places().items():
            own = inner.state.get(flat, {})
            whole = {VALUE: flat.detach(), **{key: own[key] for key in MOMENTS if key in own}}
            parts = {key: tensor.narrow(0, first, count) for key, tensor in whole.items()}
            held[name] = Held(start, parts, int(own["step"]) if own else 0)
        return held

    @torch.no_grad()
    def put(self, give: Give, steps: Mapping[str, int] | None = None) -> None:
        if self.engine is None or not self.parameters:
            return
        inner = self._inner()
        if self.stage == 0:
            masters = self._masters()
            put_whole(masters, inner, give, steps)
            for name, parameter in self.parameters.items():
                parameter.copy_(masters[name])
            return
        for name, (flat, first, count, start) in self._places().items():
            flat.narrow(0, first, count).copy_(give(VALUE, name, start, start + count))
            if steps is None or name not in steps:
                continue
            if flat not in inner.state:  # Adam's flat state exists only after a first step
                inner.state[flat] = {"step": torch.tensor(0.0), **{key: torch.zeros_like(flat) for key in MOMENTS}}
            own = inner.state[flat]
            own["step"].fill_(max(float(own["step"]), steps[name]))
            for key in MOMENTS:
                own[key].narrow(0, first, count).copy_(give(key, name, start, start + count))
        self._take_over()

    def scaling(self) -> dict[str, float]:
        scaler = self._scaler()
        if scaler is None:
            return {}
        own: dict[str, float] = {key: getattr(scaler, key) for key in SCALING if hasattr(scaler, key)}
        return own | {"skipped": self.skipped}

    def scale(self, found: Mapping[str, float]) -> None:
        scaler = self._scaler()
        for key, value in found.items() if scaler is not None else ():
            setattr(self if key == "skipped" else scaler, key, value)

    def _scaler(self) -> Any:
        """What knows how fp16's loss is scaled; None in another type."""
        if not self.may_skip or self.engine is None or not self.parameters:
            return None
        wrapper = self.engine.optimizer
        return getattr(wrapper, "loss_scaler", None) or wrapper.loss_scale_config

    def _places(self) -> dict[str, tuple[Tensor, int, int, int]]:
        """Name to where this rank's part of a parameter is, under stages 1 to 3: in which of the optimizer's flat fp32
        tensors, from where on, how many entries, and which of the parameter's is the first."""
        wrapper, places = self.engine.optimizer, {}
        for name, parameter in self.parameters.items():
            if self.stage == 3:
                group, first, size = wrapper.grad_position[wrapper.get_param_id(parameter)]
                start = self.rank * size  # the last part may be padded, or nothing but padding
                flat, count = wrapper.fp32_partitioned_groups_flat[group], min(size, self.shapes[name].numel() - start)
            elif (part := parameter._hp_mapping) is not None:  # type: ignore[attr-defined]
                flat = wrapper.single_partition_of_fp32_groups[part.param_group_index]
                first, count = part.hp_fragment_address.start, part.hp_fragment_address.numel
                start = part.lp_fragment_address.start
            else:
                continue
            if count > 0:
                places[name] = flat, first, count, start
        return places

    def _take_over(self) -> None:
        """Give the model the optimizer's values, as after a step of stages 1 to 3."""
        wrapper = self.engine.optimizer
        if self.stage < 3:
            wrapper.update_lp_params()
            return
        self.engine.empty_partition_cache()
        for parameter in self.parameters.values():
            group, first, size = wrapper.grad_position[wrapper.get_param_id(parameter)]
            own = wrapper.fp32_partitioned_groups_flat[group].narrow(0, first, size)
            parameter.ds_tensor.data.copy_(own.view(parameter.ds_tensor.shape))  # type: ignore[attr-defined]

    def _masters(self) -> dict[str, Tensor]:
        """Name to the fp32 values that stage 0 trains: beside the parameters in half precision, else themselves."""
        wrapper = self.engine.optimizer
        pairs = zip(
            itertools.chain.from_iterable(getattr(wrapper, "fp16_groups", ())),
            itertools.chain.from_iterable(getattr(wrapper, "fp32_groups", ())),
            strict=True,
        )
        beside = {id(half): master for half, master in pairs}
        return {name: beside.get(id(parameter), parameter) for name, parameter in self.parameters.items()}

    def _inner(self) -> torch.optim.Optimizer:
        """The torch optimizer that ZeRO wraps."""
        inner = self.engine.optimizer
        while hasattr(inner, "optimizer"):
            inner = inner.optimizer
        return inner

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

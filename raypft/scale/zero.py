"""The DeepSpeed configuration as a function of the job: nothing is stated twice, nothing is compiled on a CPU."""

from __future__ import annotations

import os
from typing import Any

from raypft.config.job import Job

QUIET = 1 << 30


def prepare_environment() -> None:
    """Set what DeepSpeed reads at import: the CPU accelerator where there is no GPU, quiet logs, nothing compiled."""
    import torch  # noqa: PLC0415

    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
    import deepspeed.ops  # noqa: PLC0415

    # only its inference all-reduce uses this kernel; on a CPU it would be compiled for a minute
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # type: ignore[attr-defined]


def zero_config(job: Job, layer: int, device: str) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`.

    The loop decides when a step ends and how losses are weighted, so accumulation is 1 here and batch size is nominal.

    Args:
        layer: parameters of the model's largest layer; what is gathered, fetched ahead or reduced at once.
        device: where it is computed; on a CPU nothing is fetched ahead, gloo would hold it twice.
    """
    # by default 5e8 gradients are collected before any is reduced
    zero: dict[str, Any] = {"stage": job.zero.stage, "reduce_bucket_size": layer}
    if job.zero.stage == 3:
        zero |= {
            # by default small parameters are not partitioned at all, and few-shot methods have only small ones
            "stage3_param_persistence_threshold": 0,
            # by default what is used again within 1e9 parameters stays whole
            "stage3_max_reuse_distance": 0,
            "stage3_max_live_parameters": layer,
            "stage3_prefetch_bucket_size": layer if device.startswith("cuda") else 0,
            "sub_group_size": layer,  # gradients become fp32 a group at a time
        }
    if job.zero.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if job.zero.stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": job.train.clip or 0.0,  # left out, DeepSpeed clips at 1.0
        "steps_per_print": QUIET,
        "wall_clock_breakdown": False,
    }
    if job.train.precision != "fp32":
        config[job.train.precision] = {"enabled": True}
    return config

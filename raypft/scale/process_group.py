"""The process group of Ray Train workers, as Ray's own `TorchConfig` sets it up, but by a controller without torch."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import ray.train
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others in a collective."""
SHUTDOWN_SECONDS = 30


def join(backend: str, address: str, port: int, rank: int, world: int) -> None:
    """Join the process group, in a worker."""
    from torch import distributed  # noqa: PLC0415  (the workers alone load torch)

    context = ray.train.get_context()
    os.environ |= {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
    }
    if backend == "nccl" and "TORCH_NCCL_BLOCKING_WAIT" not in os.environ:
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")  # a collective that timed out is an error
    distributed.init_process_group(backend, rank=rank, world_size=world, timeout=TIMEOUT)


def leave() -> None:
    """Leave the process group, in a worker, and give back what its GPU holds."""
    import torch  # noqa: PLC0415  (as above)

    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.destroy_process_group()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class ProcessGroup(Backend):
    """The controller's side: tells the workers to join and to leave."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Have all workers join; the first one's node is where they meet."""
        try:
            address, port = worker_group.execute_single(0, get_address_and_port)
            world = len(worker_group)
            joining = [
                worker_group.execute_single_async(rank, join, backend_config.backend, address, port, rank, world)
                for rank in range(world)
            ]
            ray.get(joining)
        except RayActorError:  # Ray Train starts a new group and would keep the CPUs and GPUs of this one for ever
            worker_group.abort()
            raise

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Have all workers leave, or end without."""
        try:
            ray.get(worker_group.execute_async(leave), timeout=SHUTDOWN_SECONDS)
        except GetTimeoutError:
            logging.getLogger("ray.train").warning("the process group did not end within %d s", SHUTDOWN_SECONDS)


@dataclass
class ProcessGroupConfig(BackendConfig):
    """The setting of a worker group: `gloo`, or `nccl` with GPUs."""

    backend: str

    @property
    def backend_cls(self) -> type[Backend]:
        """Who sets it up."""
        return ProcessGroup

"""Whether what a job asks for is there, on this machine or the cluster that is named; told before torch is loaded."""

from __future__ import annotations

import os

from raypft.config.job import Resources
from raypft.errors import UserError
from raypft.scale.address import check_address
from raypft.scale.resources import shapes_here


def check_machine(resources: Resources) -> list[float]:
    """Raise a UserError where this machine, or the cluster that is named, has too little for a job, or is not there.

    Returns:
        see `node_memory`.
    """
    check_named(resources)
    if not resources.workers:
        return []
    from raypft.scale.session import check_resources, node_memory  # noqa: PLC0415  (ray is loaded only where it is used)

    check_resources(resources)
    return node_memory()


def check_named(resources: Resources) -> None:
    """What of `check_machine` can be told at once, before anything is read and without joining a cluster."""
    check_gpus(resources)
    if resources.workers:
        check_address(os.environ.get("RAY_ADDRESS"))


def check_gpus(resources: Resources) -> None:
    """Raise a UserError where a job asks for more GPUs than this machine has, and no cluster is named to have them.

    Ray would wait for them for ever.
    """
    asked = resources.gpus_per_worker * max(1, resources.workers)
    if not asked or shapes_here() or os.environ.get("RAY_ADDRESS"):
        return
    import torch  # noqa: PLC0415  (only where GPUs are asked for)

    here = torch.cuda.device_count()
    if asked > here:
        raise UserError(
            f"resources.gpus_per_worker: the job needs {asked:g} GPUs; this machine has {here}; "
            "ask for fewer, or name a cluster that has them with RAY_ADDRESS or raypft submit"
        )

"""What workers, reader, encoder and trial take of a cluster, and whether its nodes, at their largest, can ever hold it.

Ray lets an impossible request wait for ever and says the same of one that only waits its turn. Pure arithmetic: bundles
of resources against shapes of nodes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from raypft.config.job import Resources
from raypft.errors import UserError

READER_CPUS, ENCODER_CPUS = 1.0, 0.5
"""What Ray Data reserves to read a job's rows, and to encode them."""
TRIAL_CPUS = 0.1
"""What a trial reserves beside its worker group."""
ROUNDING = 1e-9
MOST_NODES = 1000
"""Of one shape; counting more would not tell more."""

Bundle = dict[str, float]
"""What must lie on one node: {"CPU": 1, "GPU": 1}."""


class Infeasible(UserError):
    """What is asked for can never be placed."""

    code = 75


@dataclass(frozen=True)
class Shape:
    """Nodes of one kind: what each offers and how many there can be; bytes of memory of each, 0 where not known."""

    name: str
    offers: Bundle
    most: int
    labels: dict[str, str] = field(default_factory=dict)
    memory: float = 0

    def text(self) -> str:
        """`gpu1 {CPU: 16, GPU: 1} x 4`."""
        return f"{self.name} {bundle_text(self.offers)} x {self.most}"


def bundle_text(bundle: Bundle) -> str:
    """`{CPU: 1, GPU: 4}`."""
    return "{" + ", ".join(f"{key}: {value:g}" for key, value in sorted(bundle.items()) if value) + "}"


def shapes_of(pools: dict[str, Any]) -> list[Shape]:
    """Shapes of a definition's pools, or of $RAYPFT_CLUSTER's (as JSON)."""
    plain = {name: pool if isinstance(pool, dict) else pool.model_dump() for name, pool in pools.items()}
    return [_shape(name, pool) for name, pool in plain.items()]


def _shape(name: str, pool: dict[str, Any]) -> Shape:
    offers = {"CPU": pool["cpu"], "GPU": pool["gpu"], **pool["resources"]}
    memory = pool.get("memory")
    return Shape(name, offers, pool["max"], pool["labels"], memory if isinstance(memory, int) else 0)  # not "64Gi"


def shapes_here() -> list[Shape] | None:
    """Shapes of the cluster this process is a job of, as its head was told; None where no definition started it."""
    told = os.environ.get("RAYPFT_CLUSTER")
    return shapes_of(json.loads(told)["pools"]) if told else None


def logical_cpus(shapes: Sequence[Shape]) -> float:
    """CPUs of all nodes at their largest: what a job's workers share."""
    return sum(shape.offers["CPU"] * shape.most for shape in shapes)


def cpus_per_worker(resources: Resources, logical: float) -> float:
    """CPUs Ray reserves for each worker, such that workers + encoder + reader fit so many CPUs.

    Raises:
        UserError: the job asks for more than there is; Ray would wait for ever.
    """
    if logical <= READER_CPUS + ENCODER_CPUS:
        raise UserError(
            f"resources: Ray has {logical:g} CPUs; reading ({READER_CPUS:g}) and encoding ({ENCODER_CPUS:g}) "
            "leave none for workers; use resources.workers=0"
        )
    each = _worker_cpus(resources, logical)
    needed = each * resources.workers + READER_CPUS + ENCODER_CPUS
    if needed > logical + ROUNDING:
        raise UserError(
            f"resources.cpus_per_worker: {resources.workers} workers x {each:g} + {READER_CPUS:g} for reading + "
            f"{ENCODER_CPUS:g} for encoding = {needed:g} CPUs; "
            f"Ray has {logical:g}; use at most {_equal_share(resources, logical):g}"
        )
    return each


def _worker_cpus(resources: Resources, logical: float) -> float:
    """What is asked for a worker, else an equal share, at most 1; it may not fit."""
    asked = resources.cpus_per_worker
    return min(1.0, _equal_share(resources, logical)) if asked is None else asked


def _equal_share(resources: Resources, logical: float) -> float:
    return max(0.0, (logical - READER_CPUS - ENCODER_CPUS) / resources.workers)


def settled(resources: Resources, logical: float) -> Resources:
    """What a trial asks for, with the CPUs of its workers as a number.

    Raises:
        UserError: as `cpus_per_worker`.
    """
    if not resources.workers:
        return resources
    return resources.model_copy(update={"cpus_per_worker": cpus_per_worker(resources, logical - TRIAL_CPUS)})


def job_bundles(resources: Resources, logical: float) -> list[Bundle]:
    """What a job takes at once: its workers, and the reader and encoder that feed them. Empty without workers.

    Args:
        logical: CPUs there are, or can be; they may be too few.
    """
    if not resources.workers:
        return []
    worker = {"CPU": _worker_cpus(resources, logical), "GPU": resources.gpus_per_worker}
    return [*(dict(worker) for _ in range(resources.workers)), {"CPU": READER_CPUS}, {"CPU": ENCODER_CPUS}]


def trial_bundles(resources: Resources, logical: float) -> list[Bundle]:
    """What a trial of a campaign takes at once: its own process first, and beside it what its job takes."""
    if resources.workers:
        return [{"CPU": TRIAL_CPUS}, *job_bundles(resources, logical - TRIAL_CPUS)]
    return [{"CPU": resources.cpus_per_worker or min(1.0, logical), "GPU": resources.gpus_per_worker}]


def trials_at_once(asked: Sequence[Resources], shapes: Sequence[Shape]) -> int:
    """How many trials may run together such that none waits for what another holds.

    Raises:
        UserError: a trial asks for more than the cluster has, or can get.
    """
    logical = logical_cpus(shapes)
    counts = []
    for resources in asked:
        bundles = trial_bundles(settled(resources, logical), logical)
        check_possible(bundles, shapes, "this cluster")
        counts.append(at_a_time(bundles, shapes))
    return min(counts, default=1)


def check_possible(bundles: Sequence[Bundle], shapes: Sequence[Shape], where: str) -> None:
    """Raise an Infeasible where bundles can never all be placed at once."""
    line = impossible(bundles, shapes, where)
    if line:
        raise Infeasible(line)


def impossible(bundles: Sequence[Bundle], shapes: Sequence[Shape], where: str) -> str | None:
    """Why bundles can never all be placed at once, what there is, and what would fit; None where they can.

    Args:
        where: the definition's file or the cluster, for the line.
    """
    for bundle in bundles:
        if not any(_fits(bundle, shape.offers) for shape in shapes):
            return f"{where}: the job needs {bundle_text(bundle)} on one node; {_what_fits(bundle, shapes, where)}"
    if placed(bundles, nodes_of(shapes)) is None:
        total: Bundle = {}
        for bundle in bundles:
            for key, value in bundle.items():
                total[key] = total.get(key, 0) + value
        largest = ", ".join(shape.text() for shape in shapes)
        return (
            f"{where}: the job needs {bundle_text(total)} at once in {len(bundles)} parts; "
            f"at its largest the cluster is {largest}; ask for fewer workers"
        )
    return None


def _what_fits(bundle: Bundle, shapes: Sequence[Shape], where: str) -> str:
    """The largest node there is for a bundle that none holds, and what to do."""
    scarce = max(bundle, key=lambda key: bundle[key] / (_most(shapes, key) or ROUNDING))
    largest = max(shapes, key=lambda shape: shape.offers.get(scarce, 0), default=None)
    there = f"the largest is {largest.text()}" if largest else "there are none"
    most = _most(shapes, scarce)
    if most:
        return f"{there}; ask for at most {most:g} {scarce} a worker, or add a pool to {where}"
    return f"{there}; add a pool with {scarce} to {where}"


def at_a_time(bundles: Sequence[Bundle], shapes: Sequence[Shape], limit: int = 1000) -> int:
    """How many such groups of bundles fit the cluster at its largest at once."""
    nodes: list[Bundle] | None = nodes_of(shapes)
    for count in range(limit):
        nodes = placed(bundles, nodes)
        if nodes is None:
            return count
    return limit


def nodes_of(shapes: Sequence[Shape]) -> list[Bundle]:
    """What each node offers, all of them there."""
    nodes: list[Bundle] = []
    for shape in shapes:
        nodes += [dict(shape.offers) for _ in range(min(shape.most, MOST_NODES))]
    return nodes


def placed(bundles: Sequence[Bundle], nodes: Sequence[Bundle]) -> list[Bundle] | None:
    """What is left on each node after placing bundles, the largest first, each on the fullest node that holds it.

    None where one fits nowhere.
    """
    left = [dict(node) for node in nodes]
    for bundle in sorted(bundles, key=lambda bundle: (-bundle.get("GPU", 0), -bundle.get("CPU", 0))):
        fitting = [node for node in left if _fits(bundle, node)]
        if not fitting:
            return None
        node = min(fitting, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)))
        for key, value in bundle.items():
            node[key] = node.get(key, 0) - value
    return left


def _most(shapes: Sequence[Shape], key: str) -> float:
    return max((shape.offers.get(key, 0) for shape in shapes), default=0)


def _fits(bundle: Bundle, offers: Bundle) -> bool:
    return all(offers.get(key, 0) >= value - ROUNDING for key, value in bundle.items())

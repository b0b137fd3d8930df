"""Whether what a job asks for can ever be placed on a cluster, said before anything is started.

Ray lets an impossible request wait for ever and says the same of one that only waits its turn. Pure arithmetic: bundles of
resources against the pools of a definition, at their largest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raypft.campaigns.campaign import open_campaign, words_of
from raypft.cluster.definition import load
from raypft.config.job import Resources, load_resources
from raypft.errors import UserError

Bundle = dict[str, float]
"""What must lie on one node: {"CPU": 1, "GPU": 1}."""


@dataclass(frozen=True)
class Shape:
    """Nodes of one kind: what each offers and how many there can be."""

    name: str
    offers: Bundle
    most: int
    labels: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """`gpu1 {CPU: 16, GPU: 1} x 4`."""
        return f"{self.name} {bundle_text(self.offers)} x {self.most}"


def bundle_text(bundle: Bundle) -> str:
    """`{CPU: 1, GPU: 4}`."""
    return "{" + ", ".join(f"{key}: {value:g}" for key, value in sorted(bundle.items()) if value) + "}"


def shapes_of(pools: dict[str, Any]) -> list[Shape]:
    """Shapes of a definition's pools, or of $RAYPFT_CLUSTER's (as JSON)."""
    plain = {name: pool if isinstance(pool, dict) else pool.model_dump() for name, pool in pools.items()}
    return [
        Shape(name, {"CPU": p["cpu"], "GPU": p["gpu"], **p["resources"]}, p["max"], p["labels"])
        for name, p in plain.items()
    ]


def shapes_here() -> list[Shape] | None:
    """Shapes of the cluster this process is a job of, as its head was told; None where it was not started from a definition."""
    told = os.environ.get("RAYPFT_CLUSTER")
    return shapes_of(json.loads(told)["pools"]) if told else None


def job_bundles(resources: Resources) -> list[Bundle]:
    """What a job asks for at once: its workers, and the encoder and reader that feed them. Empty where it runs without Ray."""
    workers = resources.workers
    worker = {"CPU": resources.cpus_per_worker or 1.0, "GPU": resources.gpus_per_worker}
    return [dict(worker) for _ in range(workers)] + [{"CPU": 1.0}, {"CPU": 1.0}] * bool(workers)


def trial_bundles(resources: Resources) -> list[Bundle]:
    """What a trial of a campaign asks for at once: its own process, and beside it what its job asks for."""
    alone = {"CPU": resources.cpus_per_worker or 1.0, "GPU": resources.gpus_per_worker}
    return [{"CPU": 0.1}, *job_bundles(resources)] if resources.workers else [alone]


def impossible(bundles: Sequence[Bundle], shapes: Sequence[Shape], where: str) -> str | None:
    """Why bundles can never all be placed at once, what there is, and what would fit; None where they can.

    Args:
        where: the definition's file or the cluster, for the line.
    """
    for bundle in bundles:
        if not any(_fits(bundle, shape.offers) for shape in shapes):
            scarce = max(bundle, key=lambda key: bundle[key] / (_most(shapes, key) or 1e-9))
            largest = max(shapes, key=lambda shape: shape.offers.get(scarce, 0), default=None)
            there = f"the largest is {largest.text()}" if largest else "there are none"
            most = _most(shapes, scarce)
            advice = (
                f"ask for at most {most:g} {scarce} a worker, or add a pool to {where}"
                if most
                else f"add a pool with {scarce} to {where}"
            )
            return f"{where}: the job needs {bundle_text(bundle)} on one node; {there}; {advice}"
    if placed(bundles, shapes) is None:
        total = {
            key: sum(bundle.get(key, 0) for bundle in bundles)
            for key in sorted({key for bundle in bundles for key in bundle})
        }
        there = ", ".join(shape.text() for shape in shapes)
        return f"{where}: the job needs {bundle_text(total)} at once in {len(bundles)} parts; at its largest the cluster is {there}; ask for fewer workers"
    return None


def at_a_time(bundles: Sequence[Bundle], shapes: Sequence[Shape], limit: int = 1000) -> int:
    """How many such groups of bundles fit the cluster at its largest at once."""
    free: list[Bundle] | None = None
    for count in range(limit):
        free = placed(bundles, shapes, free)
        if free is None:
            return count
    return limit


def placed(bundles: Sequence[Bundle], shapes: Sequence[Shape], free: list[Bundle] | None = None) -> list[Bundle] | None:
    """What is left on each node after placing bundles, the largest first, each on the fullest node that holds it; None if one fits nowhere."""
    nodes = (
        [dict(node) for node in free]
        if free is not None
        else [dict(shape.offers) for shape in shapes for _ in range(min(shape.most, 1000))]
    )
    for bundle in sorted(bundles, key=lambda bundle: (-bundle.get("GPU", 0), -bundle.get("CPU", 0))):
        fitting = [node for node in nodes if _fits(bundle, node)]
        if not fitting:
            return None
        node = min(fitting, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)))
        for key, value in bundle.items():
            node[key] = node.get(key, 0) - value
    return nodes


def _most(shapes: Sequence[Shape], key: str) -> float:
    return max((shape.offers.get(key, 0) for shape in shapes), default=0)


def _fits(bundle: Bundle, offers: Bundle) -> bool:
    return all(offers.get(key, 0) >= value - 1e-9 for key, value in bundle.items())


class Infeasible(UserError):
    """What is asked for can never be placed."""

    code = 75


def refuse_impossible(words: Sequence[str], file: Path) -> None:
    """Refuse a `run` or `tune` command of which a part fits no cluster of the definition; other verbs are not looked into.

    Raises:
        Infeasible: with what is missing and what would fit. UserError: the job's resources or the definition are not valid.
    """
    if words and words[0] in ("run", "tune"):
        shapes = shapes_of(load(file).pools)
        for _, bundles in asked_for(words):
            line = impossible(bundles, shapes, str(file))
            if line:
                raise Infeasible(line)


def asked_for(words: Sequence[str]) -> Iterator[tuple[str, list[Bundle]]]:
    """What the jobs of `[run] RECIPE... key=value...` or the trials of `tune CAMPAIGN key=value...` ask for at once, by name; equal
    trials of a campaign once.

    Raises:
        UserError: the jobs or the campaign are not valid.
    """
    if words[:1] == ["tune"]:
        told: list[Resources] = []
        for place in open_campaign(*words_of(words[1:]))[0].places():
            own = place.resources()
            if own not in told:
                told.append(own)
                yield place.label, trial_bundles(own)
        return
    overrides = [word for word in words if "=" in word]
    names = [word for word in words if "=" not in word and not word.startswith("-")]
    for name in names[1:] if words[:1] == ["run"] else names:
        yield name, job_bundles(load_resources(name, overrides))

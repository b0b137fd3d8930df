"""What a definition must keep to beyond the types of its keys; a rule is a function from a definition to complaints."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from typing import Any

from raypft.cluster.definition import Definition, num_bytes

Complaint = tuple[str, object, str]
"""Key, what was found there, what was expected."""
Rule = Callable[[Any], Iterator[Complaint]]

REMOTE = re.compile(r"^(s3|gs|abfss?|hdfs)://[^/\s]+")
SECRET = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|API_KEY)", re.IGNORECASE)
ON_THIS_MACHINE = ("local", "fake")


def limits(definition: Any) -> Iterator[Complaint]:
    """min <= max, at least one pool, and names Ray keeps for itself."""
    if not definition.pools:
        yield "pools", "none", "at least one pool"
    for name, pool in definition.pools.items():
        if pool.min > pool.max:
            yield f"pools.{name}.min", pool.min, f"at most its max, {pool.max}"
        if name == "head":
            yield f"pools.{name}", name, "a name other than head, which is the head node's"


def gpus(definition: Any) -> Iterator[Complaint]:
    """A GPU pool says which GPU; on Kubernetes it has shared memory for NCCL."""
    for name, pool in definition.pools.items():
        if pool.gpu_type and not pool.gpu:
            yield f"pools.{name}.gpu_type", pool.gpu_type, "no gpu_type on a pool with gpu: 0"
        if pool.gpu and not pool.gpu_type and definition.kind not in ON_THIS_MACHINE:
            yield f"pools.{name}.gpu_type", None, "the GPU's name, e.g. L4"
        if definition.kind == "kubernetes" and pool.gpu and not pool.shm:
            yield f"pools.{name}.shm", None, "a size such as 16Gi (NCCL and data loaders use /dev/shm)"
        if definition.kind == "kubernetes" and pool.shm and num_bytes(pool.shm) > num_bytes(pool.memory) // 2:
            yield f"pools.{name}.shm", pool.shm, f"at most half of memory, {pool.memory} (it counts against it)"


def spot(definition: Any) -> Iterator[Complaint]:
    """What runs on spot machines must survive them; a job that needs them has somewhere else to go."""
    for name, pool in definition.pools.items():
        if pool.spot and definition.kind in ("onprem", *ON_THIS_MACHINE):
            yield f"pools.{name}.spot", True, f"false: a {definition.kind} cluster has no spot machines"
        if pool.spot and definition.kind == "kubernetes" and not definition.spot_selector:
            yield "spot_selector", {}, "the label that marks spot nodes, e.g. cloud.google.com/gke-spot: 'true'"
        if pool.spot and pool.min:
            yield f"pools.{name}.min", pool.min, "0 on a spot pool: its machines come and go"
        others = [
            p for p in definition.pools.values() if not p.spot and p.gpu >= pool.gpu and p.gpu_type == pool.gpu_type
        ]
        if pool.spot and others and pool.priority <= max(p.priority for p in others):
            yield f"pools.{name}.priority", pool.priority, "more than its on-demand twin's: spot is tried first"


def idle(definition: Any) -> Iterator[Complaint]:
    """A node that goes before the next trial comes is paid for twice; one that never goes is paid for all night."""
    for name, pool in definition.pools.items():
        if definition.kind in ("local", "fake", "onprem"):
            continue
        if pool.idle_timeout_s < 60:
            yield (
                f"pools.{name}.idle_timeout_s",
                pool.idle_timeout_s,
                "60 or more: a node takes longer than that to come back",
            )
        if pool.idle_timeout_s > 3600:
            yield (
                f"pools.{name}.idle_timeout_s",
                pool.idle_timeout_s,
                "3600 or less: an idle node costs as much as a busy one",
            )


def storage(definition: Any) -> Iterator[Complaint]:
    """Results lie where every node finds them and outlive the machines."""
    results = definition.storage
    if definition.kind in ON_THIS_MACHINE:
        return
    if definition.kind == "kubernetes" and results.startswith("/"):
        if not (results + "/").startswith(definition.claim.mount + "/"):
            yield (
                "storage",
                results,
                f"a folder below claim.mount, {definition.claim.mount}, or a URI such as s3://bucket/folder",
            )
    elif definition.kind == "onprem" and results.startswith("/"):
        if results.startswith(("/tmp", "/var/tmp", "/home", "/root")):
            yield "storage", results, "a folder that all machines mount, or a URI such as s3://bucket/folder"
    elif not REMOTE.match(results):
        yield "storage", results, "a URI such as s3://bucket/folder: each machine has a disk of its own"


def versions(definition: Any) -> Iterator[Complaint]:
    """One Ray on every node and here; the image says which."""
    if definition.ray != version("ray"):
        yield "ray", definition.ray, f"{version('ray')}, the version installed here (client and cluster must be equal)"
    image = getattr(definition, "image", None)
    if image is None:
        return
    _, _, tag = image.rpartition("/")[2].partition(":")
    digest = "@sha256:" in image
    if tag in ("", "latest") and not digest:
        yield "image", image, "a fixed tag such as raypft:0.1.0-ray2.60.0, not latest"
    elif not digest and f"ray{definition.ray}" not in tag:
        yield "image", image, f"a tag that names Ray's version: ray{definition.ray}"


def secrets(definition: Any) -> Iterator[Complaint]:
    """No secret stands in a file that is checked in; files rendered from a definition copy its env."""
    for key in definition.env:
        if SECRET.search(key):
            hint = (
                "secrets: {KEY: SECRET/KEY}"
                if definition.kind == "kubernetes"
                else "the machine's own role, or a file on the nodes"
            )
            yield f"env.{key}", "a value", f"no secrets in env; use {hint}"
        if key.startswith("RAY_AUTH"):
            yield f"env.{key}", definition.env[key], "nothing: raypft sets it from auth"
    for key, value in getattr(definition, "secrets", {}).items():
        if not re.fullmatch(r"[-a-z0-9.]+/[-._a-zA-Z0-9]+", value):
            yield f"secrets.{key}", value, "SECRET/KEY, the name of a Secret and a key in it"


def onprem(definition: Any) -> Iterator[Complaint]:
    """Machines that are always there: one pool, as many nodes as addresses."""
    if definition.kind != "onprem":
        return
    addresses = definition.provider.worker_ips
    if len(definition.pools) != 1:
        yield "pools", ", ".join(definition.pools), "exactly one pool: Ray's on-prem launcher has one node type"
    for name, pool in definition.pools.items():
        if pool.max != len(addresses):
            yield f"pools.{name}.max", pool.max, f"{len(addresses)}, the number of provider.worker_ips"
    if len(set(addresses)) != len(addresses):
        yield "provider.worker_ips", addresses, "distinct addresses"
    if definition.provider.head_ip in addresses:
        yield "provider.head_ip", definition.provider.head_ip, "an address that is not among worker_ips"


def network(definition: Any) -> Iterator[Complaint]:
    """Nobody outside reaches the machines but from the named addresses; ports do not clash."""
    if definition.kind == "aws" and definition.provider.allowed_cidr.endswith("/0"):
        yield "provider.allowed_cidr", definition.provider.allowed_cidr, "your own addresses, e.g. 203.0.113.0/24"
    if definition.kind in ON_THIS_MACHINE and definition.port == definition.dashboard_port:
        yield "dashboard_port", definition.dashboard_port, f"a port other than port, {definition.port}"


def job(definition: Any) -> Iterator[Complaint]:
    """A job of fixed size takes nodes of a pool that has as many."""
    if definition.kind != "kubernetes":
        return
    asked = definition.job
    if asked.pool not in definition.pools:
        yield "job.pool", asked.pool, f"one of {', '.join(definition.pools)}"
    elif asked.nodes > definition.pools[asked.pool].max:
        yield "job.nodes", asked.nodes, f"at most pools.{asked.pool}.max, {definition.pools[asked.pool].max}"


RULES: tuple[Rule, ...] = (limits, gpus, spot, idle, storage, versions, secrets, onprem, network, job)


def complaints(definition: Definition) -> Iterator[Complaint]:
    """Every broken rule."""
    for rule in RULES:
        yield from rule(definition)


def complaint_lines(complaints: Iterable[Complaint]) -> list[str]:
    """Each as `key: found …; expected …`."""
    return [f"{key}: found {value!r}; expected {expected}" for key, value, expected in complaints]

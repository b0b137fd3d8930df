"""What a running cluster's autoscaler sees, and draining a node; needs Ray and the cluster's own address."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from raypft.cluster.client import find_token
from raypft.cluster.render.launcher import HEAD_TYPE
from raypft.errors import UserError, nearest
from raypft.scale.resources import Shape, bundle_text, impossible


def _authorized() -> None:
    token, _ = find_token()
    if token:
        # Ray sends a token only when told to
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


def cluster_status(address: str) -> Any:
    """The autoscaler's view: nodes, launches, what waits.

    Raises:
        UserError: no cluster answers at host:port.
    """
    _authorized()
    from ray.autoscaler.v2.sdk import get_cluster_status  # noqa: PLC0415

    try:
        return get_cluster_status(address)
    except Exception as error:  # Ray raises several kinds, all of them for a head that doesn't answer
        raise UserError(
            f"cluster: no Ray at {address}: {' '.join(str(error).split())[:200]}; is it up, and is the token right?"
        ) from None


def _type_name(ray_name: str) -> str:
    """A node's pool, or head: Ray calls it node_ID until the autoscaler has seen it, then by the launcher's default."""
    return "head" if ray_name.startswith("node_") or ray_name == HEAD_TYPE else ray_name


def status_lines(cluster: Any, shapes: list[Shape], where: str) -> list[str]:
    """Nodes, launches and what waits, each waiting shape with the reason."""
    lines = [
        f"{node.node_id or node.instance_id} {_type_name(node.ray_node_type_name)} {state}"
        for state, node in _nodes(cluster)
    ]
    lines += [f"starting: {launch.count} x {launch.ray_node_type_name}" for launch in cluster.pending_launches]
    lines += [
        f"failed to start: {launch.count} x {launch.ray_node_type_name}: {launch.details}"
        for launch in cluster.failed_launches
    ]
    for bundle, count in waiting(cluster):
        reason = impossible([bundle], shapes, where) if shapes else None
        why = f"never: {reason}" if reason else "for nodes to come or to be free"
        lines.append(f"waiting: {count} x {bundle_text(bundle)}: {why}")
    return lines


def _nodes(cluster: Any) -> Iterator[tuple[str, Any]]:
    """State and node of every node; the head once, though Ray may name it as joining beside what it is by now."""
    states = {"busy": cluster.active_nodes, "idle": cluster.idle_nodes, "joining": cluster.pending_nodes}
    has_head = False
    for state, nodes in states.items():
        for node in nodes:
            is_head = _type_name(node.ray_node_type_name) == "head"
            if not (is_head and has_head and state == "joining"):
                yield state, node
            has_head |= is_head


def waiting(cluster: Any) -> list[tuple[dict[str, float], int]]:
    """Bundles that are not placed, and how often each is asked for."""
    demands = cluster.resource_demands
    bundles: list[tuple[dict[str, float], int]] = []
    for demand in (*demands.ray_task_actor_demand, *demands.placement_group_demand):
        bundles += [(dict(asked.bundle), asked.count) for asked in demand.bundles_by_count]
    return bundles


def drain(address: str, node: str, seconds: int) -> str:
    """Tell a node that it will go, as a cloud tells a spot machine: work on it may save itself until the deadline.

    Args:
        node: the beginning of a node's id.

    Raises:
        UserError: no such node, or several.
    """
    ids = [one.node_id for _, one in _nodes(cluster_status(address)) if one.node_id]
    chosen = [one for one in ids if one.startswith(node)]
    if len(chosen) != 1:
        raise UserError(f'node "{node}": {len(chosen)} nodes begin so; {nearest(node, ids)}')
    from ray._raylet import GcsClient  # noqa: PLC0415  # pyright: ignore[reportAttributeAccessIssue]  # compiled
    from ray.core.generated import autoscaler_pb2  # noqa: PLC0415

    reasons = autoscaler_pb2.DrainNodeReason  # pyright: ignore[reportAttributeAccessIssue]  # made at import
    reason = reasons.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = GcsClient(address=address).drain_node(
        chosen[0], reason, "raypft cluster drain", int((time.time() + seconds) * 1000)
    )
    if not accepted:
        raise UserError(f"node {chosen[0]}: it can't be drained: {why}")
    return chosen[0]

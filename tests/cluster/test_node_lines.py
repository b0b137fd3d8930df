"""The lines of `raypft cluster status`, from what Ray's autoscaler says."""

from ray.autoscaler.v2 import schema

from raypft.cluster.nodes import status_lines
from raypft.cluster.render.launcher import HEAD_TYPE


def node(name: str, node_id: str, ray_status: str) -> schema.NodeInfo:
    return schema.NodeInfo(
        instance_type_name="",
        node_status=ray_status,
        node_id=node_id,
        instance_id=node_id,
        ip_address="127.0.0.1",
        ray_node_type_name=name,
    )


def test_a_head_that_joins_is_told_once():
    joining = node(HEAD_TYPE, "instance", "PENDING")
    assert status_lines(schema.ClusterStatus(pending_nodes=[joining]), [], "fake") == ["instance head joining"]
    known = schema.ClusterStatus(active_nodes=[node("node_ffff", "ffff", "RUNNING")], pending_nodes=[joining])
    assert status_lines(known, [], "fake") == ["ffff head busy"]


def test_workers_that_join_are_told_beside_the_head():
    cluster = schema.ClusterStatus(
        idle_nodes=[node(HEAD_TYPE, "a", "IDLE")],
        pending_nodes=[node("cpu", "b", "PENDING"), node("cpu", "c", "PENDING")],
    )
    assert status_lines(cluster, [], "fake") == ["a head idle", "b cpu joining", "c cpu joining"]

"""The files that Ray's own launcher (`ray up`, for clouds and machines of one's own) and its fake autoscaler read."""

from __future__ import annotations

import json
import shlex
from typing import Any

from raypft.cluster.definition import Definition, MachinePool, num_bytes

TOKEN_PATH = "/home/ray/.ray/auth_token"
"""In the container; `ray up` copies the user's own token there."""
FAKE_PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
FAKE_HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
HEAD_TYPE = "ray.head.default"
"""What Ray calls the head of its fake provider, and that node's type."""
STOP_SECONDS = 60
COUNTED = ("local", "fake")
"""Kinds of clusters whose nodes have the memory of this machine, whatever is said of it."""


def pools_text(definition: Any) -> str:
    """Pools and storage as one line of JSON, for $RAYPFT_CLUSTER: a job reads there which nodes may still come."""
    pools = {
        name: {
            "cpu": p.cpu,
            "gpu": p.gpu,
            "memory": num_bytes(p.memory) if definition.kind not in COUNTED else 0,
            "max": p.max,
            "spot": p.spot,
            "labels": p.labels,
            "resources": p.resources,
        }
        for name, p in definition.pools.items()
    }
    return json.dumps({"name": definition.name, "storage": definition.storage, "pools": pools}, sort_keys=True)


def environment(definition: Definition) -> dict[str, str]:
    """Variables every node of a cluster has."""
    return {"RAY_AUTH_MODE": definition.auth, **definition.env}


def launcher(definition: Any) -> dict[str, Any]:
    """The file for `ray up`."""
    head_only = ["--include-dashboard=true", "--dashboard-host=127.0.0.1", "--num-cpus=0", "--num-gpus=0"]
    run = ["--ulimit nofile=65536:65536", "--ipc=host", f"--env RAY_AUTH_TOKEN_PATH={TOKEN_PATH}"]
    run += [f"--env {shlex.quote(f'{key}={value}')}" for key, value in sorted(environment(definition).items())]
    gpu = definition.kind == "onprem" and any(pool.gpu for pool in definition.pools.values())
    made = {
        "cluster_name": definition.name,
        "max_workers": sum(pool.max for pool in definition.pools.values()),
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 10,
        "provider": PROVIDERS[definition.kind](definition),
        "auth": _ssh(definition),
        "docker": {
            "image": definition.image,
            "container_name": "raypft",
            "pull_before_run": True,
            "run_options": run,
            "head_run_options": [
                "--env RAY_enable_autoscaler_v2=1",
                f"--env {shlex.quote(f'RAYPFT_CLUSTER={pools_text(definition)}')}",
            ],
            "worker_run_options": ["--gpus=all"] if gpu else [],
        },
        "file_mounts": {TOKEN_PATH: "~/.ray/auth_token"},
        "head_start_ray_commands": [
            "ray stop",
            _start("--head", "--port=6379", "--autoscaling-config=~/ray_bootstrap_config.yaml", *head_only),
        ],
        "worker_start_ray_commands": ["ray stop", _start("--address=$RAY_HEAD_IP:6379")],
    }
    if definition.kind != "onprem":
        made["head_node_type"] = "head"
        made["available_node_types"] = {
            "head": {
                "resources": {"CPU": 0},
                "node_config": NODES[definition.kind](definition, definition.head),
                "max_workers": 0,
            },
            **{name: _node_type(definition, pool) for name, pool in definition.pools.items()},
        }
    return made


def _start(*words: str) -> str:
    return " ".join(["ulimit -n 65536;", "ray start", *words, "--disable-usage-stats"])


def _ssh(definition: Any) -> dict[str, str]:
    key = getattr(definition.provider, "ssh_private_key", None)
    return {"ssh_user": definition.ssh_user, **({"ssh_private_key": key} if key else {})}


def _node_type(definition: Any, pool: MachinePool) -> dict[str, Any]:
    resources = {
        "CPU": pool.cpu,
        "memory": num_bytes(pool.memory) * 7 // 10,
        **({"GPU": pool.gpu} if pool.gpu else {}),
        **pool.resources,
    }
    market = "spot" if pool.spot else "on-demand"
    return {
        "resources": resources,
        "node_config": NODES[definition.kind](definition, pool),
        "min_workers": pool.min,
        "max_workers": pool.max,
        "idle_timeout_s": pool.idle_timeout_s,
        "priority": pool.priority,
        "labels": {"ray.io/market-type": market, **pool.labels},
        **({"docker": {"worker_run_options": ["--gpus=all"]}} if pool.gpu else {}),
    }


def _aws_provider(definition: Any) -> dict[str, Any]:
    where = definition.provider
    ssh = {"FromPort": 22, "ToPort": 22, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": where.allowed_cidr}]}
    return {
        "type": "aws",
        "region": where.region,
        "availability_zone": ",".join(where.zones),
        "cache_stopped_nodes": False,
        "security_group": {"GroupName": definition.name, "IpPermissions": [ssh]},
    }


def _aws_node(definition: Any, node: Any) -> dict[str, Any]:
    disk = {
        "DeviceName": "/dev/sda1",
        "Ebs": {"VolumeSize": node.disk_gb, "VolumeType": "gp3", "Encrypted": True, "DeleteOnTermination": True},
    }
    made: dict[str, Any] = {
        "InstanceType": node.instance,
        "ImageId": definition.provider.machine_image,
        "BlockDeviceMappings": [disk],
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
    }
    if isinstance(node, MachinePool):
        made["IamInstanceProfile"] = {"Name": definition.provider.instance_profile}
    return made | ({"InstanceMarketOptions": {"MarketType": "spot"}} if getattr(node, "spot", False) else {})


def _gcp_provider(definition: Any) -> dict[str, Any]:
    where = definition.provider
    return {"type": "gcp", "region": where.region, "availability_zone": where.zone, "project_id": where.project}


def _gcp_node(definition: Any, node: Any) -> dict[str, Any]:
    disk = {"boot": True, "autoDelete": True, "type": "PERSISTENT"}
    disk["initializeParams"] = {"diskSizeGb": node.disk_gb, "sourceImage": definition.provider.machine_image}
    scheduling: dict[str, Any] = {"onHostMaintenance": "TERMINATE"} if getattr(node, "gpu", 0) else {}
    if getattr(node, "spot", False):
        scheduling |= {
            "provisioningModel": "SPOT",
            "instanceTerminationAction": "DELETE",
            "onHostMaintenance": "TERMINATE",
        }
    account = {
        "email": definition.provider.service_account,
        "scopes": ["https://www.googleapis.com/auth/cloud-platform"],
    }
    rights = {"serviceAccounts": [account]} if isinstance(node, MachinePool) else {}
    return {
        "machineType": node.instance,
        "disks": [disk],
        **rights,
        **({"scheduling": scheduling} if scheduling else {}),
    }


def _azure_provider(definition: Any) -> dict[str, Any]:
    return {
        "type": "azure",
        "location": definition.provider.location,
        "resource_group": definition.provider.resource_group,
        "cache_stopped_nodes": False,
    }


def _azure_node(definition: Any, node: Any) -> dict[str, Any]:
    where = definition.provider
    picture = {
        "imagePublisher": where.publisher,
        "imageOffer": where.offer,
        "imageSku": where.sku,
        "imageVersion": where.version,
    }
    market = {"priority": "Spot", "billingProfile": {"maxPrice": -1}} if getattr(node, "spot", False) else {}
    return {"azure_arm_parameters": {"vmSize": node.instance, "osDiskSizeGB": node.disk_gb, **picture, **market}}


def _onprem_provider(definition: Any) -> dict[str, Any]:
    return {"type": "local", "head_ip": definition.provider.head_ip, "worker_ips": list(definition.provider.worker_ips)}


PROVIDERS = {"aws": _aws_provider, "gcp": _gcp_provider, "azure": _azure_provider, "onprem": _onprem_provider}
NODES = {"aws": _aws_node, "gcp": _gcp_node, "azure": _azure_node}

NO_DEFAULTS = (
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
"""Lists that an external provider's file must name, empty ones too."""


def fake(definition: Any) -> dict[str, Any]:
    """The autoscaler's file for nodes that are processes of this machine.

    An external provider has no defaults, so every key stands here.
    """
    types = {name: _fake_type(definition, pool) for name, pool in definition.pools.items()}
    return {
        "cluster_name": definition.name,
        "max_workers": sum(pool.max for pool in definition.pools.values()),
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": min(pool.idle_timeout_s for pool in definition.pools.values()) / 60,
        "provider": {
            "type": "external",
            "module": FAKE_PROVIDER,
            "gcs_address": f"127.0.0.1:{definition.port}",
            "head_node_id": FAKE_HEAD,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
        },
        "head_node_type": HEAD_TYPE,
        "available_node_types": {HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}, **types},
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{key: [] for key in NO_DEFAULTS},
    }


def _fake_type(definition: Any, pool: Any) -> dict[str, Any]:
    gpu = {"GPU": pool.gpu} if pool.gpu else {}
    memory = {"object_store_memory": num_bytes(definition.object_store)}
    return {
        "resources": {"CPU": pool.cpu, **gpu, **memory, **pool.resources},
        "node_config": {},
        "min_workers": pool.min,
        "max_workers": pool.max,
        "idle_timeout_s": pool.idle_timeout_s,
        "priority": pool.priority,
        "labels": pool.labels,
    }

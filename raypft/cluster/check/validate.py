"""`raypft cluster validate`: what is wrong with a definition, a launcher file or a manifest, without a cluster."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from raypft.cluster.check.rules import Complaint, complaint_lines, complaints
from raypft.cluster.check.schema import manifest_schemas, schema_lines
from raypft.cluster.check.security import clusters, launcher_complaints, manifest_complaints
from raypft.cluster.definition import make, read_yaml
from raypft.cluster.render.targets import rendered
from raypft.errors import UserError, nearest


def validate(path: Path) -> list[str]:
    """What is wrong with a file, a line each: file, key, found, expected. Empty when nothing is.

    Raises:
        UserError: no such file, or not YAML.
    """
    values = read_yaml(path)
    if isinstance(values, dict) and "apiVersion" in values:
        return [f"{path}: {line}" for line in manifest_lines(values)]
    if isinstance(values, dict) and "cluster_name" in values:
        return [f"{path}: {line}" for line in launcher_lines(values)]
    try:
        definition = make(values, str(path))
    except UserError as error:
        return [str(error)]
    lines = [f"{path}: {line}" for line in complaint_lines(complaints(definition))]
    if lines:
        return lines
    for target, text in rendered(definition).items():
        lines += [f"{path} -> {target}: {line}" for line in text_lines(text)]
    return lines


def text_lines(text: str) -> list[str]:
    """What is wrong with a rendered file."""
    values = yaml.safe_load(text)
    return manifest_lines(values) if "apiVersion" in values else launcher_lines(values)


def manifest_lines(values: dict[str, Any]) -> list[str]:
    """Schema, then what the operator refuses or a stranger could use."""
    schemas = manifest_schemas()
    kind = values.get("kind")
    if kind not in schemas:
        return [f"kind: found {kind!r}; {nearest(str(kind), schemas)}"]
    lines = schema_lines(schemas[kind], values)
    return lines or complaint_lines([*_operator(values), *manifest_complaints(values)])


def launcher_lines(config: dict[str, Any]) -> list[str]:
    """Ray's schema and own validator, the rules they miss, then what a stranger could use."""
    lines = schema_lines(_launcher_schema(), config)
    if lines:
        return lines
    # what only `ray up` needs stays out of start-up
    from ray.autoscaler._private.util import prepare_config, validate_config  # noqa: PLC0415

    if config["provider"]["type"] != "external":  # has no defaults: its file is whole
        try:
            validate_config(prepare_config(copy.deepcopy(config)))
        except Exception as error:  # Ray raises many kinds; its line is the answer
            return [" ".join(str(error).split("\n\n")[0].split())]
    security = [] if config["provider"]["type"] == "external" else launcher_complaints(config)
    return complaint_lines([*_launcher(config), *security])


def _launcher_schema() -> dict[str, Any]:
    import ray.autoscaler  # noqa: PLC0415

    return json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))


def _launcher(config: dict[str, Any]) -> Iterator[Complaint]:
    """What Ray's validator lets through."""
    types = config.get("available_node_types", {})
    for name, node in types.items():
        least, most = node.get("min_workers", 0), node.get("max_workers", config.get("max_workers", 0))
        if least > most:
            yield f"available_node_types.{name}.min_workers", least, f"at most max_workers, {most}"
    total = sum(node.get("max_workers", 0) for node in types.values())
    if types and config.get("max_workers", total) < total:
        yield "max_workers", config["max_workers"], f"{total}, the sum over the node types: the rest could never start"
    head = types.get(config.get("head_node_type", ""), {})
    if head.get("resources", {}).get("GPU"):
        yield (
            f"available_node_types.{config['head_node_type']}.resources.GPU",
            head["resources"]["GPU"],
            "no GPU on the head: it is never released",
        )


def _operator(values: dict[str, Any]) -> Iterator[Complaint]:
    """What KubeRay's operator refuses or ignores."""
    spec = values["spec"].get("jobTemplate", values["spec"])
    if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
        yield (
            "spec.ttlSecondsAfterFinished",
            spec["ttlSecondsAfterFinished"],
            "shutdownAfterJobFinishes: true beside it, else it does nothing",
        )
    queued = "kueue.x-k8s.io/queue-name" in values["metadata"].get("labels", {})
    for key, cluster in clusters(values):
        scaled = cluster.get("enableInTreeAutoscaling", False)
        if queued and scaled:
            yield f"{key}.enableInTreeAutoscaling", True, "false under Kueue, which takes quota for the declared size"
        if cluster["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
            yield (
                f"{key}.headGroupSpec.rayStartParams.num-cpus",
                cluster["headGroupSpec"]["rayStartParams"].get("num-cpus"),
                "'0': the head runs drivers only",
            )
        names = [group["groupName"] for group in cluster["workerGroupSpecs"]]
        if len(set(names)) != len(names):
            yield f"{key}.workerGroupSpecs", names, "distinct groupName"
        for i, group in enumerate(cluster["workerGroupSpecs"]):
            yield from _group(f"{key}.workerGroupSpecs.{i}", group)


def _group(key: str, group: dict[str, Any]) -> Iterator[Complaint]:
    if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
        yield (
            f"{key}.replicas",
            group["replicas"],
            f"between minReplicas {group['minReplicas']} and maxReplicas {group['maxReplicas']}",
        )
    spec = group["template"]["spec"]
    mounted: set[str] = set()
    for container in spec["containers"]:
        mounted |= {mount["name"] for mount in container.get("volumeMounts", [])}
    for name in sorted(mounted - {volume["name"] for volume in spec.get("volumes", [])}):
        yield f"{key}.template.spec.volumes", None, f"a volume {name}, which is mounted"
    gpu = any("nvidia.com/gpu" in container["resources"].get("limits", {}) for container in spec["containers"])
    memory = any(volume.get("emptyDir", {}).get("medium") == "Memory" for volume in spec.get("volumes", []))
    if gpu and not memory:
        yield (
            f"{key}.template.spec.volumes",
            "no memory volume",
            "an emptyDir with medium: Memory at /dev/shm, for NCCL",
        )
    if gpu and not any(t.get("key") == "nvidia.com/gpu" for t in spec.get("tolerations", [])):
        yield f"{key}.template.spec.tolerations", None, "a toleration of nvidia.com/gpu: GPU nodes are tainted"

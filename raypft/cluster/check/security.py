"""Security of the files that start clusters: launcher files and Kubernetes manifests, raypft's own or anyone's.

A job server without a token runs anyone's code (CVE-2023-48022), so each rule names what lets a stranger in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from raypft.cluster.check.rules import SECRET, Complaint

RAY_PORTS = (6379, 8265, 10001)


def image_complaints(key: str, image: Any) -> Iterator[Complaint]:
    """An image that may change under a running cluster."""
    tag = str(image).rpartition("/")[2].partition(":")[2]
    if tag in ("", "latest") and "@sha256:" not in str(image):
        yield key, image, "a fixed tag or digest, not latest"


def launcher_complaints(config: dict[str, Any]) -> Iterator[Complaint]:
    """What lets a stranger in through a file for `ray up`."""
    docker = config.get("docker") or {}
    for key in ("image", "head_image", "worker_image"):
        if key in docker:
            yield from image_complaints(f"docker.{key}", docker[key])
    options = " ".join(docker.get("run_options", []) + docker.get("head_run_options", []))
    if "--privileged" in options:
        yield "docker.run_options", "--privileged", "no privileged container"
    for i, command in enumerate(config.get("head_start_ray_commands", [])):
        if "ray start" not in command:
            continue
        key = f"head_start_ray_commands.{i}"
        if "RAY_AUTH_MODE=token" not in command + options:
            yield (
                key,
                "no RAY_AUTH_MODE=token",
                "a start with token auth (docker.run_options: --env RAY_AUTH_MODE=token)",
            )
        yield from _dashboard(key, command)
    permissions = ((config.get("provider") or {}).get("security_group") or {}).get("IpPermissions", [])
    for i, rule in enumerate(permissions):
        world = [r["CidrIp"] for r in rule.get("IpRanges", []) if r.get("CidrIp", "").endswith("/0")]
        if world:
            yield (
                f"provider.security_group.IpPermissions.{i}",
                world[0],
                "your own addresses: this opens the port to everyone",
            )
        if any(rule.get("FromPort", 0) <= port <= rule.get("ToPort", 65535) for port in RAY_PORTS) and rule.get(
            "IpRanges"
        ):
            yield (
                f"provider.security_group.IpPermissions.{i}",
                rule.get("FromPort"),
                "no rule for Ray's ports: use an SSH tunnel (ray dashboard)",
            )
    if "RAY_AUTH_TOKEN=" in options:
        yield (
            "docker.run_options",
            "RAY_AUTH_TOKEN",
            "RAY_AUTH_TOKEN_PATH and a file_mount: options are readable to every user of the machine",
        )


def _dashboard(key: str, command: str) -> Iterator[Complaint]:
    host = re.search(r"--dashboard-host[= ](\S+)", command)
    if host and host[1] not in ("127.0.0.1", "localhost"):
        yield key, f"--dashboard-host={host[1]}", "127.0.0.1; reach it through an SSH tunnel (ray dashboard)"


def manifest_complaints(values: dict[str, Any]) -> Iterator[Complaint]:
    """What lets a stranger in through a Ray object on Kubernetes; other kinds have nothing to find."""
    for key, cluster in clusters(values):
        if (cluster.get("authOptions") or {}).get("mode") != "token":
            yield f"{key}.authOptions.mode", (cluster.get("authOptions") or {}).get("mode"), "token"
        head = cluster["headGroupSpec"]
        if head.get("enableIngress"):
            yield f"{key}.headGroupSpec.enableIngress", True, "no ingress: reach it with kubectl port-forward"
        if head.get("serviceType", "ClusterIP") != "ClusterIP":
            yield (
                f"{key}.headGroupSpec.serviceType",
                head["serviceType"],
                "ClusterIP: reach it with kubectl port-forward",
            )
        for place, group in [("headGroupSpec", head)] + [
            (f"workerGroupSpecs.{i}", g) for i, g in enumerate(cluster["workerGroupSpecs"])
        ]:
            yield from _pod(f"{key}.{place}.template.spec", group["template"]["spec"], head=place == "headGroupSpec")


def clusters(values: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Key and value of the cluster specifications in a Ray object."""
    spec, kind = values.get("spec", {}), values.get("kind")
    if kind == "RayCluster":
        return [("spec", spec)]
    if kind == "RayJob":
        return [("spec.rayClusterSpec", spec["rayClusterSpec"])]
    return [("spec.jobTemplate.rayClusterSpec", spec["jobTemplate"]["rayClusterSpec"])] if kind == "RayCronJob" else []


def _pod(key: str, pod: dict[str, Any], head: bool) -> Iterator[Complaint]:
    for flag in ("hostNetwork", "hostPID"):
        if pod.get(flag):
            yield f"{key}.{flag}", True, "false"
    if not (pod.get("securityContext") or {}).get("runAsNonRoot"):
        yield f"{key}.securityContext.runAsNonRoot", None, "true"
    if not head and pod.get("automountServiceAccountToken", True):
        yield (
            f"{key}.automountServiceAccountToken",
            pod.get("automountServiceAccountToken"),
            "false: workers need no access to the API server",
        )
    for i, container in enumerate(pod["containers"]):
        place = f"{key}.containers.{i}"
        yield from image_complaints(f"{place}.image", container["image"])
        rights = container.get("securityContext") or {}
        if rights.get("privileged") or rights.get("allowPrivilegeEscalation", True):
            yield (
                f"{place}.securityContext.allowPrivilegeEscalation",
                rights.get("allowPrivilegeEscalation"),
                "false, and no privileged container",
            )
        for j, variable in enumerate(container.get("env", [])):
            if SECRET.search(variable["name"]) and "value" in variable:
                yield (
                    f"{place}.env.{j}.{variable['name']}",
                    "a value",
                    "valueFrom.secretKeyRef: whoever reads the manifest reads the secret",
                )

"""Manifests for Kubernetes: RayCluster, RayJob, RayCronJob (KubeRay 1.7), Kueue, volume claim, network policy."""

from __future__ import annotations

import shlex
from typing import Any

from raypft.cluster.definition import Kubernetes, PodPool
from raypft.cluster.render.launcher import STOP_SECONDS, environment, pools_text

API = "ray.io/v1"
SECURE = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
USER = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "runAsGroup": 100,
    "fsGroup": 100,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTROL_CPU, CONTROL_MEMORY = "1", "1Gi"
"""Of the autoscaler's container; the operator's default of half a core falls behind with many pending pods."""


def raycluster(definition: Kubernetes) -> dict[str, Any]:
    """A cluster that stays until it is deleted, growing and shrinking with what is asked of it."""
    return {
        "apiVersion": API,
        "kind": "RayCluster",
        "metadata": _meta(definition),
        "spec": _spec(definition, scaled=True),
    }


def rayjob(definition: Kubernetes) -> dict[str, Any]:
    """One command on a cluster of its own, which goes when the command ends."""
    return {"apiVersion": API, "kind": "RayJob", "metadata": _meta(definition), "spec": _job(definition, scaled=True)}


def raycronjob(definition: Kubernetes) -> dict[str, Any]:
    """The job at the times of a schedule; the operator's feature gate RayCronJob must be on."""
    spec = {
        "schedule": definition.job.schedule,
        "timeZone": "Etc/UTC",
        "suspend": False,
        "jobTemplate": _job(definition, scaled=True),
    }
    return {"apiVersion": API, "kind": "RayCronJob", "metadata": _meta(definition), "spec": spec}


def kueue(definition: Kubernetes) -> dict[str, Any]:
    """The job with all its nodes at once, admitted by Kueue; of a fixed size: quota is for the declared one."""
    meta = _meta(definition)
    meta["labels"] = {**meta["labels"], "kueue.x-k8s.io/queue-name": definition.queue}
    return {
        "apiVersion": API,
        "kind": "RayJob",
        "metadata": meta,
        "spec": {**_job(definition, scaled=False), "suspend": True},
    }


def pvc(definition: Kubernetes) -> dict[str, Any]:
    """The volume that runs and caches lie on."""
    claim = definition.claim
    spec = {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": claim.storage_class,
        "resources": {"requests": {"storage": claim.size}},
    }
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": _meta(definition), "spec": spec}


def networkpolicy(definition: Kubernetes) -> dict[str, Any]:
    """Only the cluster's own pods, the operator and the job's submitter reach it; what it reaches is left open."""
    ours = {"podSelector": {"matchLabels": {"app.kubernetes.io/part-of": definition.name}}}
    submitter = {"podSelector": {"matchLabels": {"ray.io/originated-from-crd": "RayJob"}}}
    operator = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}}
    dashboard = {"from": [operator, submitter], "ports": [{"protocol": "TCP", "port": 8265}]}
    spec = {"podSelector": ours["podSelector"], "policyTypes": ["Ingress"], "ingress": [{"from": [ours]}, dashboard]}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": _meta(definition), "spec": spec}


def _meta(definition: Kubernetes) -> dict[str, Any]:
    return {
        "name": definition.name,
        "namespace": definition.namespace,
        "labels": {"app.kubernetes.io/part-of": definition.name},
    }


def _job(definition: Kubernetes, scaled: bool) -> dict[str, Any]:
    job = definition.job
    return {
        "entrypoint": shlex.join(["python", "-m", "raypft.cli", *job.command]),
        "submissionMode": "K8sJobMode",
        "backoffLimit": job.retries,
        "activeDeadlineSeconds": job.deadline_s,
        "preRunningDeadlineSeconds": job.start_deadline_s,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": job.keep_s,
        "runtimeEnvYAML": f'env_vars:\n  RAY_JOB_STOP_WAIT_TIME_S: "{STOP_SECONDS}"\n',
        "rayClusterSpec": _spec(definition, scaled),
    }


def _spec(definition: Kubernetes, scaled: bool) -> dict[str, Any]:
    made: dict[str, Any] = {
        "rayVersion": definition.ray,
        "authOptions": {"mode": definition.auth},
        "enableInTreeAutoscaling": scaled,
    }
    if scaled:
        size = {"cpu": CONTROL_CPU, "memory": CONTROL_MEMORY}
        made["autoscalerOptions"] = {
            "version": "v2",
            "idleTimeoutSeconds": 600,
            "upscalingMode": "Default",
            "resources": {"requests": size, "limits": size},
            "securityContext": SECURE,
        }
    made["headGroupSpec"] = {
        "serviceType": "ClusterIP",
        "rayStartParams": {"num-cpus": "0", "num-gpus": "0"},
        "template": _template(definition, "head", definition.head, None),
    }
    groups = definition.pools.items()
    made["workerGroupSpecs"] = [
        _group(definition, name, pool, scaled) for name, pool in groups if scaled or name == definition.job.pool
    ]
    return made


def _group(definition: Kubernetes, name: str, pool: PodPool, scaled: bool) -> dict[str, Any]:
    least, most = (pool.min, pool.max) if scaled else (definition.job.nodes, definition.job.nodes)
    made: dict[str, Any] = {"groupName": name, "replicas": least, "minReplicas": least, "maxReplicas": most}
    if scaled:
        made |= {"idleTimeoutSeconds": pool.idle_timeout_s, "priority": pool.priority}
    market = "spot" if pool.spot else "on-demand"
    made["labels"] = {"ray.io/market-type": market, **pool.labels}
    if pool.resources:  # then the only source of a group's resources but CPU, GPU and memory
        made["resources"] = {key: str(value) for key, value in pool.resources.items()}
    return made | {"rayStartParams": {}, "template": _template(definition, "worker", pool, pool)}


def _template(definition: Kubernetes, role: str, size: Any, pool: PodPool | None) -> dict[str, Any]:
    gpus = {"nvidia.com/gpu": str(pool.gpu)} if pool and pool.gpu else {}
    amounts = {"cpu": str(size.cpu), "memory": size.memory, **gpus}
    mounts = [{"name": "runs", "mountPath": definition.claim.mount}]
    volumes: list[dict[str, Any]] = [{"name": "runs", "persistentVolumeClaim": {"claimName": definition.name}}]
    if pool and pool.shm:
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": pool.shm}})
    container: dict[str, Any] = {
        "name": f"ray-{role}",
        "image": definition.image,
        "env": _env(definition, role),
        "resources": {"requests": amounts, "limits": amounts},
        "volumeMounts": mounts,
        "securityContext": SECURE,
    }
    if role == "head":
        container["ports"] = [
            {"name": n, "containerPort": p} for n, p in (("gcs", 6379), ("dashboard", 8265), ("client", 10001))
        ]
    spec: dict[str, Any] = {
        "containers": [container],
        "volumes": volumes,
        "securityContext": USER,
        "terminationGracePeriodSeconds": 120,
    }
    if pool:
        spec["automountServiceAccountToken"] = False
        spec |= _placement(definition, pool)
    return {"metadata": {"labels": {"app.kubernetes.io/part-of": definition.name}}, "spec": spec}


def _placement(definition: Kubernetes, pool: PodPool) -> dict[str, Any]:
    selector = {**pool.node_selector, **(definition.spot_selector if pool.spot else {})}
    tolerated = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}] if pool.gpu else []
    if pool.spot:
        tolerated += [
            {"key": k, "operator": "Equal", "value": v, "effect": "NoSchedule"}
            for k, v in definition.spot_selector.items()
        ]
    return {**({"nodeSelector": selector} if selector else {}), **({"tolerations": tolerated} if tolerated else {})}


def _env(definition: Kubernetes, role: str) -> list[dict[str, Any]]:
    # RAY_AUTH_MODE and the token are put in by the operator from authOptions
    plain = {key: value for key, value in environment(definition).items() if key != "RAY_AUTH_MODE"}
    plain |= {"RAYPFT_CLUSTER": pools_text(definition)} if role == "head" else {}
    made: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in sorted(plain.items())]
    for key, place in sorted(definition.secrets.items()):
        name, _, entry = place.partition("/")
        made.append({"name": key, "valueFrom": {"secretKeyRef": {"name": name, "key": entry}}})
    return made

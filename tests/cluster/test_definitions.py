"""Shipped cluster definitions are valid, what is rendered of them is checked in, every mistake in one is one line."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from raypft.cli import app, main
from raypft.cluster.check.validate import launcher_lines, manifest_lines, validate
from raypft.cluster.definition import KINDS, load
from raypft.cluster.render.targets import rendered
from raypft.errors import UserError

FOLDER = Path(__file__).parents[2] / "cluster"
DEFINITIONS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
RENDERED = sorted((FOLDER / "rendered").glob("*.yaml"))
DELETE = object()


def changed(values: dict, key: str, value: object) -> dict:
    """A copy with the value at a dotted key replaced, added or deleted."""
    made = copy.deepcopy(values)
    here, parts = made, [int(part) if part.isdigit() else part.replace("|", ".") for part in key.split(".")]
    for part in parts[:-1]:
        here = here[part]
    if value is DELETE:
        del here[parts[-1]]
    else:
        here[parts[-1]] = value
    return made


def test_there_is_a_definition_of_every_kind():
    assert sorted(KINDS) == DEFINITIONS


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_shipped_definition_is_valid(name):
    assert validate(FOLDER / f"{name}.yaml") == []


@pytest.mark.parametrize("path", RENDERED, ids=lambda path: path.stem)
def test_a_rendered_file_is_valid(path):
    assert validate(path) == []


def test_rendered_files_are_what_the_definitions_give():
    made = {}
    for name in DEFINITIONS:
        made |= {f"{name}.{target}.yaml": text for target, text in rendered(load(FOLDER / f"{name}.yaml")).items()}
    assert made == {path.name: path.read_text() for path in RENDERED}


MUTATIONS = [
    # definition, key, new value, what the line says
    ("aws", "kind", "aw", "kind: found 'aw'; did you mean \"aws\"?"),
    ("aws", "kind", DELETE, 'key "kind" is missing; one of aws, azure'),
    ("aws", "name", "Raypft_1", "name: found 'Raypft_1'; string should match pattern"),
    ("aws", "ray", "2.59.0", "ray: found '2.59.0'; expected 2.60.0, the version installed here"),
    ("aws", "ray", 2.6, "ray: found 2.6; input should be a valid string"),
    ("aws", "image", "raypft:latest", "image: found 'raypft:latest'; expected a fixed tag"),
    ("aws", "image", "registry:5000/raypft", "image: found 'registry:5000/raypft'; expected a fixed tag"),
    ("aws", "image", "raypft:0.1.0-ray2.59.0", "expected a tag that names Ray's version: ray2.60.0"),
    ("aws", "auth", "none", "auth: found 'none'; input should be 'token'"),
    ("aws", "storage", "/tmp/runs", "storage: found '/tmp/runs'; expected a URI"),
    ("aws", "head.gpu", 1, 'unknown key "head.gpu"; did you mean "cpu"? known: cpu, disk_gb, instance, memory'),
    ("aws", "head.instance", DELETE, 'key "head.instance" is missing'),
    ("aws", "pools", {}, "pools: found 'none'; expected at least one pool"),
    ("aws", "pools.gpu1.cpus", 4, 'unknown key "pools.gpu1.cpus"; did you mean "cpu"?'),
    ("aws", "pools.gpu1.cpu", "16", "pools.gpu1.cpu: found '16'; input should be a valid integer"),
    ("aws", "pools.gpu1.cpu", 0, "pools.gpu1.cpu: found 0; input should be greater than or equal to 1"),
    ("aws", "pools.gpu1.gpu", 0.5, "pools.gpu1.gpu: found 0.5; input should be a valid integer"),
    ("aws", "pools.gpu1.memory", "64GB", "pools.gpu1.memory: found '64GB'; string should match pattern"),
    ("aws", "pools.gpu1.min", 5, "pools.gpu1.min: found 5; expected at most its max, 4"),
    ("aws", "pools.gpu1.gpu_type", DELETE, "pools.gpu1.gpu_type: found None; expected the GPU's name"),
    ("aws", "pools.gpu1.gpu", 0, "pools.gpu1.gpu_type: found 'L4'; expected no gpu_type"),
    ("aws", "pools.gpu1.spot", "yes", "pools.gpu1.spot: found 'yes'; input should be a valid boolean"),
    ("aws", "pools.gpu1-spot.min", 1, "pools.gpu1-spot.min: found 1; expected 0 on a spot pool"),
    (
        "aws",
        "pools.gpu1-spot.priority",
        0,
        "pools.gpu1-spot.priority: found 0; expected more than its on-demand twin's",
    ),
    ("aws", "pools.gpu1.idle_timeout_s", 5, "pools.gpu1.idle_timeout_s: found 5; expected 60 or more"),
    ("aws", "pools.gpu8.idle_timeout_s", 86400, "pools.gpu8.idle_timeout_s: found 86400; expected 3600 or less"),
    ("aws", "pools.gpu1.labels.pool", 1, "pools.gpu1.labels.pool: found 1; input should be a valid string"),
    ("aws", "provider.regoin", "x", 'unknown key "provider.regoin"; did you mean "region"?'),
    (
        "aws",
        "provider.allowed_cidr",
        "0.0.0.0/0",
        "provider.allowed_cidr: found '0.0.0.0/0'; expected your own addresses",
    ),
    ("aws", "env.HF_TOKEN", "hf_x", "env.HF_TOKEN: found 'a value'; expected no secrets in env"),
    ("aws", "env.RAY_AUTH_MODE", "disabled", "env.RAY_AUTH_MODE: found 'disabled'; expected nothing"),
    ("gcp", "provider.service_account", "me", "provider.service_account: found 'me'; string should match pattern"),
    ("azure", "provider.version", "latest", "provider.version: found 'latest'; string should match pattern"),
    ("onprem", "pools.machines.max", 3, "pools.machines.max: found 3; expected 2, the number of provider.worker_ips"),
    ("onprem", "pools.machines.spot", True, "pools.machines.spot: found True; expected false"),
    (
        "onprem",
        "pools.more",
        {"cpu": 1, "memory": "1Gi", "max": 2},
        "pools: found 'machines, more'; expected exactly one pool",
    ),
    (
        "onprem",
        "provider.head_ip",
        "192.0.2.11",
        "provider.head_ip: found '192.0.2.11'; expected an address that is not among",
    ),
    (
        "onprem",
        "provider.worker_ips",
        ["192.0.2.11", "192.0.2.11"],
        "provider.worker_ips: found ['192.0.2.11', '192.0.2.11']; expected distinct",
    ),
    ("onprem", "storage", "/home/me/runs", "storage: found '/home/me/runs'; expected a folder that all machines mount"),
    ("kubernetes", "pools.gpu1.shm", DELETE, "pools.gpu1.shm: found None; expected a size such as 16Gi"),
    ("kubernetes", "pools.gpu1.shm", "48Gi", "pools.gpu1.shm: found '48Gi'; expected at most half of memory"),
    ("kubernetes", "pools.gpu1.instance", "g6", 'unknown key "pools.gpu1.instance"'),
    (
        "kubernetes",
        "pools.head",
        {"cpu": 1, "memory": "1Gi", "max": 1},
        "pools.head: found 'head'; expected a name other than head",
    ),
    ("kubernetes", "storage", "/mnt/other", "storage: found '/mnt/other'; expected a folder below claim.mount"),
    ("kubernetes", "spot_selector", {}, "spot_selector: found {}; expected the label that marks spot nodes"),
    ("kubernetes", "job.pool", "gpu2", "job.pool: found 'gpu2'; expected one of cpu-data, gpu1, gpu1-spot, gpu8"),
    ("kubernetes", "job.nodes", 9, "job.nodes: found 9; expected at most pools.gpu1.max, 4"),
    ("kubernetes", "job.schedule", "daily", "job.schedule: found 'daily'; string should match pattern"),
    ("kubernetes", "secrets.HF_TOKEN", "hf_x", "secrets.HF_TOKEN: found 'hf_x'; expected SECRET/KEY"),
    ("local", "cpu", DELETE, 'key "cpu" is missing'),
    ("local", "port", 80, "port: found 80; input should be greater than or equal to 1024"),
    ("local", "dashboard_port", 26379, "dashboard_port: found 26379; expected a port other than port"),
    (
        "fake",
        "pools.gpu1.spot",
        True,
        "pools.gpu1.spot: found True; expected false: a fake cluster has no spot machines",
    ),
]


@pytest.mark.parametrize(
    ("name", "key", "value", "line"), MUTATIONS, ids=[f"{m[0]}-{m[1]}-{i}" for i, m in enumerate(MUTATIONS)]
)
def test_a_mistake_in_a_definition_is_one_line(name, key, value, line, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(changed(yaml.safe_load((FOLDER / f"{name}.yaml").read_text()), key, value)))
    lines = validate(path)
    assert any(line in one for one in lines), lines
    assert all(one.startswith(str(path)) and "\n" not in one for one in lines)


def test_a_pod_template_with_a_mistake_is_named():
    values = yaml.safe_load((FOLDER / "rendered/kubernetes.rayjob.yaml").read_text())
    container = "spec.rayClusterSpec.headGroupSpec.template.spec.containers.0"
    for key, value, line in [
        (
            f"{container}.imagePullPolcy",
            "Always",
            f'unknown key "{container}.imagePullPolcy"; did you mean "imagePullPolicy"?',
        ),
        (f"{container}.env.0.value", 1, f"{container}.env.0.value: found 1; expected of type string"),
        (
            f"{container}.resources.limits.memory",
            "16 GB",
            f"{container}.resources.limits.memory: found '16 GB'; expected text like",
        ),
        (f"{container}.image", DELETE, f'key "{container}.image" is missing'),
        ("spec.submissionMode", "K8s", "spec.submissionMode: found 'K8s'; expected one of K8sJobMode"),
        (
            "spec.rayClusterSpec.workerGroupSpecs.1.replicas",
            -1,
            "spec.rayClusterSpec.workerGroupSpecs.1.replicas: found -1; expected 0 or more",
        ),
        ("apiVersion", "ray.io/v1alpha1", "apiVersion: found 'ray.io/v1alpha1'; expected ray.io/v1"),
        ("kind", "RayJop", "kind: found 'RayJop'; did you mean \"RayJob\"?"),
    ]:
        lines = manifest_lines(changed(values, key, value))
        assert [one for one in lines if one.startswith(line)], (line, lines)


WORKER = "spec.rayClusterSpec.workerGroupSpecs.1"
CONTAINER = f"{WORKER}.template.spec.containers.0"
BAD_JOBS = [
    ("spec.rayClusterSpec.authOptions.mode", "disabled", "authOptions.mode: found 'disabled'; expected token"),
    ("spec.rayClusterSpec.authOptions", DELETE, "authOptions.mode: found None; expected token"),
    ("spec.rayClusterSpec.headGroupSpec.enableIngress", True, "enableIngress: found True; expected no ingress"),
    (
        "spec.rayClusterSpec.headGroupSpec.serviceType",
        "LoadBalancer",
        "serviceType: found 'LoadBalancer'; expected ClusterIP",
    ),
    (f"{CONTAINER}.image", "raypft:latest", "image: found 'raypft:latest'; expected a fixed tag or digest"),
    (f"{CONTAINER}.image", "raypft", "image: found 'raypft'; expected a fixed tag or digest"),
    (f"{CONTAINER}.securityContext.privileged", True, "and no privileged container"),
    (f"{CONTAINER}.securityContext", DELETE, "allowPrivilegeEscalation: found None; expected false"),
    (
        f"{CONTAINER}.env.0",
        {"name": "HF_TOKEN", "value": "hf_x"},
        "env.0.HF_TOKEN: found 'a value'; expected valueFrom.secretKeyRef",
    ),
    (f"{WORKER}.template.spec.hostNetwork", True, "hostNetwork: found True; expected false"),
    (f"{WORKER}.template.spec.securityContext.runAsNonRoot", False, "runAsNonRoot: found None; expected true"),
    (
        f"{WORKER}.template.spec.automountServiceAccountToken",
        True,
        "automountServiceAccountToken: found True; expected false",
    ),
    (f"{WORKER}.template.spec.volumes", [], "volumes: found None; expected a volume runs, which is mounted"),
    (f"{WORKER}.template.spec.tolerations", [], "tolerations: found None; expected a toleration of nvidia.com/gpu"),
    (f"{WORKER}.replicas", 99, "replicas: found 99; expected between minReplicas 0 and maxReplicas 16"),
    (
        f"{WORKER}.groupName",
        "gpu1",
        "workerGroupSpecs: found ['cpu-data', 'gpu1', 'gpu1', 'gpu8']; expected distinct groupName",
    ),
    ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", "4", "num-cpus: found '4'; expected '0'"),
    ("spec.shutdownAfterJobFinishes", False, "ttlSecondsAfterFinished: found 600; expected shutdownAfterJobFinishes"),
    (
        "metadata.labels.kueue|x-k8s|io/queue-name",
        "q",
        "enableInTreeAutoscaling: found True; expected false under Kueue",
    ),
]


@pytest.mark.parametrize(
    ("key", "value", "line"), BAD_JOBS, ids=[f"{i}-{job[0].rpartition('.')[2]}" for i, job in enumerate(BAD_JOBS)]
)
def test_a_manifest_that_lets_strangers_in_or_cannot_work_is_refused(key, value, line):
    values = yaml.safe_load((FOLDER / "rendered/kubernetes.rayjob.yaml").read_text())
    lines = manifest_lines(changed(values, key, value))
    assert [one for one in lines if line in one], lines


def start(word: str) -> list[str]:
    return ["ray stop", f"ray start --head {word}"]


SSH = {"FromPort": 22, "ToPort": 22, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
JOBS = {"FromPort": 8265, "ToPort": 8265, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": "203.0.113.0/24"}]}
BAD_LAUNCHERS = [
    ("docker.image", "raypft:latest", "docker.image: found 'raypft:latest'; expected a fixed tag"),
    ("docker.run_options", ["--ipc=host"], "head_start_ray_commands.1: found 'no RAY_AUTH_MODE=token'"),
    (
        "docker.run_options",
        ["--env RAY_AUTH_MODE=token", "--env RAY_AUTH_TOKEN=abc"],
        "docker.run_options: found 'RAY_AUTH_TOKEN'",
    ),
    ("docker.run_options", ["--env RAY_AUTH_MODE=token", "--privileged"], "docker.run_options: found '--privileged'"),
    (
        "head_start_ray_commands",
        start("--dashboard-host=0.0.0.0"),
        "head_start_ray_commands.1: found '--dashboard-host=0.0.0.0'; expected 127.0.0.1",
    ),
    (
        "head_start_ray_commands",
        start("--dashboard-host 0.0.0.0"),
        "head_start_ray_commands.1: found '--dashboard-host=0.0.0.0'; expected 127.0.0.1",
    ),
    ("provider.security_group.IpPermissions", [SSH], "IpPermissions.0: found '0.0.0.0/0'; expected your own addresses"),
    ("provider.security_group.IpPermissions", [JOBS], "IpPermissions.0: found 8265; expected no rule for Ray's ports"),
    ("max_workers", 3, "max_workers: found 3; expected 30, the sum over the node types"),
    (
        "available_node_types.gpu1.min_workers",
        5,
        "available_node_types.gpu1.min_workers: found 5; expected at most max_workers, 4",
    ),
    (
        "available_node_types.head.resources.GPU",
        1,
        "available_node_types.head.resources.GPU: found 1; expected no GPU on the head",
    ),
    ("available_node_types.gpu1.spot", True, 'unknown key "available_node_types.gpu1.spot"'),
    (
        "available_node_types.gpu1.resources.GPU",
        0.5,
        "available_node_types.gpu1.resources.GPU: found 0.5; expected of type integer",
    ),
    ("head_node_type", "haed", "`head_node_type` must be one of"),
]


@pytest.mark.parametrize(
    ("key", "value", "line"), BAD_LAUNCHERS, ids=[f"{i}-{bad[0]}" for i, bad in enumerate(BAD_LAUNCHERS)]
)
def test_a_launcher_file_that_lets_strangers_in_or_cannot_work_is_refused(key, value, line):
    values = yaml.safe_load((FOLDER / "rendered/aws.ray-up.yaml").read_text())
    lines = launcher_lines(changed(values, key, value))
    assert [one for one in lines if line in one], lines


def test_rays_reader_of_kuberay_sees_the_pools_as_defined():
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    definition = load(FOLDER / "kubernetes.yaml")
    seen = _derive_autoscaling_config_from_ray_cr(
        yaml.safe_load((FOLDER / "rendered/kubernetes.raycluster.yaml").read_text())
    )
    for name, pool in definition.pools.items():
        node = seen["available_node_types"][name]
        assert (node["min_workers"], node["max_workers"], node["idle_timeout_s"], node["priority"]) == (
            pool.min,
            pool.max,
            pool.idle_timeout_s,
            pool.priority,
        )
        offered = {"CPU": pool.cpu, **({"GPU": pool.gpu} if pool.gpu else {}), **pool.resources}
        assert {key: node["resources"][key] for key in node["resources"] if key != "memory"} == offered
        assert node["labels"]["pool"] == pool.labels["pool"]
    assert seen["available_node_types"]["headgroup"]["resources"]["CPU"] == 0


def test_the_image_is_pinned_like_the_definitions_and_its_user_is_not_root():
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    base = next(line for line in lines if line.startswith("ARG BASE="))
    wanted = {load(FOLDER / f"{name}.yaml").ray for name in DEFINITIONS}
    assert wanted == {base.rpartition(":")[2].partition("-")[0]}
    assert [line for line in lines if line.startswith("USER ")][-1] != "USER root"
    assert not [line for line in lines if "latest" in line or "0.0.0.0" in line]


def test_the_kueue_variant_has_a_fixed_size():
    cluster = yaml.safe_load((FOLDER / "rendered/kubernetes.kueue.yaml").read_text())["spec"]["rayClusterSpec"]
    assert [
        (g["groupName"], g["minReplicas"], g["replicas"], g["maxReplicas"]) for g in cluster["workerGroupSpecs"]
    ] == [("gpu1", 1, 1, 1)]
    assert cluster["enableInTreeAutoscaling"] is False


def test_files_that_are_no_definitions_are_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    with pytest.raises(UserError, match=r"cluster: no file .*mine.yaml; give the path"):
        load(path)
    path.write_text("- a\n")
    with pytest.raises(UserError, match="expected a mapping of keys, found list"):
        load(path)
    path.write_text("a: [\n")
    with pytest.raises(UserError, match="not readable as YAML"):
        load(path)
    with pytest.raises(
        UserError, match='target "rayjop": nothing of that name for kind kubernetes; did you mean "rayjob"'
    ):
        rendered(load(FOLDER / "kubernetes.yaml"), "rayjop")


def test_the_command_tells_every_mistake_and_exits_with_2(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    values = changed(yaml.safe_load((FOLDER / "aws.yaml").read_text()), "image", "raypft:latest")
    path.write_text(yaml.safe_dump(changed(values, "pools.gpu1.min", 5)))
    with pytest.raises(SystemExit) as left:
        run("cluster", "validate", str(path), str(FOLDER / "local.yaml"))
    said = capsys.readouterr()
    assert left.value.code == 2
    assert said.err.count(str(path)) == 2
    assert said.out == f"{FOLDER / 'local.yaml'}: valid\n"


def test_render_writes_one_target_or_all(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        run("cluster", "render", str(FOLDER / "kubernetes.yaml"), "--to", "rayjob", "--out", str(tmp_path))
    assert left.value.code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["kubernetes.rayjob.yaml"]
    with pytest.raises(SystemExit):
        run("cluster", "render", str(FOLDER / "local.yaml"), "--out", str(tmp_path))
    assert "nothing is rendered from kind local" in capsys.readouterr().err


def run(*words: str) -> None:
    """The command line with these words."""
    main(lambda: app(list(words)))

"""A cluster definition: one YAML that says which machines there are, where results go and who may enter.

`load("cluster/aws.yaml")` reads one; its `kind` decides which keys it may have. Everything else (files for `ray up`,
KubeRay manifests, feasibility of a job) is computed from it. This file imports no Ray: reading and rendering need none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, ValidationError

from raypft.errors import UserError, nearest
from raypft.schema import Strict, load_yaml, validation_line, validation_root, yaml_names

Name = Annotated[
    str, Field(pattern=r"^[a-z]([-a-z0-9]{0,40}[a-z0-9])?$", description="lower-case letters, digits and -")
]
Quantity = Annotated[str, Field(pattern=r"^[1-9][0-9]*(Mi|Gi)$", description="memory such as 512Mi or 64Gi")]
Port = Annotated[int, Field(ge=1024, le=65535)]
UNITS = {"Mi": 2**20, "Gi": 2**30}
INSTALLED = Path(__file__).parent / "definitions"
FOLDER = INSTALLED if INSTALLED.is_dir() else Path(__file__).parents[2] / "cluster"
"""Where the definitions that are shipped lie, in an installed package and in a checkout."""


def num_bytes(quantity: str) -> int:
    """`64Gi` as bytes."""
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


class Part(Strict):
    """Part of a definition: a value must have its type as written, `"1"` is no number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Head(Part):
    """The head node: it schedules and holds the jobs' drivers, so it offers no CPU to tasks and has no GPU."""

    cpu: int = Field(default=8, ge=1)
    memory: Quantity = "32Gi"


class MachineHead(Head):
    """A head rented from a cloud."""

    instance: str
    disk_gb: int = Field(default=100, ge=50)


class Pool(Part):
    """Nodes of one shape; the autoscaler keeps between min and max of them."""

    cpu: int = Field(ge=1)
    memory: Quantity
    gpu: int = Field(default=0, ge=0)
    gpu_type: str | None = None
    min: int = Field(default=0, ge=0)
    max: int = Field(ge=1)
    spot: bool = False
    priority: int = Field(default=0, description="of two pools that fit, the higher is started first")
    idle_timeout_s: int = Field(default=600, ge=1)
    labels: dict[str, str] = {}
    resources: dict[str, int] = Field(default={}, description="custom resources a node offers")


class MachinePool(Pool):
    """A pool rented from a cloud."""

    instance: str
    disk_gb: int = Field(default=200, ge=50)


class PodPool(Pool):
    """A pool of pods; one pod takes what is left of a node after system pods."""

    shm: Quantity | None = Field(default=None, description="size of /dev/shm; needed by GPU pools")
    node_selector: dict[str, str] = {}


class Definition(Part):
    """What every kind of cluster has."""

    has_pools: ClassVar[bool] = True
    kind: Any
    """Each kind's own name."""
    name: Name
    ray: str = Field(pattern=r"^\d+\.\d+\.\d+$", description="Ray's version, on every node")
    storage: str = Field(description="where runs and checkpoints go: a URI, or a folder that every node mounts")
    auth: Literal["token"] = "token"
    env: dict[str, str] = {}


@validation_root
class Local(Definition):
    """A head on this machine and nothing else."""

    has_pools: ClassVar[bool] = False
    kind: Literal["local"]
    cpu: int = Field(ge=1)
    gpu: int = Field(default=0, ge=0)
    object_store: Quantity = "1Gi"
    port: Port = 26379
    dashboard_port: Port = 28265

    @property
    def pools(self) -> dict[str, Pool]:
        """The machine as one node."""
        return {"this-machine": Pool(cpu=self.cpu, gpu=self.gpu, memory=self.object_store, max=1)}


@validation_root
class Fake(Definition):
    """Ray's own autoscaler on this machine: nodes are real processes, their CPUs and GPUs only counted."""

    kind: Literal["fake"]
    pools: dict[Name, Pool]
    object_store: Quantity = "100Mi"
    port: Port = 27379
    dashboard_port: Port = 29265


class Launched(Definition):
    """A cluster that `ray up` starts: a container on every machine."""

    image: str


class Machines(Launched):
    """Machines rented from a cloud."""

    head: MachineHead
    pools: dict[Name, MachinePool]
    ssh_user: str = "ubuntu"


class AwsProvider(Part):
    region: str = Field(pattern=r"^[a-z]{2}(-[a-z]+)+-\d$")
    zones: list[str] = Field(min_length=1)
    machine_image: str = Field(pattern=r"^ami-", description="a machine image with Docker and the NVIDIA driver")
    instance_profile: str = Field(description="of the workers: may read and write the storage; Ray makes the head's")
    allowed_cidr: str = Field(description="who may reach SSH, e.g. 203.0.113.0/24")


class GcpProvider(Part):
    project: str
    region: str
    zone: str
    machine_image: str = Field(description="path of an image with Docker and the NVIDIA driver")
    service_account: str = Field(
        pattern=r"^[^@\s]+@[^@\s]+$", description="of the workers: may read and write the storage"
    )


class AzureProvider(Part):
    location: str
    resource_group: str
    publisher: str = "microsoft-dsvm"
    offer: str = "ubuntu-hpc"
    sku: str = "2204"
    version: str = Field(pattern=r"^\d+(\.\d+)+$", description="of the machine image")


class OnpremProvider(Part):
    head_ip: str
    worker_ips: list[str] = Field(min_length=1)
    ssh_private_key: str


@validation_root
class Aws(Machines):
    """AWS EC2."""

    kind: Literal["aws"]
    provider: AwsProvider


@validation_root
class Gcp(Machines):
    """Google Compute Engine."""

    kind: Literal["gcp"]
    provider: GcpProvider


@validation_root
class Azure(Machines):
    """Azure virtual machines."""

    kind: Literal["azure"]
    provider: AzureProvider


@validation_root
class Onprem(Launched):
    """Machines that are always there, reached by SSH; exactly one pool."""

    kind: Literal["onprem"]
    head: Head
    pools: dict[Name, Pool]
    ssh_user: str = "ubuntu"
    provider: OnpremProvider


class Claim(Part):
    """The shared volume: ReadWriteMany, mounted at the same path on every pod."""

    size: Quantity
    storage_class: str
    mount: str = Field(pattern=r"^/[-/a-z0-9]+$")


class KubernetesJob(Part):
    """What a RayJob runs."""

    command: list[str] = Field(min_length=1, description="words after `raypft`")
    pool: Name = Field(description="for the Kueue variant, whose size is fixed: the pool it takes")
    nodes: int = Field(default=1, ge=1, description="and how many nodes of it")
    retries: int = Field(default=2, ge=0, description="each retry is a new cluster; finished work is found in storage")
    start_deadline_s: int = Field(default=1800, ge=60, description="a job whose nodes never come fails after this")
    deadline_s: int = Field(default=172800, ge=60)
    keep_s: int = Field(default=600, ge=0, description="a finished job's cluster stays this long")
    schedule: str = Field(default="0 2 * * 6", pattern=r"^(\S+ ){4}\S+$", description="cron, for the RayCronJob")


@validation_root
class Kubernetes(Definition):
    """KubeRay 1.7 or later."""

    kind: Literal["kubernetes"]
    image: str
    namespace: Name
    head: Head
    pools: dict[Name, PodPool]
    claim: Claim
    job: KubernetesJob
    queue: Name = Field(description="Kueue's local queue, for the Kueue variant")
    secrets: dict[str, str] = Field(default={}, description="environment variable to SECRET/KEY")
    spot_selector: dict[str, str] = Field(default={}, description="label and taint of spot nodes")


KINDS: dict[str, type[Definition]] = {
    "local": Local,
    "fake": Fake,
    "aws": Aws,
    "gcp": Gcp,
    "azure": Azure,
    "onprem": Onprem,
    "kubernetes": Kubernetes,
}


def read_yaml(path: Path) -> Any:
    """The one document of a YAML file, or of a definition that is shipped, by its name.

    Raises:
        UserError: no such file, or not YAML.
    """
    shipped = yaml_names(FOLDER)
    file = FOLDER / f"{path}.yaml" if str(path) in shipped else path
    if not file.is_file():
        raise UserError(
            f"cluster: no file {path}; give the path of a cluster definition, or a name: {', '.join(shipped)}"
        )
    return load_yaml(file, str(path))


def load(path: str | Path) -> Any:
    """A definition read from a file; what only `raypft cluster validate` finds is not looked for.

    Raises:
        UserError: no such file; a key or value that does not fit (file, key, found, expected).
    """
    return make(read_yaml(Path(path)), str(path))


def make(values: Any, where: str) -> Any:
    """A definition from loaded YAML.

    Raises:
        UserError: a key or value that does not fit (file, key, found, expected).
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a mapping of keys, found {type(values).__name__}")
    if "kind" not in values:
        raise UserError(f'{where}: key "kind" is missing; one of {", ".join(sorted(KINDS))}')
    kind = values["kind"]
    if kind not in KINDS:
        raise UserError(f"{where}: kind: found {kind!r}; {nearest(str(kind), KINDS)}")
    try:
        return KINDS[kind](**values)
    except (ValidationError, TypeError) as error:
        raise UserError(validation_line(where, error, values)) from None

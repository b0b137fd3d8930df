"""A Job is one configuration; run with one seed it is a cell. YAML or a recipe, plus dotted overrides, validated strictly.

`load_job("profit", ["task=xnli", "shots=16"])` starts from raypft/recipes/profit.yaml. Keys that decide numbers are
scientific and make the cell key; where and with how many workers a job runs is provenance and does not.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, ValidationInfo, WithJsonSchema, field_validator

from raypft.data.sampling import DevRows, protocol
from raypft.data.streaming import Mix
from raypft.errors import UserError, nearest
from raypft.storage import default_storage
from raypft.tasks.task import Strict, load_task, validation_line, validation_root

RECIPES = Path(__file__).parent / "recipes"
NAMED = {"anyOf": [{"type": "string"}, {"type": "object"}]}
SEEDS = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "array", "items": {"type": "integer"}, "minItems": 1}]}


class Train(Strict):
    """How the trainable parameters are fitted. Sizes are global: workers and micro-batches do not change them."""

    languages: list[str] = ["en"]
    epochs: int = Field(default=10, ge=0)
    lr: float = Field(default=1e-5, gt=0)
    batch_size: int = Field(default=32, ge=1, description="prompts per optimizer step over all workers")
    optimizer: Literal["adamw", "adam"] = Field(default="adamw", description="adam couples weight decay as L2")
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float | None = Field(default=None, gt=0, description="largest gradient norm")
    schedule: Literal["constant", "linear", "exponential"] = Field(
        default="constant", description="linear: to 0; exponential: 0.95 an epoch"
    )
    warmup: float = Field(default=0.0, ge=0, le=1, description="share of the steps")
    max_tokens: int = Field(default=128, ge=4)
    dropout: float | None = Field(default=None, ge=0, lt=1, description="replaces the model's own rates")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    select: Literal["best", "last"] = Field(
        default="best", description="which epoch is kept; best on dev, the earliest of equals"
    )
    patience: int | None = Field(default=None, ge=1, description="stop after so many epochs without gain")
    patience_rule: Literal["best", "previous"] = Field(
        default="best", description="gain over the best epoch or over the one before"
    )
    micro_batch: int | None = Field(
        default=None, ge=1, description="prompts a worker runs at once; None: its whole share"
    )
    eval_batch: int = Field(default=32, ge=1)
    save_every: int | None = Field(
        default=None, ge=1, description="steps between state files; None: as often as costs under a tenth of the time"
    )


class Dev(Strict):
    """Which rows select the epoch; None takes the protocol's."""

    rows: DevRows | None = None
    limit: int | None = Field(default=None, ge=1, description="rows per language")


class Test(Strict):
    """What is tested, once, after selection."""

    languages: list[str] | None = Field(default=None, description="None: all languages of the task")
    limit: int | None = Field(default=None, ge=1, description="rows per language, the same for every seed and method")


class Data(Strict):
    """Where rows come from: a source named in the task's YAML, and the folder or URI its files lie below."""

    source: str | None = None
    root: str | None = None
    stream: Mix | None = Field(
        default=None,
        description="read train rows as they are needed, from Parquet files, languages mixed so: proportional, uniform or a temperature",
    )


class Zero(Strict):
    """DeepSpeed ZeRO: what is partitioned over the workers (0 nothing, 1 optimizer, 2 + gradients, 3 + parameters)."""

    stage: Literal[0, 1, 2, 3] = 0
    offload: bool = Field(default=False, description="optimizer state in CPU memory")


@validation_root
class Resources(Strict):
    """Workers of the job. 0 runs in this process, without Ray."""

    workers: int = Field(default=0, ge=0)
    min_workers: int | None = Field(
        default=None, ge=1, description="go on with as few while nodes are missing; None: wait for all workers"
    )
    cpus_per_worker: float | None = Field(default=None, gt=0, description="None: an equal share of this machine's")
    gpus_per_worker: float = Field(default=0, ge=0)
    max_failures: int = Field(default=3, ge=0)
    data_label: str | None = Field(
        default=None,
        pattern=r"^[^=\s]+=[^=\s]+$",
        description="label of the nodes that read and encode rows, e.g. pool=cpu-data; None: any node",
    )


@validation_root
class Job(Strict):
    """Everything that decides a result, and where it is computed."""

    recipe: str = "job"
    source: str = Field(default="", description="the paper and section the settings come from")
    task: str
    pattern: str
    backbone: str
    method: Annotated[dict[str, Any], WithJsonSchema(NAMED, mode="validation")]
    readout: Annotated[dict[str, Any], WithJsonSchema(NAMED, mode="validation")] = {"name": "verbalizer"}
    protocol: str = "fixed"
    shots: int | None = Field(default=None, ge=1, description="rows per class and language; None: all")
    demos: int = Field(default=0, ge=0, description="demonstrations a class in every prompt")
    sample_seed: int = 0
    seeds: Annotated[list[int], WithJsonSchema(SEEDS, mode="validation")] = Field(default=[0, 1, 2, 3, 4], min_length=1)
    train: Train = Train()
    dev: Dev = Dev()
    test: Test = Test()
    data: Data = Data()
    zero: Zero = Zero()
    resources: Resources = Resources()
    storage: str = Field(default_factory=default_storage, description="a folder, or a URI such as s3://bucket/folder")

    @field_validator("method", "readout", mode="before")
    @classmethod
    def _named(cls, value: Any, info: ValidationInfo) -> Any:
        value = {"name": value} if isinstance(value, str) else value
        return {"name": "verbalizer", **value} if info.field_name == "readout" and isinstance(value, dict) else value

    @field_validator("seeds", mode="before")
    @classmethod
    def _counted(cls, value: Any) -> Any:
        return list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: list[int]) -> list[int]:
        if len(set(value)) != len(value):
            raise ValueError("expected distinct seeds")
        return value

    def sample_seed_of(self, seed: int) -> int:
        """The seed that draws the rows of a cell."""
        return self.sample_seed + seed if protocol(self.protocol).sample_per_seed else self.sample_seed

    def scientific(self) -> dict[str, Any]:
        """The keys that decide numbers, only where they differ from their defaults."""
        found = self.model_dump(
            exclude_defaults=True, exclude={"recipe", "source", "seeds", "zero", "resources", "storage"}
        )
        found.setdefault("data", {}).pop("root", None)
        for key in ("micro_batch", "eval_batch", "save_every"):
            found.setdefault("train", {}).pop(key, None)
        return {key: value for key, value in found.items() if value != {}}

    def key(self, **more: Any) -> str:
        """Hash of the scientific keys and what else is given (seed, data and backbone fingerprints, numerics): 16 hex digits."""
        return digest({**self.scientific(), **more})

    def dump(self) -> str:
        """The resolved job as YAML, every key written out."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)

    @property
    def run_name(self) -> str:
        """The folder of its results below `storage`: readable, and unique to the scientific keys."""
        backbone = Path(self.backbone).name.split(".")[0]
        shots = "all" if self.shots is None else f"{self.shots}shot"
        return f"{self.recipe}-{Path(self.task).stem}-{shots}-{backbone}-{self.key()[:8]}"


def digest(values: dict[str, Any]) -> str:
    """Hash of values that JSON can hold, whatever their order: 16 hex digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def recipe_names() -> list[str]:
    """The recipes shipped with raypft."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_source(name: str) -> str:
    """The paper and section a shipped recipe comes from."""
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))["source"]


def load_job(name: str, overrides: list[str] | None = None) -> Job:
    """A recipe or job file with dotted overrides (`train.lr=1e-4`) applied, validated.

    Raises:
        UserError: unknown recipe (nearest named), missing file, key or value that does not fit (where, found, expected).
    """
    return make_job(*read_job(name, overrides))


def load_resources(name: str, overrides: list[str] | None = None) -> Resources:
    """Only what a job asks for, without the rest of its checks, which load torch.

    Raises:
        UserError: as `load_job`, of the resources.
    """
    return resources_of(*read_job(name, overrides))


def resources_of(values: dict[str, Any], where: str) -> Resources:
    """What the values of a job ask for.

    Raises:
        UserError: a key or type that does not fit.
    """
    found = values.get("resources") or {}
    try:
        return Resources(**found)
    except (ValidationError, TypeError) as error:
        raise UserError(validation_line(f"{where}: resources", error, found)) from None


def read_job(name: str, overrides: list[str] | None = None) -> tuple[dict[str, Any], str]:
    """The values of a recipe or job file with overrides applied, not validated; and the name of the file for messages.

    Raises:
        UserError: as `load_values`, and an override that is none.
    """
    values, where = load_values(name)
    for override in overrides or []:
        set_key(values, *split_override(override), told=override)
    return values, where


def load_values(name: str) -> tuple[dict[str, Any], str]:
    """What a recipe or job file says, and how messages call it.

    Raises:
        UserError: unknown recipe (nearest named), missing or unreadable file.
    """
    is_file = name.endswith((".yaml", ".yml"))
    path = Path(name) if is_file else RECIPES / f"{name}.yaml"
    if not path.is_file():
        if is_file:
            raise UserError(f"job: no file {path}; give a recipe name or a path to a job YAML")
        raise UserError(f'recipe: "{name}" is unknown; {nearest(name, recipe_names())}')
    where = str(path) if is_file else f"recipes/{path.name}"
    values = read_yaml(path, where)
    values.setdefault("recipe", path.stem)
    return values, where


def read_yaml(path: Path, where: str) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        UserError: not readable, or no mapping.
    """
    return copy.deepcopy(_parsed(path, path.stat().st_mtime_ns, where))


@functools.lru_cache(maxsize=64)
def _parsed(path: Path, changed: int, where: str) -> dict[str, Any]:
    """A campaign asks for the same few recipes thousands of times; `changed` makes an edited file another one."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a mapping of keys, found {type(values).__name__}")
    return values


def make_job(values: dict[str, Any], where: str = "job") -> Job:
    """Validate a job's values, its method's and readout's own keys, and the names it uses.

    Raises:
        UserError: the first thing that does not fit, with what would.
    """
    from raypft.config.compatibility import check_job  # noqa: PLC0415  (reads the catalogues, which need torch)

    for key in ("task", "backbone"):
        if key not in values:
            raise UserError(f'{where}: key "{key}" is missing; add {key}=… to the command or the file')
    try:
        job = Job(**values)
    except (ValidationError, TypeError) as error:
        raise UserError(validation_line(where, error, values)) from None
    job = job.model_copy(
        update={"method": _part(job.method, "method", where), "readout": _part(job.readout, "readout", where)}
    )
    protocol(job.protocol)
    _check_engine(job)
    task = load_task(job.task)
    task.pattern(job.pattern)
    for key, languages in (("train.languages", job.train.languages), ("test.languages", job.test.languages or [])):
        for language in languages:
            if language not in task.languages:
                raise UserError(
                    f'{where}: {key}: task {task.name} has no language "{language}"; {nearest(language, task.languages)}'
                )
    check_job(job)
    return job


def _check_engine(job: Job) -> None:
    """Precision, ZeRO stage and workers must go together: nothing is ignored silently."""
    if (job.resources.min_workers or 0) > job.resources.workers:
        raise UserError(
            f"resources.min_workers: found {job.resources.min_workers} with workers {job.resources.workers}; expected at most as many"
        )
    if job.resources.workers == 0 and job.resources.data_label:
        raise UserError(
            "resources.data_label: found a label without workers; rows are read in this process then; leave it out, or set resources.workers"
        )
    if job.resources.workers == 0 and (job.zero.stage or job.zero.offload):
        raise UserError(
            f"zero: found stage {job.zero.stage}, offload {job.zero.offload} without workers; set resources.workers=1 or more, or leave zero out"
        )
    if job.resources.workers == 0 and job.train.precision == "fp16":
        raise UserError(
            "train.precision: found fp16 without workers; use bf16, or resources.workers=1 or more (DeepSpeed scales the loss)"
        )
    if job.resources.workers and job.train.precision != "fp32" and job.zero.stage == 0:
        raise UserError(
            f"zero.stage: found 0 with train.precision {job.train.precision}; its state can't be saved whole; use zero.stage=1, 2 or 3"
        )
    if job.zero.offload and job.zero.stage == 0:
        raise UserError(
            "zero.offload: found true with zero.stage 0, which has nothing to offload; use zero.stage=1, 2 or 3"
        )


def part_config(values: dict[str, Any], part: str) -> tuple[Any, Any]:
    """The class of a method or readout and its validated configuration.

    Raises:
        UserError: unknown name or key.
    """
    # imported here: job.py itself stays free of torch
    from raypft.methods import method_class  # noqa: PLC0415
    from raypft.readouts import readout_class  # noqa: PLC0415

    own = dict(values)
    name = own.pop("name", None)
    if not isinstance(name, str):
        raise UserError(
            f"{part}: found {'no name' if name is None else repr(name)}; expected {part}: NAME or {part}: {{name: NAME, …}}"
        )
    found = method_class(name) if part == "method" else readout_class(name)
    validation_root(found.Config)
    return found, found.Config(**own)


def _part(values: dict[str, Any], part: str, where: str) -> dict[str, Any]:
    try:
        _, config = part_config(values, part)
    except ValidationError as error:
        raise UserError(validation_line(f"{where}: {part}", error, values)) from None
    return {"name": values["name"], **config.model_dump(exclude_defaults=True)}


def split_override(override: str) -> tuple[str, Any]:
    """`train.lr=1e-4` as key and value.

    Raises:
        UserError: no key=value, or a value that is no YAML.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f'override "{override}": expected key=value, e.g. train.lr=1e-4')
    try:
        return key, yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f'override "{override}": the value is not readable as YAML; quote it') from None


def set_key(values: dict[str, Any], key: str, value: Any, told: str = "") -> None:
    """Put a value at a dotted key of a job's values; messages call it `told`.

    Raises:
        UserError: a part of the key is no group of keys.
    """
    if isinstance(value, str):
        value = number(value)
    *path, last = key.split(".")
    here = values
    for part in path:
        below = here.get(part, {})
        # `method: gnnavi` is short for `method: {name: gnnavi}`
        below = {"name": below} if isinstance(below, str) else below
        if not isinstance(below, dict):
            raise UserError(f'override "{told or key}": {part} is not a group of keys')
        here[part] = dict(below)
        here = here[part]
    here[last] = value


def number(text: str) -> str | float:
    """YAML 1.1 reads 1e-4 as text; researchers do not."""
    try:
        return float(text) if "e" in text.lower() and text[:1] in "0123456789.-+" else text
    except ValueError:
        return text

"""A Job is one configuration; run with one seed it is a cell. Strict models of what a job file may say.

A field that is marked PROVENANCE says where or how a job is computed; all others are scientific: they decide numbers
and make the cell key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo, WithJsonSchema, field_validator

from raypft.backbones.aliases import REFERENCE
from raypft.data.sampling import DevRows
from raypft.data.streaming import Mix
from raypft.schema import Strict, digest, validation_root
from raypft.storage import absolute, default_storage

Tracker = Literal["tensorboard", "mlflow", "wandb"]
PROVENANCE = "provenance"
"""Marks a field that does not decide numbers."""
MOST_SEEDS = 10_000
"""Of a job whose seeds are given as a number."""
NAMED = {"anyOf": [{"type": "string"}, {"type": "object"}]}
SEEDS = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "array", "items": {"type": "integer"}, "minItems": 1}]}


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


TEXTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
Languages = Annotated[list[str], BeforeValidator(_listed), WithJsonSchema(TEXTS, mode="validation")]
"""Of one language the name will do."""


class Train(Strict):
    """How the trainable parameters are fitted. Sizes are global: workers and micro-batches do not change them."""

    languages: Languages = Field(
        default=["en"], description="whose train rows are used; of a task with one language that one"
    )
    epochs: int = Field(default=10, ge=0, description="passes over the train rows; 0: the model is tested as it is")
    lr: float = Field(default=1e-5, gt=0, description="learning rate")
    batch_size: int = Field(default=32, ge=1, description="prompts per optimizer step over all workers")
    optimizer: Literal["adamw", "adam"] = Field(default="adamw", description="adam couples weight decay as L2")
    weight_decay: float = Field(default=0.0, ge=0, description="of all but biases and normalisations")
    clip: float | None = Field(default=None, gt=0, description="largest gradient norm")
    schedule: Literal["constant", "linear", "exponential"] = Field(
        default="constant", description="linear: to 0; exponential: 0.95 an epoch"
    )
    warmup: float = Field(default=0.0, ge=0, le=1, description="share of the steps")
    max_tokens: int = Field(default=128, ge=4, description="of a prompt, special tokens included; longer texts are cut")
    dropout: float | None = Field(default=None, ge=0, lt=1, description="replaces the model's own rates")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="of the arithmetic; fp16 needs workers with GPUs"
    )
    quantize: Literal["nf4"] | None = Field(
        default=None,
        description="hold the linear layers of the blocks in 4 bits, for methods that train none of the model's "
        "weights; they multiply in `precision`",
    )
    select: Literal["best", "last"] = Field(
        default="best", description="which epoch is kept; best on dev, the earliest of equals"
    )
    patience: int | None = Field(default=None, ge=1, description="stop after so many epochs without gain")
    patience_rule: Literal["best", "previous"] = Field(
        default="best", description="gain over the best epoch or over the one before"
    )
    micro_batch: Annotated[int | None, PROVENANCE] = Field(
        default=None, ge=1, description="prompts a worker trains on at once; None: as many as tokens_at_once allow"
    )
    eval_batch: Annotated[int | None, PROVENANCE] = Field(
        default=None, ge=1, description="prompts a worker answers at once; None: as many as tokens_at_once allow"
    )
    tokens_at_once: Annotated[int | None, PROVENANCE] = Field(
        default=None, ge=1, description="padded tokens a worker runs at once; None: what its memory allows"
    )
    shortcuts: Annotated[bool, PROVENANCE] = Field(
        default=True, description="compute only what is read, and what is shared once; false: all of it, to compare"
    )
    checkpointing: Annotated[bool, PROVENANCE] = Field(
        default=False, description="keep the inputs of blocks alone and run these again in the backward pass"
    )
    cache_folder: Annotated[str | None, PROVENANCE] = Field(
        default=None,
        min_length=1,
        description="a folder, on each worker's machine or shared, where states below a frozen cut are kept for later "
        "runs; None: in memory, up to 4 GiB",
    )
    cache_type: Literal["bf16"] | None = Field(
        default=None, description="what such states are rounded to, for half the bytes; None: they are kept as computed"
    )
    save_every: Annotated[int | None, PROVENANCE] = Field(
        default=None, ge=1, description="steps between state files; None: as often as costs under a tenth of the time"
    )

    @field_validator("cache_folder")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value is not None and "://" in value:
            raise ValueError("expected a folder, whose files can be mapped into memory, found a URI")
        return None if value is None else absolute(value)  # workers may run in another folder


class Dev(Strict):
    """Which rows select the epoch, and by what; None takes the protocol's rows and the task's metric."""

    rows: DevRows | None = Field(
        default=None, description="full: all there are; k_shot: as many of each class as of train; none: no selection"
    )
    metric: str | None = Field(default=None, description="one of the task or its kind, in percent")
    limit: int | None = Field(default=None, ge=1, description="rows per language")


class Test(Strict):
    """What is tested, once, after selection."""

    languages: Annotated[
        list[str] | None,
        BeforeValidator(_listed),
        WithJsonSchema({"anyOf": [*TEXTS["anyOf"], {"type": "null"}]}, mode="validation"),
    ] = Field(default=None, min_length=1, description="None: all languages of the task")
    limit: int | None = Field(default=None, ge=1, description="rows per language, the same for every seed and method")


class Data(Strict):
    """Where rows come from: a source named in the task's YAML, and the folder or URI its files lie below, which may be
    a data set on the hub, hf://datasets/OWNER/NAME[@REVISION][/FOLDER]."""

    source: str | None = Field(
        default=None, description="a name below the task's sources; None: its first, with data.root its first of files"
    )
    root: Annotated[str | None, PROVENANCE] = Field(
        default=None, description="the folder or URI its files lie below; None: beside an own task's YAML, or the hub"
    )
    revision: str | None = Field(
        default=None, description="branch, tag or commit of the hub's data set, instead of the source's"
    )
    stream: Mix | None = Field(
        default=None,
        description="read train rows as they are needed, from Parquet files, "
        "languages mixed so: proportional, uniform or a temperature",
    )


class Zero(Strict):
    """DeepSpeed ZeRO: what is partitioned over the workers (0 nothing, 1 optimizer, 2 + gradients, 3 + parameters)."""

    stage: Literal[0, 1, 2, 3] = Field(default=0, description="needs resources.workers; numbers are the same in each")
    offload: bool = Field(default=False, description="optimizer state in CPU memory, at stage 3 the parameters too")


@validation_root
class Resources(Strict):
    """Workers of the job. 0 runs in this process, without Ray."""

    workers: int = Field(default=0, ge=0, description="processes that train together; 0: this process, without Ray")
    min_workers: int | None = Field(
        default=None, ge=1, description="go on with as few while nodes are missing; None: wait for all workers"
    )
    cpus_per_worker: float | None = Field(default=None, gt=0, description="None: an equal share of this machine's")
    gpus_per_worker: float = Field(default=0, ge=0, description="0: the worker computes on CPUs")
    max_failures: int = Field(
        default=3, ge=0, description="failures in a row, without a new state between, after which a cell fails"
    )
    data_label: str | None = Field(
        default=None,
        pattern=r"^[^=\s]+=[^=\s]+$",
        description="label of the nodes that read and encode rows, e.g. pool=cpu-data; None: any node. Few rows are "
        "encoded where the job is started",
    )


@validation_root
class Job(Strict):
    """Everything that decides a result, and where it is computed."""

    recipe: Annotated[str, PROVENANCE] = Field(
        default="job", pattern=r"^[^/\x00-\x1f\x7f]+$", description="begins a folder's name"
    )
    source: Annotated[str, PROVENANCE] = Field(default="", description="the paper and section the settings come from")
    task: str = Field(description="a name of `raypft list tasks`, or the path of a YAML")
    pattern: str | None = Field(
        default=None,
        description="one of the task's; None: the recipe's usual one, else the one that fits method and readout",
    )
    backbone: str = Field(
        description="a name of `raypft list backbones`, a folder, a .gguf file, or OWNER/NAME[@REVISION] of the hub"
    )
    method: Annotated[dict[str, Any], WithJsonSchema(NAMED, mode="validation")] = Field(
        description="what trains: a name, or name with its keys"
    )
    readout: Annotated[dict[str, Any], WithJsonSchema(NAMED, mode="validation")] = Field(
        default={"name": "verbalizer"}, description="how states become answers: a name, or name with its keys"
    )
    protocol: str = Field(default="fixed", description="which rows train, select and test")
    shots: int | None = Field(default=None, ge=1, description="rows per class and language; None: all")
    demos: int = Field(default=0, ge=0, description="demonstrations a class in every prompt")
    sample_seed: int = Field(default=0, description="draws the rows; some protocols add the seed of the cell")
    seeds: Annotated[list[int], PROVENANCE, WithJsonSchema(SEEDS, mode="validation")] = Field(
        default=[0, 1, 2, 3, 4], min_length=1, description="a cell each; a number n means 0 to n - 1"
    )
    train: Train = Field(default=Train(), description="how the trainable parameters are fitted")
    dev: Dev = Field(default=Dev(), description="which rows select the epoch, and by what")
    test: Test = Field(default=Test(), description="what is tested")
    data: Data = Field(default=Data(), description="where rows come from")
    zero: Annotated[Zero, PROVENANCE] = Field(default=Zero(), description="what is partitioned over the workers")
    resources: Annotated[Resources, PROVENANCE] = Field(default=Resources(), description="how many workers, with what")
    tracker: Annotated[Tracker | None, PROVENANCE] = Field(
        default=None, description="where losses, scores and costs are shown beside the run's folder"
    )
    storage: Annotated[str, PROVENANCE] = Field(
        default_factory=default_storage, description="a folder, or a URI such as s3://bucket/folder"
    )

    @field_validator("method", "readout", mode="before")
    @classmethod
    def _named(cls, value: Any, info: ValidationInfo) -> Any:
        value = {"name": value} if isinstance(value, str) else value
        return {"name": "verbalizer", **value} if info.field_name == "readout" and isinstance(value, dict) else value

    @field_validator("seeds", mode="before")
    @classmethod
    def _counted(cls, value: Any) -> Any:
        if isinstance(value, bool) or (isinstance(value, list) and any(isinstance(seed, bool) for seed in value)):
            raise ValueError("expected numbers, found a truth value")
        if not isinstance(value, int):
            return value
        if not 1 <= value <= MOST_SEEDS:
            raise ValueError(f"expected 1 to {MOST_SEEDS} seeds, or a list of them")
        return list(range(value))

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: list[int]) -> list[int]:
        if len(set(value)) != len(value):
            raise ValueError("expected distinct seeds")
        if not all(0 <= seed < 1 << 63 for seed in value):
            raise ValueError("expected seeds from 0 to 2^63 - 1")
        return value

    def scientific(self) -> dict[str, Any]:
        """The keys that decide numbers, only where they differ from their defaults."""
        values = self.model_dump(exclude_defaults=True)
        for key in provenance_keys():
            *groups, last = key.split(".")
            level = values
            for group in groups:
                level = level.setdefault(group, {})
            level.pop(last, None)
        return {key: value for key, value in values.items() if value != {}}

    def key(self, **more: Any) -> str:
        """Hash of the scientific keys and what else is given (seed, data and backbone fingerprints, numerics): 16
        hex digits."""
        return digest({**self.scientific(), **more})

    def dump(self) -> str:
        """The resolved job as YAML, every key written out."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)

    @property
    def run_name(self) -> str:
        """The folder of its results below `storage`: readable, and unique to the scientific keys."""
        name, *revision = self.backbone.split("@", 1) if REFERENCE.fullmatch(self.backbone) else [self.backbone]
        backbone = "@".join([Path(name).name.split(".")[0], *(part.replace("/", "-") for part in revision)])
        shots = "all" if self.shots is None else f"{self.shots}shot"
        name = f"{self.recipe}-{Path(self.task).stem}-{shots}-{backbone}-{self.key()[:8]}"
        return re.sub(r"[\x00-\x1f\x7f-\x9f]", "_", name)


def provenance_keys(model: type[BaseModel] = Job, prefix: str = "") -> Iterator[str]:
    """The dotted keys of the fields that do not decide numbers."""
    for name, field in model.model_fields.items():
        if PROVENANCE in field.metadata:
            yield prefix + name
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from provenance_keys(field.annotation, f"{prefix}{name}.")

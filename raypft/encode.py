"""Rows become encoded prompts: the one place where task, pattern, demonstrations and backbone meet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa

from raypft.backbones.base import Backbone
from raypft.batch import Encoded
from raypft.errors import UserError
from raypft.fewshot import Sample
from raypft.job import Job, part_config
from raypft.prompts import Demonstration, Query, render
from raypft.tasks import Pattern, Task, load_task

ROLES = ("train", "dev", "test")


@dataclass(frozen=True)
class Encoder:
    """Encodes rows of one job; `demos` are those of one cell."""

    task: Task
    pattern: Pattern
    backbone: Backbone
    soft_tokens: int
    max_tokens: int
    demos: tuple[Demonstration, ...] = ()

    @classmethod
    def of(cls, job: Job, backbone: Backbone, demos: pa.Table | None = None) -> Encoder:
        """The encoder of a job, with a cell's demonstrations."""
        task = load_task(job.task)
        _, config = part_config(job.method, "method")
        rows = [] if demos is None else demos.to_pylist()
        shown = tuple(Demonstration(row, row["label"], row["language"]) for row in _by_class(rows, task.label.names))
        return cls(task, task.pattern(job.pattern), backbone, config.soft_tokens, job.train.max_tokens, shown)

    def query(self, row: Mapping[str, object]) -> Query:
        """The rendered prompt of a row."""
        return render(self.task, self.pattern, row, str(row["language"]), self.soft_tokens, self.demos)

    def __call__(self, row: Mapping[str, object]) -> Encoded:
        language = str(row["language"])
        wordings = ["", *self.pattern.by_language]
        return self.backbone.encode(
            self.query(row),
            key=f"{language}/{row['id']}",
            language=language,
            gold=self.task.label.names.index(str(row["label"])) if row.get("label") else -1,
            wording=wordings.index(language) if language in wordings else 0,
            max_tokens=self.max_tokens,
        )


def _by_class(rows: list[dict], names: Sequence[str]) -> list[dict]:
    """One demonstration of each class after the other, in label order, then the next round."""
    of = {name: [row for row in rows if row["label"] == name] for name in names}
    rounds = max((len(own) for own in of.values()), default=0)
    return [of[name][i] for i in range(rounds) for name in names if i < len(of[name])]


def check_fit(job: Job, backbone: Backbone) -> None:
    """What job, task and backbone must agree on, known without weights.

    Raises:
        UserError: method and family, pattern and readout, marks, demonstrations or layer do not fit together; label words.
    """
    method, method_config = part_config(job.method, "method")
    readout, readout_config = part_config(job.readout, "readout")
    task = load_task(job.task)
    pattern = task.pattern(job.pattern)
    if backbone.family not in method.families:
        raise UserError(f"method: {job.method['name']} works with {' and '.join(method.families)} models; {job.backbone} is {backbone.family}")
    if readout.needs_slot and "<slot>" not in pattern.text:
        raise UserError(f"readout: {job.readout['name']} reads a label word at <slot>; pattern {job.pattern} has none; use readout=head")
    if job.zero.stage > method.max_zero_stage:
        raise UserError(f"zero.stage: found {job.zero.stage}; method {job.method['name']} works up to stage {method.max_zero_stage}")
    for mark, markup in (("soft", "<soft>"), ("demo_label", "<demos>")):
        if mark in method.marks and markup not in pattern.text:
            raise UserError(f"pattern: method {job.method['name']} needs {markup}; pattern {job.pattern} of {task.name} has none")
    if "<soft>" in pattern.text and not method_config.soft_tokens:
        raise UserError(f"pattern: {job.pattern} has <soft>, but method {job.method['name']} has no soft tokens; use method=soft_prompt or another pattern")
    if job.demos and "<demos>" not in pattern.text:
        raise UserError(f"demos: found {job.demos}; pattern {job.pattern} of {task.name} has no <demos>")
    if job.demos and backbone.family != "causal":
        raise UserError(f"demos: {job.backbone} is a {backbone.family} model and takes no demonstrations; set demos=0 or use a causal backbone")
    if "demo_label" in method.marks and not job.demos:
        raise UserError(f"demos: method {job.method['name']} needs demonstrations; set demos=1")
    limit = getattr(backbone.config, "max_position_embeddings", job.train.max_tokens)
    if job.train.max_tokens > limit:
        raise UserError(f"train.max_tokens: found {job.train.max_tokens}; {job.backbone} has {limit} positions")
    method(method_config, backbone)
    if readout.needs_slot:
        readout(readout_config, task, pattern, backbone)


def label_distribution(rows: Iterable[Mapping[str, str]]) -> dict[str, dict[str, int]]:
    """Language to label to count."""
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        own = found.setdefault(row["language"], {})
        own[row["label"]] = own.get(row["label"], 0) + 1
    return found


def encode_sample(job: Job, backbone: Backbone, sample: Sample) -> dict[str, list[Encoded]]:
    """Role to encoded prompts, in this process."""
    encoder = Encoder.of(job, backbone, sample.demos)
    return {role: [encoder(row) for row in table.to_pylist()] for role in ROLES if (table := getattr(sample, role)) is not None}


def to_record(prompt: Encoded) -> dict:
    """An encoded prompt as an Arrow row."""
    record = asdict(prompt)
    record["marks"] = list(prompt.marks.items())
    return record


def from_record(record: dict) -> Encoded:
    """The encoded prompt of an Arrow row."""
    return Encoded(**{**record, "marks": dict(record["marks"])})


RECORD = pa.schema([
    ("key", pa.string()),
    ("language", pa.string()),
    ("ids", pa.list_(pa.int32())),
    ("segments", pa.list_(pa.int32())),
    ("marks", pa.map_(pa.string(), pa.list_(pa.int32()))),
    ("gold", pa.int32()),
    ("wording", pa.int32()),
    ("demo_tokens", pa.int32()),
])  # fmt: skip
"""The Arrow schema of encoded prompts."""

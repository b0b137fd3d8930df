"""All that can be known of a job before compute is spent: its samples, its cells' keys, whether everything fits
together."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from raypft.backbones.base import Backbone
from raypft.backbones.fetch import pinned
from raypft.backbones.load import load_skeleton
from raypft.config.compatibility import check_fit
from raypft.config.job import Job, Train
from raypft.config.resolved import ResolvedJob
from raypft.data import sources, streaming
from raypft.data.origin import commits
from raypft.data.sampling import Sample, draw
from raypft.data.split import sizes_told
from raypft.encoded import Encoded
from raypft.errors import UserError
from raypft.methods import METHODS
from raypft.methods.base import Method
from raypft.readouts import READOUTS
from raypft.runs.cell import Cell
from raypft.runs.memo import Memo
from raypft.runs.notes import notes_on
from raypft.runs.scores import try_metrics
from raypft.schema import digest
from raypft.storage import path_of
from raypft.tasks.metrics import metric
from raypft.training.encode import ENCODING, encode_sample
from raypft.training.loader import PromptDataset
from raypft.training.stepper import TRAINING

NOT_SAMPLED = set(Train.model_fields) - {"languages"}
"""Keys of `train` that do not decide which rows are drawn."""

CASTING: int = 2
"""Raised when a change of what DeepSpeed does in half precision alters results; in the cell key of such jobs alone.
2: a state goes on from fp32 values that are not rounded, and in fp16 with the scale of the loss."""


@dataclass(frozen=True)
class Prepared:
    """A job with the sample of every seed, the cell keys, the model's skeleton (without weights).

    warnings: what is odd in the rows of a seed, a line each (`notes.notes_on`); of a job that is only identified none.
    """

    resolved: ResolvedJob
    folder: Path
    samples: dict[int, Sample]
    manifests: dict[int, dict[str, Any]]
    keys: dict[int, str]
    skeleton: Backbone
    warnings: dict[int, list[str]] = field(default_factory=dict)

    @property
    def job(self) -> Job:
        """The job itself."""
        return self.resolved.job

    def cells(self, test: bool = True) -> list[Cell]:
        """The cells of the job, by seed; they name the model as it was found, for processes that look for it later."""
        found = pinned(self.job.backbone, self.skeleton.revision)
        resolved = replace(self.resolved, job=self.job.model_copy(update={"backbone": found}))
        return [
            Cell(resolved, seed, self.folder / f"seed-{seed}", self._facts(seed), self.samples[seed], test)
            for seed in self.job.seeds
        ]

    def _facts(self, seed: int) -> dict[str, Any]:
        manifest = self.manifests[seed]
        return {
            "cell": self.keys[seed],
            "backbone": self.skeleton.revision,
            "manifest": manifest["hash"],
            "sizes": manifest["sizes"],
            "notes": manifest["notes"],
            "warnings": self.warnings.get(seed, []),
            "test_rows": manifest["test_hash"],
            "protocol": self.job.protocol,
        }


def prepare(resolved: ResolvedJob, memo: Memo | None = None) -> Prepared:
    """Read the rows, draw the samples, check that job, task and backbone fit together.

    Raises:
        UserError: anything that would fail later.
    """
    memo = memo or Memo()
    prepared = identify(resolved, memo)
    skeleton = prepared.skeleton
    skeleton.reset()  # jobs of one backbone share it
    try:
        method = check_fit(resolved, skeleton)
        for sample in {id(sample): sample for sample in prepared.samples.values()}.values():
            first = Sample(sample.train.slice(0, 1), None, sample.test.slice(0, 1), sample.demos)
            for prompts in encode_sample(resolved, skeleton.text, first).values():
                try_shapes(method, prompts[:1])
    finally:
        skeleton.reset()
    _try_metrics(prepared, memo)
    return replace(prepared, warnings=_warnings(prepared, memo))


@torch.no_grad()
def try_shapes(method: Method, prompts: list[Encoded]) -> None:
    """Run prompts through a method on a model without weights: what its seams can't take there (keys of another shape
    than config.json says, say) they tell.

    Raises:
        UserError: what a seam says.
    """
    rows = PromptDataset(prompts, method, method.backbone.pad)
    try:
        method(rows.batch(range(len(prompts))).to("meta"))
    except UserError:
        raise
    except Exception:  # without weights a model can't branch on values, nor mix with tensors that have some
        return


def _try_metrics(prepared: Prepared, memo: Memo) -> None:
    task, asked = prepared.resolved.task, prepared.job.dev.metric
    names = (*task.metrics, *([asked] if asked else []))
    for sample in prepared.samples.values():
        for table in (sample.test, sample.dev):
            if table is not None and len(table):
                make = functools.partial(try_metrics, task, names, table)
                memo.once(("metrics", names, id(table)), make)


def _warnings(prepared: Prepared, memo: Memo) -> dict[int, list[str]]:
    """What is odd in the rows of every seed."""
    resolved, skeleton = prepared.resolved, prepared.skeleton
    told = {}
    for seed, sample in prepared.samples.items():
        make = functools.partial(notes_on, resolved.task, sample, resolved.protocol.tests_dev, skeleton.text)
        told[seed] = memo.once(("warnings", id(sample), resolved.job.backbone), make)
    return told


def identify(resolved: ResolvedJob, memo: Memo) -> Prepared:
    """The samples and the cell keys of a job, unchecked.

    Raises:
        UserError: data or backbone can't be read.
    """
    job = resolved.job
    samples = draw_samples(resolved, memo)
    manifests = {seed: memo.once(("manifest", id(sample)), sample.manifest) for seed, sample in samples.items()}
    asked = (job.backbone, job.train.quantize)
    skeleton = memo.once(("skeleton", *asked), functools.partial(load_skeleton, *asked))
    hashes = {seed: manifest["hash"] for seed, manifest in manifests.items()}
    keys = cell_keys(resolved, hashes, skeleton.revision)
    return Prepared(resolved, path_of(job.storage) / job.run_name, samples, manifests, keys, skeleton)


def cell_keys(resolved: ResolvedJob, data: Mapping[int, str], weights: str, named: Job | None = None) -> dict[int, str]:
    """The key of each seed's cell: a hash over all that decides its numbers.

    Args:
        data: hash of the sample manifest by seed; weights: revision of the backbone; named: the job as it was called
        where the key was made first, if its files lie elsewhere now.
    """
    job, task = resolved.job, resolved.task
    asked = {
        "pattern": resolved.pattern.model_dump(exclude={"source"}),
        "labels": task.label.names,
        "metrics": [metric(name)[0] for name in task.metrics],
    }
    if task.label.unanswerable:
        asked["unanswerable"] = True
    if job.dev.metric is not None:
        asked["dev_metric"] = metric(job.dev.metric)[0]
    artefact = resolved.method_config.artefact()
    if artefact:
        asked["artefact"] = artefact
    if job.train.precision != "fp32":
        # DeepSpeed casts the weights, plain torch computes on them in half precision
        asked["cast"] = CASTING if job.resources.workers else False
    if job.data.stream is not None:
        asked["order"] = streaming.ORDER
    plug_ins = [METHODS.own_hash(job.method["name"]), READOUTS.own_hash(job.readout["name"])]
    if any(plug_ins):
        asked["plug_ins"] = plug_ins
    numerics = [resolved.method.numerics, resolved.readout.numerics, ENCODING, TRAINING]
    common = {**(named or job).scientific(), "backbone": weights, "numerics": numerics, "asked": asked}
    return {seed: digest({**common, "seed": seed, "data": manifest}) for seed, manifest in data.items()}


def draw_samples(resolved: ResolvedJob, memo: Memo) -> dict[int, Sample]:
    """The sample of every seed.

    Raises:
        UserError: rows can't be read, or there are too few of them.
    """
    job = resolved.job
    reader = _SplitReader(resolved, memo)
    asked = job.model_dump_json(
        include={"task", "protocol", "shots", "demos", "dev", "test", "data", "train"}, exclude={"train": NOT_SAMPLED}
    )
    samples = {}
    for seed in job.seeds:
        sample_seed = resolved.sample_seed_of(seed)
        make = functools.partial(_draw, resolved, reader, sample_seed)
        samples[seed] = memo.once(("sample", asked, sample_seed), make)
    return samples


class _SplitReader:
    """Reads the splits of a job's origin, each once a memo."""

    def __init__(self, resolved: ResolvedJob, memo: Memo) -> None:
        self.job, self.origin, self.memo = resolved.job, resolved.origin, memo
        shots = self.origin.shots if "{shots}" in str(self.origin.source.files) else None
        self.place = (self.job.task, self.origin.name, self.origin.root, self.origin.revision, shots)
        self.index: streaming.Index | None = None
        if self.job.data.stream is not None:
            _check_streamed(resolved)
            languages = self.job.train.languages
            key = ("index", *self.place, *languages)
            self.index = memo.once(key, functools.partial(streaming.index, self.origin, languages))

    def split(self, name: str, languages: list[str]) -> pa.Table | None:
        """The rows of a split, None where there is no such split."""
        key = ("split", *self.place, name, *languages)
        return self.memo.once(key, functools.partial(sources.read_split, self.origin, name, languages))

    def train(self) -> pa.Table | None:
        """Train rows; of a stream the first of each language."""
        if self.index is None:
            return self.split("train", self.job.train.languages)
        return self.memo.once(("head", id(self.index)), self.index.head)

    def notes(self) -> list[str]:
        """What a reader must know of how rows came to their splits."""
        source = self.origin.source
        if not isinstance(source.files, str):
            return []
        parts = self.memo.once(("parts", *self.place), functools.partial(sources.split_parts, self.origin))
        return [sizes_told(self.origin.task, source.files, parts)]

    def test(self) -> pa.Table | None:
        """Test rows."""
        return self.split("test", self.job.test.languages or sources.languages_of(self.origin, "test"))


def _draw(resolved: ResolvedJob, reader: _SplitReader, sample_seed: int) -> Sample:
    job, task, rule, index = resolved.job, resolved.task, resolved.protocol, reader.index
    where = f"source {reader.origin.name} of {task.name}"
    train = reader.train()
    test = None if rule.tests_dev else reader.test()
    if train is None or (test is None and not rule.tests_dev):
        missing = "train" if train is None else "test"
        raise UserError(f"data: {where} has no {missing} split; choose another data.source")
    wants_dev = (job.dev.rows or rule.dev) != "none" and not rule.dev_from_train
    validation = reader.split("validation", job.train.languages) if wants_dev else None
    if index is not None and wants_dev and validation is None:
        raise UserError(
            f"data.stream: {task.name} has no validation split in source {reader.origin.name}, "
            "and streamed rows are not held out; set dev.rows=none"
        )
    sample = draw(
        train,
        validation,
        test,
        labels=task.label.names if task.kind.one_label else [],
        rule=rule,
        shots=job.shots,
        demos=job.demos,
        seed=sample_seed,
        dev=job.dev.rows,
        dev_limit=job.dev.limit,
        test_limit=job.test.limit,
    )
    found = tuple(commits(reader.origin).values())
    return replace(sample, stream=index, notes=(*reader.notes(), *sample.notes), commits=found)


def _check_streamed(resolved: ResolvedJob) -> None:
    job = resolved.job
    for key, value in (("shots", job.shots), ("demos", job.demos or None)):
        if value is not None:
            raise UserError(
                f"data.stream: found {key}={value}; a stream has all rows, none are drawn from it; "
                f"leave {key} or data.stream out"
            )
    if resolved.protocol.dev_from_train and job.dev.rows != "none":
        raise UserError(
            f"data.stream: protocol {job.protocol} holds dev rows out of train, which a stream can't; "
            "use protocol=fixed or dev.rows=none"
        )

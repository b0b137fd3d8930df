"""The runs of an analysis: their folders opened, a seed's model before and after training, the rows they were drawn."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raypft.errors import UserError
from raypft.runs.memo import Memo
from raypft.runs.results import damaged, read_run
from raypft.runs.table import label
from raypft.schema import set_key
from raypft.storage import absolute, path_of

if TYPE_CHECKING:
    from raypft.config.resolved import ResolvedJob
    from raypft.data.sampling import Sample
    from raypft.runs.predict import Trained
    from raypft.training.stepper import Learner

ROOT = "data.root"
"""The key that says where a run's rows lie now."""
BEFORE, AFTER, AS_IT_IS = "before training", "after training", "untrained"
"""How tables call the stages of a seed, in their order."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    name: what tables call it, unique among the runs of an analysis; moved: where what it was made with lies now, see
    `predict.PLACES`, and its rows.
    """

    folder: Path
    name: str
    job: dict[str, Any]
    results: list[dict[str, Any]]
    moved: Mapping[str, str]

    @property
    def method(self) -> str:
        """The name of its method."""
        return str(self.job["method"]["name"])

    def refused(self, kind: str, found: str, expected: str) -> UserError:
        """The line about a run that an analysis can't look at."""
        return UserError(f"analyse {kind}: {self.folder} {found}; expected {expected}")

    def trained(self, seed: int | None = None) -> Trained:
        """A seed's model, the first where None.

        Raises:
            UserError: as `load_trained`.
        """
        from raypft.runs.predict import load_trained  # noqa: PLC0415  (needs torch)

        return load_trained(self.folder, seed, {key: path for key, path in self.moved.items() if key != ROOT})

    @cached_property
    def resolved(self) -> ResolvedJob:
        """Its job with its names looked up, files where they lie now.

        Raises:
            UserError: a file is not there, or is another now.
        """
        from raypft.config.load import make_job  # noqa: PLC0415  (needs torch)
        from raypft.runs.predict import started_from  # noqa: PLC0415

        values = copy.deepcopy(self.job)
        for key, path in self.moved.items():
            set_key(values, key, absolute(path) if path_of(path).exists() else path)
        with started_from(self.folder):
            return make_job(values, f"{self.folder}/job.yaml")

    def drawn(self, seed: int, sample_seed: int | None = None) -> Sample:
        """The rows of a seed, drawn as they were; or those that another sample seed draws.

        Raises:
            UserError: rows can't be read, or are not those of the run.
        """
        from raypft.runs.predict import started_from  # noqa: PLC0415  (needs torch)
        from raypft.runs.prepare import draw_samples  # noqa: PLC0415

        other = {} if sample_seed is None else {"sample_seed": sample_seed}
        job = self.resolved.job.model_copy(update={"seeds": [seed], **other})
        with started_from(self.folder):
            sample = draw_samples(replace(self.resolved, job=job), self._memo)[seed]
        known = next(result["manifest"] for result in self.results if result["seed"] == seed)
        if sample_seed is None and sample.manifest()["hash"] != known:
            raise UserError(
                f"analyse: the rows of {self.folder} seed {seed} are others now than when it ran; restore them, or say "
                f"where they lie, {ROOT}=…"
            )
        return sample

    @cached_property
    def _memo(self) -> Memo:
        """Its splits are read once."""
        return Memo()


def open_runs(folders: Sequence[Path], moved: Mapping[str, str]) -> list[Run]:
    """The runs in folders, named as tables call them; by their folders where two would have one name.

    Raises:
        UserError: a folder is no run, or no seed of it is finished, or it is named twice.
    """
    folders = [path_of(absolute(folder)) for folder in folders]
    found = [(folder, read_run(folder)) for folder in folders]
    for folder, run in found:
        if folders.count(folder) > 1:
            raise UserError(f"analyse: {folder} is named twice; name each run once")
        if not run.seeds:
            raise UserError(f"analyse: {folder} has no finished seed; run it first{damaged(folder)}")
    names = [label(run.job) for _, run in found]
    if len(set(names)) < len(names):
        names = [folder.name for folder in folders]
    return [Run(folder, name, run.job, run.seeds, moved) for name, (folder, run) in zip(names, found, strict=True)]


def stages(trained: Trained) -> Iterator[tuple[str, Learner]]:
    """The learner of a seed after its training and as it began; as it is where nothing trained.

    They stand on one backbone: each is gone when the next is asked for.
    """
    from raypft.runs.cell import build_learner, device_here  # noqa: PLC0415  (needs torch)

    trains = trained.learner.method.trains and trained.job.train.epochs
    yield (AFTER if trains else AS_IT_IS), trained.learner.to(device_here()).eval()
    if trains:
        backbone = trained.learner.method.backbone
        yield BEFORE, build_learner(trained.resolved, backbone, trained.seed).to(device_here()).eval()


def spread(table: pa.Table, count: int) -> pa.Table:
    """At most so many rows, at equal distances from the first to the last."""
    size = min(count, len(table))
    return table.take([number * len(table) // size for number in range(size)])

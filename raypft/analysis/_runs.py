"""The runs of an analysis: their folders opened, a seed's model before and after training, the rows they were drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raypft.errors import UserError
from raypft.runs.results import damaged, read_run
from raypft.runs.table import label
from raypft.storage import absolute, path_of

if TYPE_CHECKING:
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

    def drawn(self, trained: Trained, sample_seed: int | None = None) -> Sample:
        """The rows of a seed, drawn as they were; or those that another sample seed draws.

        Raises:
            UserError: rows can't be read, or are not those of the run.
        """
        sample = self._draws.of(trained, sample_seed)
        if sample_seed is None and sample.manifest()["hash"] != trained.result["manifest"]:
            raise UserError(
                f"analyse: the rows of {self.folder} seed {trained.seed} are others now than when it ran; restore "
                f"them, or say where they lie, {ROOT}=…"
            )
        return sample

    @cached_property
    def _draws(self) -> _Draws:
        return _Draws(self)


class _Draws:
    """Draws the samples of a run; its splits are read once."""

    def __init__(self, run: Run) -> None:
        from raypft.runs.memo import Memo  # noqa: PLC0415

        self.run, self.memo = run, Memo()

    def of(self, trained: Trained, sample_seed: int | None) -> Sample:
        """The sample of a seed; of another sample seed where one is given."""
        from raypft.runs.predict import started_from  # noqa: PLC0415  (needs torch)
        from raypft.runs.prepare import draw_samples  # noqa: PLC0415

        job = trained.job.model_copy(update={"seeds": [trained.seed]})
        if sample_seed is not None:
            job = job.model_copy(update={"sample_seed": sample_seed})
        if ROOT in self.run.moved:
            root = str(Path(self.run.moved[ROOT]).expanduser().resolve())
            job = job.model_copy(update={"data": job.data.model_copy(update={"root": root})})
        with started_from(self.run.folder):
            return draw_samples(replace(trained.resolved, job=job), self.memo)[trained.seed]


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

"""The experiment trackers there are, and how a tracker run of each is written: one a seed, grouped by job. No torch."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from raypft.errors import UserError
from raypft.storage import absolute, is_remote

PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
"""Name of a tracker, which is also that of the extra with its package, to the module that is imported."""
PROJECT = "raypft"
"""Of W&B, and the experiment of MLflow, where their own environment variables name no other."""
AT_ONCE = 500
"""Numbers or settings that MLflow takes in one request, half of its limit of either kind."""
LONGEST = 500
"""Characters of a setting that MLflow stores in any of its versions."""
BOUND = 15
"""Seconds in which W&B must answer the beginning or the end of a run."""
Row = tuple[int, Mapping[str, float]]
"""Numbers by name, and the optimizer step after which they stand."""


def check_tracker(name: str | None) -> None:
    """Raise a UserError where the package of a tracker is not installed."""
    if name is not None and importlib.util.find_spec(PACKAGES[name]) is None:
        raise UserError(
            f"tracker: {name} needs the package {PACKAGES[name]}; pip install 'raypft[{name}]', or leave tracker out"
        )


@dataclass(frozen=True)
class Subject:
    """A seed as trackers see it.

    folder: the cell's; group: the name of its run's folder; settings: the job's keys, dotted, without secrets.
    """

    folder: Path
    group: str
    seed: int
    settings: Mapping[str, Any]

    @property
    def title(self) -> str:
        """How its tracker run is called."""
        return f"{self.group}/{self.folder.name}"


class Writer(Protocol):
    """An open tracker run; its methods raise what the tracker's package raises.

    id: by which the tracker finds it again; place: where a person does.
    """

    id: str
    place: str

    def write(self, rows: Sequence[Row]) -> None:
        """Take in numbers, the later steps after the earlier."""
        ...

    def close(self, found: Mapping[str, float] | None) -> None:
        """Close it; found: what the seed came to, None where it was interrupted."""
        ...


class TensorBoard:
    """Event files in the seed's folder, so that `tensorboard --logdir runs` shows runs as they lie there.

    They are written here and not by the package's own thread, whose failures nobody hears.
    """

    def __init__(self, subject: Subject, known: str | None) -> None:
        from tensorboardX import summary  # noqa: PLC0415  (each tracker's package is loaded only where it is used)
        from tensorboardX.event_file_writer import EventsWriter  # noqa: PLC0415
        from tensorboardX.proto import event_pb2  # noqa: PLC0415

        messages: Any = event_pb2  # its classes are made when it is loaded
        self.summary, self.event, self.subject = summary, messages.Event, subject
        self.id = self.place = str(subject.folder / "tensorboard")
        self.copied = tempfile.TemporaryDirectory() if is_remote(subject.folder) else None
        self.folder = Path(self.copied.name if self.copied else self.id)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = EventsWriter(str(self.folder / "events"), f".{time.time_ns()}")
        if known is None:
            lines = [f"| {key} | {value} |" for key, value in subject.settings.items()]
            self._add(summary.text("job", "\n".join(["| key | value |", "|---|---|", *lines])), 0)

    def _add(self, found: Any, step: int) -> None:
        self.file.write_event(self.event(wall_time=time.time(), step=step, summary=found))

    def write(self, rows: Sequence[Row]) -> None:
        """See `Writer.write`."""
        for step, numbers in rows:
            for name, number in numbers.items():
                self._add(self.summary.scalar(name, number), step)
        self.file.flush()
        if self.copied:
            target = cast(Any, self.subject.folder / "tensorboard")
            for path in self.folder.iterdir():
                target.fs.put_file(str(path), (target / path.name).path)

    def close(self, found: Mapping[str, float] | None) -> None:
        """See `Writer.close`."""
        if found is not None:  # the table of settings and results
            for part in self.summary.hparams(plain(self.subject.settings), dict(found)):
                self._add(part, 0)
        self.write([])
        self.file.close()
        if self.copied:
            self.copied.cleanup()


class MLflow:
    """A run of the experiment `raypft`, or $MLFLOW_EXPERIMENT_NAME, at $MLFLOW_TRACKING_URI; its tag `raypft.run` is
    the group's."""

    def __init__(self, subject: Subject, known: str | None) -> None:
        from mlflow import MlflowClient  # noqa: PLC0415
        from mlflow.entities import Metric, Param  # noqa: PLC0415

        for name in ("alembic", "mlflow", "urllib3"):  # what matters is raised, too
            logging.getLogger(name).setLevel(logging.CRITICAL)
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # 7 by default, which takes minutes
        self.client, self.metric = MlflowClient(), Metric
        if known is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            experiment = self.client.get_experiment_by_name(name)
            number = experiment.experiment_id if experiment else self.client.create_experiment(name)
            tags = {"raypft.run": subject.group, "raypft.seed": str(subject.seed)}
            self.id = self.client.create_run(number, tags=tags, run_name=subject.title).info.run_id
            settings = [Param(key, str(value)[:LONGEST]) for key, value in subject.settings.items()]
            for start in range(0, len(settings), AT_ONCE // 5):
                self.client.log_batch(self.id, params=settings[start : start + AT_ONCE // 5])
        else:
            self.id = known
            self.client.update_run(known, status="RUNNING")
        self.place = f"{self.client.tracking_uri}, run {self.id}"

    def write(self, rows: Sequence[Row]) -> None:
        """See `Writer.write`."""
        now, metrics = time.time_ns() // 1_000_000, []
        for step, numbers in rows:
            metrics += [self.metric(named(name), number, now, step) for name, number in numbers.items()]
        for start in range(0, len(metrics), AT_ONCE):
            self.client.log_batch(self.id, metrics=metrics[start : start + AT_ONCE])

    def close(self, found: Mapping[str, float] | None) -> None:
        """See `Writer.close`."""
        self.client.set_terminated(self.id, "KILLED" if found is None else "FINISHED")


class WandB:
    """A run of the project `raypft`, or $WANDB_PROJECT, in the group of its job. Neither this machine nor its code,
    output and environment are described there."""

    def __init__(self, subject: Subject, known: str | None) -> None:
        import wandb  # noqa: PLC0415

        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            init_timeout=BOUND,  # without bounds it waits for minutes, also when Python ends
            finish_timeout=BOUND,
            finish_timeout_raises=True,
            x_graphql_retry_max=2,
            x_graphql_retry_wait_max_seconds=2,
        )
        online = wandb.setup(settings=settings).settings.mode not in ("offline", "dryrun", "disabled")
        if online and wandb.run is None and not wandb.login(prompt=False, verify=False):
            raise UserError("W&B has no key; give one with `wandb login` or $WANDB_API_KEY, or set WANDB_MODE=offline")
        keeps = is_remote(subject.folder) or "WANDB_DIR" in os.environ
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=subject.group,
            name=subject.title,
            id=known,
            resume=None if known is None else "allow",
            dir=None if keeps else absolute(subject.folder),  # its own process may stand elsewhere
            config=dict(subject.settings),
            reinit="create_new",
            settings=settings,
        )
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("*", step_metric="step")
        self.id, self.place = self.run.id, self.run.url or self.run.dir

    def write(self, rows: Sequence[Row]) -> None:
        """See `Writer.write`."""
        for step, numbers in rows:
            self.run.log({"step": step, **numbers})

    def close(self, found: Mapping[str, float] | None) -> None:
        """See `Writer.close`."""
        self.run.finish(exit_code=1 if found is None else 0)


WRITERS: dict[str, Callable[[Subject, str | None], Writer]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}
"""Tracker to what opens a tracker run of a subject: a new one, or the one with a known id."""


def named(name: str) -> str:
    """A name as MLflow takes it."""
    return re.sub(r"[^A-Za-z0-9_\-. /:]", "_", name)


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as one number, truth value or text each."""
    return {key: value if isinstance(value, bool | int | float) else str(value) for key, value in settings.items()}

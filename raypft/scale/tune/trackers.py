"""Experiment trackers of a campaign by name, through Ray Tune's own callbacks; the run store stays the truth."""

from __future__ import annotations

from typing import Any

from ray.tune import Callback

from raypft.errors import first_line, without_secrets
from raypft.runs.results import Tell
from raypft.runs.trackers import PROJECT, check_tracker


def tracker(name: str | None) -> list[Any]:
    """The callbacks of a tracker; none where none is asked for.

    Raises:
        UserError: its package is not installed.
    """
    if name is None:
        return []
    check_tracker(name)
    from ray.air.integrations.mlflow import MLflowLoggerCallback  # noqa: PLC0415
    from ray.air.integrations.wandb import WandbLoggerCallback  # noqa: PLC0415
    from ray.tune.logger import TBXLoggerCallback  # noqa: PLC0415

    if name == "tensorboard":
        return [TBXLoggerCallback()]
    if name == "mlflow":
        return [MLflowLoggerCallback(experiment_name=PROJECT)]
    return [WandbLoggerCallback(project=PROJECT)]


def _passed(hook: str) -> Any:
    """Passes what a hook is called with on to the tracker."""

    def hear(self: Spared, *told: Any, **info: Any) -> None:
        if self.failed:
            return
        try:
            getattr(self.own, hook)(*told, **info)
        except Exception as error:  # of any tracker's package
            self.failed = True
            text = f"tracker: {without_secrets(first_line(error))}; the campaign goes on without it"
            self.tell({"event": "note", "text": text})

    return hear


class Spared(Callback):
    """A tracker that fails is told of and hears no more: Tune would take it for a failure of the trial, or end all."""

    def __init__(self, own: Callback, tell: Tell) -> None:
        self.own, self.tell, self.failed = own, tell, False

    def __getstate__(self) -> dict[str, Any]:
        return {}

    setup = _passed("setup")
    on_trial_start = _passed("on_trial_start")
    on_trial_restore = _passed("on_trial_restore")
    on_trial_save = _passed("on_trial_save")
    on_trial_result = _passed("on_trial_result")
    on_trial_complete = _passed("on_trial_complete")
    on_trial_error = _passed("on_trial_error")
    on_experiment_end = _passed("on_experiment_end")

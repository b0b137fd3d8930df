"""Experiment trackers of a campaign by name, through Ray Tune's own callbacks; the run store stays the truth."""

from __future__ import annotations

from typing import Any

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

"""Experiment trackers by name, through Ray Tune's own callbacks; the run store stays the truth."""

from __future__ import annotations

import importlib.util
from typing import Any

from raypft.errors import UserError

PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}


def tracker(name: str | None) -> list[Any]:
    """The callbacks of a tracker; none where none is asked for.

    Raises:
        UserError: its package is not installed.
    """
    if name is None:
        return []
    if importlib.util.find_spec(PACKAGES[name]) is None:
        raise UserError(
            f"tracker: {name} needs the package {PACKAGES[name]}; pip install {PACKAGES[name]}, or leave tracker out"
        )
    from ray.air.integrations.mlflow import MLflowLoggerCallback  # noqa: PLC0415
    from ray.air.integrations.wandb import WandbLoggerCallback  # noqa: PLC0415
    from ray.tune.logger import TBXLoggerCallback  # noqa: PLC0415

    if name == "tensorboard":
        return [TBXLoggerCallback()]
    if name == "mlflow":
        return [MLflowLoggerCallback(experiment_name="raypft")]
    return [WandbLoggerCallback(project="raypft")]

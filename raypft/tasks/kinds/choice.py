"""choice: a row is one of the label names."""

from __future__ import annotations

from raypft.tasks.kinds import base


class Choice(base.Kind):
    """A label a row; few shots are drawn by class, answers have a probability a label."""

    name = "choice"
    metrics = ("accuracy",)
    has_labels = True
    one_label = True

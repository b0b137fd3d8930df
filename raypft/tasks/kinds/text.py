"""text: the answer to a row is a free text."""

from __future__ import annotations

from raypft.tasks.kinds import base


class Text(base.Kind):
    """A text a row; there is no label set."""

    name = "text"
    metrics = ("accuracy",)

"""What a trial is asked to do."""

from __future__ import annotations

import json
from typing import Any


class Work:
    """The job of a trial, its cells and how they are run, on the way through Tune.

    Trackers write down a trial's configuration, and a job may name URIs that are signed: of this they find no text.
    """

    def __init__(self, **asked: Any) -> None:
        self._asked = json.dumps(asked).encode()

    def __repr__(self) -> str:
        return "Work()"

    def read(self) -> dict[str, Any]:
        """What is asked."""
        return json.loads(self._asked)

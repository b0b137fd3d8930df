"""What a worker group keeps where a worker dies while the process group is set up."""

from __future__ import annotations

from typing import Any

import pytest
from ray.exceptions import RayActorError

from raypft.scale.process_group import ProcessGroup, ProcessGroupConfig


class Dying:
    """A worker group whose first worker dies as it is asked, and what was done to the group."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def execute_single(self, rank: int, function: Any) -> Any:
        raise RayActorError

    def abort(self) -> None:
        self.calls.append("abort")


def test_a_group_whose_worker_dies_as_it_joins_is_given_up():
    """Else its placement group stays, and on a cluster without room for a second the next one waits for ever."""
    group = Dying()
    with pytest.raises(RayActorError):
        ProcessGroup().on_start(group, ProcessGroupConfig("gloo"))
    assert group.calls == ["abort"]

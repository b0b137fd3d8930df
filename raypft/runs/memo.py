"""What is made once and used by many."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from raypft.errors import UserError


class Memo:
    """What preparing many jobs has in common, each made once: splits, samples with their manifests, skeletons."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gave, or the UserError it raised, the first time it was asked for under this key."""
        if key not in self._made:
            try:
                self._made[key] = make()
            except UserError as error:  # a hub that can't be reached is not asked for every job
                self._made[key] = error
        if isinstance(self._made[key], UserError):
            raise self._made[key]
        return self._made[key]

"""What a search looks through: the values of dotted job keys, how they are drawn, and with what budget."""

from __future__ import annotations

import itertools
import json
import math
import random
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from raypft.schema import Strict


class Dimension(Strict):
    """The values of one key of a search: a list, a range of integers, or an interval; both ends are included."""

    values: list[Any] | None = Field(default=None, description="each of a list")
    range: list[int] | None = Field(default=None, description="lowest, highest, step (1 where left out)")
    uniform: tuple[float, float] | None = Field(default=None, description="lowest, highest")
    log: tuple[float, float] | None = Field(default=None, description="lowest, highest; uniform on the logarithm")

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return {"values": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _whole(self) -> Dimension:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("expected a list, or one of range, uniform, log")
        if self.values == []:
            raise ValueError("an empty choice; expected at least one value")
        if self.range is not None and (
            len(self.range) not in (2, 3) or self.range[0] > self.range[1] or self.range[2:] == [0]
        ):
            raise ValueError("expected [lowest, highest] or [lowest, highest, step]")
        interval = self.uniform or self.log
        if interval and (interval[0] >= interval[1] or (self.log and interval[0] <= 0)):
            raise ValueError(f"expected [lowest, highest]{' above 0' if self.log else ''}")
        return self

    @property
    def listed(self) -> list[Any] | None:
        """Every value, None where there is no end of them."""
        if self.range is not None:
            low, high, *step = self.range
            return list(range(low, high + 1, *step))
        return self.values

    @property
    def size(self) -> float:
        """How many different values there are."""
        return math.inf if self.listed is None else len(set(map(json.dumps, self.listed)))

    def rank(self, value: Any) -> float:
        """Sorts values as the file lists them, drawn ones by size."""
        return self.listed.index(value) if self.listed is not None and value in self.listed else value


Space = dict[str, Dimension]
"""Dotted job keys and the values of each."""


class Search(Strict):
    """Per row and task the best configuration on dev is looked for; the test is read for that one alone."""

    space: Space = Field(min_length=1, description="dotted keys of jobs and what each may be")
    searcher: Literal["grid", "random", "tpe"] = Field(default="grid", description="how combinations are chosen")
    trials: int | None = Field(
        default=None, ge=1, description="of random and tpe, the same for every row and task; grid: all"
    )
    scheduler: Literal["none", "asha", "racing"] = Field(
        default="none", description="what stops a configuration between its seeds, where others are ahead"
    )
    metric: str = Field(default="dev", description="dev, or what it is for the task: the name of its first metric")
    rows: dict[str, Space] | None = Field(
        default=None, description="a list, or what each row has beside the space or in place of its keys; None: all"
    )

    @field_validator("rows", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return {str(row): {} for row in value} if isinstance(value, list) else value

    def of(self, row: str) -> Search:
        """The search of one row: its own keys laid over the space that all have. The budget is the same."""
        return self.model_copy(update={"space": {**self.space, **(self.rows or {}).get(row, {})}})

    def grid(self) -> list[dict[str, Any]]:
        """Every combination, the last key fastest; none where a key is an interval."""
        listed = [dimension.listed or [] for dimension in self.space.values()]
        return [dict(zip(self.space, values, strict=True)) for values in itertools.product(*listed)]

    def drawn(self, source: random.Random) -> dict[str, Any]:
        """One combination at random, each key on its own."""
        return {key: draw(dimension, source) for key, dimension in self.space.items()}

    def sampled(self, study: str) -> list[dict[str, Any]]:
        """As many combinations as the budget has, at random and none twice; all where there are no more.

        Args:
            study: what the draws depend on; a larger budget goes on where a smaller one ended.
        """
        there_are = math.prod(dimension.size for dimension in self.space.values())
        found: dict[str, dict[str, Any]] = {}
        numbers = itertools.count()
        while len(found) < min(self.trials or 0, there_are):
            values = self.drawn(random.Random(f"{study}/{next(numbers)}"))
            found.setdefault(json.dumps(values), values)
        return list(found.values())

    def order(self, values: dict[str, Any]) -> list[float]:
        """Sorts configurations as the file lists their values; the first of equals is chosen."""
        return [dimension.rank(values[key]) for key, dimension in self.space.items()]


def draw(dimension: Dimension, source: random.Random) -> Any:
    """A value of a dimension at random: of a list each alike, of an interval uniform, or uniform on the logarithm."""
    if dimension.listed is not None:
        return source.choice(dimension.listed)
    if dimension.log:
        low, high = dimension.log
        return low * (high / low) ** source.random()
    assert dimension.uniform
    return source.uniform(*dimension.uniform)

"""What must be the same for all numbers of one table: what a reader can't see in it.

That one row has 5 shots and another 10, or another model, its job says. That rows were drawn anew, a metric was
mended, or a model of the same name has other weights, no one sees: such numbers are refused, or, asked for, marked.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from raypft.errors import UserError

Fact = tuple[str, tuple[Hashable, ...], Any]
"""What it is, where it must be the same, and its value; None is not known."""


class Mixing:
    """Hears what each number of a table was made with. Tasks are named as tables print them.

    Args:
        allowed: whether a difference is only noted, in `found`.
    """

    def __init__(self, allowed: bool = False) -> None:
        self.allowed = allowed
        self.found: dict[str, None] = {}
        self._seen: dict[tuple[str, tuple[Hashable, ...]], tuple[str, Any]] = {}

    def add(self, who: str, facts: Iterator[Fact]) -> None:
        """Compare facts with those heard before.

        Raises:
            UserError: one differs, unless that is allowed.
        """
        for what, where, value in facts:
            if value is None:
                continue
            other, known = self._seen.setdefault((what, where), (who, value))
            if known == value:
                continue
            line = f'task {where[0]}: row "{who}" has {what} {value}, row "{other}" has {known}; they don\'t compare'
            if not self.allowed:
                raise UserError(
                    f"report: {line}; give both the same data, protocol and raypft version, and run the older ones "
                    "again, or report with --mix"
                )
            self.found[line] = None


def tested(task: str, result: Mapping[str, Any]) -> Iterator[Fact]:
    """What a result alone tells."""
    if "scores" in result:
        for what, key in (("test rows", "test_rows"), ("metric", "metric"), ("protocol", "protocol")):
            yield what, (task,), result.get(key)


def made(
    task: str, point: tuple[Any, ...], result: Mapping[str, Any], job: Mapping[str, Any], origin: Mapping[str, Any]
) -> Iterator[Fact]:
    """What job.yaml and provenance.json tell beside a result: rows drawn alike, weights and data of one revision."""
    asked = [job.get("shots"), job.get("demos"), job.get("train", {}).get("languages"), result.get("sizes"), point]
    yield "samples (manifest)", (task, result["seed"], json.dumps(asked, default=str)), result.get("manifest")
    name = job.get("backbone")
    yield f"{name} of revision", (task, name), result.get("backbone")
    data = origin.get("data") or {}
    revisions = ", ".join(data.get("revisions") or []) or None
    yield "data of revision", (task, data.get("source"), data.get("hub") and json.dumps(data["hub"])), revisions

"""The promise over engines: one loss curve for plain torch and every ZeRO stage, with one process and two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raypft.contract.checks import expect_curve
from raypft.contract.group import Case, run_case, run_group
from raypft.methods import METHODS

ENGINES: tuple[str | int, ...] = ("torch", 0, 1, 2, 3)
PROMISE = "one loss curve: torch and ZeRO, one process and two"


def engines_of(method: str) -> list[str | int]:
    """The engines that a method says it works on."""
    stage = METHODS.load(method).max_zero_stage
    return [engine for engine in ENGINES if isinstance(engine, str) or engine <= stage]


def cases_of(method: str, kind: str, **fields: Any) -> list[Case]:
    """A case for each engine of a method."""
    return [Case(method, kind, engine, **fields) for engine in engines_of(method)]


def expect_the_curve(case: Case, losses: list[float], expected: list[float], world: int) -> None:
    """Raise an AssertionError unless a case's losses are those of one process of plain torch."""
    engine = "plain torch" if case.engine == "torch" else f"zero.stage={case.engine}"
    expect_curve(losses, expected, f"{engine}, {world} process{'es' if world > 1 else ''}", "one of plain torch")


def broken_curves(method: str, kinds: Sequence[str], **options: Any) -> dict[str, str]:
    """Kind of tiny model to what is wrong with its loss curves, empty where nothing is.

    Five rows in steps of four: of two processes one is without rows in every second step.

    Raises:
        AssertionError: a group of processes failed.
    """
    cases: list[Case] = []
    for kind in kinds:
        cases += cases_of(method, kind, options=tuple(options.items()))
    expected = {case.kind: run_case(case)["losses"] for case in cases if case.engine == "torch"}
    broken = dict.fromkeys(kinds, "")
    for world in (1, 2):
        for case, result in zip(cases, run_group(world, cases), strict=True):
            try:
                expect_the_curve(case, result["losses"], expected[case.kind], world)
            except AssertionError as error:
                broken[case.kind] = broken[case.kind] or str(error)
    return broken

"""The promise over engines: one loss curve for plain torch and every ZeRO stage, with one process and two."""

from __future__ import annotations

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


def one_loss_curve(method: str, kind: str, **options: Any) -> None:
    """Five rows in steps of four: of two processes one is without rows in every second step."""
    cases = cases_of(method, kind, options=tuple(options.items()))
    expected = run_case(cases[0])["losses"]
    for world in (1, 2):
        for case, result in zip(cases, run_group(world, cases), strict=True):
            expect_the_curve(case, result["losses"], expected, world)

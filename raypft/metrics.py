"""Metrics by name and version, on answers that are label names. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raypft.errors import UserError, nearest

ENGLISH = ("en", "eng_Latn")
"""The codes of the language that means are also given without."""


def accuracy(gold: Sequence[str], answers: Sequence[str]) -> float:
    """Share of equal pairs, in percent; 0 to 100."""
    return 100.0 * sum(g == a for g, a in zip(gold, answers, strict=True)) / len(gold)


METRICS: dict[str, tuple[int, Callable[[Sequence[str], Sequence[str]], float]]] = {"accuracy": (1, accuracy)}


def metric(name: str) -> tuple[str, Callable[[Sequence[str], Sequence[str]], float]]:
    """The metric's id with its version, and its function.

    Raises:
        UserError: unknown name; the nearest is named.
    """
    if name not in METRICS:
        raise UserError(f'metric: "{name}" is unknown; {nearest(name, METRICS)}')
    version, function = METRICS[name]
    return f"{name}@{version}", function

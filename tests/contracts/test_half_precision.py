"""bf16 under every engine: what trains has fp32 values, and steps too small for bf16 add up there."""

from __future__ import annotations

import pytest

from raypft.contract.engines import cases_of
from raypft.contract.group import Case, run_case, run_group

pytestmark = pytest.mark.timeout(600)

LONG = cases_of("full", "bert", precision="bf16", epochs=25)
"""50 steps of 1e-3 on normalisations that begin at 1, where bf16 rounds what is below 2e-3 away."""


def moved(values) -> dict[str, float]:
    """How far each normalisation's weights have come, on the average."""
    return {name: float((v - 1).abs().mean()) for name, v in values.items() if name.endswith("LayerNorm.weight")}


def test_steps_that_bf16_would_round_away_add_up():
    expected = moved(run_case(Case("full", "bert", "torch", epochs=25))["values"])
    assert len(expected) > 5
    for plan, found in zip(LONG, run_group(2, LONG), strict=True):
        assert moved(found["values"]) == pytest.approx(expected, rel=0.1), plan.engine
        assert not all(value.bfloat16().float().equal(value) for value in found["values"].values()), plan.engine

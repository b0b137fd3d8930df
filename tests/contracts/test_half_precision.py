"""bf16 under every engine: what trains has fp32 values, and steps too small for bf16 add up there. fp16: a training
goes on with the scale of its loss."""

from __future__ import annotations

from typing import Any

import pytest
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

from raypft.contract import cases, group
from raypft.contract.engines import cases_of
from raypft.contract.group import Case, run_case, run_group
from raypft.training.stepper import Stepper

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


def test_bf16_goes_on_under_another_stage(tmp_path):
    """Stage 0, too, whose fp32 values DeepSpeed keeps in another place."""

    def half(stage: int, epochs: int, **more: Any) -> Case:
        return Case("full", "bert", stage, precision="bf16", epochs=epochs, **more)

    first = [half(stage, 1, keep=str(tmp_path / str(stage))) for stage in (0, 2)]
    resumed = [half(stage, 3, resume=str(tmp_path / str(kept))) for stage in (0, 2) for kept in (0, 2)]
    found = run_group(1, [*first, *resumed])[2:]
    for one in found[1:]:
        assert one["losses"] == pytest.approx(found[0]["losses"], rel=1e-3)


STAGES = (2, 3)
"""Of stages 1 and 2 the scaling is the same code; stage 0 meets no gradient here that is too large."""


def member_with_fp16(*arguments: Any) -> None:
    """A process of a group in which DeepSpeed takes CPUs for devices that compute in fp16, which torch does on them."""
    CPU_Accelerator.is_fp16_supported = lambda self: True
    group._member(*arguments)


def scaling(_cell: cases.Cell, stepper: Stepper) -> dict[str, float]:
    return {**stepper.scaling()}


def test_fp16_goes_on_with_the_scale_of_its_loss(tmp_path, monkeypatch):
    """DeepSpeed would begin again at 2^16, and leave out the steps in which that is too large."""
    monkeypatch.setattr(group, "_member", member_with_fp16)

    def half(stage: int, epochs: int, **more: Any) -> Case:
        return Case("full", "bert", stage, precision="fp16", epochs=epochs, probe=scaling, **more)

    first = [half(stage, 3, keep=str(tmp_path / str(stage)), parts=stage == 3) for stage in STAGES]
    alone = [half(stage, 5) for stage in STAGES]
    resumed = [half(stage, 5, resume=str(tmp_path / str(other))) for stage, other in zip(STAGES, STAGES[::-1])]
    found = run_group(1, [*first, *alone, *resumed])
    for left, gone_on in zip(found[2:4], found[4:], strict=True):
        assert gone_on["losses"] == pytest.approx(left["losses"], rel=1e-3)
        assert gone_on["probe"] == left["probe"]
        assert left["probe"]["cur_scale"] < 2**16
        assert left["probe"]["cur_iter"] == 10

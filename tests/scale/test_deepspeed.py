"""Which steps that DeepSpeed leaves out end a training. An engine stands in for its own: fp16 needs a GPU there."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from raypft.scale.deepspeed import SKIPS, DeepSpeedStepper


def stepped(outcomes, may_skip: int) -> list[bool]:
    """What steps say whose gradients overflow, or raise, as told."""
    stepper, left = object.__new__(DeepSpeedStepper), iter(outcomes)
    optimizer = SimpleNamespace(param_groups=[{}], overflow=False)

    def step() -> None:
        outcome = next(left)
        optimizer.overflow = outcome in ("skipped", "lowest scale")
        if outcome in ("lowest scale", "broken"):
            raise Exception(outcome)  # as DeepSpeed does

    stepper.engine, stepper.stage = SimpleNamespace(optimizer=optimizer, step=step), 2
    stepper.skipped, stepper.may_skip = 0, may_skip
    said = [bool(stepper.step(0.5)) for _ in outcomes]
    assert optimizer.param_groups == [{"lr": 0.5}]
    return said


def test_without_loss_scaling_no_step_may_be_left_out():
    assert stepped(["done", "skipped"], may_skip=0) == [True, False]


def test_fp16_may_look_for_its_scale_but_not_for_ever():
    looking = ["skipped"] * SKIPS
    assert all(stepped([*looking, "done", *looking, "done"], SKIPS))
    assert stepped([*looking, "skipped"], SKIPS) == [True] * SKIPS + [False]
    assert stepped(["done", "lowest scale"], SKIPS) == [True, False]


def test_what_fails_for_another_reason_fails():
    with pytest.raises(Exception, match=r"^broken$"):
        stepped(["skipped", "broken"], SKIPS)

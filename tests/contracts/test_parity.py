"""One loss curve for every engine, ZeRO stage and number of workers, for every method: fp32, dropout 0.1, lr
1e-3, ten steps.

Five rows in steps of four: with two workers the shares are unequal and every second step leaves one worker without
rows.
"""

from __future__ import annotations

import pytest
import torch

from raypft.contract import cases
from raypft.contract.checks import dataset
from raypft.contract.engines import cases_of, expect_the_curve
from raypft.contract.group import Case, run_case, run_group
from raypft.errors import UserError
from raypft.methods import METHODS
from raypft.training.loop import fit

pytestmark = pytest.mark.timeout(1500)  # the groups run in fixtures, each of them all cases

# one kind a family here; the other kinds run every method in test_methods.py
PAIRS = [
    (method, kind)
    for method, kind in cases.supported()
    if METHODS.load(method).trains and kind in ("bert", "gpt2", "t5")
]


def on_each_engine(pairs, last: int = 0, **fields) -> list[Case]:
    """A case for each (method, kind) on each engine, or on the `last` ones."""
    plans = []
    for method, kind in pairs:
        plans += cases_of(method, kind, **fields)[-last:]
    return plans


PLANS = on_each_engine(PAIRS)
OTHER_WAYS = [
    *on_each_engine([("prefix", "bert"), ("prefix", "gpt2")], options=(("mlp", True),)),
    *on_each_engine([("adapter", "bert"), ("adapter", "gpt2")], options=(("placement", "houlsby"),)),
]
"""Parameters that reach the model in another way than a method's defaults do."""


def ends(cell: cases.Cell, stepper) -> dict[str, list[list[str]]]:
    """How trainings end on each rank: the gradient of the last is not finite; the last draws at random."""
    method, lines = cell.learner.method, []
    assert stepper.gather_numbers(stepper.rank + 0.5, 3) == [[rank + 0.5, 3.0] for rank in range(stepper.world)]
    forward = method.forward

    def diverging(states):
        return states + (0 * states.sum()).sqrt()  # 0, with a gradient that is nan

    def drawing(states):
        return states + torch.rand(())

    for otherwise in (diverging, drawing):
        if stepper.rank == stepper.world - 1:
            method.forward = lambda batch, otherwise=otherwise: otherwise(forward(batch))
        try:
            fit(stepper, dataset(cell), None, cases.SETTINGS, 0, cell.score)
        except UserError as error:
            lines.append(str(error))
    return {"lines": stepper.gather(lines)}


ENDED = on_each_engine([("lora", "gpt2")], epochs=1, probe=ends)
DECAYED = [("full", "bert"), ("full", "t5"), ("soft_prompt", "gpt2")]
"""Biases and normalisations beside other weights, and a method's own parameters beside the model's."""
CHECKPOINTED = on_each_engine(
    [("full", "bert"), ("full", "t5"), ("lottery", "bert"), ("lora", "gpt2"), ("gnnavi", "gpt2"), ("prefix", "gpt2")],
    epochs=2,
    checkpointing=True,
)
EXTRA = [
    Case("full", "bert", 2, micro_batch=1, clip=0.5),
    Case("full", "bert", "torch", micro_batch=1, clip=0.5),
    Case("full", "gpt2", 2, offload=True),
    *on_each_engine(DECAYED, weight_decay=0.5),
    *on_each_engine(PAIRS, last=1, precision="bf16"),
]


@pytest.fixture(scope="module")
def reference():
    """The curves of one plain process."""
    return {(method, kind): run_case(Case(method, kind, "torch")) for method, kind in PAIRS}


@pytest.fixture(scope="module")
def two():
    """Everything in one group of two processes."""
    plans = PLANS + OTHER_WAYS + EXTRA + ENDED + CHECKPOINTED
    return dict(zip(plans, run_group(2, plans), strict=True))


@pytest.fixture(scope="module")
def one():
    """Everything in a group of one process."""
    plans = PLANS + CHECKPOINTED
    return dict(zip(plans, run_group(1, plans), strict=True))


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_one_loss_curve(plan, reference, one, two):
    expected = reference[plan.method, plan.kind]["losses"]
    assert len(expected) == 10
    expect_the_curve(plan, one[plan]["losses"], expected, 1)
    expect_the_curve(plan, two[plan]["losses"], expected, 2)


@pytest.mark.parametrize("plan", CHECKPOINTED, ids=str)
def test_one_loss_curve_where_blocks_run_again(plan, reference, one, two):
    for found in (one, two):
        expected = reference[plan.method, plan.kind]["losses"][:4]
        assert found[plan]["losses"] == pytest.approx(expected, rel=1e-6 if plan.engine == "torch" else 1e-5)


@pytest.mark.parametrize("plan", OTHER_WAYS, ids=str)
def test_one_loss_curve_in_other_ways(plan, two):
    expected = run_case(Case(plan.method, plan.kind, "torch", options=plan.options))["losses"]
    expect_the_curve(plan, two[plan]["losses"], expected, 2)


@pytest.mark.parametrize("plan", [plan for plan in PLANS + OTHER_WAYS if plan.engine == 3], ids=str)
def test_stage_three_partitions_every_parameter(plan, two):
    shares = two[plan]["shares"]
    assert shares
    assert all(own == -(-whole // 2) for own, whole in shares.values())


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_values_saved_from_any_engine_are_the_trained_ones(plan, reference, two):
    expected = reference[plan.method, plan.kind]["values"]
    assert set(two[plan]["values"]) == set(expected)
    for name, value in two[plan]["values"].items():
        assert value.shape == expected[name].shape
        # softmax does not see a key's bias: its gradient is rounding, whose sign an L1 penalty then follows
        assert name.endswith("key.bias") or (value - expected[name]).abs().max() < 1e-4, name
        assert two[plan]["given"][name].equal(value + 1), "values written into the model are the ones that are saved"


def test_accumulation_and_clipping_agree(two):
    with_deepspeed, plain = (two[plan]["losses"] for plan in EXTRA[:2])
    assert with_deepspeed == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("plan", [plan for plan in EXTRA if plan.weight_decay], ids=str)
def test_one_loss_curve_under_weight_decay(plan, two):
    expected = run_case(Case(plan.method, plan.kind, "torch", weight_decay=plan.weight_decay))
    expect_the_curve(plan, two[plan]["losses"], expected["losses"], 2)
    for name, value in two[plan]["values"].items():
        assert name.endswith("key.bias") or (value - expected["values"][name]).abs().max() < 1e-4, name


def test_offload_changes_nothing(reference, two):
    assert two[EXTRA[2]]["losses"] == pytest.approx(reference["full", "gpt2"]["losses"], rel=1e-4)


@pytest.mark.parametrize("plan", [plan for plan in EXTRA if plan.precision == "bf16"], ids=str)
def test_bf16_follows_the_curve_loosely(plan, reference, two):
    assert two[plan]["losses"] == pytest.approx(reference[plan.method, plan.kind]["losses"], rel=0.1)


@pytest.mark.parametrize("plan", ENDED, ids=str)
def test_a_training_ends_with_one_line_under_every_engine_and_on_every_rank(plan, two):
    """ZeRO 1 to 3 would leave the step out and go on."""
    for lines in two[plan]["probe"]["lines"]:
        assert lines[0].startswith("train: the gradient is not finite at optimizer step 1; lower train.lr")
        assert lines[1].startswith("train: the model or the method draws random numbers that are no row's dropout")

"""A training goes on from its state with other workers and under another stage, for every method, from one file and
from parts: the curve is that of one left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raypft.contract import cases
from raypft.contract.engines import engines_of
from raypft.contract.group import Case, run_case, run_group
from raypft.methods import METHODS

pytestmark = pytest.mark.timeout(1500)  # the groups run in a fixture

KINDS = dict(reversed([(m, k) for m, k in cases.supported() if METHODS.load(m).trains and k in ("gpt2", "bert")]))
"""Each method that trains, and a kind of model it works on."""
WAYS = [(method, True) for method in KINDS] + [(method, False) for method in ("full", "lottery", "lora", "gnnavi")]
"""In parts; and from one file, methods that differ in where their trained values live."""
LEGS = ((4, 3), (2, 1), (1, "torch"))
"""Workers, and the engine or the highest stage that a method works on up to this one; an epoch each, the last to the
end."""
BACK = (2, 3)


def leg(method: str, number: int, engine: str | int, place: Path, parts: bool, **more) -> Case:
    """A leg of a method's way, from the state of the one before."""
    known = engines_of(method)
    engine = engine if engine in known else known[-1]
    states = [str(place / f"{method}-{parts}-{n}") for n in range(number + 1)]
    resume = states[number - 1] if number else ""
    return Case(method, KINDS[method], engine, epochs=number + 1, resume=resume, keep=states[-1], parts=parts, **more)


@pytest.fixture(scope="module")
def gone_on(tmp_path_factory):
    """Method and whether its states were in parts to what its last leg and one more, back to partitions, found."""
    place, found = tmp_path_factory.mktemp("states"), dict[tuple[str, bool], list[dict]]()
    for number, (world, engine) in enumerate((*LEGS, BACK)):
        plans = [leg(method, number, engine, place, parts) for method, parts in WAYS]
        for plan, result in zip(plans, run_group(world, plans), strict=True):
            found.setdefault((plan.method, plan.parts), []).append(result)
    return found


@pytest.mark.parametrize(("method", "parts"), WAYS)
def test_one_curve_over_workers_and_stages(method, parts, gone_on):
    expected = run_case(Case(method, KINDS[method], "torch", epochs=len(LEGS) + 1))
    *_, last = gone_on[method, parts]
    assert last["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    assert last["dev"] == expected["dev"]
    assert set(last["values"]) == set(expected["values"])
    for name, value in last["values"].items():
        assert name.endswith("key.bias") or (value - expected["values"][name]).abs().max() < 1e-4, name


ENGINES = ("torch", 0, 1, 2, 3)


SAME = (("full", "gpt2"), ("lottery", "bert"), ("lora", "gpt2"), ("gnnavi", "gpt2"))
"""Methods that differ in where their trained values live."""


@pytest.mark.parametrize("world", [1, 2])
def test_under_the_same_stage_it_goes_on_to_the_same_bits(world, tmp_path):
    """From parts and from one file, with dropout."""
    begun, gone_on, left_alone = list[Case](), list[Case](), list[Case]()
    for method, kind in SAME:
        for engine in engines_of(method)[1:]:
            place = str(tmp_path / f"{method}-{engine}")
            begun.append(Case(method, kind, engine, epochs=1, keep=place, parts=engine in (1, 3)))
            gone_on.append(Case(method, kind, engine, epochs=2, resume=place))
            left_alone.append(Case(method, kind, engine, epochs=2))
    found = run_group(world, begun + gone_on + left_alone)[len(begun) :]
    for case, one, other in zip(left_alone, found[: len(begun)], found[len(begun) :], strict=True):
        assert one["losses"] == other["losses"], case
        assert one["dev"] == other["dev"], case
        assert all(torch.equal(value, other["values"][name]) for name, value in one["values"].items()), case


def test_half_precision_goes_on_from_its_fp32_values_with_the_same_bits(tmp_path):
    """Also at stage 0, whose fp32 values and moments lie beside the model; there DeepSpeed would begin with a step of
    its own."""

    def half(engine, epochs: int, **more) -> Case:
        return Case("full", "gpt2", engine, precision="bf16", epochs=epochs, **more)

    run_group(1, [half(engine, 1, keep=str(tmp_path / str(engine)), parts=engine == 3) for engine in ENGINES])
    resumed = [half(engine, 3, resume=str(tmp_path / str(engine))) for engine in ENGINES]
    found = run_group(1, resumed + [half(engine, 3) for engine in ENGINES])
    gone_on, left_alone = found[: len(ENGINES)], found[len(ENGINES) :]
    for engine, one, other in zip(ENGINES, gone_on, left_alone, strict=True):
        assert one["losses"] == other["losses"], engine
        assert all(torch.equal(value, other["values"][name]) for name, value in one["values"].items()), engine
    zero, *others = [one["losses"] for one in left_alone[1:]]
    for losses in others:
        assert zero == pytest.approx(losses, rel=1e-2)

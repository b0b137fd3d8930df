"""Optimizer steps of one rank beside others, which are played here: what meets, what is sent, what is whole again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from raypft.contract import cases, tiny
from raypft.contract.checks import dataset
from raypft.training import stepper as steppers
from raypft.training.stepper import Learner, TorchStepper


def made(method: str = "soft_prompt", **changes: Any) -> TorchStepper:
    cell = cases.cell(method, tiny.backbone("bert"))
    return TorchStepper(cell.learner, cases.SETTINGS.model_copy(update=changes))


def as_rank(stepper: TorchStepper, rank: int, world: int, monkeypatch, others: Any = None) -> None:
    """Plays a group whose other ranks have the same numbers, or these objects."""
    stepper.rank, stepper.world = rank, world
    monkeypatch.setattr(steppers.distributed, "all_reduce", lambda tensor: tensor.mul_(world))

    def gathered(out: list[Any], own: Any) -> None:
        out[:] = [own if number == rank else others for number in range(world)]

    monkeypatch.setattr(steppers.distributed, "all_gather_object", gathered)


def test_a_stepper_knows_its_place_in_a_group(monkeypatch):
    alone = made()
    assert (alone.rank, alone.world, alone.device) == (0, 1, "cpu")
    assert alone.gather("own") == ["own"]
    assert alone.sum(torch.ones(2)).tolist() == [1, 1]
    assert not alone.leaving()
    told = {"is_initialized": True, "get_rank": 3, "get_world_size": 4}
    for name, value in told.items():
        monkeypatch.setattr(steppers.distributed, name, lambda value=value: value)
    assert (made().rank, made().world) == (3, 4)
    as_rank(alone, 0, 2, monkeypatch)
    assert alone.sum(torch.ones(2)).tolist() == [2, 2]


def test_numbers_of_each_rank_are_known_on_every_rank(monkeypatch):
    stepper = made()
    as_rank(stepper, 1, 3, monkeypatch, "another's")
    monkeypatch.setattr(steppers.distributed, "all_reduce", lambda tensor: tensor.add_(torch.eye(3, 2) * 10))
    assert stepper.gather_numbers(2.0, 0.5) == [[10, 0], [2, 10.5], [0, 0]]
    assert stepper.gather("own") == ["another's", "own", "another's"]


@pytest.mark.parametrize("clip", [None, 0.01])
def test_gradients_are_averaged_over_ranks_and_one_that_is_missing_is_zero(clip, monkeypatch):
    """Ranks with equal gradients step as one does; what had no gradient here may have had one elsewhere."""
    found = []
    for world in (1, 2):
        stepper = made(clip=clip)
        if world > 1:
            as_rank(stepper, 0, world, monkeypatch)
        first, *others = stepper.parameters.values()
        generator = torch.Generator().manual_seed(0)
        first.grad = torch.randn(first.shape, generator=generator)
        for parameter in others:
            parameter.grad = torch.zeros_like(parameter) if world == 1 else None
        assert bool(stepper.step(0.1))
        assert all(parameter.grad is None for parameter in stepper.parameters.values())
        found.append(stepper)
    one, two = (stepper.values() for stepper in found)
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert [held.step for held in found[0].held().values()] == [held.step for held in found[1].held().values()]


def test_what_had_no_part_in_a_step_stays_as_it_is():
    stepper = made(weight_decay=0.0)
    name, parameter = next(iter(stepper.parameters.items()))
    parameter.grad = torch.ones_like(parameter)
    stepper.step(0.1)
    before = stepper.values()[name].clone()
    stepper.step(0.1)
    assert torch.equal(stepper.values()[name], before)
    held = stepper.held()
    assert held[name].step == 1
    assert {own.step for other, own in held.items() if other != name} == {0}
    assert {len(own.tensors) for other, own in held.items() if other != name} == {1}


def test_pieces_come_together_on_the_first_rank_and_are_sent_by_the_others(monkeypatch):
    """Of three tensors: one in two pieces, one elsewhere alone, one here alone; of what no one holds there is none."""
    stepper, sent = made(), list[tuple[list[float], int]]()
    stepper.shapes = {name: torch.Size(shape) for name, shape in {"a": (5,), "b": (2, 2), "c": (1,), "d": (3,)}.items()}
    stepper.replicated = False
    theirs = {"a": (3, 2), "b": (0, 4)}
    as_rank(stepper, 0, 2, monkeypatch, theirs)

    def received(tensor: torch.Tensor, rank: int) -> None:
        assert rank == 1
        tensor.copy_(torch.arange(len(tensor)) + 10.0)

    monkeypatch.setattr(steppers.distributed, "recv", received)
    pieces = {"a": (0, torch.tensor([1.0, 2.0, 3.0])), "c": (0, torch.tensor([7.0]))}
    found = {name: value for name, value in stepper.gathered(pieces) if value is not None}
    assert {name: value.tolist() for name, value in found.items()} == {
        "a": [1, 2, 3, 10, 11],
        "b": [[10, 11], [12, 13]],
        "c": [7],
    }
    as_rank(stepper, 1, 2, monkeypatch, {name: (start, len(piece)) for name, (start, piece) in pieces.items()})
    monkeypatch.setattr(steppers.distributed, "send", lambda tensor, to: sent.append((tensor.tolist(), to)))
    own = {"a": (3, torch.tensor([4, 5])), "b": (0, torch.ones(4))}
    assert list(stepper.gathered(own)) == [("a", None), ("b", None), ("c", None)]
    assert sent == [([4.0, 5.0], 0), ([1.0] * 4, 0)]


@pytest.mark.parametrize("rank", [0, 1])
def test_what_all_ranks_hold_is_not_sent(rank, monkeypatch):
    stepper = made()
    as_rank(stepper, rank, 2, monkeypatch)
    expected = {name: value.detach() for name, value in stepper.learner.trainable().items()}
    found = stepper.values()
    assert list(found) == (list(expected) if rank == 0 else [])
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize(("precision", "on"), [("fp32", False), ("bf16", True)])
def test_half_precision_is_on_while_the_learner_runs(precision, on):
    stepper, seen = made(precision=precision), []
    stepper.learner.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    stepper.scores(dataset(cases.cell("soft_prompt", tiny.backbone("bert"))).batch([0, 1]))
    assert seen == [on]
    assert not torch.is_autocast_enabled("cpu")


def test_kept_is_what_trains_and_what_a_readout_drew():
    cell = cases.cell("prefix", tiny.backbone("bert"), readout="head")
    cell.learner.readout.requires_grad_(False)
    learner: Learner = cell.learner
    assert not any(name.startswith("readout.") for name in learner.trainable())
    kept = learner.kept()
    assert set(kept) == set(learner.trainable()) | {f"readout.{name}" for name, _ in learner.readout.named_parameters()}
    assert any(name.startswith("readout.") for name in kept)


def test_a_learner_of_which_nothing_trains_has_no_optimizer():
    stepper = made("frozen")
    assert stepper.optimizer is None
    assert (stepper.held(), stepper.values()) == ({}, {})

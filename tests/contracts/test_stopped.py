"""A training that is stopped anywhere goes on to the bits of one left alone, for every method: values, Adam's moments
and steps, losses, dev scores, the kept epoch, answers. One process; with workers: test_resume.py, tests/scale."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raypft import shards, storage
from raypft.contract import cases
from raypft.contract.checks import dataset, dropping
from raypft.methods import METHODS
from raypft.training import checkpoint
from raypft.training import states as states_module
from raypft.training.checkpoint import StateWriter
from raypft.training.loop import evaluate, fit
from raypft.training.states import States
from raypft.training.stepper import TorchStepper

KINDS = dict(reversed([(m, k) for m, k in cases.supported() if METHODS.load(m).trains and k in ("gpt2", "bert")]))
"""Each method that trains, and a kind of model it works on."""
SETTINGS = cases.SETTINGS.model_copy(update={"batch_size": 2, "micro_batch": 1, "epochs": 3})
"""Three steps an epoch, two backward passes a step."""
SCORES = (1.0, 3.0, 2.0)
"""On dev, by epoch: the second is kept."""


class Stopped(BaseException):
    """As a kill comes: nothing catches it."""


class Now(Executor):
    """Runs at once what is submitted, so that the moment that is drawn is one of the training's own."""

    def submit(self, fn, /, *args, **kwargs):
        future: Future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def stops_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose call of that number stops the training before it has done anything."""
    calls = iter(range(1 << 30))

    @functools.wraps(function)
    def stopping(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise Stopped
        return function(*args, **kwargs)

    return stopping


def halves(call: int, save: Callable[..., Any]) -> Callable[..., Any]:
    """A function that writes a file, whose call of that number writes half of it and stops the training."""
    calls = iter(range(1 << 30))

    @functools.wraps(save)
    def half(*args: Any, **kwargs: Any) -> Any:
        given = save(*args, **kwargs)
        if next(calls) == call:
            path = next(one for one in args if isinstance(one, Path))
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            raise Stopped
        return given

    return half


Found = tuple[dict[str, Any], dict[str, torch.Tensor], Any]


def found(method: str, place: Path | None, stop: Callable[[TorchStepper], None] = lambda stepper: None, every: int = 1):
    """What a training of a method ends with, which goes on from the states in a folder; None where it was stopped."""
    cell = dropping(method, KINDS[method])
    asked = SETTINGS.model_copy(update={"save_every": every})
    stepper = TorchStepper(cell.learner, asked)
    states = state = None
    if place is not None:
        states = States(place / "state.pt", place / "state.previous.pt", place / "state", "cell")
        state, lost = states.resume(stepper)
        assert lost == []
    scores = iter(SCORES[state.epoch if state is not None else 0 :])
    stop(stepper)
    try:
        state = fit(stepper, dataset(cell), dataset(cell), asked, 0, lambda _: next(scores), state, states)
    except Stopped:
        return None
    held = {name: (own.step, own.tensors) for name, own in stepper.held().items()}
    history = [{key: value for key, value in record.items() if key != "train_seconds"} for record in state.history]
    values = {name: value.clone() for name, value in stepper.values().items()}
    answers = evaluate(stepper, dataset(cell), asked)
    tensors = {f"{key} of {name}": value.clone() for name, (_, own) in held.items() for key, value in own.items()}
    steps = {name: step for name, (step, _) in held.items()}
    told = {"losses": state.losses, "history": history, "best": state.best_epoch, "steps": steps}
    return told, values | tensors, answers


@functools.cache
def left_alone(method: str):
    return found(method, None)


MOMENTS = ("backward", "step", "save", "move")
"""Where it stops: before a backward pass, which may be in mid-accumulation; before the optimizer's step; half-way
through a file of a state; when the file is whole, before it takes its name or the one before gives its up."""


def stopping(moment: str, call: int, patch: pytest.MonkeyPatch) -> Callable[[TorchStepper], None]:
    def stop(stepper: TorchStepper) -> None:
        if moment in ("backward", "step"):
            patch.setattr(stepper, moment, stops_at(call, getattr(stepper, moment)))
        elif moment == "save":
            patch.setattr(states_module.torch, "save", halves(call, torch.save))
            patch.setattr(shards, "write", halves(call, shards.write))
        else:
            patch.setattr(states_module, "move", stops_at(call, storage.move))
            patch.setattr(shards, "checked", stops_at(call, shards.checked))

    return stop


@pytest.mark.parametrize("method", KINDS)
@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(moment=st.sampled_from(MOMENTS), call=st.integers(0, 16), every=st.integers(1, 2), parts=st.booleans())
def test_stopped_anywhere_it_goes_on_to_the_same_bits(method, moment, call, every, parts):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as always:
        always.setattr(checkpoint, "ThreadPoolExecutor", lambda threads: Now())
        always.setattr(StateWriter, "_is_due", lambda self, patience=10: True)
        always.setattr(shards, "WHOLE", -1 if parts else 1 << 30)
        with pytest.MonkeyPatch.context() as patch:
            found(method, Path(folder), stopping(moment, call, patch), every)
        told, values, answers = cast(Found, found(method, Path(folder), every=every))
    expected_told, expected_values, expected_answers = cast(Found, left_alone(method))
    assert told == expected_told
    assert set(values) == set(expected_values)
    for name, value in values.items():
        assert torch.equal(value, expected_values[name]), name
    assert answers == expected_answers


def test_the_moments_do_stop_a_training(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "ThreadPoolExecutor", lambda threads: Now())
    for parts in (False, True):
        monkeypatch.setattr(shards, "WHOLE", -1 if parts else 1 << 30)
        for moment in MOMENTS:
            with pytest.MonkeyPatch.context() as patch:
                place = tmp_path / f"{moment}-{parts}"
                assert found("bitfit", place, stopping(moment, 1, patch)) is None
                assert found("bitfit", place) is not None

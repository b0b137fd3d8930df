"""A trial's process goes from one trial to the next and keeps nothing of the last. Ray is loaded, not started."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

from test_cli import place, words  # noqa: F401  (a fixture)

from raypft.config.load import load_job
from raypft.runs.prepare import prepare
from raypft.scale.tune.trial import Trial
from raypft.scale.tune.work import Work


def packed(place: Path, *more: str) -> dict[str, Work]:  # noqa: F811
    """A trial of a job of one seed."""
    name, *overrides = words(place, "seeds=1", "train.epochs=1", *more)
    made = prepare(load_job(name, overrides))
    asked = {
        "job": made.job.model_dump(),
        "keys": {str(seed): key for seed, key in made.keys.items()},
        "devs": [],
        "test": True,
        "fresh": False,
        "ends_on_failure": True,
        "lanes": True,
        "commits": {},
    }
    return {"work": Work(**asked)}


def test_the_next_trial_finds_nothing_of_the_last_in_memory(place):  # noqa: F811
    """What holds itself in circles is let go, though Python would look for it only after hundreds of trials."""
    others = [packed(place, f"train.lr={rate}") for rate in (1e-3, 1e-2)]
    trial = Trial(others[0])
    told = trial.step()
    assert (told["reason"], told["last"]) == ("", True)
    gone = [weakref.ref(trial.prepared.skeleton.text.tokenizer), weakref.ref(trial.prepared.skeleton.model)]
    gc.disable()
    try:
        assert trial.reset_config(others[1])
        assert [one() for one in gone] == [None, None]
    finally:
        gc.enable()
        gc.unfreeze()
    assert trial.step()["reason"] == ""
    trial.cleanup()

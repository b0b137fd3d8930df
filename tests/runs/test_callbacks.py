"""Functions that hear a run's events: several, complete, and one that fails ends nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import raypft
from raypft.contract import tiny
from raypft.runs.callbacks import together

DOCS = Path(raypft.__file__).parent.parent / "docs" / "trackers.md"


def test_several_hear_and_one_that_raises_hears_no_more():
    heard: list[str] = []

    def fails(event: dict[str, Any]) -> None:
        raise KeyError("loss")

    tell = together([fails, lambda event: heard.append(event["event"])])
    line = r"tell: .*fails raised KeyError: 'loss' at start; it hears no more, the run goes on"
    with pytest.warns(UserWarning, match=line) as warned:
        tell({"event": "start"})
    tell({"event": "epoch"})
    assert len(warned) == 1
    assert "\n" not in str(warned[0].message)
    assert heard == ["start", "epoch"]


def test_one_function_or_none_will_do():
    heard: list[dict[str, Any]] = []
    together(heard.append)({"event": "start"})
    together(None)({"event": "start"})
    assert heard == [{"event": "start"}]


def test_what_stops_python_stops_the_run():
    def stops(event: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        together([stops])({"event": "start"})


def test_events_have_the_keys_that_the_docs_list(tmp_path, monkeypatch):
    """Each event of a run, and no key of it that the table of docs/trackers.md leaves out."""
    monkeypatch.chdir(tmp_path)
    made = tiny.backbone("bert")
    made.model.save_pretrained("model")
    made.text.tokenizer.save_pretrained("model")
    told: list[dict[str, Any]] = []
    monkeypatch.setattr("raypft.training.loop.TELL_SECONDS", -1)

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            raise KeyboardInterrupt

    train = {"epochs": 2, "batch_size": 2, "save_every": 1}
    keys = {"task": "sentiment", "backbone": "model", "shots": 4, "seeds": 1, "train": train, "tracker": "tensorboard"}
    with pytest.raises(KeyboardInterrupt):
        raypft.run("profit", tell=[told.append, stop], **keys)
    for _ in range(2):
        raypft.run("profit", tell=told.append, **keys)
    table = DOCS.read_text(encoding="utf-8").partition("| event |")[2]
    rows = re.findall(r"^\| `(\w+)` \| .*? \|(.*?)\|$", table, re.MULTILINE)
    listed = {name: set(re.findall(r"`(\w+)`", keys)) for name, keys in rows}
    assert {event["event"] for event in told} == set(listed) - {"stall", "trial", "cell"}
    for event in told:
        assert set(event) - {"event", "run", "seed"} <= listed[event["event"]], event["event"]

"""What is told of a run and of a submitted job, as text and as JSON lines; a campaign's: campaigns/test_campaign.py."""

from __future__ import annotations

import io
import json
import threading

import pytest
from rich.console import Console

from raypft import progress
from raypft.cli.progress import JobProgress, OneLine, RunProgress, far_line

RUN = [
    {"event": "start", "run": "a", "seed": 0, "trainable": 12345, "epochs": 3, "notes": ["no dev rows"]},
    {"event": "step", "run": "a", "seed": 0, "epoch": 1, "step": 2, "steps": 5, "loss": 0.5},
    {"event": "epoch", "run": "a", "seed": 0, "epoch": 1, "loss": 0.25, "dev": 50.0},
    {"event": "resume", "run": "b", "seed": 1, "epochs": 3, "epoch": 1, "step": 4},
    {"event": "result", "run": "a", "seed": 0, "mean": 3.0},
    {"event": "reuse", "run": "b", "seed": 2},
    {"event": "stall", "text": "nothing heard"},
]
LINES = [
    "profit seed 0: 12,345 trainable parameters, up to 3 epochs",
    "profit seed 0: no dev rows",
    "profit seed 0: epoch 1, step 2 of 5, loss 0.5000",
    "profit seed 0: epoch 1, loss 0.2500, dev 50.0",
    "sp seed 1: goes on at epoch 2, step 5 from its last state",
    "profit seed 0: test 3.00",
    "sp seed 2: finished before, reused",
    "nothing heard",
]


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_run_is_told_in_lines_or_with_bars_a_seed(is_terminal):
    out = io.StringIO()
    console = Console(file=out, force_terminal=is_terminal, width=100)
    with RunProgress(console, as_json=False, labels={"a": "profit", "b": "sp"}) as tell:
        for event in RUN:
            tell(event)
    if not is_terminal:
        assert out.getvalue().splitlines() == LINES
    else:
        assert "1/3" in out.getvalue()
        assert LINES[3] not in out.getvalue(), "a bar moves instead"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_brackets_and_colons_in_what_is_told_stay(is_terminal):
    out = io.StringIO()
    note = 'no train row has the label "[/neg]", [red] or :key:'
    with RunProgress(Console(file=out, force_terminal=is_terminal, width=100), False, {"a": "[b]"}) as tell:
        tell({**RUN[0], "notes": [note]})
    assert f"[b] seed 0: {note}" in out.getvalue()


def test_as_json_every_event_of_a_run_is_a_line(capsys):
    with RunProgress(Console(), as_json=True, labels={}) as tell:
        for event in RUN:
            tell(event)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == RUN


def test_a_jobs_output_goes_to_stdout_and_what_happens_to_it_to_stderr(capsys):
    events = [{"event": "submitted", "text": "job j", "id": "j"}, {"event": "log", "text": "half a "}]
    with JobProgress(as_json=False) as tell:
        for event in events:
            tell(event)
    assert capsys.readouterr() == ("half a ", "raypft: job j\n")
    tell = JobProgress(as_json=True)
    for event in events:
        tell(event)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == events


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def worked(listener, monkeypatch) -> None:
    """Work of four rows, told at each."""
    monkeypatch.setattr(progress, "FIRST", 0.0)
    monkeypatch.setattr(progress, "EACH", 0.0)
    with progress.heard(listener):
        assert list(progress.counted("encoding", "abcd", 4)) == list("abcd")


def test_long_work_is_one_line_that_is_drawn_again_and_taken_away(monkeypatch):
    stream = Terminal()
    worked(OneLine(stream), monkeypatch)
    drawn = stream.getvalue().split("\r")
    assert [line.rstrip() for line in drawn[1:5]] == [f"encoding: {n} of 4 rows, 0 s left" for n in (1, 2, 3, 4)]
    assert not "".join(drawn[5:]).strip(), "blanks over it"
    assert stream.getvalue().endswith("\r")
    assert "\x1b" not in stream.getvalue()


def test_a_pipe_gets_nothing_of_it_and_nobody_hears_it_where_nobody_listens(monkeypatch):
    stream = io.StringIO()
    worked(OneLine(stream), monkeypatch)
    assert stream.getvalue() == ""
    items = iter("ab")
    assert progress.counted("encoding", items, 2) is items


def test_work_that_breaks_off_takes_its_line_away(monkeypatch):
    told: list = []
    monkeypatch.setattr(progress, "FIRST", 0.0)
    with progress.heard(told.append):
        items = iter(progress.counted("encoding", "abcd", 4))
        next(items)
        next(items)
        items.close()  # type: ignore[attr-defined]
    assert [far and far.done for far in told] == [1, None]


def test_what_a_library_fetches_is_asked_in_a_thread(monkeypatch):
    told: list = []
    monkeypatch.setattr(progress, "FIRST", 0.0)
    monkeypatch.setattr(progress, "EACH", 0.01)
    seen = threading.Event()

    def hear(far):
        told.append(far)
        seen.set()

    with progress.heard(hear), progress.polled("fetching x", 2e6, lambda: 1e6):
        assert seen.wait(10)
    assert far_line(told[0]).startswith("fetching x: 1 of 2 MB, ")
    assert told[-1] is None
    assert progress._listeners == []


def test_a_run_shows_it_as_a_bar_among_its_own(monkeypatch):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    with RunProgress(console, as_json=False, labels={}) as tell:
        tell(RUN[0])
        progress._listeners[-1](progress.Far("evaluation", 50.0, 200.0, 3.0, "rows"))
        tell.display.refresh()
        assert " 50/200" in out.getvalue()
        assert "3 s left" in out.getvalue()
        progress._listeners[-1](None)
        assert [task.description for task in tell.display.tasks] == ["seed 0"]
    assert progress._listeners == []

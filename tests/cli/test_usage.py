"""The terminal: the version, words that no command takes, tables that fit, pipes that close, Ctrl-C."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from test_cli import call, place, results, words  # noqa: F401  (a fixture)

import raypft
from raypft.cli import shown
from raypft.report.table import Table


def test_the_version(monkeypatch, capsys):
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"raypft {raypft.__version__}\n"


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (
            ["train", "profit"],
            'command: "train" is unknown; did you mean "run"? known: analyse, check, cluster, contract, ',
        ),
        (["ruun", "profit"], 'command: "ruun" is unknown; did you mean "run"? known: '),
        (["profit", "task=sst2"], 'command: "profit" is unknown; profit is run by raypft run profit'),
        (["my/job.yaml"], 'command: "my/job.yaml" is unknown; my/job.yaml is run by raypft run my/job.yaml'),
        (
            ["run", "--task", "sst2", "lora"],
            "run: no such option: --task; keys of a job stand without dashes: task=sst2",
        ),
        (
            ["check", "lora", "--task=sst2"],
            "check: no such option: --task; keys of a job stand without dashes: task=sst2",
        ),
        (["run", "lora", "--lr", "1e-4"], "keys of a job stand without dashes: train.lr=1e-4"),
        (["run", "lora", "--batch-size=8"], "keys of a job stand without dashes: train.batch_size=8"),
        (["run", "lora", "--shots"], "keys of a job stand without dashes: shots=…"),
        (["run", "lora", "--verbose"], "run: no such option: --verbose"),
        (["run"], "run: missing argument"),
        (["predict", "x", "--seed", "one"], "predict: invalid value for '--seed'"),
        (["cluster", "start"], "cluster: no such command 'start'"),
    ],
)
def test_what_no_command_takes_is_one_line(typed, line, monkeypatch, capsys):
    assert call(monkeypatch, *typed) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("raypft: ")
    assert line in told


def test_without_words_there_is_help(monkeypatch, capsys):
    assert call(monkeypatch) == 2
    both = capsys.readouterr()
    assert "Usage: " in both.out + both.err


TABLE = Table("t: accuracy", ["run", "en", "trainable"], [["a | b", "50.0 ± 0.0", "33,353,123"]], ["a note"])


@pytest.mark.parametrize(("width", "markdown"), [(80, False), (24, True), (6, True)])
def test_a_table_too_wide_for_the_terminal_is_markdown_and_whole(width, markdown, monkeypatch, capsys):
    out = io.StringIO()
    monkeypatch.setattr(shown, "console", Console(file=out, force_terminal=True, width=width, no_color=True))
    shown.print_table(TABLE)
    printed = capsys.readouterr().out + out.getvalue()
    assert "33,353,123" in printed
    assert (r"| a \| b | 50.0 ± 0.0 | 33,353,123 |" in printed) == markdown


ENVIRONMENTS = {
    "ascii": {"PYTHONIOENCODING": "ascii", "LANG": "C", "LC_ALL": "C"},
    "dumb": {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "10"},
    "no git": {"PATH": str(Path(sys.executable).parent)},
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_run_in_an_odd_terminal(place, name):  # noqa: F811
    command = [sys.executable, "-m", "raypft.cli", "run", *words(place, "seeds=2", "train.epochs=1")]
    environment = {**os.environ, **ENVIRONMENTS[name], "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    between = rb"\u00b1" if name == "ascii" else "±".encode()
    assert b"- mean " + between + b" sample standard deviation over seeds" in done.stdout


def test_a_pipe_that_closes_ends_without_a_traceback():
    with subprocess.Popen(
        [sys.executable, "-m", "raypft.cli", "list", "schema"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("saves", "line", "sent", "code"),
    [
        ("1", "the last state of seed 1 is kept", signal.SIGINT, 130),
        ("100000", "no state of seed 1 was kept yet (train.save_every), it begins anew", signal.SIGINT, 130),
        ("1", "the last state of seed 1 is kept", signal.SIGTERM, 143),
    ],
)
def test_ctrl_c_and_sigterm_say_what_is_kept_and_the_same_command_goes_on(place, saves, line, sent, code):  # noqa: F811
    more = ("train.epochs=4", "train.batch_size=4", f"train.save_every={saves}")
    slow = place / "slow.py"
    slow.write_text(SLOW)
    command = [sys.executable, str(slow), "run", *words(place, *more)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    marker = place / "slept"
    deadline = time.monotonic() + 120
    while not marker.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(sent)
    out, told = process.communicate(timeout=60)
    assert process.returncode == code
    beginning = "raypft: interrupted; 1 of 2 seeds are finished; "
    assert told == f"{beginning}{line}; the same command (without --fresh) goes on\n"
    assert "**partial, 1 of 2 seeds: mytask: accuracy**" in out
    assert set(results(place)) == {"seed-0"}
    again = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert "seed 0: finished before, reused" in again.stdout
    assert ("goes on at epoch" in again.stdout) == (saves == "1")
    assert set(results(place)) == {"seed-0", "seed-1"}


SLOW = """
import sys, time
from pathlib import Path
from raypft.cli import main
from raypft.training import loop

marker, tells = Path(__file__).parent / "slept", []
is_better = loop._is_better

def slow(state, record):
    tells.append(record)
    better = is_better(state, record)
    if len(tells) == 5 and not marker.exists():
        marker.touch()
        time.sleep(100)
    return better

loop._is_better = slow
main()
"""

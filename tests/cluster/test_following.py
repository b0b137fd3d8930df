"""A submitted job seen from here: exit codes, a server that goes away; what the command line refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from here import exit_code

from raypft.cli.progress import JobProgress
from raypft.cluster import submit
from raypft.cluster.client import Address, Lost

FOLDER = Path(__file__).parents[2] / "cluster"


@pytest.mark.parametrize("option", ["--env", "--metadata"])
def test_a_pair_without_a_key_is_refused(option, capsys):
    assert exit_code("submit", option, "COLOUR", "--", "list", "recipes") == 2
    assert f'{option} "COLOUR": expected KEY=VALUE' in capsys.readouterr().err


def ended(status: str, error: str | None = None, code: int | None = None, message: str = "") -> dict:
    return {"submission_id": "j", "status": status, "error_type": error, "driver_exit_code": code, "message": message}


@pytest.mark.parametrize(
    ("job", "asked", "code"),
    [
        (ended("SUCCEEDED"), False, 0),
        (ended("FAILED", "JOB_ENTRYPOINT_COMMAND_ERROR", 7), False, 7),
        (ended("FAILED", "JOB_ENTRYPOINT_COMMAND_ERROR", -9), False, 137),
        (ended("FAILED", "JOB_ENTRYPOINT_COMMAND_ERROR"), False, 1),
        (ended("STOPPED"), True, 130),
        (ended("STOPPED"), False, 143),
        (ended("FAILED", "JOB_SUPERVISOR_ACTOR_DIED", None, "The actor never ran - it was cancelled"), True, 130),
        (ended("FAILED", "JOB_SUPERVISOR_ACTOR_DIED"), False, 74),
        (ended("FAILED", "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"), False, 75),
        (ended("FAILED", "RUNTIME_ENV_SETUP_FAILURE"), False, 78),
    ],
)
def test_the_table_of_exit_codes(job, asked, code, capsys):
    assert submit.told(job, JobProgress(as_json=False), asked) == code
    assert f"exit code {code}" in capsys.readouterr().err
    assert f"| {code} |" in (FOLDER / "README.md").read_text() or code == 7


class Silent:
    """A job server that knows a running job and then goes away."""

    address = Address("http://x", "--address")

    def job(self, job_id: str) -> dict:
        return ended("RUNNING")

    def __init__(self) -> None:
        self.tails = [["half a "], ["half a ", "line\n"]]

    async def tail(self, job_id: str):
        for text in self.tails.pop(0) if self.tails else ():
            yield text
        raise ConnectionError("closed with code 1006")


def test_a_server_that_goes_away_is_waited_for_and_then_told_with_the_way_back(monkeypatch, capsys):
    monkeypatch.setattr(submit, "RECONNECT_SECONDS", 0.5)
    with pytest.raises(
        Lost,
        match=r"job j: no answer from http://x for 0.5 s .closed with code 1006.; "
        r"when it is back: raypft submit attach j",
    ) as raised:
        submit.follow(Silent(), "j", JobProgress(as_json=False))  # type: ignore[arg-type]
    assert raised.value.code == 74
    assert capsys.readouterr().out == "half a line\n"  # once, though read from the beginning each time

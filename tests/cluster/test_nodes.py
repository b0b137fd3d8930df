"""A real job on two hosts: one is killed, cut off, or told to go; the numbers are those of a run at rest.

Times to recovery are printed (-s). Two cases run by default; RAYPFT_ALL_NODES=1 adds the others.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import Hosts, not_permitted
from test_cli import place, words  # noqa: F401  (a fixture)

from raypft.config.load import load_job
from raypft.runs.prepare import prepare
from raypft.scale.run import run_jobs

reason = not_permitted()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.skipif(reason is not None, reason=reason or ""),
]
more = pytest.mark.skipif(
    not os.environ.get("RAYPFT_ALL_NODES"),
    reason="RAYPFT_ALL_NODES=1 runs it: minutes, the machinery is that of the others",
)

EACH = 3
"""CPUs of a worker and of a host for one; the head has fewer."""


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """A head and two hosts."""
    made = Hosts()
    try:
        made.add("one", EACH)
        made.add("two", EACH)
        made.wait(3)
        yield made
    finally:
        made.end()


class Run:
    """A job with two workers on the hosts, and the same job at rest in this process.

    Args:
        more: overrides of both; least: workers to go on with; label: of the hosts that read rows.
    """

    def __init__(self, hosts: Hosts, place: Path, *more: str, least: int = 2, label: str | None = None) -> None:  # noqa: F811
        common = ["seeds=1", "train.dropout=0.0", "train.lr=1e-3", "train.patience=null", *more]
        name, *overrides = words(place, *common, f"storage={place}/plain")
        (self.expected,) = run_jobs([prepare(load_job(name, overrides))], lambda event: None)[0]
        self.folder, self.hosts = place / "hosts", hosts
        group = [
            "resources.workers=2",
            f"resources.min_workers={least}",
            f"resources.cpus_per_worker={EACH}",
            "zero.stage=2",
            f"storage={self.folder}",
        ]
        group += [f"resources.data_label={label}"] if label else []
        self.process = hosts.raypft("run", *words(place, *common, *group))

    def events(self) -> list[dict]:
        """What the workers have told so far."""
        told: list[dict] = []
        for path in self.folder.glob("*/seed-0/events.jsonl"):
            told += map(json.loads, path.read_text().splitlines())
        return told

    def until(self, done, what: str, seconds: float = 240) -> float:
        """Wait for something; how long it took."""
        began = time.monotonic()
        while not done():
            if self.process.poll() is not None:
                out, err = self.process.communicate()
                raise AssertionError(f"the run ended before {what}:\n{out}\n{err}")
            assert time.monotonic() - began < seconds, f"no {what}"
            time.sleep(0.1)
        return time.monotonic() - began

    def at_work(self) -> str:
        """Once a state is there: the host of a worker."""
        self.until(lambda: list(self.folder.glob("*/seed-0/state.pt")), "state")
        return self.hosts.of_workers()[-1]

    def resumed(self, workers: int, after: int = 0) -> bool:
        """Whether so many workers went on from a state, not counting the first events."""
        return any(event["event"] == "resume" and event["workers"] == workers for event in self.events()[after:])

    def check(self) -> None:
        """Wait for the end; the numbers are those of the run at rest."""
        out, err = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, (out, err)
        (path,) = self.folder.glob("*/seed-0/result.json")
        result = json.loads(path.read_text())
        assert result["losses"][-1] == pytest.approx(self.expected["losses"][-1], rel=1e-4)
        assert result["scores"] == self.expected["scores"]


@pytest.mark.parametrize("blow", ["kill", pytest.param("cut", marks=more)])
def test_a_lost_host_costs_what_came_after_the_last_state(blow, hosts, place):  # noqa: F811
    run = Run(hosts, place, "train.epochs=40", "train.save_every=1")
    getattr(hosts, blow)(run.at_work())
    hosts.add("three", EACH)
    print(f"host lost ({blow}): goes on after {run.until(lambda: run.resumed(2), 'resume'):.0f} s")
    run.check()


def test_a_group_goes_on_with_fewer_workers(hosts, place):  # noqa: F811
    run = Run(hosts, place, "train.epochs=40", "train.save_every=1", least=1)
    hosts.kill(run.at_work())
    print(f"host killed, none comes: goes on with one worker after {run.until(lambda: run.resumed(1), 'resume'):.0f} s")
    run.check()


@more
def test_a_group_grows_again(hosts, place):  # noqa: F811
    run = Run(hosts, place, "train.epochs=3000", "train.save_every=20", least=1)
    hosts.kill(run.at_work())
    run.until(lambda: run.resumed(1), "resume with one")
    seen = len(run.events())
    hosts.add("three", EACH)
    print(f"a host comes: two workers again after {run.until(lambda: run.resumed(2, seen), 'resume with two'):.0f} s")
    run.check()


@more
def test_a_host_that_is_told_to_go_may_go(hosts, place):  # noqa: F811
    run = Run(hosts, place, "train.epochs=3000", "train.save_every=1000")
    host = run.at_work()
    hosts.drain(host, 15)
    hosts.add("three", EACH)
    time.sleep(10)
    hosts.kill(host)
    print(f"host killed after a notice: goes on after {run.until(lambda: run.resumed(2), 'resume'):.0f} s")
    run.check()

"""Ray's real autoscaler with nodes that are processes here: from zero to two and back, a drain, what can never come."""

from __future__ import annotations

import re
import time

import pytest
from here import Here
from test_cli import place, words  # noqa: F401  (a fixture)
from test_tune import write

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

TWO_TASKS = """
import ray, time
ray.init(log_to_driver=False)
@ray.remote(num_cpus=1, num_gpus=1)
def where():
    time.sleep(8)
    return ray.get_runtime_context().get_node_id()
print("nodes", len(set(ray.get([where.remote(), where.remote()]))))
"""
HOLD = """
import ray, time
ray.init(log_to_driver=False)
@ray.remote(num_gpus=1)
def hold():
    for _ in range(120):
        time.sleep(0.5)
        told = ray._private.state.state.get_draining_nodes()
        if told:
            return list(told)
print("noticed", *ray.get(hold.remote()))
"""
FOUR_GPUS = """
import ray, time
ray.init(log_to_driver=False)
@ray.remote(num_gpus=4)
def never(): pass
never.remote()
print("ready")
time.sleep(300)
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A fake cluster with no worker."""
    made = Here(tmp_path_factory.mktemp("fake"), "fake")
    code, _, err = made("cluster", "up", str(made.file))
    assert code == 0, err
    yield made
    assert "ended" in made("cluster", "down", str(made.file))[1]


def status(here: Here) -> str:
    """Lines of `raypft cluster status`."""
    code, out, err = here("cluster", "status", str(here.file))
    assert code == 0, err
    return out


def until(here: Here, pattern: str, present: bool = True, seconds: float = 60) -> str:
    """The status when it first shows a pattern, or no longer does."""
    end = time.monotonic() + seconds
    while bool(re.search(pattern, out := status(here))) != present:
        assert time.monotonic() < end, out
        time.sleep(1)
    return out


def test_a_job_and_tasks_on_a_cluster_without_nodes_bring_them_and_they_go_when_idle(here, place):  # noqa: F811
    assert [line.split()[1] for line in status(here).splitlines()] == ["head"]
    job = words(place, "seeds=1", "train.epochs=2", "resources.workers=1")
    training = here.start("submit", "--cluster", str(here.file), "--id", "job", "--no-package", "--", "run", *job)
    tasks = here.start(
        "submit", *here.at((None, "--id", "two", "--raw", "--no-package", "--", "python", "-c", TWO_TASKS))
    )
    until(here, r" gpu1 ")
    out, err = tasks.communicate(timeout=150)
    assert (tasks.returncode, "nodes 2\n" in out) == (0, True), (out, err)
    out, err = training.communicate(timeout=150)
    assert (training.returncode, "seed 0: test" in out) == (0, True), (out, err)
    until(here, r" (gpu1|cpu-data) ", present=False)


def test_a_campaign_brings_a_node_for_each_trial_that_may_run_and_they_go_when_it_ends(here, place):  # noqa: F811
    campaign = write(
        place,
        "scaled",
        {"Searched": {"recipe": "profit"}},
        {"space": {"train.lr": [0.001, 0.003, 0.01]}},
        seeds=[0],
        **{"train.epochs": 60, "train.patience": None, "resources.gpus_per_worker": 1},
    )
    start = time.monotonic()
    code, _, err = here("submit", "--cluster", str(here.file), "--", "tune", campaign, "resources.gpus_per_worker=4")
    assert (code, "the job needs {CPU: 1, GPU: 4} on one node; the largest is gpu1" in err) == (75, True), err
    assert time.monotonic() - start < 5
    tuning = here.start(
        "submit", "--cluster", str(here.file), "--id", "campaign", "--no-package", "--", "tune", campaign
    )
    until(here, r" gpu1 [^$]* gpu1 ", seconds=120)
    out, err = tuning.communicate(timeout=150)
    assert (tuning.returncode, out.count("seed 0: dev")) == (0, 4), (
        out,
        err,
    )  # three configurations, and the test of the best
    until(here, r" gpu1 ", present=False)


def test_what_can_never_come_is_told_from_what_may(here):
    start = time.monotonic()
    words = ["run", "profit", "task=sentiment", "backbone=x", "resources.workers=1", "resources.gpus_per_worker=4"]
    code, _, err = here("submit", "--cluster", str(here.file), "--", *words)
    assert (code, "the job needs {CPU: 1, GPU: 4} on one node; the largest is gpu1" in err) == (75, True), err
    assert time.monotonic() - start < 5
    # what gets past the definition waits for ever; status says so
    assert here.submit("--id", "never", "--no-wait", "--raw", "--no-package", "--", "python", "-c", FOUR_GPUS)[0] == 0
    out = until(here, r"waiting: ")
    assert re.search(r"waiting: 1 x \{.*GPU: 4\}: never: .*ask for at most 1 GPU a worker", out), out
    assert here.submit("stop", "never")[0] == 0


def test_a_node_can_be_drained(here):
    assert here.submit("--id", "hold", "--no-wait", "--raw", "--no-package", "--", "python", "-c", HOLD)[0] == 0
    out = until(here, r"[0-9a-f]+ gpu1 busy")
    line = re.search(r"([0-9a-f]+) gpu1", out)
    assert line is not None
    node = line[1]
    code, out, err = here("cluster", "drain", node, "--cluster", str(here.file), "--deadline", "5")
    assert (code, out.startswith(node), out.endswith("goes within 5 s\n")) == (0, True, True), err
    until(here, node, present=False)
    code, _, err = here("cluster", "drain", "zzz", "--cluster", str(here.file))
    assert (code, 'node "zzz": 0 nodes begin so' in err) == (2, True)
    assert f"noticed {node}" in here.submit("logs", "hold")[1]

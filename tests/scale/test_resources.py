"""What jobs and trials take, and whether nodes can hold it: before anything is started, and as Ray itself places it."""

from __future__ import annotations

import logging
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from raypft.cluster.definition import load, make, num_bytes
from raypft.cluster.feasible import asked_for
from raypft.cluster.render.launcher import pools_text
from raypft.config.job import Resources
from raypft.errors import UserError
from raypft.scale import session
from raypft.scale.resources import (
    Infeasible,
    Shape,
    at_a_time,
    cpus_per_worker,
    impossible,
    job_bundles,
    nodes_of,
    placed,
    settled,
    shapes_here,
    shapes_of,
    trial_bundles,
    trials_at_once,
)

FOLDER = Path(__file__).parents[2] / "cluster"
AWS = shapes_of(load(FOLDER / "aws.yaml").pools)


def test_memory_is_that_of_the_living_nodes_of_the_cluster_that_is_named(monkeypatch):
    living = {"Alive": True, "Resources": {"CPU": 4.0, "memory": 5e9, "object_store_memory": 2e9}}
    monkeypatch.setattr(ray, "nodes", lambda: [living, {"Alive": False, "Resources": {"memory": 9e9}}])
    monkeypatch.setattr(session, "ray_session", nullcontext)
    monkeypatch.delenv("RAYPFT_CLUSTER", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    assert session.node_memory() == [7e9]
    monkeypatch.delenv("RAY_ADDRESS")
    assert session.node_memory() == []


def test_memory_is_that_of_the_nodes_that_may_still_come(monkeypatch):
    """Of nodes that are only counted, all on one machine, it is not known."""
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    for kind in ("aws", "kubernetes", "fake"):
        definition = load(FOLDER / f"{kind}.yaml")
        monkeypatch.setenv("RAYPFT_CLUSTER", pools_text(definition))
        nodes = [num_bytes(pool.memory) for pool in definition.pools.values() for _ in range(pool.max)]
        assert session.node_memory() == ([math.inf] * len(nodes) if kind == "fake" else nodes)


def test_what_no_node_holds_is_refused_with_what_would_fit():
    line = impossible([{"CPU": 1, "GPU": 16}], AWS, "cluster/aws.yaml")
    assert line == (
        "cluster/aws.yaml: the job needs {CPU: 1, GPU: 16} on one node; the largest is gpu8 {CPU: 192, GPU: 8} x 2; "
        "ask for at most 8 GPU a worker, or add a pool to cluster/aws.yaml"
    )
    assert "add a pool with TPU to" in (impossible([{"TPU": 1}], AWS, "cluster/aws.yaml") or "")


def test_what_the_cluster_holds_only_in_part_is_refused():
    small = [Shape("gpu1", {"CPU": 1, "GPU": 1}, 2)]
    bundle = {"CPU": 1.0, "GPU": 1.0}
    assert impossible([bundle] * 2, small, "c") is None
    assert impossible([bundle] * 3, small, "c") == (
        "c: the job needs {CPU: 3, GPU: 3} at once in 3 parts; "
        "at its largest the cluster is gpu1 {CPU: 1, GPU: 1} x 2; ask for fewer workers"
    )
    # CPU work goes where there is no GPU
    mixed = [*small, Shape("cpu", {"CPU": 2, "GPU": 0}, 1)]
    assert impossible([{"CPU": 1}, {"CPU": 1}, {"CPU": 1, "GPU": 1}, {"CPU": 1, "GPU": 1}], mixed, "c") is None


def test_bundles_are_placed_the_largest_first_each_on_the_fullest_node():
    nodes = nodes_of([Shape("small", {"CPU": 1}, 2), Shape("large", {"CPU": 3}, 1)])
    assert nodes == [{"CPU": 1}, {"CPU": 1}, {"CPU": 3}]
    assert placed([{"CPU": 0.5}, {"CPU": 1}, {"CPU": 2}, {"CPU": 1}], nodes) == [{"CPU": 0}, {"CPU": 0}, {"CPU": 0.5}]
    assert nodes == [{"CPU": 1}, {"CPU": 1}, {"CPU": 3}], "the nodes given stay as they are"
    assert placed([{"CPU": 2}, {"CPU": 2}], nodes) is None


def test_how_many_jobs_fit_at_a_time():
    assert at_a_time([{"CPU": 1, "GPU": 1}], [Shape("gpu1", {"CPU": 4, "GPU": 1}, 3)]) == 3
    assert at_a_time([{"CPU": 1, "GPU": 0.5}], [Shape("gpu1", {"CPU": 4, "GPU": 1}, 3)]) == 6
    assert at_a_time([{"CPU": 3}], [Shape("cpu", {"CPU": 4}, 2)]) == 2


def test_a_job_takes_its_workers_and_what_feeds_them_a_trial_its_own_process_too():
    feeding = [{"CPU": 1.0}, {"CPU": 0.5}]
    assert job_bundles(Resources(workers=2, gpus_per_worker=1), 16) == [{"CPU": 1.0, "GPU": 1}] * 2 + feeding
    assert job_bundles(Resources(workers=1, cpus_per_worker=4), 16) == [{"CPU": 4, "GPU": 0}, *feeding]
    assert job_bundles(Resources(), 16) == []
    assert trial_bundles(Resources(workers=1), 16) == [{"CPU": 0.1}, {"CPU": 1.0, "GPU": 0}, *feeding]
    assert trial_bundles(Resources(), 16) == [{"CPU": 1.0, "GPU": 0}]


THREE_CPUS = {
    "three halves": (Resources(workers=3, cpus_per_worker=0.5), 0.5),
    "an equal share": (Resources(workers=2), 0.75),
}
"""What fits 3 CPUs to the last one, and the CPUs of each worker."""


def told(cpus: int, monkeypatch) -> None:
    """This process is a job of a cluster with one node of so many CPUs."""
    values = {"kind": "local", "name": "test", "ray": "2.60.0", "storage": "runs", "cpu": cpus}
    monkeypatch.setenv("RAYPFT_CLUSTER", pools_text(make(values, "test")))
    monkeypatch.setattr(session, "ray_session", nullcontext)


@pytest.mark.parametrize("name", THREE_CPUS)
def test_the_check_of_a_definition_and_the_session_give_one_answer(name, tmp_path, monkeypatch):
    resources, each = THREE_CPUS[name]
    job = tmp_path / "job.yaml"
    job.write_text(f"resources: {resources.model_dump_json(exclude_defaults=True)}\n")
    for cpus, enough in ((3, True), (2, resources.cpus_per_worker is None), (1, False)):
        told(cpus, monkeypatch)
        shapes = shapes_here() or []
        ((_, bundles),) = asked_for(["run", str(job)], shapes)
        assert (impossible(bundles, shapes, "c") is None) == enough
        with nullcontext() if enough else pytest.raises(UserError, match="Ray has"):
            session.check_resources(resources)
    assert cpus_per_worker(resources, 3) == each
    assert sum(bundle["CPU"] for bundle in job_bundles(resources, 3)) == 3


@pytest.mark.ray
@pytest.mark.parametrize("name", THREE_CPUS)
def test_ray_places_what_is_said_to_fit(name, monkeypatch):
    resources, _ = THREE_CPUS[name]
    monkeypatch.delenv("RAYPFT_CLUSTER", raising=False)
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        session.check_resources(resources)
        bundles = [{"CPU": bundle["CPU"]} for bundle in job_bundles(resources, 3)]
        assert ray.util.placement_group(bundles).wait(60)
        assert ray.available_resources().get("CPU", 0) == 0
    finally:
        ray.shutdown()


def test_a_share_is_of_all_nodes_but_each_part_must_find_a_node():
    pairs = [Shape("pair", {"CPU": 2, "GPU": 0}, 2)]
    assert job_bundles(Resources(workers=2), 4)[0]["CPU"] == 1.0
    assert impossible(job_bundles(Resources(workers=2), 4), pairs, "c") is None
    line = impossible(job_bundles(Resources(workers=1, cpus_per_worker=2.5), 4), pairs, "c")
    assert line == (
        "c: the job needs {CPU: 2.5} on one node; the largest is pair {CPU: 2} x 2; "
        "ask for at most 2 CPU a worker, or add a pool to c"
    )


def test_a_trial_has_a_tenth_of_a_cpu_less_than_a_job():
    resources, machine = Resources(workers=3, cpus_per_worker=0.5), [Shape("node", {"CPU": 3, "GPU": 0}, 1)]
    assert settled(Resources(workers=2), 3).cpus_per_worker == pytest.approx(0.7)
    assert settled(Resources(), 3) == Resources()
    assert sum(bundle["CPU"] for bundle in trial_bundles(Resources(workers=2), 3)) == pytest.approx(3)
    assert impossible(trial_bundles(Resources(workers=2), 3), machine, "c") is None
    assert impossible(trial_bundles(resources, 3), machine, "c")
    with pytest.raises(UserError, match=r"3 workers x 0.5 \+ 1 for reading .* = 3 CPUs; Ray has 2.9; use at most 0.46"):
        trials_at_once([resources], machine)


def test_a_job_reads_its_clusters_pools_from_the_heads_environment(monkeypatch):
    monkeypatch.delenv("RAYPFT_CLUSTER", raising=False)
    assert shapes_here() is None
    monkeypatch.setenv("RAYPFT_CLUSTER", pools_text(load(FOLDER / "aws.yaml")))
    found = shapes_here() or []
    assert sorted((replace(shape, memory=0) for shape in found), key=str) == sorted(AWS, key=str)
    assert next(shape.memory for shape in found if shape.name == "cpu-data") == 64 * 2**30


def test_a_job_on_a_growing_cluster_counts_what_may_come(monkeypatch):
    monkeypatch.setenv("RAYPFT_CLUSTER", pools_text(load(FOLDER / "fake.yaml")))
    monkeypatch.setattr(session, "ray_session", nullcontext)
    session.check_resources(Resources(workers=2))
    greedy = Resources(workers=1, gpus_per_worker=2)
    with pytest.raises(Infeasible, match=r"this cluster: the job needs \{CPU: 1, GPU: 2\} on one node") as refused:
        session.check_resources(greedy)
    assert refused.value.code == 75

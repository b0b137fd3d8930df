"""What commands ask of a cluster is held against its definition, before anything is started and without torch."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from here import exit_code

from raypft.cli import app, main
from raypft.cluster.definition import load
from raypft.cluster.feasible import asked_for, refuse_impossible
from raypft.errors import UserError
from raypft.scale.resources import Infeasible, shapes_of

FOLDER = Path(__file__).parents[2] / "cluster"
FAKE = shapes_of(load(FOLDER / "fake.yaml").pools)


def test_a_jobs_resources_are_read_before_it_is_asked_for():
    (asked,) = asked_for(["run", "profit", "resources.workers=2"], FAKE)
    assert asked == ("profit", [{"CPU": 1.0, "GPU": 0}] * 2 + [{"CPU": 1.0}, {"CPU": 0.5}])
    known = 'unknown key "gpus"; known: cpus_per_worker, data_label, gpus_per_worker'
    with pytest.raises(UserError, match=f"profit: resources: {known}"):
        list(asked_for(["profit", "resources.gpus=1"], FAKE))


def test_the_trials_of_a_campaign_are_asked_for_too(tmp_path):
    small = {
        "about": "test",
        "defaults": {"backbone": "x", "resources.gpus_per_worker": 1},
        "rows": {"A": {"recipe": "profit"}},
        "tasks": ["sentiment", "nli"],
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(small))
    assert list(asked_for(["tune", str(path)], FAKE)) == [("A sentiment", [{"CPU": 1, "GPU": 1}])], "equal ones once"
    (asked,) = asked_for(["tune", str(path), "resources.workers=2"], FAKE)
    assert asked[1] == [{"CPU": 0.1}, *[{"CPU": 1, "GPU": 1}] * 2, {"CPU": 1}, {"CPU": 0.5}]
    refuse_impossible(["tune", str(path)], FOLDER / "fake.yaml")
    with pytest.raises(Infeasible, match=r"the job needs \{CPU: 1, GPU: 4\} on one node; the largest is gpu1"):
        refuse_impossible(["tune", str(path), "resources.gpus_per_worker=4"], FOLDER / "fake.yaml")


def test_an_impossible_job_is_refused_at_once_with_code_75(capsys):
    words = [
        "profit",
        "task=sentiment",
        "backbone=bert-base-cased",
        "resources.workers=1",
        "resources.gpus_per_worker=4",
    ]
    start = time.monotonic()
    assert exit_code("submit", "--cluster", str(FOLDER / "fake.yaml"), "--", "run", *words) == 75
    assert time.monotonic() - start < 5
    assert (
        "the job needs {CPU: 1, GPU: 4} on one node; the largest is gpu1 {CPU: 1, GPU: 1} x 2"
        in capsys.readouterr().err
    )
    start = time.monotonic()
    assert exit_code("cluster", "check", str(FOLDER / "fake.yaml"), "--offline", *words) == 75
    assert time.monotonic() - start < 5
    capsys.readouterr()
    words[-1] = "resources.gpus_per_worker=1"
    main(lambda: app(["cluster", "check", str(FOLDER / "fake.yaml"), "--offline", *words], standalone_mode=False))
    assert capsys.readouterr().out == "profit: fits, 1 at a time: 3 of {CPU: 0.5}, {CPU: 1, GPU: 1}, {CPU: 1}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["validate", str(FOLDER / "aws.yaml")],
        ["check", str(FOLDER / "aws.yaml"), "--offline"],
        ["check", str(FOLDER / "aws.yaml"), "--offline", "profit", "task=xnli", "resources.workers=8"],
        ["check", str(FOLDER / "aws.yaml"), "--offline", "tune", "quickstart", "resources.workers=2"],
    ],
    ids=["validate", "check", "check a job", "check a campaign"],
)
def test_what_is_known_of_files_alone_loads_no_torch(words):
    code = "import sys; from raypft.cli import app; print(app(['cluster', *sys.argv[1:]], standalone_mode=False));"
    code += "print('loaded', sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded []"

"""What a search tries next and when it stops a configuration; no Ray is started."""

from __future__ import annotations

import os
import pickle
import random
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import optuna
import pytest
import ray.tune.experiment
from ray.tune import Callback

from raypft.campaigns.ledger import Ledger
from raypft.campaigns.search_space import Search
from raypft.config.load import load_job
from raypft.config.resolved import ResolvedJob
from raypft.errors import UserError
from raypft.runs.trackers import PACKAGES
from raypft.scale.resources import Shape, settled, trial_bundles, trials_at_once
from raypft.scale.tune.search import Asha, Racing, Tpe, distribution
from raypft.scale.tune.searcher import CampaignSearcher, EndsAll, SeedScheduler
from raypft.scale.tune.table_cell_search import TableCellSearch
from raypft.scale.tune.trackers import Spared, tracker
from raypft.scale.tune.work import Work

SPACE = {
    "method.layer": {"range": [1, 9, 4]},
    "train.lr": {"log": [1e-5, 1e-1]},
    "method": [{"name": "lora"}, {"name": "adapter"}],
    "train.clip": {"uniform": [0.0, 1.0]},
}


def tpe(seed: int = 1) -> Tpe:
    return Tpe(Search(space=SPACE, searcher="tpe", trials=9), seed)


def test_of_a_trial_that_has_ended_tune_keeps_no_numbers():
    """It would keep the last ten of each, their means and the best, of all trials of a campaign."""
    trial: Any = ray.tune.experiment.Trial("raypft", stub=True)
    scheduler = SeedScheduler(cast(Any, None))
    for dev in (50.0, 60.0):
        trial.update_last_result({"dev": dev, "training_iteration": 1})
    assert trial.metric_analysis["dev"]["max"] == 60
    scheduler.on_trial_complete(None, trial, {})
    assert (trial.metric_analysis, trial.metric_n_steps) == ({}, {})
    assert trial.last_result["dev"] == 60, "what trackers are told at the end"


def test_tpe_suggests_values_of_the_space_and_remembers_what_it_is_told():
    search = tpe()
    for number in range(30):
        values = search.suggest(str(number))
        assert list(values) == list(SPACE)
        assert values["method.layer"] in (1, 5, 9)
        assert 1e-5 <= values["train.lr"] <= 1e-1
        assert values["method"] in SPACE["method"]
        search.learn(str(number), 50.0 + number if number % 7 else None)
    assert len(search.known) == 30
    assert [value for _, value in search.known].count(None) == 5


def test_tpe_fed_from_a_ledger_suggests_as_if_it_had_run_on():
    """All past results are known, and the next suggestion is drawn from them: near the good ones."""
    source, search, control = random.Random(0), tpe(), tpe()
    for _ in range(40):
        lr = 10 ** source.uniform(-5, -1)
        search.remember(
            {"method.layer": 5, "train.lr": lr, "method": {"name": "lora"}, "train.clip": 0.5},
            100.0 if lr > 10**-2 else 10.0,
        )
    assert len(search.known) == 40
    suggested = [search.suggest(str(i))["train.lr"] for i in range(8)]
    unfed = [control.suggest(str(i))["train.lr"] for i in range(8)]
    assert statistics.median(suggested) > 10**-2 > statistics.median(unfed)


def test_tpe_leaves_out_what_a_changed_space_no_longer_holds():
    search = tpe()
    fits = {"method.layer": 5, "train.lr": 0.01, "method": {"name": "lora"}, "train.clip": 0.5}
    for values in (
        fits,
        {**fits, "method.layer": 4},
        {**fits, "train.lr": 3.0},
        {**fits, "method": {"name": "full"}},
        {"method.layer": 5},
    ):
        search.remember(values, 1.0)
    search.remember(fits, None)
    assert [value for _, value in search.known] == [1.0, None]


def test_racing_stops_what_is_behind_on_the_seeds_they_share_by_more_than_chance():
    racing = Racing(5)
    best = [80.0, 70.0, 90.0, 75.0, 85.0]
    for count in range(1, 6):
        assert racing.stops("best", best[:count]) is None
    assert racing.stops("behind", [77.0]) is None, "one seed says nothing"
    assert racing.stops("behind", [77.0, 66.9]) == "racing: 3.0 ± 0.6 behind the best after 2 seeds"
    assert racing.stops("noisy", [60.0, 72.0]) is None
    assert racing.stops("noisy", [60.0, 72.0, 65.0]) is None
    assert racing.stops("better", [81.0, 71.0]) is None
    assert racing.stops("same", best[:2]) is None


def test_asha_stops_the_lower_half_and_never_the_last_standing():
    asha = Asha(5)
    for name, dev in (("a", 80.0), ("b", 90.0), ("c", 70.0), ("d", 60.0)):
        stopped = asha.stops(name, [dev])
        assert (stopped is not None) == (name in "cd"), name
    assert asha.stops("e", [10.0]) == "asha: in the lower half after 1 seed"
    assert asha.stops("b", [90.0, 91.0]) is None


def test_asha_keeps_a_half_not_a_quarter():
    asha = Asha(9)
    for dev in (50.0, 60.0, 70.0, 80.0, 90.0, 100.0, 40.0):
        asha.stops(f"at {dev}", [dev])
    assert asha.stops("of eight in the third place", [81.0]) is None


def test_asha_of_one_seed_has_nothing_to_spare():
    asha = Asha(1)
    assert [asha.stops(name, [dev]) is not None for name, dev in (("a", 80.0), ("b", 90.0), ("c", 70.0))] == [
        *(False, False, True)
    ]
    assert asha.stops("c", [70.0]) is None, "what was told twice counts once"


def test_tpe_says_nothing_of_its_own():
    optuna.logging.set_verbosity(optuna.logging.INFO)
    tpe()
    assert optuna.logging.get_verbosity() == optuna.logging.ERROR


def test_tpe_of_a_seed_suggests_what_it_suggested():
    first, again, other = ([search.suggest(str(i)) for i in range(5)] for search in (tpe(), tpe(), tpe(2)))
    assert first == again != other


@pytest.mark.parametrize(("ends", "last"), [([5, 12, 4], 9), ([5, 13, 4], 13), ([2, 4], 4)])
def test_the_last_of_a_range_is_the_last_that_its_steps_meet(ends, last):
    found = distribution(Search.model_validate({"space": {"a": {"range": ends}}}).space["a"])
    assert (found.low, found.high) == (ends[0], last)


def at_once(jobs: list[ResolvedJob], shapes: list[Shape]) -> int:
    return trials_at_once([resolved.job.resources for resolved in jobs], shapes)


def machine(cpus: float, gpus: float = 0, most: int = 1) -> list[Shape]:
    return [Shape("node", {"CPU": cpus, "GPU": gpus}, most)]


def test_trials_at_once_leave_room_for_workers_encoder_and_reader():
    here = load_job("profit", ["task=sentiment", "backbone=x"])
    workers = load_job("profit", ["task=sentiment", "backbone=x", "resources.workers=2"])
    assert at_once([here], machine(2)) == 2
    assert at_once([here], machine(0.5)) == 1
    assert at_once([workers], machine(2)) == 1
    assert at_once([here, workers], machine(2)) == 1
    assert at_once([], machine(2)) == 1
    bundles = trial_bundles(workers.job.resources, 2)
    assert bundles[0] == {"CPU": 0.1}
    assert sum(bundle["CPU"] for bundle in bundles) == pytest.approx(2)
    assert settled(workers.job.resources, 2).cpus_per_worker == pytest.approx(0.2)
    fixed = load_job("profit", ["task=sentiment", "backbone=x", "resources.workers=2", "resources.cpus_per_worker=0.2"])
    assert at_once([fixed], machine(8)) == 4
    half = load_job(
        "profit", ["task=sentiment", "backbone=x", "resources.gpus_per_worker=0.5", "resources.cpus_per_worker=0.5"]
    )
    assert at_once([half], machine(8, 2)) == 4
    assert at_once([half], machine(1, 1, most=3)) == 6


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (
            ["resources.cpus_per_worker=3"],
            r"this cluster: the job needs \{CPU: 3\} on one node; "
            r"the largest is node \{CPU: 2\} x 1; ask for at most 2 CPU",
        ),
        (["resources.workers=2", "resources.cpus_per_worker=1"], "Ray has 1.9; use at most 0.2"),
        (["resources.gpus_per_worker=1"], r"this cluster: the job needs \{CPU: 1, GPU: 1\} on one node"),
    ],
)
def test_a_trial_that_can_never_start_is_refused(more, expected):
    with pytest.raises(UserError, match=expected):
        at_once([load_job("profit", ["task=sentiment", "backbone=x", *more])], machine(2))


def test_trackers_are_rays_own_and_a_missing_package_is_one_line(monkeypatch):
    assert tracker(None) == []
    assert type(tracker("tensorboard")[0]).__name__ == "TBXLoggerCallback"
    monkeypatch.setitem(PACKAGES, "wandb", "no_such_package")
    line = r"tracker: wandb needs the package no_such_package; pip install 'raypft\[wandb\]'"
    with pytest.raises(UserError, match=line):
        tracker("wandb")


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_trackers_file_has_a_trials_settings_and_nothing_of_its_job(name, tmp_path, monkeypatch):
    pytest.importorskip(PACKAGES[name])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    (tmp_path / "trial").mkdir()
    config = {"row": "SP", "method.length": 4, "work": Work(job={"data": {"root": "s3://b?Signature=abcdef"}})}
    trial = ray.tune.experiment.Trial("none", stub=True, config=config, evaluated_params=config)
    monkeypatch.setattr(trial, "init_local_path", lambda: None)
    monkeypatch.setattr(type(trial), "local_path", str(tmp_path / "trial"))
    (callback,) = tracker(name)
    callback.setup(experiment_name="x")
    callback.log_trial_start(trial)
    callback.log_trial_result(1, trial, {"dev": 50.0, "training_iteration": 1})
    callback.log_trial_end(trial)
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"method.length" in content or b"SP" in content for content in files)
    assert not any(b"abcdef" in content for content in files)
    assert config["work"].read()["job"]["data"]["root"].endswith("abcdef"), "the trial itself has it"


def test_a_tracker_hears_all_until_it_fails():
    class Heard(Callback):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def setup(self, stop: Any = None, num_samples: Any = None, total_num_samples: Any = None, **info: Any) -> None:
            self.heard.append(f"setup {stop}")

        def on_trial_start(self, *told: Any, **info: Any) -> None:
            self.heard.append(f"start {info}")

        def on_trial_result(self, *told: Any, **info: Any) -> None:
            raise ConnectionError("no route to https://me:secret@tracks.org/api")

        def on_trial_complete(self, *told: Any, **info: Any) -> None:
            self.heard.append("complete")

    own, told = Heard(), list[dict[str, Any]]()
    spared: Any = Spared(own, told.append)
    spared.setup("a", experiment="b")
    spared.on_trial_save(iteration=1, trials=[], trial="x")
    spared.on_trial_start(trial="x")
    assert (own.heard, told) == (["setup a", "start {'trial': 'x'}"], [])
    for _ in range(2):
        spared.on_trial_result(trial="x")
        spared.on_trial_complete(trial="x")
    assert len(own.heard) == 2
    (note,) = told
    assert note["event"] == "note"
    assert note["text"].startswith("tracker: no route to https://")
    assert note["text"].endswith("; the campaign goes on without it")
    assert "secret" not in note["text"], "as `run` tells it"
    assert pickle.loads(pickle.dumps(spared, protocol=5)) is not spared, "Tune keeps it in a file"


@pytest.mark.parametrize("hook", ["suggest", "stops", "on_trial_result", "on_trial_complete"])
def test_an_error_in_what_tune_calls_ends_all(hook):
    nothing: Any = None
    searcher = CampaignSearcher(nothing, [], set(), 2, nothing, nothing, False)
    ends = EndsAll(searcher)
    searcher.running["t"] = nothing
    assert not ends.stop_all()
    searcher.searches = nothing
    told = {"seed": 0, "reason": "", "last": True}
    for _ in range(2):
        getattr(searcher, hook)("t", *([] if hook == "suggest" else [told]))
        assert isinstance(searcher.error, TypeError | AttributeError)
    assert ends.stop_all()
    assert not ends("t", told)
    assert SeedScheduler(searcher).on_trial_result(None, SimpleNamespace(trial_id="t"), told) == "CONTINUE"


def test_what_hands_out_work_loads_neither_torch_nor_transformers():
    """They are imported in processes of their own, where loading torch takes longer than all they do."""
    modules = "cell_queue, process_group, worker_group, tune.searcher, tune.table_cell_search, tune.trackers"
    names = modules.replace(" ", " raypft.scale.")
    code = f"import sys; import raypft.scale.{names}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Tried:
    """A search whose configurations, value to dev scores by seed, stand in a ledger written by hand."""

    def __init__(self, folder: Path, devs: dict[int, list[float | None]], begun: list[int]) -> None:
        self.config, self.table_cell = Search.model_validate({"space": {"method.layer": list(devs)}}), None
        self.state = SimpleNamespace(ledger=Ledger(folder), tried=lambda table_cell: self.tried)
        self.tried = []
        for layer in begun:
            keys = {seed: f"{layer}-{seed}" for seed in range(len(devs[layer]))}
            for seed, dev in enumerate(devs[layer]):
                status = "pruned" if dev is None else "finished"
                self.state.ledger.note(cell=keys[seed], status=status, config=str(layer), dev=dev)
            self.tried.append(SimpleNamespace(keys=keys, values={"method.layer": layer}))

    @property
    def best(self) -> int:
        found = TableCellSearch.best(self)  # type: ignore[arg-type]
        assert found is not None
        return found.values["method.layer"]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    ("devs", "best"),
    [
        ({1: [60.0, 60.0], 2: [50.0, 69.0], 3: [59.0, 60.0]}, 1),  # not the best single seed
        ({1: [99.0, None], 2: [60.0, 61.0], 3: [70.0, 40.0]}, 2),  # not one that has not all of them
        ({3: [60.0, 60.0], 2: [50.0, 70.0], 1: [70.0, 50.0]}, 3),  # of equals the first that is listed
        ({2: [0.0, 0.0]}, 2),
    ],
)
def test_a_search_tests_what_has_the_best_mean_on_dev_in_whatever_order_it_began(devs, best, backwards, tmp_path):
    begun = sorted(devs, reverse=backwards)
    assert Tried(tmp_path, devs, begun).best == best


def test_a_search_of_which_nothing_is_whole_tests_nothing(tmp_path):
    assert TableCellSearch.best(Tried(tmp_path, {1: [99.0, None]}, [1])) is None  # type: ignore[arg-type]

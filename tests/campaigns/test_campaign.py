"""Campaign files: what they expand to, what they refuse; which cells a campaign counts as finished; the withheld
test."""

from __future__ import annotations

import io
import json
import random
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from test_cli import call, place, words  # noqa: F401  (a fixture)

from raypft.campaigns.load import FOLDER, campaign_names, load_campaign
from raypft.campaigns.search_space import Dimension
from raypft.campaigns.state import CampaignState
from raypft.cli.progress import CampaignProgress
from raypft.config.load import load_job
from raypft.errors import UserError
from raypft.records import sealed
from raypft.report.formats import duration
from raypft.runs import memory
from raypft.runs.executor import LocalExecutor
from raypft.runs.inspect import checked
from raypft.runs.prepare import prepare
from raypft.runs.run import conclude
from raypft.scale.run import run_jobs
from raypft.scale.tune import check, plan
from raypft.scale.tune.plan import planned
from raypft.scale.tune.run import run_campaign
from raypft.scale.tune.table_cell_search import TableCellSearch
from raypft.schema import flat

BASE = {
    "about": "test",
    "defaults": {"backbone": "gpt2", "seeds": [0, 42], "shots": 5, "train": {"epochs": 3}},
    "rows": {"ICL": {"recipe": "icl"}, "GCN": {"recipe": "gnnavi_gcn", "set": {"train.lr": "1e-2"}}, "MAJ": "majority"},
    "tasks": ["sst2", "trec"],
    "search": {"space": {"method.layer": [1, 4, 7]}, "rows": ["GCN"]},
    "scales": {
        "small": {
            "defaults": {"train.epochs": 1, "seeds": [0]},
            "tasks": ["trec"],
            "rows": ["GCN", "MAJ"],
            "search": {"space": {"method.layer": [2]}},
        }
    },
}


def write(folder: Path, **change: object) -> str:
    """A campaign file, with top keys changed or, where None, left out."""
    path = folder / "mine.yaml"
    path.write_text(
        yaml.safe_dump({key: value for key, value in {**BASE, **change}.items() if value is not None}, sort_keys=False)
    )
    return str(path)


def search(**change: object) -> dict:
    return {"search": {**BASE["search"], **change}}


def small(place: Path, **change: object) -> str:  # noqa: F811
    """A campaign on the tiny task."""
    defaults = {
        "backbone": f"{place}/bert",
        "data.root": str(place),
        "storage": f"{place}/runs",
        "pattern": "plain",
        "protocol": "fixed",
        "seeds": [0, 1],
        "train": {"epochs": 2, "lr": 0.01, "languages": ["en"], "max_tokens": 32, "dropout": 0.0},
    }
    rows = {"Plain": {"recipe": "profit"}, "Searched": {"recipe": "profit"}}
    more = {"search": {"space": {"train.lr": [0.001, 0.01]}, "rows": ["Searched"]}, "scales": None}
    return write(place, **{"defaults": defaults, "rows": rows, "tasks": [f"{place}/mytask.yaml"], **more, **change})


def test_places_come_row_by_row_with_the_later_settings_over_the_earlier(tmp_path):
    vary = {"shots": [1, 2]}
    tasks = {"sst2": {"train.lr": 0.5}, "trec": {}}
    campaign = load_campaign(write(tmp_path, tasks=tasks, vary=vary, search=None), ["seeds=[7]"])
    places = list(campaign.table_cells())
    assert [(p.row, p.task, p.axes["shots"]) for p in places][:3] == [
        ("ICL", "sst2", 1),
        ("ICL", "sst2", 2),
        ("ICL", "trec", 1),
    ]
    assert len(places) == 2 * 2 * 2
    job = next(p for p in places if p.row == "GCN" and p.task == "sst2").resolved().job
    assert (job.train.lr, job.train.epochs, job.train.optimizer, job.shots, job.seeds, job.method["name"]) == (
        0.5,
        3,
        "adam",
        1,
        [7],
        "gnnavi",
    )
    assert next(p for p in places if p.row == "GCN" and p.task == "trec").resolved().job.train.lr == 0.01


def test_a_method_given_whole_replaces_the_recipes(tmp_path):
    rows = {
        "A": {"recipe": "gnnavi_gcn", "set": {"method": {"name": "frozen"}}},
        "B": {"recipe": "gnnavi_gcn", "set": {"method": {"layer": 5}}},
    }
    campaign = load_campaign(write(tmp_path, rows=rows, search=None))
    first, second = (next(p for p in campaign.table_cells() if p.row == row).resolved().job for row in rows)
    assert first.method == {"name": "frozen"}
    assert second.method["layer"] == 5
    assert second.method["name"] == "gnnavi"


def test_a_column_may_be_a_task_under_another_name(tmp_path):
    settings = {name: {"task": "trec", "train.max_tokens": length} for name, length in (("short", 16), ("long", 64))}
    campaign = load_campaign(write(tmp_path, tasks=settings, scales=None))
    assert {(at.task, at.resolved(at.search and {"method.layer": 1}).job.task) for at in campaign.table_cells()} == {
        ("short", "trec"),
        ("long", "trec"),
    }


def test_a_scale_is_laid_over_the_file(tmp_path):
    whole, scaled = load_campaign(write(tmp_path)), load_campaign(write(tmp_path), scale="small")
    assert list(scaled.rows) == ["GCN", "MAJ"]
    assert list(scaled.tasks) == ["trec"]
    (found,) = scaled.table_cells()
    assert found.listed() == [{"method.layer": 2}]
    assert (found.resolved().job.train.epochs, found.resolved().job.train.lr, found.resolved().job.seeds) == (
        1,
        0.01,
        [0],
    )
    assert scaled.folder != whole.folder
    assert scaled.folder.name.startswith("mine-small-")


def test_a_campaign_keeps_its_folder_when_extended_and_has_another_when_its_numbers_change(tmp_path):
    folder = load_campaign(write(tmp_path)).folder
    assert load_campaign(write(tmp_path), ["seeds=[0,42,7]", "resources.workers=2", "storage=runs"]).folder == folder
    assert load_campaign(write(tmp_path, tasks=["sst2"], **search(trials=2))).folder == folder
    assert load_campaign(write(tmp_path), ["shots=6"]).folder.name != folder.name


def test_what_a_search_tries(tmp_path):
    space = {"method.layer": {"range": [4, 16, 6]}, "train.lr": [0.1, 0.2]}
    grid = next(p for p in load_campaign(write(tmp_path, **search(space=space))).table_cells() if p.search)
    assert grid.listed() == [{"method.layer": layer, "train.lr": lr} for layer in (4, 10, 16) for lr in (0.1, 0.2)]
    space = {
        "method.layer": {"range": [1, 24]},
        "train.lr": {"log": ["1e-5", "1e-2"]},
        "train.weight_decay": {"uniform": [0.0, 0.1]},
    }
    drawn = [
        next(
            p
            for p in load_campaign(write(tmp_path, **search(space=space, searcher="random", trials=n))).table_cells()
            if p.search
        ).listed()
        for n in (20, 30)
    ]
    assert drawn[1] is not None
    assert drawn[1][:20] == drawn[0], "a larger budget goes on where the smaller ended"
    assert len({found["method.layer"] for found in drawn[1]}) > 5
    assert all(
        1 <= found["method.layer"] <= 24
        and 1e-5 <= found["train.lr"] <= 1e-2
        and 0 <= found["train.weight_decay"] <= 0.1
        for found in drawn[1]
    )
    lows = sum(Dimension(log=(1e-5, 1e-2)).listed is None and found["train.lr"] < 10**-3.5 for found in drawn[1])
    assert 8 <= lows <= 22, "uniform on the logarithm"
    assert (
        next(
            p for p in load_campaign(write(tmp_path, **search(searcher="tpe", trials=4))).table_cells() if p.search
        ).listed()
        is None
    )


def test_a_random_search_over_lists_tries_nothing_twice_and_all_where_the_budget_holds_all(tmp_path):
    space = {"method.layer": [1, 4, 7, None], "train.lr": [0.1, 0.2, 0.2]}  # one rate is listed twice
    listed = []
    for trials in (5, 8, 12):
        path = write(tmp_path, **search(space=space, searcher="random", trials=trials))
        found = next(p for p in load_campaign(path).table_cells() if p.search)
        listed.append([tuple(values.values()) for values in found.listed() or []])
    few, all_of_them, more = listed
    assert (len(set(few)), len(set(all_of_them))) == (5, 8)
    assert all_of_them[:5] == few
    assert more == all_of_them


def test_rows_of_a_search_may_have_keys_and_values_of_their_own_from_the_same_budget(tmp_path):
    rows = {"GCN": {"method.layer": [1, 4], "train.lr": {"log": ["1e-3", "1e-2"]}}, "ICL": {}}
    space = {"train.lr": {"log": ["1e-6", "1e-5"]}, "train.epochs": [2, 3]}
    path = write(tmp_path, **search(space=space, rows=rows, searcher="random", trials=9), tasks=["sst2"])
    icl, gcn = (table_cell.listed() or [] for table_cell in load_campaign(path).table_cells())
    assert (len(icl), len(gcn)) == (9, 9)
    assert {tuple(values) for values in icl} == {("train.lr", "train.epochs")}
    assert {tuple(values) for values in gcn} == {("train.lr", "train.epochs", "method.layer")}
    assert all(1e-6 <= values["train.lr"] <= 1e-5 for values in icl)
    assert all(1e-3 <= values["train.lr"] <= 1e-2 for values in gcn)
    alike = load_campaign(write(tmp_path, **search(space=space, rows=["ICL"], searcher="random", trials=9)))
    assert next(p for p in alike.table_cells() if p.search).listed() == icl, "a list of rows: the space alone"


def test_a_prerequisite_is_a_run_that_rows_name(tmp_path):
    rows = {"LTP": {"recipe": "ltp", "set": {"method.ticket": "before:ticket"}}}
    before = {"ticket": {"recipe": "ticket_search", "set": {"task": "mlmtext", "seeds": [0]}}}
    path = write(tmp_path, rows=rows, before=before, tasks=["xnli"], search=None, defaults={"backbone": "xlmr-base"})
    campaign = load_campaign(path, ["storage=there"])
    (ticket,) = campaign.prerequisites()
    (found,) = campaign.table_cells()
    assert found.resolved().job.method["ticket"] == f"there/{ticket.job.run_name}"


BAD = {
    'unknown key "sarch"; did you mean "search"?': {"sarch": {}},
    'unknown key "search.seacher"; did you mean "searcher"?': search(seacher="grid"),
    'unknown key "rows.GCN.recpe"; did you mean "recipe"?': {"rows": {"GCN": {"recpe": "icl"}}, "search": None},
    'unknown key "train.lrr"; did you mean "lr"?': search(space={"train.lrr": [1]}),
    'unknown key "layr"; did you mean "layer"?': search(space={"method.layr": [1]}),
    'unknown key "trian"; did you mean "train"?': {"vary": {"trian.lr": [1]}},
    "search.space.method.layer: found []; value error, an empty choice; expected at least one value": search(
        space={"method.layer": []}
    ),
    "vary.shots: found an empty list": {"vary": {"shots": []}},
    "search.space.seeds: the best seed is luck, not a setting": search(space={"seeds": [[0], [1]]}),
    "search.space.sample_seed: the best seed is luck": search(space={"sample_seed": [0, 1]}),
    "vary.seeds: the best seed is luck": {"vary": {"seeds": [[0], [1]]}},
    'search.metric: no run of sst2 has "f2" on dev; known: accuracy, dev': search(metric="f2"),
    "expected a list, or one of range, uniform, log": search(space={"method.layer": {"range": [1, 2], "log": [1, 2]}}),
    "expected [lowest, highest] or [lowest, highest, step]": search(space={"method.layer": {"range": [5, 1]}}),
    "expected [lowest, highest] above 0": search(space={"train.lr": {"log": [0, 1]}}),
    "search.space.train.lr: a grid needs a list or a range; use searcher: random or tpe": search(
        space={"train.lr": {"uniform": [0.1, 1]}}
    ),
    "search.rows.GCN.train.lr: a grid needs a list or a range": search(rows={"GCN": {"train.lr": {"log": [0.1, 1]}}}),
    "search.rows.GCN.seeds: the best seed is luck": search(rows={"GCN": {"seeds": [[0], [1]]}}),
    'search.rows: "CGN" is no row; did you mean "GCN"?': search(rows={"CGN": {}}),
    "search.rows.GCN.method.layer: found []; value error, an empty choice": search(rows={"GCN": {"method.layer": []}}),
    "search.trials: searcher tpe needs a budget": search(searcher="tpe"),
    'search.rows: "GNC" is no row; did you mean "GCN"?': search(rows=["GNC"]),
    'columns: found "langage"; did you mean "language"?': {"columns": "langage"},
    'recipe: "icll" is unknown; did you mean "icl"?': {"rows": {"ICL": {"recipe": "icll"}}, "search": None},
    'task: "sst3" is unknown; did you mean "sst2"?': {"tasks": ["sst3"]},
    '"before:tickt": before has no "tickt"': {
        "rows": {"L": {"recipe": "ltp", "set": {"method.ticket": "before:tickt"}}},
        "search": None,
    },
    'key "about" is missing': {"about": None},
}


@pytest.mark.parametrize("expected", BAD)
def test_a_campaign_that_does_not_fit_is_refused_in_one_line(expected, tmp_path):
    with pytest.raises(UserError) as raised:
        load_campaign(write(tmp_path, **BAD[expected]))
    assert expected in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_unknown_campaigns_and_scales_are_told_with_the_nearest(tmp_path):
    with pytest.raises(UserError, match='campaign: "quikstart" is unknown; did you mean "quickstart"'):
        load_campaign("quikstart")
    with pytest.raises(UserError, match="campaign: no file"):
        load_campaign(str(tmp_path / "nowhere.yaml"))
    with pytest.raises(UserError, match='scale: "smal" is unknown; did you mean "small"'):
        load_campaign(write(tmp_path), scale="smal")
    with pytest.raises(UserError, match=r'scales\.small\.rows: "GNC" is no row; did you mean "GCN"'):
        load_campaign(write(tmp_path, scales={"small": {"rows": ["GNC"]}}), scale="small")
    with pytest.raises(UserError, match=r'scales\.small: unknown key "sed"'):
        load_campaign(write(tmp_path, scales={"small": {"sed": 1}}), scale="small")


@pytest.mark.parametrize("name", campaign_names())
def test_shipped_campaigns_load(name):
    campaign = load_campaign(name)
    assert campaign.source
    assert list(campaign.table_cells())
    for scale in yaml.safe_load((FOLDER / f"{name}.yaml").read_text()).get("scales") or {}:
        assert list(load_campaign(name, scale=scale).table_cells())


def test_nested_keys_are_dotted_keys():
    assert flat({"train": {"lr": 1}, "dev": {"rows": "none"}, "method": {"name": "lora"}, "a.b": 2}) == {
        "train.lr": 1,
        "dev.rows": "none",
        "method": {"name": "lora"},
        "a.b": 2,
    }


def test_a_withheld_test_is_added_later_without_training_again(place):  # noqa: F811
    name, *overrides = words(place, "seeds=1", "train.dropout=0.0")
    (plain,) = run_jobs([prepare(load_job(name, overrides))], lambda event: None)[0]
    prepared = prepare(load_job(name, [*overrides, f"storage={place}/other"]))
    executor, events = LocalExecutor(), []
    (cell,) = prepared.cells(test=False)
    searched = executor.run(cell, events.append)
    assert cell.finished
    assert "scores" not in searched
    assert searched["dev"] == plain["dev"]
    assert not (cell.folder / "predictions.parquet").exists()
    assert conclude(prepared) == []
    (cell,) = prepared.cells()
    assert not cell.finished
    events.clear()
    tested = executor.run(cell, events.append)
    assert cell.finished
    assert [event["event"] for event in events] == ["result"], "it trained again"
    times = {"seconds", "cpu_seconds", "train_seconds", "peak_memory_mb", "history"}
    assert {k: v for k, v in tested.items() if k not in times} == {k: v for k, v in plain.items() if k not in times}
    assert not (cell.folder / "searched.json").exists()


def test_dev_is_that_of_the_epoch_kept_and_of_what_nothing_trains(place):  # noqa: F811
    last = words(place, "seeds=1", "train.select=last", "train.epochs=4")
    (result,) = run_jobs([prepare(load_job(last[0], last[1:]))], lambda event: None)[0]
    assert result["dev"] == result["history"][-1]["dev"]
    direct = words(place, "seeds=1", "train.epochs=0", "dev.rows=full", recipe="direct")
    (result,) = run_jobs([prepare(load_job(direct[0], direct[1:]))], lambda event: None)[0]
    assert 0 <= result["dev"] <= 100


def test_a_finished_cell_is_found_in_whatever_run_folder_it_is(place):  # noqa: F811
    campaign = load_campaign(small(place))
    (plain, *_) = campaign.table_cells()
    folder = place / "runs" / "another-name" / "seed-0"
    state = CampaignState(campaign)
    configuration = state.configuration(plain, {})
    assert state.where(configuration, 0, test=True) is None
    folder.mkdir(parents=True)
    (folder / "searched.json").write_text(json.dumps({"seed": 0, "cell": configuration.keys[0], "dev": 1.0}, indent=1))
    state = CampaignState(campaign)
    assert state.where(configuration, 0, test=True) is None, "a withheld test is no test"
    assert state.where(configuration, 0, test=False) == folder
    whole = {"seed": 0, "cell": configuration.keys[0], "mean": 1.0, "metric": "accuracy@1", "test_rows": "x"}
    whole |= {"scores": {}, "metrics": {}, "sizes": {}, "rows": {}, "trainable": 1, "seconds": 1.0}
    (folder / "result.json").write_text(json.dumps(whole, indent=1))
    state = CampaignState(campaign)
    assert state.where(configuration, 0, test=True) == folder
    assert state.where(configuration, 1, test=True) is None
    assert CampaignState(campaign, fresh=True).where(configuration, 0, test=True) is None
    assert [(row["seed"], row["status"]) for row in state.rows()][:2] == [(0, "finished"), (1, "missing")]


def test_rows_show_the_failed_and_the_pruned(place):  # noqa: F811
    campaign = load_campaign(small(place))
    state = CampaignState(campaign)
    searched = list(campaign.table_cells())[1]
    first, second = state.tried(searched)
    state.note(first, 0, "failed", reason="the loss is nan")
    state.note(second, 1, "pruned", reason="racing: behind")
    found = {
        (tuple(row["axes"].values()), row["seed"]): (row["status"], row["reason"])
        for row in state.rows()
        if row["row"] == "Searched"
    }
    assert found == {
        ((0.001,), 0): ("failed", "the loss is nan"),
        ((0.001,), 1): ("missing", None),
        ((0.01,), 0): ("pruned", "racing: behind"),
        ((0.01,), 1): ("pruned", "racing: behind"),
    }


def test_what_a_process_finished_that_outlived_its_campaign_is_learned_from(place):  # noqa: F811
    campaign = load_campaign(
        small(place, **search(space={"train.lr": {"log": [0.001, 0.1]}}, searcher="tpe", trials=2, rows=["Searched"]))
    )
    state = CampaignState(campaign)
    searched = list(campaign.table_cells())[1]
    configuration = state.configuration(searched, {"train.lr": 0.02})
    state.note(configuration, 0, "running", dev=None)
    cell_search = TableCellSearch(searched, state, set())
    for seed, key in configuration.keys.items():
        configuration.folder(seed).mkdir(parents=True)
        (configuration.folder(seed) / "searched.json").write_text(
            json.dumps({"seed": seed, "cell": key, "dev": 40.0 + seed})
        )
    suggestion = cell_search.next("trial")
    assert suggestion is not None
    assert suggestion[0].values != configuration.values, "it is run again"
    assert cell_search.tpe is not None
    assert cell_search.tpe.known == [({"train.lr": 0.02}, 40.5)]


def test_a_search_without_dev_rows_is_refused(place):  # noqa: F811
    campaign = load_campaign(small(place), ["dev.rows=none"])
    searched = list(campaign.table_cells())[1]
    state = CampaignState(campaign)
    with pytest.raises(UserError, match=r"search: Searched mytask has no dev rows to choose by; set dev\.rows: full"):
        state.check(state.configuration(searched, {"train.lr": 0.01}))


def test_plan_counts_before_anything_starts_and_times_what_is_known(place, monkeypatch):  # noqa: F811
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path = small(place)
    found = planned(load_campaign(path))
    assert (found["trials"], found["done"], found["todo"], found["hours"], found["lacks"]) == (3, 0, 6, None, [])
    assert found["steps"] == 6 * 2  # 24 rows in steps of 32, 2 epochs
    assert found["memory_gib"] > 0
    assert any("expected time: unknown" in line for line in found["lines"])
    plain = next(load_campaign(path).table_cells()).resolved()
    run_jobs([prepare(plain)], lambda event: None)
    found = planned(load_campaign(path))
    assert (found["done"], found["todo"]) == (4, 2), "lr 0.01 of the search is the plain row"
    assert found["hours"] > 0


def test_plan_tells_the_memory_that_check_tells_of_the_largest(place, monkeypatch):  # noqa: F811
    """Its bytes are those of the parts, and of the encoded rows: 24 of training, 8 and 12, of 200 at most that are
    looked at by `check`."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    rows = {"Plain": {"recipe": "profit"}, "One": {"recipe": "profit", "set": {"method": {"name": "lora"}}}}
    found = planned(load_campaign(small(place, rows=rows, search=None)))
    jobs = [place_of.resolved() for place_of in load_campaign(small(place, rows=rows, search=None)).table_cells()]
    full, lora = [next(line for line in checked(prepare(job))["lines"] if "memory: " in line) for job in jobs]
    assert found["memory"] == full != lora
    assert full in found["lines"]
    assert "; rows 0.00 GB a machine" in full


@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_memory_does_not_hold_is_refused_before_anything_runs(place, monkeypatch, elsewhere):  # noqa: F811
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(check, "nodes", lambda: [1000.0, 900.0] if elsewhere else [])
    monkeypatch.setattr(memory, "machine_memory", lambda: 10**15 if elsewhere else 1000)
    campaign = load_campaign(small(place))
    lines = planned(campaign)["refused"]
    there = "the cluster, with 0.0 on its largest node," if elsewhere else "this machine"
    assert len(lines) == 1, "once a table cell, and both say the same"
    assert lines[0].startswith("memory: the job holds at least 0.0 GB of weights, gradients and optimizer state; ")
    assert f"; {there} has 0.0; choose a smaller backbone" in lines[0]
    with pytest.raises(UserError, match="memory: the job holds at least"):
        run_campaign(campaign, lambda event: None)
    assert not campaign.folder.exists()


def test_a_row_that_makes_no_prompt_is_refused_before_anything_runs(place, monkeypatch):  # noqa: F811
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    campaign = load_campaign(small(place), ["train.max_tokens=4"])
    (line,) = planned(campaign)["refused"]
    with pytest.raises(UserError) as of_run:
        run_jobs([prepare(next(campaign.table_cells()).resolved())])
    assert line == str(of_run.value)
    with pytest.raises(UserError, match="max_tokens"):
        run_campaign(campaign, lambda event: None)


def test_plan_says_where_trials_at_once_do_not_fit(place, monkeypatch):  # noqa: F811
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(plan, "trials_at_once", lambda asked, there: 50)
    one = planned(load_campaign(small(place)))
    assert one["lacks"] == []
    monkeypatch.setattr(plan, "nodes", lambda: [200_000.0, 300_000.0])
    (line,) = planned(load_campaign(small(place)))["lacks"]
    assert line.startswith("memory: 50 trials at once hold at least 0.0 GiB of weights, gradients and optimizer state")


def test_plan_says_what_is_lacking(place, monkeypatch):  # noqa: F811
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = planned(load_campaign(small(place), ["resources.workers=1", "resources.gpus_per_worker=9"]))
    assert any("GPU: 9} on one node" in line for line in found["lacks"])
    found = planned(load_campaign(small(place), ["backbone=/nowhere/model"]))
    assert found["lacks"] == [
        "backbone: no folder /nowhere/model; give an alias, a hub id (OWNER/NAME or OWNER/NAME@REVISION), a model "
        "folder or a .gguf file"
    ]
    assert (found["trials"], found["todo"], found["steps"], found["hours"]) == (3, 6, None, None)


def test_plan_counts_a_tpe_budget_that_nobody_has_spent(place):  # noqa: F811
    space = {"train.lr": {"log": [0.001, 0.1]}}
    found = planned(
        load_campaign(small(place, search={"space": space, "searcher": "tpe", "trials": 7, "rows": ["Searched"]}))
    )
    assert (found["trials"], found["todo"]) == (8, 16)


def test_listed_values_order_equals():
    space = load_campaign_space({"method.layer": [7, 1], "train.lr": {"uniform": [0.0, 1.0]}})
    assert (
        sorted([{"method.layer": 1, "train.lr": 0.1}, {"method.layer": 7, "train.lr": 0.9}], key=space.order)[0][
            "method.layer"
        ]
        == 7
    )
    assert space.drawn(random.Random(1)) == space.drawn(random.Random(1))


def load_campaign_space(space: dict):
    from raypft.campaigns.search_space import Search

    return Search(space=space, searcher="random", trials=1)


EVENT = {
    "event": "cell",
    "label": "GCN sst2 layer=4",
    "seed": 1,
    "status": "finished",
    "dev": 81.25,
    "test": None,
    "done": 3,
    "total": 24,
    "left": 300,
}
STATE = {"running": {"GCN sst2 layer=7": "1/2"}, "best": {"GCN sst2": ("GCN sst2 layer=4", 81.25)}}


def test_a_campaign_is_told_in_plain_lines_json_or_a_live_view(capsys):
    said = {
        "[3/24, 5 min left] GCN sst2 layer=4 seed 1: dev 81.25": EVENT,
        "[24/24] GCN sst2 layer=4 seed 1: dev 81.25, test 79.00": {**EVENT, "test": 79.0, "done": 24},
        "[3/24, 40 s left] GCN sst2 layer=4 seed 1: pruned: racing: behind": {
            **EVENT,
            "status": "pruned",
            "reason": "racing: behind",
            "left": 40,
        },
        "GCN sst2: begun": {"event": "trial", "label": "GCN sst2", "chosen": False},
        "GCN sst2: chosen on dev, tested now": {"event": "trial", "label": "GCN sst2", "chosen": True},
        "a note": {"event": "note", "text": "a note"},
    }
    for is_terminal in (False, True):
        out = io.StringIO()
        with CampaignProgress(Console(file=out, force_terminal=is_terminal, width=100), as_json=False) as tell:
            for event in said.values():
                tell({**event, **STATE})
        shown = out.getvalue()
        assert all(line in shown for line, event in said.items() if not is_terminal or event["event"] != "trial")
        assert ("seeds done 1/2" in shown) == is_terminal
        assert ("GCN sst2: dev 81.25" in shown) == is_terminal
    with CampaignProgress(Console(file=io.StringIO()), as_json=True) as tell:
        tell(EVENT)
    assert json.loads(capsys.readouterr().out) == EVENT
    assert duration(3.2 * 3600) == "3.2 h"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["plan", "quikstart"], 'campaign: "quikstart" is unknown; did you mean "quickstart"?'),
        (["tune", "quickstart", "scale=smal"], 'scale: "smal" is unknown'),
        (["tune", "quickstart", "train.lrr=1"], 'unknown key "train.lrr"; did you mean "lr"?'),
        (["tune", "scale=small"], "campaign: found 0 names; expected one, e.g. raypft tune quickstart"),
        (["plan", "quickstart", "tracker=tensorbord"], "tracker: found 'tensorbord'"),
    ],
)
def test_a_bad_command_is_one_line_and_exit_code_2(arguments, expected, monkeypatch, capsys):
    assert call(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.strip().splitlines()) == 1


def test_planning_a_campaign_of_5_000_finished_cells_takes_seconds(place):  # noqa: F811
    """Keys of 1,000 configurations of 5 seeds, every cell found in the ledger."""
    space = {"method.length": {"range": [1, 1000]}}
    rows = {"Searched": {"recipe": "sp", "set": {"pattern": "soft"}}}
    campaign = load_campaign(small(place, rows=rows, search={"space": space}), ["seeds=5"])
    state = CampaignState(campaign)
    (found,) = campaign.table_cells()
    for number, configuration in enumerate(state.tried(found)):
        for seed, key in configuration.keys.items():
            folder = place / "kept" / str(number) / f"seed-{seed}"
            folder.mkdir(parents=True)
            (folder / "searched.json").write_text(sealed({"seed": seed, "cell": key}, indent=1))
            state.note(configuration, seed, "finished", dev=50.0, folder=str(folder))
    began = time.process_time()
    state = CampaignState(campaign)
    done = sum(
        state.where(configuration, seed, test=False) is not None
        for configuration in state.tried(found)
        for seed in configuration.keys
    )
    seconds = time.process_time() - began
    print(f"5,000 cells planned in {seconds:.1f} s")
    assert done == 5_000
    assert seconds < 7.5

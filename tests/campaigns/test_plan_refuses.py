"""What `tune` refuses, `plan` refuses with the same lines, and neither leaves a folder behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_campaign import small, write
from test_cli import call, place  # noqa: F401  (a fixture)

from raypft.campaigns.load import load_campaign
from raypft.errors import UserError
from raypft.runs.prepare import prepare
from raypft.runs.trackers import PACKAGES
from raypft.scale.run import run_jobs
from raypft.scale.tune.plan import planned
from raypft.scale.tune.run import run_campaign

REFUSED = {
    "a search without dev rows": (
        ["dev.rows=none"],
        "search: Searched mytask has no dev rows to choose by; set dev.rows: full, or leave the row out of search.rows",
    ),
    "more GPUs than there are": (["resources.workers=1", "resources.gpus_per_worker=9"], "GPU: 9} on one node"),
    "no such model": (["backbone=/nowhere/model"], "backbone: no folder /nowhere/model"),
    "no such data": (["data.root=/nowhere"], "data: no file /nowhere/train"),
    "a label word of two tokens": (["pattern=splits"], '"bad film" is 2 tokens'),
    "too long a prompt": (["train.max_tokens=500"], "has 160 positions"),
    "a tracker that is not installed": (["tracker=wandb"], "tracker: wandb needs the package"),
    "a class with too few rows": (["shots=13"], 'asks for 13 rows of "negative" in en'),
    "an unknown key": (["train.lrr=1"], 'unknown key "train.lrr"; did you mean "lr"?'),
}


def refused(monkeypatch, capsys, command: str, path: str, *words: str) -> list[str]:
    """The lines of a refused command."""
    assert call(monkeypatch, command, path, *words) == 2
    return capsys.readouterr().err.strip().splitlines()


@pytest.mark.parametrize("what", REFUSED)
def test_plan_refuses_what_tune_refuses_and_nothing_is_left_behind(what, place, monkeypatch, capsys):  # noqa: F811
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setitem(PACKAGES, "wandb", "no_such_package")
    words, expected = REFUSED[what]
    path, before = small(place), set(place.rglob("*"))
    told = {command: refused(monkeypatch, capsys, command, path, *words) for command in ("plan", "tune")}
    assert told["plan"] == told["tune"]
    assert any(expected in line for line in told["plan"])
    assert set(place.rglob("*")) == before


def test_storage_that_cant_be_written_is_refused_by_both(place, monkeypatch, capsys):  # noqa: F811
    path = small(place)
    for command in ("plan", "tune"):
        (line,) = refused(monkeypatch, capsys, command, path, f"storage={place}/train.parquet/runs")
        assert "can't be written: Not a directory; give another folder with storage=…" in line


def test_a_job_that_comes_first_is_checked_by_both(place, monkeypatch, capsys):  # noqa: F811
    first = {
        "T": {"recipe": "ticket_search", "set": {"task": "mlmtext", "data.root": "/nowhere", "pattern": "vanilla"}}
    }
    path, before = small(place, before=first), set(place.rglob("*"))
    for command in ("plan", "tune"):
        lines = refused(monkeypatch, capsys, command, path)
        assert any("no file /nowhere/mlmtext/train" in line for line in lines)
        assert set(place.rglob("*")) == before


def test_a_refused_campaign_keeps_the_folder_it_had(place, monkeypatch):  # noqa: F811
    campaign = load_campaign(small(place), ["dev.rows=none"])
    campaign.folder.mkdir(parents=True)
    (campaign.folder / "ledger.jsonl").write_text("")
    with pytest.raises(UserError, match="no dev rows"):
        run_campaign(campaign, lambda event: None, fresh=True)
    assert (campaign.folder / "ledger.jsonl").is_file()


def test_three_mistakes_of_a_campaign_are_told_at_once(tmp_path, monkeypatch, capsys):
    change: dict = {"search": {"space": {"method.layer": [1], "seeds": [1, 2]}, "rows": ["GNC"]}, "columns": "tsk"}
    path = write(Path(tmp_path), **change)
    assert call(monkeypatch, "plan", path) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"raypft: {path}: search.space.seeds: the best seed is luck, not a setting; give seeds in defaults, the mean "
        "over them counts",
        f'raypft: {path}: columns: found "tsk"; did you mean "task"? known: language, task',
        f'raypft: {path}: search.rows: "GNC" is no row; did you mean "GCN"? known: GCN, ICL, MAJ',
    ]


def test_mistakes_of_several_jobs_are_told_at_once_and_each_once(tmp_path):
    rows = {
        "A": {"recipe": "icl", "set": {"train.lrr": 1, "protocol": "fixd"}},
        "B": {"recipe": "icl", "set": {"train.lrr": 1, "method": "lroa"}},
    }
    with pytest.raises(UserError) as caught:
        load_campaign(write(Path(tmp_path), rows=rows, search=None))
    lines = str(caught.value).splitlines()
    assert [line.partition(";")[0] for line in lines] == [
        'mine: A sst2: unknown key "train.lrr"',
        'protocol: "fixd" is unknown',
        'method: "lroa" is unknown',
    ]


def test_scale_for_scales_is_told(tmp_path):
    with pytest.raises(UserError, match='unknown key "scale"; did you mean "scales"'):
        load_campaign(write(Path(tmp_path), scale={"small": {}}, scales=None))
    with pytest.raises(UserError, match='unknown key "scale"; did you mean "scales"'):
        load_campaign(write(Path(tmp_path), name="mine", scale={"small": {}}, scales=None))
    with pytest.raises(UserError, match="A scale is chosen by a word: scale=NAME"):
        load_campaign(write(Path(tmp_path), name="mine", scale="small", scales={"small": {}}))


def test_a_tracker_among_the_keys_of_jobs_is_refused(tmp_path):
    """A trial would not hear of it: a campaign has one of its own."""
    path = write(Path(tmp_path), search=None, defaults={"tracker": "mlflow", "backbone": "x"})
    with pytest.raises(UserError) as caught:
        load_campaign(path)
    line = f"{path}: tracker: found it among the keys of jobs; a campaign has one of its own, beside rows"
    assert str(caught.value) == line
    assert load_campaign(write(Path(tmp_path), search=None), tracker="mlflow").tracker == "mlflow"


def test_a_run_that_comes_first_and_is_not_there_yet_is_no_fault(place, monkeypatch):  # noqa: F811
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (place / "mlmtext").mkdir()
    rows = [
        {"text": f"the film was {word} {number}", "language": "en"} for word in ("good", "bad") for number in range(8)
    ]
    (place / "mlmtext" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    search = {"task": "mlmtext", "pattern": "vanilla", "protocol": "ticket_search", "seeds": [0], "train.epochs": 1}
    path = small(
        place,
        before={"T": {"recipe": "ticket_search", "set": search}},
        rows={"LTP": {"recipe": "ltp", "set": {"method.ticket": "before:T"}}},
        search=None,
    )
    campaign = load_campaign(path)
    found = planned(campaign)
    assert (found["first"], found["steps"], found["lacks"], found["refused"]) == (["T"], None, [], [])
    assert "first: T, whose run others need: their steps are known when it is done" in found["lines"]
    run_jobs([prepare(campaign.prerequisite("T"))], lambda event: None)
    found = planned(load_campaign(path))
    assert (found["first"], found["steps"], found["lacks"]) == ([], 2 * 2, [])

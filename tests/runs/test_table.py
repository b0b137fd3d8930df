"""The table of finished runs, cell by cell; runs that make none; what is said of jobs that were interrupted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made import write_run, write_task

from raypft.errors import UserError
from raypft.report.mixing import Mixing
from raypft.runs import table as tables
from raypft.runs.table import check_comparable, interrupted, run_table

RIGHT = {
    0: {"en": [True] * 4, "de": [True] * 3 + [False]},
    1: {"en": [True] * 3 + [False], "de": [True] * 2 + [False] * 2},
}


@pytest.fixture
def own(tmp_path):
    return write_task(tmp_path)


@pytest.fixture
def two(tmp_path, own) -> list[Path]:
    """A run of two seeds of three, and one of one that was tested on English alone."""
    english = {0: {"en": [True] * 2 + [False] * 2}}
    more = {"seconds": 7.4, "trainable": 99, "warnings": ["beware"], "rows": {"en": 4, "fr": 6}}
    return [
        write_run(tmp_path, own, RIGHT, seeds=[0, 1, 2]),
        write_run(tmp_path, own, english, recipe="sp", shots=4, facts=more),
    ]


def test_runs_stand_beside_each_other_over_the_majority(two):
    table = run_table(two)
    assert table.title == "mytask: accuracy"
    assert table.columns == ["run", "shots", "n", "en", "de", "mean", "mean without en", "trainable", "seconds"]
    assert table.rows == [
        ["profit (plain)", "all", "2", "87.5 ± 17.7", "62.5 ± 17.7", "75.0 ± 17.7", "62.5 ± 17.7", "1,234", "3"],
        ["sp (plain)", "4", "1", "50.0 (n=1)", "-", "50.0 (n=1)", "-", "99", "7"],
        ["MAJ", "", "", "50.0", "50.0", "50.0", "50.0", "", ""],
    ]
    chosen = "epoch chosen by best accuracy on 4 dev rows"
    assert table.notes == [
        "mean ± sample standard deviation over seeds; n = finished seeds; "
        "seconds = mean per seed, model loading excluded",
        "profit (plain): tiny, protocol fixed, seeds 0, 1 (unfinished: [2]), 8 train rows, 0 demonstrations, "
        f"{chosen}; 4 test rows a language; {two[0].name}",
        "sp (plain): tiny, protocol fixed, seeds 0, 8 train rows, 0 demonstrations, "
        f"{chosen}; 4 to 6 test rows a language; {two[1].name}",
        "sp (plain), seed 0: beware",
        "trained on en; MAJ = share of the largest class of the test rows",
    ]


def test_of_one_language_there_is_no_mean_over_languages(two):
    table = run_table(two[1:])
    assert table.columns == ["run", "shots", "n", "en", "trainable", "seconds"]
    assert table.rows == [["sp (plain)", "4", "1", "50.0 (n=1)", "99", "7"], ["MAJ", "", "", "50.0", "", ""]]
    assert not any(note.startswith("trained on") for note in table.notes)


def test_of_one_language_that_is_not_the_pivot_there_is_no_mean_either(tmp_path, own):
    run = write_run(tmp_path, own, {0: {"de": [True] * 2 + [False] * 2}})
    assert run_table([run]).columns == ["run", "shots", "n", "de", "trainable", "seconds"]


def test_where_answers_are_texts_there_is_no_majority_and_other_metrics_are_means_over_languages(tmp_path, own):
    scores = {"accuracy@1": {"en": 50.0, "de": 30.0}, "f1@1": {"en": 80.0, "de": 60.0}}
    run = write_run(tmp_path, own, RIGHT, facts={"majority": {}, "metrics": scores})
    table = run_table([run])
    assert [row[0] for row in table.rows] == ["profit (plain)"]
    shown = dict(zip(table.columns, table.rows[0], strict=True))
    assert shown["f1"] == "70.0 ± 0.0"
    assert "accuracy" not in shown
    assert table.notes[-1] == "f1: the same predictions by the papers' other metrics, mean over languages"


@pytest.mark.parametrize(("languages", "turned"), [(3, False), (4, True)])
def test_a_table_of_more_than_ten_columns_is_turned(languages, turned, tmp_path):
    names = ["en", "de", "fr", "es"][:languages]
    own = write_task(tmp_path, languages=names)
    table = run_table([write_run(tmp_path, own, {0: {name: [True] for name in names}}, facts={"metrics": {}})])
    if turned:
        assert table.columns == ["", "profit (plain)", "MAJ"]
        assert [row[0] for row in table.rows] == [
            *("shots", "n", *names),
            *("mean", "mean without en", "trainable", "seconds"),
        ]
    else:
        assert table.columns[:6] == ["run", "shots", "n", *names]


def test_runs_that_make_no_table_are_refused(tmp_path, own, two):
    empty = write_run(tmp_path, own, {}, recipe="vanilla", seeds=[0])
    with pytest.raises(UserError, match=r"vanilla-.* has no finished seed yet; run it first$"):
        run_table([two[0], empty])
    other = write_run(tmp_path, own, RIGHT, recipe="other", facts={"test_rows": "others"})
    with pytest.raises(UserError, match=r"were tested on different rows or metrics; .*report them apart"):
        run_table([two[0], other])
    metric = write_run(tmp_path, own, RIGHT, recipe="metric", facts={"metric": "f1@1"})
    with pytest.raises(UserError, match="were tested on different rows or metrics"):
        run_table([two[0], metric])
    (tmp_path / "b").mkdir()
    task = write_run(tmp_path / "b", write_task(tmp_path / "b"), RIGHT)
    with pytest.raises(UserError, match=r" is task .*/b/mytask.yaml, .*/mytask.yaml; report one task at a time$"):
        run_table([two[0], task])
    with pytest.raises(UserError, match="test rows others"):
        run_table([two[0], other], Mixing())
    mixed = run_table([two[0], other], Mixing(True))
    assert mixed.title == "mytask: accuracy (mixed: see below)"
    assert mixed.notes[0].startswith("mixed: ")
    assert run_table([two[0]], Mixing(True)).title == "mytask: accuracy"


def ready(task: str, hashes: list[str], recipe: str = "a", protocol: str = "fixed", metric: str = "accuracy") -> Any:
    job = SimpleNamespace(task=task, recipe=recipe, protocol=protocol)
    resolved = SimpleNamespace(task=SimpleNamespace(metric=metric))
    manifests = {number: {"test_hash": told} for number, told in enumerate(hashes)}
    return SimpleNamespace(job=job, resolved=resolved, manifests=manifests)


def test_jobs_of_one_command_are_of_one_task_metric_and_test():
    first = ready("sst2", ["x", "y"])
    check_comparable([first])
    check_comparable([first, ready("sst2", ["y", "x"], "b")])
    for other, line in (
        (ready("xnli", ["x", "y"], "b"), r"\(tasks sst2 and xnli; run them apart\)"),
        (ready("sst2", ["x"], "b"), r"\(tasks sst2 and sst2; run them apart\)"),
        (ready("sst2", ["x", "y"], "b", metric="f1"), r"\(tasks sst2 and sst2; run them apart\)"),
        (ready("sst2", ["x"], "b", "gnnavi"), r"\(protocols fixed and gnnavi; give both one, e.g. protocol=fixed\)"),
    ):
        with pytest.raises(UserError, match=f"^run: a and b would be tested on other rows .*{line}$"):
            check_comparable([first, first, other])
        with pytest.raises(UserError):
            check_comparable([first, other])


def test_interrupted_jobs_say_what_is_finished_and_what_is_kept(two, tmp_path, monkeypatch):
    kept = {"seed-3"}
    monkeypatch.setattr(tables, "states_kept", lambda folder: {("state.pt", 5.0)} if folder.name in kept else set())
    begun = tmp_path / "begun" / "seed-4"
    begun.mkdir(parents=True)
    (begun / "events.jsonl").write_text("")
    places = [(two[0] / "seed-0", True), (two[0] / "seed-3", False), (begun, False), (two[1] / "seed-9", False)]
    cells = [SimpleNamespace(folder=place, finished=done, seed=place.name[5:]) for place, done in places]
    prepared: Any = [SimpleNamespace(cells=lambda some=some: some) for some in (cells[:2], cells[2:])]
    table, told = interrupted(prepared)
    assert table is not None
    assert table.title == "partial, 1 of 4 seeds: mytask: accuracy"
    assert [row[0] for row in table.rows] == ["profit (plain)", "MAJ"]
    assert told == (
        "1 of 4 seeds are finished; the last state of seed 3 is kept; "
        "no state of seed 4 was kept yet (train.save_every), it begins anew"
    )
    none: Any = [SimpleNamespace(cells=lambda: cells[1:])]
    assert interrupted(none)[0] is None
    (two[0] / "seed-0" / "result.json").unlink()
    (two[0] / "seed-1" / "result.json").unlink()
    assert interrupted(prepared)[0] is None, "what no table can show is left to the report"

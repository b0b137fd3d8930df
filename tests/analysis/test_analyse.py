"""`raypft analyse`: files of an analysis, the same bytes each time, and one line for what can't be looked at."""

from __future__ import annotations

import csv
import json
import shutil

import pytest

from raypft.analysis import ANALYSES


def read(path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_flow_of_two_methods_side_by_side(ran, finish, tmp_path):
    """A table with both stages and formulas of every layer, two figures, and what they are."""
    runs = [ran("fpft", "full"), ran("gnnavi", {"name": "gnnavi", "layer": 2})]
    code, out, _ = finish("analyse", "flow", *runs, "rows=4", "--out", tmp_path)
    assert code == 0
    place = tmp_path / "analysis-flow"
    assert str(place) in out
    names = ["analysis.json", "flow-slide.png", "flow-slide.svg", "flow.csv", "flow.png", "flow.svg"]
    assert sorted(path.name for path in place.iterdir()) == names
    rows = read(place / "flow.csv")
    assert len(rows) == 2 * 2 * 2 * 3  # runs, stages, formulas, layers
    assert {row["stage"] for row in rows} == {"before training", "after training"}
    assert all(float(row["S_wp"]) == 0 for row in rows if row["layer"] == "3")
    assert all(row["prompts"] == "4" for row in rows)
    facts = json.loads((place / "analysis.json").read_text())
    assert [run["name"] for run in facts["runs"]] == ["fpft (shown)", "gnnavi (shown)"]
    assert [{key: str(value) for key, value in row.items()} for row in facts["tables"]["flow"]] == rows
    before = {row["layer"]: row["S_ww"] for row in rows if row["run"] == "fpft (shown)" and "before" in row["stage"]}
    after = {row["layer"]: row["S_ww"] for row in rows if row["run"] == "fpft (shown)" and "after" in row["stage"]}
    assert before != after
    bytes_before = {path.name: path.read_bytes() for path in place.iterdir()}
    assert finish("analyse", "flow", *runs, "rows=4", "--out", tmp_path)[0] == 0
    assert {path.name: path.read_bytes() for path in place.iterdir()} == bytes_before


def test_it_is_written_into_the_first_run_and_untrained_runs_have_one_stage(ran, finish):
    run = ran("icl", "frozen", train={"epochs": 0, "max_tokens": 64}, dev={"rows": "none"})
    assert finish("analyse", "flow", run, "rows=2")[0] == 0
    assert {row["stage"] for row in read(run / "analysis-flow" / "flow.csv")} == {"untrained"}


def test_a_run_made_with_shortcuts_shows_what_one_without_shows(ran, finish, tmp_path):
    """States were kept while the first trained, none while the second did."""
    found = []
    for name, shortcuts in (("kept", True), ("whole", False)):
        train = {"epochs": 2, "lr": 1e-2, "batch_size": 8, "max_tokens": 64, "shortcuts": shortcuts}
        run = ran(f"gnnavi-{name}", {"name": "gnnavi", "layer": 2}, train=train)
        assert finish("analyse", "flow", run, "rows=3", "--out", tmp_path / name)[0] == 0
        found.append(read(tmp_path / name / "analysis-flow" / "flow.csv"))
    for one, other in zip(*found):
        for path in ("S_wp", "S_pq", "S_ww"):
            assert float(one[path]) == pytest.approx(float(other[path]), rel=1e-2, abs=1e-7)


BAD = {
    "unknown kind": (["flwo", "RUN"], 'analysis: "flwo" is unknown; did you mean "flow"?'),
    "no run": (["flow", "rows=3"], "analyse flow: found 0 runs; expected 1 or more"),
    "no folder": (["flow", "/nowhere"], "run: /nowhere holds no job.yaml"),
    "named twice": (["flow", "RUN", "RUN"], "is named twice; name each run once"),
    "unknown key": (["flow", "RUN", "rws=3"], 'analyse flow: unknown key "rws"; did you mean "rows"?'),
    "wrong value": (["flow", "RUN", "rows=0"], "analyse flow: rows: found 0"),
    "unknown seed": (["flow", "RUN", "seed=9"], "has no finished seed 9; finished: 3"),
    "no demonstrations": (["flow", "PLAIN"], "shows no demonstrations; expected a run with demos=1 or more"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(case, ran, finish):
    words, told = BAD[case]
    runs = {"RUN": ran("fpft", "full"), "PLAIN": ran("dp", "full", "xlmr")}
    there = {run: sorted(run.iterdir()) for run in runs.values()}
    code, out, err = finish("analyse", *[runs.get(word, word) for word in words])
    assert (code, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1
    assert {run: sorted(run.iterdir()) for run in runs.values()} == there


def test_a_run_whose_seeds_are_unfinished_and_one_whose_rows_changed(ran, finish, tmp_path):
    run = tmp_path / "copy"
    shutil.copytree(ran("fpft", "full"), run)
    samples = tmp_path / "rows"
    samples.mkdir()
    code, _, err = finish("analyse", "flow", run, f"data.root={samples}")
    assert code == 2
    assert "for the train split of toy" in err
    shutil.rmtree(run / "seed-3")
    code, _, err = finish("analyse", "flow", run)
    assert (code, err.count("\n")) == (2, 1)
    assert "has no finished seed; run it first" in err


def test_every_analysis_is_listed_with_what_it_shows(finish):
    code, out, _ = finish("list", "analyses")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ANALYSES.names()
    assert all(len(line.split()) > 5 for line in out.splitlines())

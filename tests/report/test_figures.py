"""Figures of a report: the numbers behind them by hand, and that each is drawn only where its data are."""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree

import numpy as np
import pytest
from made import answers, write_run, write_task
from matplotlib.figure import Figure
from test_campaign_tables import campaign, cell

from raypft.report.figures import spread_axis
from raypft.report.folder import write_report
from raypft.report.languages import family, script
from raypft.report.score_figures import front
from raypft.report.search_figures import _places
from raypft.runs.comparison import compared


def data(out, name):
    return list(csv.DictReader(io.StringIO((out / f"figures/{name}.csv").read_text(encoding="utf-8"))))


def drawn(out):
    """Names of the figures in a folder; each has its three files, whole."""
    names = {path.stem for path in (out / "figures").iterdir()}
    for name in names:
        assert (out / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")
        xml.etree.ElementTree.parse(out / f"figures/{name}.svg")
        assert data(out, name)
    return names


def test_the_transfer_gap_is_the_pivot_minus_the_language_seed_by_seed(tmp_path):
    rows = [cell("A", {"en": 80.0 + seed, "zh": 60.0, "de": 75.0}, seed) for seed in range(3)]
    write_report(campaign(rows={"A": object()}), rows, tmp_path)
    assert drawn(tmp_path) == {"transfer"}
    found = data(tmp_path, "transfer")
    assert [(one["family"], one["script"], one["language"]) for one in found] == [
        ("Germanic", "Latn", "de"),
        ("Sino-Tibetan", "Hans", "zh"),
    ]
    assert [float(one["gap"]) for one in found] == [6.0, 21.0]
    assert [float(one["std"]) for one in found] == [1.0, 1.0]


def test_the_front_keeps_what_nothing_surpasses():
    points = {"dear": (9.0, 80.0), "cheap": (1.0, 60.0), "worse": (9.0, 70.0), "twin": (1.0, 60.0), "mid": (5.0, 59.0)}
    assert front(points) == ["dear", "cheap", "twin"]


def test_costs_are_spread_by_magnitude_with_what_trains_nothing_beside(tmp_path):
    for costs, scale in (([0, 460_800, 134_515_008], "symlog"), ([5, 100], "log"), ([0, 332_352], "linear")):
        axes = Figure().subplots()
        spread_axis(axes, costs)
        axes.plot(costs, costs)
        places = axes.transData.transform([(cost, 0) for cost in costs])[:, 0]
        assert axes.get_xscale() == scale
        assert min(np.diff(places)) > 0.15 * axes.bbox.width
        axes.figure.canvas.draw()
        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert 2 <= len(labels) < 12
        assert all(re.fullmatch(r"[−-]?\d+(\.\d+)?[kM]?", label) for label in labels), labels


def test_score_against_cost(tmp_path):
    rows = [cell("A", 80.0, trainable=100, seconds=5.0), cell("B", 70.0, trainable=10, seconds=9.0)]
    write_report(campaign(), rows, tmp_path)
    assert drawn(tmp_path) == {"pareto"}
    found = data(tmp_path, "pareto")
    assert [one["not surpassed by trainable parameters"] for one in found] == ["yes", "yes"]
    assert [one["not surpassed by seconds a seed"] for one in found] == ["yes", ""]


def test_a_search_shows_its_trials_and_the_best_so_far(tmp_path):
    space = {"method.layer": [2, 4], "train.lr": [0.001, 0.1]}
    dev = {(2, 0.001): 50.0, (2, 0.1): 40.0, (4, 0.001): 70.0, (4, 0.1): 60.0}
    rows = []
    for (layer, rate), score in dev.items():
        rows.append(cell("A", 30.0, axes={"method.layer": layer, "train.lr": rate}, dev=score))
    write_report(campaign(rows={"A": object()}, search={"space": space}), rows, tmp_path)
    assert drawn(tmp_path) == {"best-so-far", "parallel", "plot-method.layer", "plot-train.lr"}
    assert [float(one["best dev so far"]) for one in data(tmp_path, "best-so-far")] == [50, 50, 70, 70]
    assert [(one["method.layer"], one["train.lr"], float(one["dev"])) for one in data(tmp_path, "parallel")] == [
        (f"{layer}", f"{rate:g}", score) for (layer, rate), score in dev.items()
    ]
    heights, ends = _places([0.001, 0.01, 0.1])
    assert heights == pytest.approx([0, 0.5, 1])
    assert ends == [(0.0, "0.001"), (1.0, "0.1")]
    assert _places(["a", "b", "a"]) == ([0.0, 1.0, 0.0], [(0.0, "a"), (1.0, "b")])


def test_a_row_may_search_more_keys_than_another(tmp_path):
    of_b = {"method.layer": [2, 4], "train.lr": [0.3, 0.2]}
    search = {"space": {"train.lr": [0.1, 0.2]}, "rows": {"A": {}, "B": of_b}}
    rows = [cell("A", 30.0, axes={"train.lr": rate}, dev=10 * rate) for rate in (0.1, 0.2)]
    for layer, rate, dev in ((2, 0.3, 5.0), (4, 0.3, 8.0), (2, 0.2, 8.0), (4, 0.2, 3.0)):
        rows.append(cell("B", 30.0, axes={"train.lr": rate, "method.layer": layer}, dev=dev))
    write_report(campaign(search=search), rows, tmp_path)
    assert {"parallel", "plot-train.lr", "plot-method.layer"} <= drawn(tmp_path)
    found = data(tmp_path, "plot-method.layer")
    assert {(one["row"], one["method.layer"]) for one in found} == {("B", "2"), ("B", "4")}
    assert [one["method.layer"] for one in data(tmp_path, "parallel")] == ["", "", "2", "4", "2", "4"]
    notes = (tmp_path / "table.md").read_text()
    assert "A on xnli: train.lr=0.2 (dev 2.0)" in notes
    # of equals the first as the row's own list has them: 0.3 before 0.2
    assert "B on xnli: train.lr=0.3, method.layer=4 (dev 8.0)" in notes


def test_a_search_that_has_tested_nothing_yet_is_reported(tmp_path):
    task = write_task(tmp_path)
    run = write_run(tmp_path, task, {0: {"en": [True, False]}})
    whole = json.loads((run / "seed-0/result.json").read_text())
    tested = {"metric", "scores", "metrics", "majority", "rows", "mean", "mean_without_english", "pivot"}
    untested = {key: whole[key] for key in whole.keys() - tested}
    rows = []
    for rate in (0.1, 0.2):
        rows.append({**cell("A", 0, axes={"train.lr": rate}), "result": untested, "folder": run / "seed-0"})
    write_report(campaign(rows={"A": object()}, search={"space": {"train.lr": [0.1, 0.2]}}), rows, tmp_path / "out")
    notes = (tmp_path / "out/table.md").read_text()
    assert "A on xnli: train.lr=0.1 (dev 50.0) of 2 configurations" in notes
    assert "tested:" not in notes


def test_curves_over_an_axis_have_their_data_too(tmp_path):
    rows = [cell("A", 50.0 + shots + seed, seed, axes={"shots": shots}) for shots in (1, 2, 4) for seed in range(2)]
    write_report(campaign(rows={"A": object()}, vary={"shots": [1, 2, 4]}), rows, tmp_path)
    found = data(tmp_path, "plot-shots")
    assert [(one["shots"], float(one["mean"])) for one in found] == [("1", 51.5), ("2", 52.5), ("4", 54.5)]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    task = write_task(folder)
    runs = [write_run(folder, task, answers(np.random.default_rng(0), 0.7, 2, 40, ("en", "de")), name) for name in "ab"]
    write_report(*compared(runs), folder / "out")
    return folder / "out"


def test_confusion_counts_every_answer(out):
    assert drawn(out) == {"transfer", "pareto", "dev-test", "confusion", "calibration"}
    found = [one for one in data(out, "confusion") if (one["row"], one["language"]) == ("a (plain)", "en")]
    assert sum(int(one["rows"]) for one in found) == 2 * 40
    for label in ("yes", "no"):
        assert sum(float(one["% of gold"]) for one in found if one["gold"] == label) == pytest.approx(100, abs=0.02)
    right = sum(int(one["rows"]) for one in found if one["gold"] == one["answer"])
    table = list(csv.DictReader(io.StringIO((out / "table.csv").read_text())))
    mean = next(float(one["mean"]) for one in table if (one["row"], one["column"]) == ("a (plain)", "en"))
    assert 100 * right / 80 == pytest.approx(mean)


def test_calibration_is_the_gap_between_confidence_and_share(out):
    table = list(csv.DictReader(io.StringIO((out / "table.csv").read_text())))
    for one in data(out, "calibration"):
        mean = next(float(other["mean"]) for other in table if (other["row"], other["column"]) == (one["row"], "mean"))
        assert float(one["confidence"]) == pytest.approx(80)  # as the made runs have it
        assert float(one["right"]) == pytest.approx(mean, abs=1e-3)
        assert float(one["expected calibration error"]) == pytest.approx(abs(80 - mean), abs=1e-3)


def test_dev_beside_test_of_the_languages_trained_on(out):
    table = list(csv.DictReader(io.StringIO((out / "table.csv").read_text())))
    english = {one["row"]: float(one["mean"]) for one in table if one["column"] == "en"}
    for row in ("a (plain)", "b (plain)"):
        found = [one for one in data(out, "dev-test") if one["row"] == row]
        assert [float(one["dev"]) for one in found] == [50, 51]
        assert np.mean([float(one["test"]) for one in found]) == pytest.approx(english[row], abs=1e-3)


@pytest.mark.parametrize(
    ("code", "known"),
    [
        ("en", ("Germanic", "Latn")),
        ("swh_Latn", ("Niger-Congo", "Latn")),
        ("hi", ("Indo-Aryan", "Deva")),
        ("zho_Hans", ("Sino-Tibetan", "Hans")),
        ("ru", ("Slavic", "Cyrl")),
        ("xx", ("other", "other")),
    ],
)
def test_families_and_scripts(code, known):
    assert (family(code), script(code)) == known

"""Campaign tables by hand: numbers, verdicts, refusals, and files that other programs read."""

from __future__ import annotations

import csv
import functools
import io
import itertools
import math
import random
import re
import statistics
import time
import xml.etree.ElementTree
from types import SimpleNamespace
from typing import Any

import pytest

from raypft.campaigns.search_space import Search
from raypft.errors import UserError
from raypft.report.campaign import write_tables
from raypft.report.groups import Cells, average, frozen, majority, text, told
from raypft.report.groups import Score as Given
from raypft.report.layout import Column, Section, _of_mean, _views, sections
from raypft.report.paper import Paper

LANGUAGES = ("en", "de", "zh")


def campaign(**values):
    """A campaign's file as an object; `paper` and `search` from mappings."""
    paper, search = values.pop("paper", None), values.pop("search", None)
    default = {
        "about": "a test",
        "source": "nobody 2024, Table 1",
        "tasks": ["xnli"],
        "vary": {},
        "columns": "language",
        "scale": None,
        "speedup_over": None,
    }
    paper = paper and SimpleNamespace(**{"values": {}, "std": {}, "differs": {}, "notes": []} | paper)
    search = search and Search(**search)
    return SimpleNamespace(**default | {"rows": {"A": object(), "B": object()}} | values, paper=paper, search=search)


def result(scores, task="xnli", seed=0, **more):
    """A result.json of a run: `scores` by language."""
    others = [value for language, value in scores.items() if language != "en"]
    return {
        "seed": seed,
        "metric": "accuracy@1",
        "scores": scores,
        "metrics": {"accuracy@1": scores},
        "test_rows": f"rows of {task}",
        "protocol": "fixed",
        "majority": dict.fromkeys(scores, 40.0),
        "rows": dict.fromkeys(scores, 100),
        "mean": statistics.fmean(scores.values()),
        "mean_without_english": statistics.fmean(others) if others else None,
        "dev": 50.0,
        "trainable": 1234,
        "train_seconds": 8.0,
        "seconds": 9.5,
        "history": [{"epoch": 1}, {"epoch": 2}],
        "peak_memory_mb": 700.0,
    } | more


def cell(row, scores, seed=0, task="xnli", axes=None, **more):
    """A finished cell; scores of one language may be a number."""
    scores = {"en": scores} if isinstance(scores, int | float) else scores
    return {
        "row": row,
        "task": task,
        "axes": axes or {},
        "seed": seed,
        "status": "finished",
        "reason": "",
        "result": result(scores, task, seed, **more),
    }


def lost(row, status, seed=0, task="xnli", axes=None, reason=""):
    return {
        "row": row,
        "task": task,
        "axes": axes or {},
        "seed": seed,
        "status": status,
        "reason": reason,
        "result": None,
    }


def markdown(path):
    """Title to rows, each a list of cells, of every table in a Markdown file."""
    tables, title = {}, ""
    for line in path.read_text().splitlines():
        if line.startswith("**"):
            title = line.strip("*")
        elif line.startswith("|") and not line.startswith("|---"):
            tables.setdefault(title, []).append([part.strip() for part in line.strip("|").split("|")])
    return tables


def records(folder, name="table.csv"):
    return list(csv.DictReader(io.StringIO((folder / name).read_text())))


def test_languages_with_and_without_english_by_hand(tmp_path):
    rows = [cell("A", dict(zip(LANGUAGES, scores)), seed) for seed, scores in enumerate([(80, 70, 60), (84, 72, 60)])]
    rows += [cell("B", dict(zip(LANGUAGES, (50, 50, 50))), 0), lost("B", "failed", 1, reason="out of memory")]
    rows[0]["result"] |= {"peak_gpu_memory_mb": 512.0, "cpu_seconds": 9.0, "train_flops": 3.2e12}
    tables = markdown(write_tables(campaign(rows={"MAJ": "majority", "A": object(), "B": object()}), rows, tmp_path))
    assert tables["xnli, accuracy"] == [
        ["row", "en", "de", "zh", "mean", "mean without en"],
        ["MAJ", "40.0", "40.0", "40.0", "40.0", "40.0"],
        ["A", "82.0 ± 2.8", "71.0 ± 1.4", "60.0 ± 0.0", "71.0 ± 1.4", "65.5 ± 0.7"],
        ["B", *["50.0 (n=1, 1 failed)"] * 5],
    ]
    assert tables["cost"][1:] == [
        ["xnli", "A", "2", "1,234", "3.2e+12", "8.0", "9.5", "9.0", "700", "512"],
        ["xnli", "B", "1", "1,234", "", "8.0", "9.5", "", "700", ""],
    ]
    text = (tmp_path / "table.md").read_text()
    assert "failed: B on xnli, seeds 1: out of memory" in text
    assert "rows of xnli, 100 rows a language, protocol fixed" in text


def test_tasks_with_their_mean_seed_by_seed(tmp_path):
    rows = [cell("A", score, seed, "sst2") for seed, score in enumerate((90, 92))]
    rows += [cell("A", score, seed, "trec") for seed, score in enumerate((70, 60))]
    tables = markdown(write_tables(campaign(tasks=["sst2", "trec"], columns="task"), rows, tmp_path))
    # means of the seeds: 80 and 76
    assert tables["accuracy"] == [
        ["row", "sst2", "trec", "mean"],
        ["A", "91.0 ± 1.4", "65.0 ± 7.1", "78.0 ± 2.8"],
        ["B", "-", "-", "-"],
    ]


def test_a_task_without_results_leaves_the_mean_open(tmp_path):
    paper = {"values": {"A": {"sst2": 90.0, "trec": 10.0, "mean": 50.0}}}
    tables = markdown(
        write_tables(
            campaign(tasks=["sst2", "trec"], columns="task", paper=paper),
            [cell("A", s, s, "sst2") for s in (89, 91)],
            tmp_path,
        )
    )
    assert tables["accuracy"][1:3] == [["A", "90.0 ± 1.4", "-", "-"], ["A (paper)", "90 inside", "10", "50"]]


def test_an_axis_makes_lines_or_columns(tmp_path):
    vary = {"shots": [1, 2], "method.layer": [4, 8]}
    rows = [
        cell("A", 10 * shots + layer, 0, axes={"shots": shots, "method.layer": layer})
        for shots, layer in itertools.product((1, 2), (4, 8))
    ]
    table = markdown(
        write_tables(
            campaign(rows={"A": object(), "MAJ": "majority"}, vary=vary, columns="method.layer"), rows, tmp_path
        )
    )["xnli, accuracy"]
    assert table == [
        ["shots", "row", "4", "8"],
        ["1", "A", "14.0 (n=1)", "18.0 (n=1)"],
        ["", "MAJ", "40.0", "40.0"],
        ["2", "A", "24.0 (n=1)", "28.0 (n=1)"],
    ]
    assert [plot.name for plot in sorted(tmp_path.glob("plot-*"))] == [
        "plot-method.layer.png",
        "plot-method.layer.svg",
        "plot-shots.png",
        "plot-shots.svg",
    ]


@pytest.mark.parametrize(
    ("paper", "std", "scores", "verdict"),
    [
        (82.8, None, (80, 82), "inside"),  # mean 81, std 1.414: up to 83.83
        (83.84, None, (80, 82), "outside"),
        (78.17, None, (80, 82), "inside"),
        (83.0, 0.5, (80, 82), "outside"),  # the paper's own deviation rules
        (82.0, 0.5, (80, 82), "inside"),
        (81.0, None, (81,), "one seed"),
        (81.0, 1.0, (81.5,), "inside"),
        (66.67, None, (200 / 3, 200 / 3), "inside"),  # printed with two digits
    ],
)
def test_the_papers_number_is_inside_within_two_deviations(tmp_path, paper, std, scores, verdict):
    given = {"values": {"A": {"en": paper}}, "std": {"A": {"en": std}} if std else {}}
    write_tables(campaign(paper=given), [cell("A", score, seed) for seed, score in enumerate(scores)], tmp_path)
    record_of_a = next(record for record in records(tmp_path) if record["row"] == "A")
    assert (record_of_a["paper"], record_of_a["verdict"]) == (f"{paper:g}", verdict)
    assert f"{paper:g} {verdict}" in (tmp_path / "table.md").read_text()


def test_majority_is_compared_exactly_and_a_changed_protocol_gets_no_verdict(tmp_path):
    paper = {"values": {"MAJ": {"en": 40.0}, "A": {"en": 81.0}}, "differs": {"A": "other metric"}}
    rows = [cell("A", score, seed) for seed, score in enumerate((80, 82))]
    write_tables(campaign(rows={"MAJ": "majority", "A": object()}, paper=paper), rows, tmp_path)
    assert [record["verdict"] for record in records(tmp_path)] == ["inside", "protocol differs"]
    assert "A: protocol differs: other metric" in (tmp_path / "table.md").read_text()
    paper["values"]["MAJ"]["en"] = 40.02
    write_tables(campaign(rows={"MAJ": "majority", "A": object()}, paper=paper), rows, tmp_path)
    assert records(tmp_path)[0]["verdict"] == "outside"


def test_the_paper_has_numbers_by_axis_and_a_scaled_down_campaign_no_verdict(tmp_path):
    values = {"A": {1: {"en": 81.0}, 2: {"en": 10.0}}, "MAJ": {"en": 40.0}}
    rows = [
        cell("A", score, seed, axes={"shots": shots})
        for shots, (seed, score) in itertools.product((1, 2), ((0, 80), (1, 82)))
    ]
    given = {"rows": {"MAJ": "majority", "A": object()}, "vary": {"shots": [1, 2]}, "paper": {"values": values}}
    write_tables(campaign(**given), rows, tmp_path)
    assert [(record["shots"], record["paper"], record["verdict"]) for record in records(tmp_path)] == [
        ("", "40", "inside"),
        ("1", "81", "inside"),
        ("2", "10", "outside"),
    ]
    write_tables(campaign(**given, scale="small"), rows, tmp_path)
    assert {record["verdict"] for record in records(tmp_path)} == {"protocol differs"}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"test_rows": "others"},
            'report: task xnli: row "B" has test rows others, row "A" has rows of xnli; they don\'t compare',
        ),
        ({"metric": "accuracy@2"}, 'row "B" has metric accuracy@2, row "A" has accuracy@1'),
        ({"protocol": "gnnavi"}, 'row "B" has protocol gnnavi, row "A" has fixed'),
    ],
)
def test_what_does_not_compare_is_refused(tmp_path, change, line):
    with pytest.raises(UserError, match=re.escape(line)):
        write_tables(campaign(), [cell("A", 80), cell("B", 80, **change)], tmp_path)


def test_cells_of_another_campaign_are_refused(tmp_path):
    for given in (cell("C", 80), cell("A", 80, task="sst2")):
        with pytest.raises(UserError, match="which the campaign does not have"):
            write_tables(campaign(), [given], tmp_path)


def searched(tmp_path, searcher="grid", **changes):
    space = {"method.layer": [2, 10, 4], "train.lr": [0.1, 0.01]}
    dev = {
        (2, 0.1): (50, 52),
        (2, 0.01): (60, 62),
        (10, 0.1): (90,),
        (10, 0.01): (70, 72),
        (4, 0.1): (50, 84),
        (4, 0.01): (10, 12),
    }
    rows = []
    for (layer, lr), scores in dev.items():
        axes = {"method.layer": layer, "train.lr": lr}
        rows += [cell("A", 100 - score, seed, axes=axes, dev=score, **changes) for seed, score in enumerate(scores)]
    rows.append(lost("A", "pruned", 1, axes={"method.layer": 10, "train.lr": 0.1}, reason="cannot reach the best"))
    rows.append(cell("B", 33, 0, dev=None))
    random.Random(0).shuffle(rows)
    return write_tables(campaign(search={"space": space, "searcher": searcher}), rows, tmp_path)


def test_a_search_shows_what_dev_prefers_among_the_configurations_with_most_seeds(tmp_path):
    path = searched(tmp_path)
    # dev 71 at (10, 0.01); its test is 29, the worst but one; (10, 0.1) has 90 on one seed only, (4, 0.1) 84 on one
    # and 67 in the mean
    assert markdown(path)["xnli, accuracy"][1:] == [["A", "29.0 ± 1.4"], ["B", "33.0 (n=1)"]]
    text = path.read_text()
    assert "A on xnli: method.layer=10, train.lr=0.01 (dev 71.0) of 6 configurations, 5 with as many seeds" in text
    assert "pruned: A on xnli (10, 0.1), seeds 1: cannot reach the best" in text
    assert "every configuration for each row and task" in text


def test_of_equal_configurations_the_one_that_is_listed_first_is_chosen(tmp_path):
    """In whatever order they began and however their values compare."""
    for layers in ([10, 2, 4], [2, 10, 4], [4, 10, 2]):
        rows = [cell("A", layer, axes={"method.layer": layer}, dev=60.0) for layer in (2, 4, 10)]
        for order in (rows, rows[::-1]):
            path = write_tables(campaign(search={"space": {"method.layer": layers}}), order, tmp_path)
            assert f"A on xnli: method.layer={layers[0]} (dev 60.0)" in path.read_text()


def test_the_costs_tell_the_most_memory_of_any_seed(tmp_path):
    rows = [cell("A", 80, seed, peak_memory_mb=memory) for seed, memory in enumerate((650.0, 900.0, 700.0))]
    write_tables(campaign(), rows, tmp_path)
    (costs,) = records(tmp_path, "costs.csv")
    assert costs["peak memory MB"] == "900"


def test_a_search_without_dev_scores_is_refused(tmp_path):
    rows = [cell("A", 80, axes={"method.layer": layer}, dev=None) for layer in (2, 4)]
    with pytest.raises(UserError, match='row "A" was searched on xnli without dev scores'):
        write_tables(campaign(search={"space": {"method.layer": [2, 4]}}), rows, tmp_path)


def test_configurations_that_were_not_tested_take_part_in_the_choice(tmp_path):
    untested = {
        "seed": 0,
        "dev": 20.0,
        "trainable": 5,
        "train_seconds": 1.0,
        "seconds": 1.0,
        "peak_memory_mb": 1.0,
        "history": [],
    }
    rows = [
        cell("A", 80, axes={"method.layer": 4}, dev=60.0),
        {**cell("A", 0, axes={"method.layer": 2}), "result": untested},
    ]
    path = write_tables(campaign(search={"space": {"method.layer": [2, 4]}}), rows, tmp_path)
    assert "method.layer=4 (dev 60.0) of 2 configurations" in path.read_text()


@pytest.mark.parametrize("searcher", ["grid", "random"])
def test_every_searched_key_and_axis_is_drawn(tmp_path, searcher):
    searched(tmp_path, searcher)
    for key in ("method.layer", "train.lr"):
        picture = (tmp_path / f"plot-{key}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 5000
        drawn = xml.etree.ElementTree.parse(tmp_path / f"plot-{key}.svg").getroot()
        assert len(list(drawn.iter("{http://www.w3.org/2000/svg}path"))) > 10


def test_speeds_are_ratios_of_training_seconds_an_epoch_seed_by_seed(tmp_path):
    rows = [cell("A", 80, seed, train_seconds=seconds) for seed, seconds in enumerate((8.0, 6.0))]
    rows += [cell("B", 80, seed, train_seconds=seconds, history=[{}]) for seed, seconds in enumerate((1.0, 1.0))]
    made = campaign(columns="task", paper={"values": {"B": {"xnli": 4.7}}}, speedup_over="A")
    tables = markdown(write_tables(made, rows, tmp_path))
    # A: 4 and 3 seconds an epoch, B: 1
    speeds = tables["training seconds an epoch of A / those of the row"]
    assert speeds[1:] == [["A", "1.0 ± 0.0"], ["B", "3.5 ± 0.7"], ["B (paper)", "4.7 inside"]]
    assert tables["accuracy"][1:] == [["A", "80.0 ± 0.0"], ["B", "80.0 ± 0.0"]]


def test_the_csv_has_means_and_deviations_with_four_digits_and_counts_of_seeds(tmp_path):
    rows = [cell("A", 80), cell("A", 82, 1), lost("A", "pruned", 2), lost("B", "failed"), cell("C", 81)]
    write_tables(campaign(rows=dict.fromkeys("ABC")), rows, tmp_path)
    names = ("row", "column", "mean", "std", "n", "planned", "failed", "pruned")
    assert [[record[name] for name in names] for record in records(tmp_path)] == [
        ["A", "en", "81.0000", "1.4142", "2", "3", "0", "1"],
        ["B", "en", "", "", "0", "1", "1", "0"],
        ["C", "en", "81.0000", "", "1", "1", "0", "0"],
    ]


def test_what_took_no_time_has_no_speed(tmp_path):
    """Of no epoch, or of a clock that told none."""
    rows = [cell("A", 80), cell("B", 80, history=[]), cell("C", 80, train_seconds=0.0)]
    made = campaign(columns="task", rows=dict.fromkeys("ABC"), speedup_over="A")
    tables = markdown(write_tables(made, rows, tmp_path))
    speeds = tables["training seconds an epoch of A / those of the row"]
    assert speeds[1:] == [["A", "1.0 (n=1)"], ["B", "-"], ["C", "-"]]


def test_other_metrics_are_further_tables(tmp_path):
    more = {"metric": "entity_f1@1", "metrics": {"entity_f1@1": {"en": 60.0}, "token_accuracy@1": {"en": 90.0}}}
    tables = markdown(
        write_tables(campaign(rows={"MAJ": "majority", "A": object()}), [cell("A", 60.0, **more)], tmp_path)
    )
    assert tables["xnli, entity_f1"][1:] == [["MAJ", "40.0"], ["A", "60.0 (n=1)"]]
    assert tables["xnli, token_accuracy"][1:] == [["MAJ", "-"], ["A", "90.0 (n=1)"]]
    assert "token" not in (tmp_path / "table.tex").read_text()


@pytest.mark.parametrize("columns", ["language", "task"])
def test_a_metric_that_only_one_row_has_is_a_table_too(tmp_path, columns):
    """Whichever row finished first."""
    more: dict[str, Any] = {"metric": "entity_f1@1", "metrics": {"entity_f1@1": {"en": 60.0}}}
    written: dict[str, Any] = more | {"metrics": {**more["metrics"], "span_f1@1": {"en": 90.0}}}
    cells = [cell("A", 60.0, **more), cell("B", 60.0, **written)]
    tables = markdown(write_tables(campaign(columns=columns), cells, tmp_path))
    assert next(rows for title, rows in tables.items() if "span_f1" in title)[1:] == [["A", "-"], ["B", "90.0 (n=1)"]]


def test_csv_and_svg_have_the_same_bytes_in_whatever_order_cells_finish(tmp_path):
    rows = [
        cell("A", 70 + 3 * seed + shots / 7, seed, axes={"shots": shots})
        for seed, shots in itertools.product(range(5), (1, 2))
    ]
    rows += [lost("B", "failed", 0, axes={"shots": 1}, reason="x"), lost("B", "missing", 1, axes={"shots": 1})]
    made = campaign(vary={"shots": [1, 2]})
    write_tables(made, rows, tmp_path / "one")
    again = [
        {**row, "result": row["result"] and {**row["result"], "seconds": 77.0, "train_seconds": 70.0}} for row in rows
    ]
    random.Random(1).shuffle(again)
    write_tables(made, again, tmp_path / "two")
    assert (tmp_path / "one/table.csv").read_bytes() == (tmp_path / "two/table.csv").read_bytes()
    assert (tmp_path / "one/plot-shots.svg").read_bytes() == (tmp_path / "two/plot-shots.svg").read_bytes()
    assert (tmp_path / "one/costs.csv").read_bytes() != (tmp_path / "two/costs.csv").read_bytes()


def test_latex_is_balanced_and_escaped(tmp_path):
    rows = [cell("LTP_20% & {x}", 80, seed, axes={"shots": shots}) for seed, shots in itertools.product((0, 1), (1, 2))]
    write_tables(campaign(rows={"LTP_20% & {x}": object()}, vary={"shots": [1, 2]}), rows, tmp_path)
    text = (tmp_path / "table.tex").read_text()
    assert r"LTP\_20\% \& \{x\} & 80.0 $\pm$ 0.0 \\" in text
    assert (
        text.count(r"\begin{tabular}")
        == text.count(r"\end{tabular}")
        == text.count(r"\toprule")
        == text.count(r"\bottomrule")
        == 2
    )
    bare = re.sub(r"\\[{}%&_$#]", "", text)
    assert bare.count("{") == bare.count("}")
    for block in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", bare, re.DOTALL):
        assert {line.count("&") + 1 for line in block[1].splitlines() if line.endswith(r"\\")} == {len(block[0])}
    assert not re.search(r"(?<!\\)[%#]|(?<!\\)_", text)


def test_latex_sets_labels_left_numbers_right_and_a_rule_where_the_first_axis_moves_on(tmp_path):
    rows = [cell(row, 80, axes={"shots": shots}) for row, shots in itertools.product("AB", (1, 2))]
    for vary, given, forms, rules in (
        ({"shots": [1, 2]}, rows, ["llr", "lll" + 8 * "r"], 4),
        ({}, [cell("A", 80), cell("B", 80)], ["lr", "ll" + 8 * "r"], 2),
    ):
        write_tables(campaign(vary=vary), given, tmp_path)
        text = (tmp_path / "table.tex").read_text()
        assert re.findall(r"\\begin\{tabular\}\{(\w+)\}", text) == forms
        assert text.count(r"\midrule") == rules, "below the head, and between two and two lines"


def test_nothing_finished_is_a_table_of_nothing(tmp_path):
    path = write_tables(campaign(), [lost("A", "missing"), lost("B", "failed", reason="no data")], tmp_path)
    assert "failed: B on xnli, seeds 0: no data" in path.read_text()
    assert len(records(tmp_path)) == 0


def test_a_hundred_thousand_cells_take_less_than_a_minute(tmp_path):
    vary = {"shots": list(range(1, 101)), "method.layer": list(range(20))}
    base = result(dict(zip(LANGUAGES, (80.0, 70.0, 60.0))))
    rows = [
        {
            "row": row,
            "task": "xnli",
            "axes": {"shots": shots, "method.layer": layer},
            "seed": seed,
            "status": "finished",
            "reason": "",
            "result": base,
        }
        for row, shots, layer, seed in itertools.product("ABCDEFGHIJ", *vary.values(), range(5))
    ]
    assert len(rows) == 100_000
    began = time.process_time()
    write_tables(campaign(rows=dict.fromkeys("ABCDEFGHIJ"), vary=vary), rows, tmp_path)
    assert time.process_time() - began < 60
    assert len(records(tmp_path)) == 20_000 * 5


def test_a_pivot_that_is_not_english_is_left_out_of_its_own_mean():
    result = {"scores": {"en": 10.0, "de": 20.0, "fr": 60.0}, "metric": "accuracy@1", "pivot": "de"}
    assert _views(result) == ["", "mean without de"]
    assert _of_mean("accuracy@1", "mean without de")(result) == 35.0
    assert _views({**result, "pivot": None}) == [""]
    del result["pivot"]  # of a version that named none
    assert _views(result) == ["", "mean without en"]
    assert _of_mean("accuracy@1", "mean without en")(result) == 40.0


def test_the_majority_without_the_pivot_is_without_it():
    found = majority({"majority": {"en": 80.0, "de": 60.0, "tr": 40.0}, "metric": "accuracy@1", "pivot": "en"})
    assert (found["mean"], found["mean_without_english"]) == (60.0, 50.0)
    found = majority({"majority": {"en": 80.0, "de": 60.0}, "metric": "accuracy@1", "pivot": "de"})
    assert found["mean_without_english"] == 80.0


def test_of_metrics_without_a_majority_class_it_is_not_known():
    found = majority({"majority": None, "metric": "f1@1", "scores": {"en": 1.0}})
    assert (found["scores"], found["mean"], found["mean_without_english"]) == ({}, None, None)
    alone = majority({"majority": {"en": 40.0}, "metric": "accuracy@1", "pivot": "en"})
    assert (alone["mean"], alone["mean_without_english"]) == (40.0, None)


def test_a_mean_of_scores_is_of_the_seeds_that_all_have():
    one, other = Given((1.0, 2.0, 3.0), (0, 1, 2), planned=3), Given((30.0, 10.0), (2, 0), planned=4)
    assert average([one, other]) == Given((5.5, 16.5), (0, 2), planned=4)
    exact = [Given((40.0,), exact=True), Given((60.0,), exact=True)]
    assert average(exact) == Given((50.0,), exact=True)
    assert average([one, Given()]) == average([]) == Given()
    assert [Given((40.0,), exact=True).std, Given((40.0,)).std, Given((1.0, 3.0)).std] == [0.0, None, 2**0.5]


def test_values_of_axes_as_keys_and_as_text():
    assert frozen({"a": 1, "b": [2]}) == frozen({"b": [2], "a": 1}) != frozen({"a": 1, "b": [3]})
    assert (frozen(3), frozen("x")) == (3, "x")
    shown = [text(value) for value in (0.5, 1e-5, 3, ["en", "de"], "some/folder/", "a/b/own.yaml", "plain", None)]
    assert shown == ["0.5", "1e-05", "3", "en,de", "folder", "own", "plain", "None"]
    assert told(["train.lr", "method.layer"], {"method.layer": 4, "other": 1}) == ["", "4"]


def test_as_many_seeds_as_most_configurations_have_are_usual(tmp_path):
    vary = {"shots": [1, 2, 4]}
    rows = [cell("A", 80.0 + seed, seed, axes={"shots": shots}) for shots in (1, 2) for seed in range(2)]
    rows += [cell("A", 80.0 + seed, seed, axes={"shots": 4}) for seed in range(3)]
    rows[0]["folder"] = tmp_path
    made = campaign(vary=vary, rows={"A": object()})
    cells = Cells(made, rows)
    assert cells.seeds == 2
    chosen = cells.at("A", "xnli", (1,))
    assert chosen is not None
    assert chosen.best.folders == {0: tmp_path}
    assert Cells(made, []).seeds == 0
    table = markdown(write_tables(made, rows, tmp_path))["xnli, accuracy"]
    assert [line[2] for line in table[1:]] == ["80.5 ± 0.7", "80.5 ± 0.7", "81.0 ± 1.0 (n=3)"]


def test_drawn_values_stand_by_size_and_listed_ones_as_listed():
    for space, values in (({"log": [1e-5, 1.0]}, [9e-05, 0.002, 0.01, 0.3]), ([0.3, 9e-05, 0.01], [0.3, 9e-05, 0.01])):
        rows = [cell("A", 80.0, axes={"train.lr": value}) for value in sorted(values, key=str)]
        found = Cells(campaign(search={"space": {"train.lr": space}}), rows).at("A", "xnli", ())
        assert found is not None
        assert [group.choice["train.lr"] for group in found.tried] == values


def test_a_search_of_which_nothing_has_finished_shows_that_nothing_ran(tmp_path):
    rows = [lost("A", "failed", axes={"method.layer": layer}, reason="no room") for layer in (4, 2)]
    path = write_tables(campaign(search={"space": {"method.layer": [2, 4]}}), rows, tmp_path)
    assert "failed: A on xnli (2), seeds 0: no room" in path.read_text()
    best = Cells(campaign(search={"space": {"method.layer": [2, 4]}}), rows).at("A", "xnli", ())
    assert best is not None
    assert best.best.choice == {"method.layer": 2}


@pytest.mark.parametrize(("paper", "verdict"), [(82.005, "inside"), (82.006, "outside"), (79.995, "inside")])
def test_the_papers_number_may_be_rounded(tmp_path, paper, verdict):
    """81 and twice its own 0.5, and half a hundredth."""
    given = {"values": {"A": {"en": paper}}, "std": {"A": {"en": 0.5}}}
    write_tables(campaign(paper=given), [cell("A", score, seed) for seed, score in enumerate((80, 82))], tmp_path)
    assert next(record["verdict"] for record in records(tmp_path) if record["row"] == "A") == verdict


def test_what_is_no_number_is_none_of_the_papers():
    found = {"lora": {"en": math.nan, "de": "n/a", "fr": 71.5}}
    paper = Paper(SimpleNamespace(paper=SimpleNamespace(values=found, std={}, notes=[], differs={}), scale=None))
    assert [paper.value("lora", (), name) for name in ("en", "de", "fr", "sw")] == [None, None, 71.5, None]


def test_a_section_says_which_of_its_columns_are_means_over_others():
    english, mean = (
        Column("en", "xnli", lambda result: None, language="en"),
        Column("mean", "xnli", lambda result: None),
    )
    assert Section("accuracy", "", [english, mean], averaged=True).summaries == [False, True, True]
    assert Section("accuracy", "", [mean], averaged=True).summaries == [False, True]
    assert Section("accuracy", "", [mean]).summaries == [False]
    assert Section("accuracy", "", [english, mean], averaged=True).parts == [[english], [mean], [english, mean]]
    assert Section("accuracy", "", [english, mean]).parts == [[english], [mean]]


def test_a_column_says_whose_numbers_it_averages():
    result = {"metric": "f1@1", "scores": {"en": 1.0, "de": 2.0, "fr": 3.0}, "pivot": "en", "metrics": {}}
    of = functools.partial(Column, "x", "xnli", lambda result: None, metric="f1@1")
    assert of(language="de").languages(result) == ["de"]
    assert of().languages(result) == ["en", "de", "fr"]
    assert of(view="mean without en").languages(result) == ["de", "fr"]


def test_the_columns_of_languages_and_of_means_say_what_they_stand_for():
    scores = {"en": 80.0, "de": 60.0}
    more: dict[str, Any] = {"metrics": {"accuracy@1": scores, "f1@1": {"en": 50.0, "de": 40.0}}}
    own, other = sections(Cells(campaign(), [cell("A", scores, **more)]))
    for section, metric in ((own, "accuracy@1"), (other, "f1@1")):
        assert [(column.name, column.metric, column.language, column.view) for column in section.columns] == [
            ("en", metric, "en", ""),
            ("de", metric, "de", ""),
            ("mean", metric, "", ""),
            ("mean without en", metric, "", "mean without en"),
        ]
        assert section.summaries == [False, False, True, True]
        first = cell("A", scores, **more)["result"]
        assert [column.languages(first) for column in section.columns] == [["en"], ["de"], ["en", "de"], ["de"]]
    assert [column.get(first) for column in other.columns] == [50.0, 40.0, 45.0, 40.0]


def test_only_tasks_of_several_languages_have_a_mean_without_the_pivot(tmp_path):
    made = campaign(tasks=["xnli", "sst2"], columns="task", rows={"A": object()})
    rows = [cell("A", {"en": 80.0, "de": 60.0}), cell("A", 90.0, task="sst2")]
    tables = markdown(write_tables(made, rows, tmp_path))
    assert tables["accuracy"] == [["row", "xnli", "sst2", "mean"], ["A", *["70.0 (n=1)", "90.0 (n=1)", "80.0 (n=1)"]]]
    assert tables["accuracy, mean without en"] == [["row", "xnli"], ["A", "60.0 (n=1)"]]


def test_what_a_result_does_not_tell_cost_nothing(tmp_path):
    rows = [cell("A", 80.0), cell("B", 80.0)]
    for key in ("train_seconds", "seconds", "peak_memory_mb"):
        del rows[1]["result"][key]
    tables = markdown(write_tables(campaign(), rows, tmp_path))
    assert tables["cost"][1:] == [
        ["xnli", "A", "1", "1,234", "", "8.0", "9.5", "", "700", ""],
        ["xnli", "B", "1", "1,234", "", "0.0", "0.0", "", "0", ""],
    ]


def test_a_cell_without_a_result_or_that_has_failed_gives_no_number():
    rows = [cell("A", 80.0), lost("A", "finished", 1), cell("A", 99.0, 2) | {"status": "failed", "reason": "no room"}]
    score = Cells(campaign(), rows).score("A", "xnli", (), lambda result: result["mean"])
    assert (score.values, score.planned, score.failed) == ((80.0,), 3, 1)

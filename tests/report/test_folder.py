"""A report as a folder: what its files say, what it refuses, names that mean something to a format."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import statistics
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from made import NASTY, answers, write_run, write_task
from test_campaign_tables import campaign, cell, lost

from raypft.analysis._write import write as write_analysis
from raypft.analysis.base import Analysis
from raypft.cli.app import report
from raypft.errors import UserError
from raypft.report import folder
from raypft.report.folder import write_report
from raypft.runs.comparison import compared

LANGUAGES = ("en", "de")
TEX = [name for name in ("pdflatex", "tectonic") if shutil.which(name)][:1]


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Figures take most of a report's time and have tests of their own."""
    if request.function not in (test_the_same_results_give_the_same_bytes, test_a_nasty_name_harms_no_format):
        monkeypatch.setattr(folder, "draw", lambda figures, place: list(figures)[:0])


@pytest.fixture
def place(tmp_path):
    """A task, and a maker of runs with a known share of right answers."""
    task = write_task(tmp_path, languages=LANGUAGES)
    rng = np.random.default_rng(0)

    def make(recipe, level=0.7, seeds=5, rows=200, spread=0.01, **more):
        return write_run(tmp_path, task, answers(rng, level, seeds, rows, LANGUAGES, spread), recipe, **more)

    return make


def records(out, name="table.csv"):
    return list(csv.DictReader(io.StringIO((out / name).read_text(encoding="utf-8"))))


def test_the_best_is_bold_only_where_the_test_says_so(place, tmp_path):
    clear = [place("good", 0.9), place("bad", 0.6)]
    write_report(*compared(clear), tmp_path / "clear")
    best = {record["row"] for record in records(tmp_path / "clear") if record["best"]}
    assert best == {"good (plain)"}
    assert "| **" in (tmp_path / "clear/table.md").read_text()
    assert r"\textbf{" in (tmp_path / "clear/table.tex").read_text()
    alike = [place("one", 0.7), place("two", 0.7)]
    write_report(*compared(alike), tmp_path / "alike")
    assert not any(record["best"] for record in records(tmp_path / "alike"))
    assert r"\textbf" not in (tmp_path / "alike/table.tex").read_text()


def test_one_seed_makes_nothing_bold_and_says_why(place, tmp_path):
    runs = [place("good", 0.95, seeds=1), place("bad", 0.5, seeds=1)]
    write_report(*compared(runs), tmp_path / "out")
    assert not any(record["best"] for record in records(tmp_path / "out"))
    text = (tmp_path / "out/index.html").read_text()
    assert "one seed: rows can tell these trained models apart, but nothing can be said about the methods" in text
    pair = records(tmp_path / "out", "tests.csv")[0]
    assert pair["p seeds"] == pair["p"] == ""
    assert float(pair["p rows"]) < 0.001


def test_csv_page_and_markdown_have_the_same_numbers(place, tmp_path):
    write_report(*compared([place("a", 0.8), place("b", 0.7)]), tmp_path / "out")
    page = (tmp_path / "out/index.html").read_text()
    markdown = (tmp_path / "out/table.md").read_text()
    numbers = [record for record in records(tmp_path / "out") if record["low"]]
    assert len(numbers) == 2 * 4
    for record in numbers:
        mean, low, high = (float(record[key]) for key in ("mean", "low", "high"))
        assert low < mean < high
        assert f'data-order="{record["mean"]}"' in page
        assert f"{mean:.1f} ± {float(record['std']):.1f}" in markdown
        assert f"[{low:.1f}, {high:.1f}]" in markdown


def test_the_same_results_give_the_same_bytes(place, tmp_path):
    runs = [place("a", 0.8, rows=50), place("b", 0.7, rows=50)]
    for name in ("one", "two"):
        files = write_report(*compared(runs), tmp_path / name)
    for file in files:
        assert (tmp_path / "one" / file.relative_to(tmp_path / "two")).read_bytes() == file.read_bytes()


def test_a_nasty_name_harms_no_format(tmp_path):
    task = write_task(tmp_path, ("yes", NASTY), ("en", NASTY))
    rng = np.random.default_rng(0)
    runs = [write_run(tmp_path, task, answers(rng, 0.7, 2, 60, ("en", NASTY)), name) for name in ("a", NASTY)]
    write_report(*compared(runs), tmp_path / "out")
    page = (tmp_path / "out/index.html").read_text()
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;%_\\|" in page
    assert {record["column"] for record in records(tmp_path / "out")} == {"en", NASTY, "mean", "mean without en"}
    tables = re.findall(r"(?:^\|.*\n)+", (tmp_path / "out/table.md").read_text(), re.MULTILINE)
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table.splitlines()}) == 1
    tex = (tmp_path / "out/table.tex").read_text()
    assert r"\textless{}b\textgreater{}\&\%\_\textbackslash{}\textbar{}" in tex
    check_latex(tex)


def check_latex(tex):
    """Braces and environments balance; every line of a tabular has as many cells as there are columns; nothing special
    is bare."""
    bare = re.sub(r"\\[{}%&_$#\\]", lambda match: r"\\" if match[0] == r"\\" else "", tex.split("\n", 1)[1])
    assert bare.count("{") == bare.count("}")
    assert not re.search(r"[%#_<>|]", bare)
    blocks = re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", bare, re.DOTALL)
    assert blocks
    for columns, body in blocks:
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {line.count("&") + 1 for line in lines} == {len(columns)}
        assert not any(line.startswith("[") for line in lines)


@pytest.mark.skipif(not TEX, reason="no TeX is installed; check_latex looks at the structure")
def test_latex_compiles(tmp_path):
    task = write_task(tmp_path, ("yes", NASTY), ("en", NASTY))
    rng = np.random.default_rng(0)
    runs = [write_run(tmp_path, task, answers(rng, 0.7, 2, 60, ("en", NASTY)), name) for name in ("a", NASTY)]
    write_report(*compared(runs), tmp_path / "out")
    whole = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{table}\end{document}"
    (tmp_path / "out/main.tex").write_text(whole)
    options = ["-halt-on-error"] if TEX[0] == "pdflatex" else []
    done = subprocess.run(
        [*TEX, *options, "main.tex"], cwd=tmp_path / "out", check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out/main.pdf").stat().st_size > 0


def test_failed_and_pruned_cells_are_shown(tmp_path):
    rows = [cell("A", {"en": 80.0, "de": 70.0}, seed) for seed in range(3)]
    rows += [cell("B", {"en": 60.0, "de": 50.0}, 0), lost("B", "failed", 1, reason="out of <memory>")]
    rows += [lost("B", "pruned", 2, reason="cannot reach the best")]
    write_report(campaign(), rows, tmp_path / "out")
    page = (tmp_path / "out/index.html").read_text()
    assert "60.0 (n=1, 1 failed, 1 pruned)" in page
    assert "failed: out of &lt;memory&gt;" in page
    assert "pruned: cannot reach the best" in page


def test_the_papers_numbers_stand_beside_ours_with_what_differs(tmp_path):
    paper = {
        "values": {"A": {"en": 80.0, "de": 99.0}, "B": {"en": 61.0}},
        "differs": {"B": "other <metric>"},
        "notes": ["misprint: 99 should be 70"],
    }
    rows = [cell("A", {"en": 80.0 + seed, "de": 70.0 - seed}, seed) for seed in (-1, 0, 1)]
    rows += [cell("B", {"en": 60.0 + seed, "de": 50.0}, seed) for seed in (-1, 0, 1)]
    write_report(campaign(paper=paper), rows, tmp_path / "out")
    page = (tmp_path / "out/index.html").read_text()
    cells = re.findall(r"<tr>(.*?)</tr>", page[page.index('id="paper-1"') : page.index('id="costs')], re.DOTALL)
    told = [[part.strip() for part in re.sub(r"<[^>]+>", "\t", line).split("\t") if part.strip()] for line in cells[1:]]
    assert told == [
        ["A", "en", "80", "80.0 ± 1.0", "[77.5, 82.5]", "yes", "inside"],
        ["A", "de", "99", "70.0 ± 1.0", "[67.5, 72.5]", "no", "outside"],
        ["B", "en", "61", "60.0 ± 1.0", "[57.5, 62.5]", "yes", "protocol differs", "other &lt;metric&gt;"],
    ]
    assert "paper: misprint: 99 should be 70" in page


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"manifest": "drawn anew"}, "has samples (manifest) drawn anew"),
        ({"test_rows": "others"}, "has test rows others"),
        ({"metric": "accuracy@2"}, "has metric accuracy@2"),
        ({"protocol": "gnnavi"}, "has protocol gnnavi"),
        ({"backbone": "other weights"}, "has tiny of revision other weights"),
    ],
)
def test_what_does_not_compare_is_refused_or_marked(place, tmp_path, facts, line):
    runs = [place("a", 0.9, seeds=2), place("b", 0.6, seeds=2, facts=facts)]
    with pytest.raises(UserError, match=re.escape(line)) as told:
        write_report(*compared(runs), tmp_path / "out")
    assert "report with --mix" in str(told.value)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()
    write_report(*compared(runs), tmp_path / "out", mix=True)
    for name in ("index.html", "table.md"):
        text = (tmp_path / "out" / name).read_text()
        assert "mixed: task mytask: row" in text
        assert "mytask, accuracy (mixed: see the notes)" in text
        assert "no tests between methods: numbers are mixed" in text
    assert records(tmp_path / "out", "tests.csv") == []


def test_data_of_another_revision_is_refused(place, tmp_path):
    runs = [place("a"), place("b")]
    for run, commit in zip(runs, ("abc", "def")):
        path = run / "provenance.json"
        origin = json.loads(path.read_text())
        origin["data"] |= {"hub": "owner/set", "revisions": [commit]}
        path.write_text(json.dumps(origin))
    with pytest.raises(UserError, match=r"has data of revision def, row .* has abc"):
        write_report(*compared(runs), tmp_path / "out")


def test_other_shots_are_no_mixing(place, tmp_path):
    """A reader sees them in the row's name."""
    runs = [place("a", seeds=2, shots=shots, facts={"manifest": f"{shots} shots"}) for shots in (2, 4)]
    write_report(*compared(runs), tmp_path / "out")
    assert {record["row"] for record in records(tmp_path / "out")} == {
        "a (plain) (shots=2)",
        "a (plain) (shots=4)",
        "MAJ",
    }


def test_an_interval_ends_where_scores_do(tmp_path):
    rows = [cell("A", score, seed) for seed, score in enumerate((50.0, 99.0, 100.0))]
    rows += [cell("B", score, seed) for seed, score in enumerate((0.0, 1.0, 50.0))]
    write_report(campaign(tasks=["xnli"], columns="task"), rows, tmp_path)
    first, second = csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text()))
    assert float(first["low"]) == pytest.approx(83 - 4.3027 * statistics.stdev([50, 99, 100]) / 3**0.5, abs=0.01)
    assert first["high"] == "100.0000"
    assert second["low"] == "0.0000"


def test_a_run_without_predictions_is_told_and_has_intervals_over_seeds_alone(place, tmp_path):
    run = place("a", seeds=3)
    whole = write_report(*compared([run]), tmp_path / "whole")
    (run / "seed-1/predictions.parquet").unlink()
    write_report(*compared([run]), tmp_path / "out")
    told = f"{run}/seed-1/predictions.parquet is not there; intervals and tests leave rows out"
    assert told in (tmp_path / "out/table.md").read_text()
    wide, narrow = (float(records(folder)[0]["high"]) for folder in (whole[0].parent, tmp_path / "out"))
    assert narrow < wide


def test_a_metric_that_is_no_mean_over_rows_has_intervals_over_seeds_alone(place, tmp_path):
    other = {"en": 12.0, "de": 13.0}
    run = place("a", seeds=3, facts={"scores": other, "metrics": {"accuracy@1": other}, "mean": 12.5})
    report([run], out=tmp_path / "out")
    assert "accuracy@1 is no mean over rows: seeds alone" in (tmp_path / "out/table.md").read_text()
    record = next(record for record in records(tmp_path / "out") if record["row"] == "a (plain)")
    assert (record["mean"], record["low"], record["high"]) == ("12.0000", "", ""), "equal seeds tell no spread"


def test_another_metric_can_lead(tmp_path):
    more: dict[str, Any] = {"metrics": {"accuracy@1": {"en": 80.0}, "macro_f1@1": {"en": 60.0}}}
    rows = [cell("A", 80.0, seed, **more) for seed in range(2)]
    write_report(campaign(), rows, tmp_path / "out", metric="macro_f1")
    first = records(tmp_path / "out")[0]
    assert (first["metric"], first["mean"]) == ("macro_f1@1", "60.0000")
    with pytest.raises(UserError, match='no run has metric "bleu"; there is accuracy@1, macro_f1@1'):
        write_report(campaign(), rows, tmp_path / "out", metric="bleu")


def test_analyses_beside_a_run_are_parts_of_the_page(place, tmp_path):
    run = place("a", seeds=2, rows=30)
    report([run], out=tmp_path / "before")
    assert "Analyses" not in (tmp_path / "before/index.html").read_text()
    analysis = Analysis(
        "flow",
        "flow <of> labels",
        "as computed",
        {"layers": [{"layer": 1, "share": 0.25}]},
        {"curve": _drawing},
        ["a note"],
    )
    write_analysis(analysis, [], run)
    report([run], out=tmp_path / "out")
    page = (tmp_path / "out/index.html").read_text()
    assert "flow &lt;of&gt; labels: layers (1)" in page
    assert 'data-order="0.2500">0.25</td>' in page
    assert page.count("data:image/svg+xml;base64,") == 1
    assert "a note" in page


def _drawing(figure):
    figure.subplots().plot([0, 1])


def test_nothing_finished_is_refused(tmp_path):
    with pytest.raises(UserError, match="nothing is finished yet"):
        write_report(campaign(), [lost("A", "missing")], tmp_path / "out")


def test_the_command_writes_a_folder_and_names_it(place, tmp_path, capsys):
    runs = [place("a", seeds=2, rows=30), place("b", seeds=2, rows=30)]
    report(runs, out=tmp_path / "out")
    said = capsys.readouterr().out
    assert said.startswith(f"written to {tmp_path}/out/index.html, and beside it table.md")
    report(runs, as_json=True, out=tmp_path / "out")
    found = json.loads(capsys.readouterr().out)
    assert found["folder"] == str(tmp_path / "out")
    assert all((tmp_path / "out").joinpath(file).is_file() for file in found["files"])


@pytest.mark.parametrize("first", ["no_run", "empty", "twice", "file"])
def test_what_the_command_refuses(place, tmp_path, first):
    run = place("a", seeds=1, rows=30)
    empty = tmp_path / "empty"
    shutil.copytree(run, empty, ignore=shutil.ignore_patterns("result.json"))
    (tmp_path / "file").write_text("")
    folders = {"no_run": [tmp_path / "nothing"], "empty": [empty], "twice": [run, run], "file": [run]}[first]
    lines = {
        "no_run": "holds no job.yaml",
        "empty": "has no finished seed",
        "twice": "is named twice",
        "file": "is a file",
    }
    out = tmp_path / ("file" if first == "file" else "out")
    with pytest.raises(UserError, match=lines[first]) as told:
        report(folders, out=out)
    assert "\n" not in str(told.value)


def test_text_tables_refuse_to_mix_too_and_stay_light(place, tmp_path, capsys):
    runs = [place("a", seeds=1, rows=30), place("b", seeds=1, rows=30, facts={"manifest": "drawn anew"})]
    with pytest.raises(UserError, match=r"has samples .manifest. drawn anew"):
        report(runs)
    report(runs, mix=True)
    assert "mixed: task mytask" in capsys.readouterr().out
    heavy = "print(sorted({'scipy', 'statsmodels', 'matplotlib', 'pandas', 'jinja2'} & set(sys.modules)))"
    call = f"report([Path({str(runs[0])!r})])"
    code = f"import sys; from raypft.cli.app import report; from pathlib import Path; {call}; {heavy}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"

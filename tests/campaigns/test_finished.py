"""Reports and analyses of campaigns, from the command line and from Python, into folders and a bucket."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from bucket import served
from test_campaign import small
from test_cli import call, place  # noqa: F401  (a fixture)
from watched import Driven

import raypft
from raypft.campaigns import server
from raypft.campaigns.finished import runs_of
from raypft.campaigns.watched import Watched
from raypft.errors import UserError
from raypft.storage import path_of

PLAIN, CHOSEN = "Plain mytask", "Searched mytask lr=0.001"


@pytest.fixture
def driven(place):  # noqa: F811
    return Driven(small(place))


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Figures take most of a report's time and have tests of their own."""
    monkeypatch.setattr("raypft.report.folder.draw", lambda figures, folder: list(figures)[:0])


def finish(driven: Driven) -> None:
    for seed in (0, 1):
        driven.end(PLAIN, seed, right=12)
        driven.end(CHOSEN, seed, right=16)


def test_an_analysis_of_a_campaign_is_of_the_runs_that_it_shows(driven, monkeypatch, capsys):
    finish(driven)
    runs = [driven.configurations[label].run for label in (PLAIN, CHOSEN)]
    assert runs_of(driven.folder) == runs
    assert call(monkeypatch, "analyse", "errors", str(driven.folder)) == 0
    own = driven.folder / "analysis-errors"
    assert str(own) in capsys.readouterr().out
    assert [run["folder"] for run in json.loads((own / "analysis.json").read_text())["runs"]] == list(map(str, runs))
    found = raypft.analyse("errors", driven.folder)
    assert found.tables == raypft.analyse("errors", *runs, out=driven.folder.parent).tables
    page = raypft.write_report(driven.folder, out=driven.folder.parent / "report")
    assert "analysis-errors" in page.read_text(encoding="utf-8") or "Analyses" in page.read_text(encoding="utf-8")


def test_too_few_runs_of_a_campaign_are_named_and_none_is_told(driven, monkeypatch, capsys):
    driven.end(CHOSEN, 0, right=16, test=False)
    assert call(monkeypatch, "analyse", "errors", str(driven.folder)) == 2
    said = capsys.readouterr().err
    assert f"analyse: {driven.folder} has no tested run yet; raypft watch {driven.folder} shows how far it is" in said
    assert said.count("\n") == 1
    for seed in (0, 1):
        driven.end(PLAIN, seed, right=12)
    with pytest.raises(UserError, match=rf"found 1 runs \({re.escape(str(driven.configurations[PLAIN].run))}\)"):
        raypft.analyse("errors", driven.folder)


def test_keys_that_do_not_fit_are_one_line_in_python_too(driven):
    finish(driven)
    wrong: list[tuple[dict[str, Any], str]] = [({"rws": 3}, 'flow: unknown key "rws"')]
    for keys, told in [*wrong, ({"rows": 0}, "flow: rows: found 0")]:
        with pytest.raises(UserError, match=f"^analyse {told}[^\n]*$"):
            raypft.analyse("flow", driven.folder, **keys)


def test_a_report_and_a_watched_campaign_in_a_bucket(place, monkeypatch, capsys):  # noqa: F811
    with served(monkeypatch) as bucket:
        driven = Driven(small(place), storage=f"{bucket}/runs")
        finish(driven)
        folder, out = str(driven.folder), f"{bucket}/report"
        assert folder.startswith("s3://")
        assert call(monkeypatch, "report", folder, "--out", out) == 0
        assert capsys.readouterr().out.startswith(f"written to {out}/index.html")
        assert "80.0 ± 0.0" in path_of(f"{out}/index.html").read_text(encoding="utf-8")
        assert "Searched" in path_of(f"{out}/table.csv").read_text(encoding="utf-8")
        here = raypft.write_report(folder, out=place / "here")
        assert (place / "here/table.csv").read_bytes() == path_of(f"{out}/table.csv").read_bytes()
        assert f'href="{folder.rsplit("/", 1)[0]}/' in here.read_text(encoding="utf-8"), "links lead into the bucket"
        watch = server.Watch(Watched(path_of(folder)), place)
        assert watch.now()["state"].startswith("8 of 8 cells; finished")
        assert "80.0 ± 0.0" in watch.report("")["html"]
        driven.begin(PLAIN, 0, {"event": "epoch", "epoch": 1, "loss": 0.25, "dev": 40.0})
        look = watch.watched.look()
        assert (look.state, look.done) == ("running", 6), "two cells of the table are this one"
        assert look.cells[0].epochs[0]["loss"] == 0.25
        with pytest.raises(UserError, match="report: s3://nowhere/report can't be written"):
            raypft.write_report(folder, out="s3://nowhere/report")

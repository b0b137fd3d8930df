"""`raypft watch`: a campaign's page while it grows, on HTTP and in a browser; what is no campaign; no write."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from made import NASTY
from test_campaign import small
from test_cli import call, place  # noqa: F401  (a fixture)
from watched import Driven

from raypft.campaigns import server
from raypft.campaigns.state import CampaignState
from raypft.campaigns.stored import stored
from raypft.campaigns.watched import SILENT, Watched
from raypft.report.now import state_line
from raypft.storage import locked

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
PLAIN, SEARCHED = "Plain mytask", "Searched mytask lr=0.001"
EPOCH = {"event": "epoch", "epoch": 1, "loss": 0.75, "dev": 40.0}


@pytest.fixture
def driven(place):  # noqa: F811
    """Two rows of two seeds, the second a search of two learning rates; lr=0.01 of it is the first row."""
    return Driven(small(place))


@pytest.fixture
def swift(monkeypatch):
    """No pauses, no figures."""
    monkeypatch.setattr(server, "PACE", 0)
    monkeypatch.setattr(server, "SECONDS", 0.2)
    monkeypatch.setattr("raypft.report.folder.draw", lambda figures, folder: list(figures)[:0])


@contextmanager
def served(folder: Path):
    """The address of a campaign's page."""
    with server.serving(folder) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{found.server_port}"
        finally:
            found.shutdown()
            thread.join()


def get(address: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60) as answer:
        return answer.read().decode()


def ask(address: str) -> dict[str, Any]:
    return json.loads(get(address))


def there(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder with its size and time of change."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def test_a_look_counts_what_is_done_runs_failed_and_what_is_left(driven):
    watched = Watched(driven.folder)
    look = watched.look()
    assert (look.state, look.done, look.total, look.left, look.heard) == ("stopped", 0, 2 + 4 + 2, None, None)
    with locked(driven.folder):
        driven.begin(PLAIN, 0, EPOCH, {"event": "step", "epoch": 2, "step": 3, "steps": 9, "loss": 0.5})
        (running,) = [cell for cell in watched.look().places[0].cells if cell.row["status"] == "running"]
        assert (running.label, running.start["epochs"], running.step["step"]) == (PLAIN, 3, 3)
        assert [epoch["dev"] for epoch in running.epochs] == [40.0]
        driven.end(PLAIN, 0, right=12)
        driven.begin(SEARCHED, 0)
        driven.fail(SEARCHED, 1, "the loss is nan")
        look = watched.look()
        assert look.state == "running"
        assert [cell.row["status"] for cell in look.cells] == [
            *("finished", "missing"),
            *("running", "failed", "finished", "missing"),  # lr=0.01 is the plain row
        ]
        assert (look.done, look.total) == (3, 8)
        assert look.left is not None
        assert look.left >= 0


@pytest.mark.parametrize("seconds", [-3600.0, 86400.0])
def test_a_clock_that_is_set_between_begin_and_end_is_no_negative_time(driven, seconds, monkeypatch):
    """Order is that of lines, not of times."""
    with locked(driven.folder):
        driven.begin(PLAIN, 0, EPOCH)
        now = time.time() + seconds
        monkeypatch.setattr(time, "time", lambda: now)
        driven.end(PLAIN, 0, right=12)
        driven.begin(PLAIN, 1, EPOCH, EPOCH | {"epoch": 2})
        look = Watched(driven.folder).look()
        assert (look.state, look.done) == ("running", 2), "lr=0.01 is the plain row"
        assert [cell.row["status"] for cell in look.cells][:2] == ["finished", "running"]
        assert [epoch["epoch"] for epoch in look.cells[1].epochs] == [1, 2]
        assert look.left is None or look.left >= 0
        assert "-" not in state_line(look).replace(time.strftime("%Y-%m-%d"), "").partition(";")[0]
    assert stored(driven.folder)[0].done == 1


def test_a_search_shows_its_best_and_its_tests_are_cells_too(driven):
    for label, right in ((SEARCHED, 8), ("Searched mytask lr=0.01", 14)):
        for seed in (0, 1):
            driven.begin(label, seed)
            driven.end(label, seed, right, test=False)
    searched = Watched(driven.folder).look().places[1]
    assert searched.leader == ("Searched mytask lr=0.01", 64.0)
    assert (searched.done, searched.total) == (4, 6)
    for seed in (0, 1):
        driven.end("Searched mytask lr=0.01", seed, 14)
    look = Watched(driven.folder).look()
    assert look.places[1].done == look.places[1].total == 6
    assert (look.state, look.done, look.total) == ("finished", 8, 8)


def test_it_says_what_the_campaign_itself_says(driven):
    driven.end(PLAIN, 0, right=12)
    driven.fail(PLAIN, 1, "the loss is nan")
    driven.end(SEARCHED, 0, right=9, test=False)
    driven.state.note(driven.configurations[SEARCHED], 1, "pruned", dev=None, reason="cannot reach the best")
    assert [cell.row for cell in Watched(driven.folder).look().cells] == CampaignState(driven.campaign).rows()


def test_a_killed_campaign_has_stopped_and_a_line_that_is_being_written_is_left_alone(driven):
    driven.begin(PLAIN, 0, EPOCH)
    log = driven.folder / "ledger.jsonl"
    with log.open("ab") as stream:
        stream.write(b'{"cell": "torn')
    folder = driven.configurations[PLAIN].folder(0)
    with (folder / "events.jsonl").open("ab") as stream:
        stream.write(b'{"time": 12, "ev')
    before = there(driven.folder.parent)
    look = Watched(driven.folder).look()
    assert look.state == "stopped"
    assert look.cells[0].row["status"] == "stopped"
    assert there(driven.folder.parent) == before


def test_where_no_lock_tells_silence_does(driven, monkeypatch):
    driven.begin(PLAIN, 0, EPOCH)
    monkeypatch.setattr("raypft.campaigns.watched.is_locked", lambda folder: None)
    assert Watched(driven.folder).look().state == "running"
    monkeypatch.setattr("time.time", lambda: driven.state.ledger.began[look_key(driven)] + SILENT + 60)
    assert Watched(driven.folder).look().state == "silent"


def look_key(driven: Driven) -> str:
    return driven.configurations[PLAIN].keys[0]


def test_it_needs_neither_data_nor_model_nor_this_code(driven, place, monkeypatch):  # noqa: F811
    driven.begin(PLAIN, 0)
    driven.end(PLAIN, 0, right=12)
    for path in place.iterdir():
        if path.name != "runs":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    monkeypatch.setattr("raypft.campaigns.campaign.make_job", lambda *given: pytest.fail("a job was made"))
    assert Watched(driven.folder).look().done == 2


def test_a_campaign_of_an_earlier_version_is_worked_out_and_left_as_it_is(driven):
    driven.end(PLAIN, 0, right=12)
    keys = driven.folder / "keys.jsonl"
    lines = [json.loads(line) for line in keys.read_text().splitlines()]
    keys.write_text("".join(json.dumps({**line, "inputs": "of before", "asked": None}) + "\n" for line in lines))
    before = there(driven.folder.parent)
    assert Watched(driven.folder).look().done == 2
    assert there(driven.folder.parent) == before


def test_the_page_grows_with_the_campaign(driven, swift):
    with served(driven.folder) as address, locked(driven.folder):
        assert "<script>" in get(f"{address}/")
        first = ask(f"{address}/now")
        assert first["state"].startswith("0 of 8 cells; running")
        assert "Nothing is finished yet." in ask(f"{address}/report?shown=")["html"]
        driven.begin(PLAIN, 0, EPOCH)
        assert "0.7500" in ask(f"{address}/now")["html"]
        driven.end(PLAIN, 0, right=12)
        driven.fail(SEARCHED, 0, NASTY)
        now = ask(f"{address}/now")
        assert (now["done"], now["total"]) == (3, 8)
        assert "&lt;b&gt;&amp;%_\\|" in now["html"]
        assert "<b>" not in now["html"]
        found = ask(f"{address}/report?shown={first['key']}")
        assert found["key"] == now["key"] != first["key"]
        assert "60.0 (n=1)" in found["html"]
        assert "The report of the 3 cells that had ended by " in found["html"]
        assert ask(f"{address}/report?shown={now['key']}")["html"] is None
        run = driven.configurations[PLAIN].run.name
        assert json.loads(get(f"{address}/{run}/seed-0/result.json"))["seed"] == 0


def test_nothing_else_is_served(driven, swift):
    driven.end(PLAIN, 0, right=12)
    secret = driven.folder.parent / "secret.txt"
    secret.write_text("no")
    with served(driven.folder) as address:
        ask(f"{address}/report?shown=")
        for path in ("secret.txt", "../secret.txt", "%2e%2e/secret.txt", "mine.yaml", "etc/passwd", "nowhere"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(f"{address}/{path}")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            get(f"{address}/now", Host="evil.example")


def test_a_report_of_a_search_without_tests_yet_is_no_traceback(driven, swift):
    driven.end(SEARCHED, 0, right=12, test=False)
    with served(driven.folder) as address:
        assert "Searched" in ask(f"{address}/report?shown=")["html"]


@pytest.mark.parametrize(
    ("name", "told"), [("nowhere", "holds no campaign.yaml"), ("run", "holds no campaign.yaml"), ("file", "holds no")]
)
def test_what_is_no_campaign_is_one_line(name, told, tmp_path, monkeypatch, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "job.yaml").write_text("{}")
    (tmp_path / "file").write_text("")
    assert call(monkeypatch, "watch", str(tmp_path / name)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert told in said.err
    assert said.err.count("\n") == 1


def test_a_port_that_is_taken_is_one_line(driven, monkeypatch, capsys):
    with server.serving(driven.folder) as taken:
        port = taken.server_port
        assert call(monkeypatch, "watch", str(driven.folder), "--port", str(port)) == 2
    said = capsys.readouterr().err
    assert f"watch: port {port} can't be opened: Address already in use" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_the_command_names_its_address_and_ends_without_a_trace(driven, tmp_path, by):
    driven.end(PLAIN, 0, right=12)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    before = there(driven.folder.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(scratch)}
    command = [sys.executable, "-m", "raypft.cli", "watch", str(driven.folder)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as told:
        assert told.stdout is not None
        line = told.stdout.readline()
        assert line.startswith(f"watching {driven.folder} on http://127.0.0.1:")
        address = line.split(" on ")[1].split(";")[0]
        assert ask(f"{address}/now")["done"] == 2
        assert len(list(scratch.iterdir())) == 1
        told.send_signal(by)
        assert told.wait(30) == 0
        assert told.stderr is not None
        assert told.stderr.read() == ""
    assert list(scratch.iterdir()) == []
    assert there(driven.folder.parent) == before


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
@pytest.mark.parametrize(("width", "height", "scheme"), [(1280, 900, "light"), (390, 844, "dark")])
def test_numbers_change_in_a_browser_without_a_reload_and_what_a_reader_did_stays(driven, swift, width, height, scheme):
    from playwright.sync_api import sync_playwright

    driven.end(PLAIN, 0, right=12)
    with served(driven.folder) as address, locked(driven.folder), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme).new_page()
        said, asked, loaded = list[str](), list[str](), list[str]()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.on("domcontentloaded", lambda _: loaded.append(page.url))
        page.goto(address)
        page.locator("#scores-1").get_by_text("60.0 (n=1)").first.wait_for()
        head = page.locator("#now-places thead th").nth(2)
        head.locator("button").click()
        page.locator("#scores-1 .choose summary").click()
        page.locator("#scores-1 .choose").get_by_label("mytask", exact=True).uncheck()
        driven.begin(PLAIN, 1, EPOCH)
        page.locator("#now-running").get_by_text("0.7500").first.wait_for()
        driven.end(PLAIN, 1, right=18)
        driven.fail(SEARCHED, 0, NASTY)
        page.locator("#now-lost").get_by_text(NASTY).wait_for()
        page.locator("#now-places").get_by_text("75.0 ± 21.2").first.wait_for()
        page.locator("#scores-1").get_by_text("75.0 ± 21.2").first.wait_for(state="attached")
        assert page.locator("#now-places thead th").nth(2).get_attribute("aria-sort") == "ascending"
        assert not page.locator("#scores-1 tbody td").first.is_visible(), "the column is hidden still"
        assert page.locator("#scores-1 .choose").get_attribute("open") is not None
        assert "of 8 cells" in page.locator("#state").inner_text()
        assert page.locator("b").count() == 0, "a name was read as a tag"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.wait_for_timeout(500)
        assert len(loaded) == 1
        assert [url for url in asked if not url.startswith((address, "data:"))] == []
        assert said == []
        browser.close()

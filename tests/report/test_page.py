"""The page of a report in a browser: desktop and phone. Skipped where no Chromium is installed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from made import NASTY, answers, write_run, write_task

from raypft.report.folder import write_report
from raypft.runs.comparison import compared

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
LANGUAGES = ("en", "de", NASTY)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    task = write_task(folder, ("yes", NASTY), LANGUAGES)
    rng = np.random.default_rng(0)
    runs = [
        write_run(folder, task, answers(rng, level, 5, 300, LANGUAGES, 0.01), recipe)
        for recipe, level in (("profit", 0.9), ("vanilla", 0.7), (f"{NASTY}", 0.6))
    ]
    out = folder / "report"
    write_report(*compared(runs), out)
    return out


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(params=[(1280, 900, "light"), (390, 844, "dark")], ids=["desktop", "phone"])
def page(request, browser, report):
    """The open page; it must have said nothing on the console and asked for nothing when the test is over."""
    width, height, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((report / "index.html").as_uri())
    yield page
    assert said == []
    assert [url for url in asked if not url.startswith(("file://", "data:"))] == []
    context.close()


def column(page, number: int) -> list[str]:
    """The texts of a column of the first table, its row names at 0."""
    return page.locator("#scores-1 tbody tr").evaluate_all(f"rows => rows.map(row => row.cells[{number}].innerText)")


def test_a_cell_is_read_and_the_page_is_no_wider_than_its_window(page):
    table = page.get_by_role("table", name="mytask, accuracy", exact=True).first
    assert table.get_by_role("columnheader", name="en").first.is_visible()
    head = page.locator("#scores-1 thead th").all_inner_texts()
    assert [text.strip() for text in head] == ["row", "en", "de", NASTY, "mean", "mean without en"]
    row = next(row for row in page.locator("#scores-1 tbody tr").all() if "profit" in row.inner_text())
    assert row.locator("td.best").count() >= 1
    assert row.locator("td").first.inner_text().startswith(("89.", "90.", "91."))
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("b").count() == 0, "a name was read as a tag"
    assert page.evaluate(
        "[...document.querySelectorAll('table')].every(t => t.caption && t.querySelector('th[scope=col]'))"
    )


def test_a_column_sorts_by_its_numbers_with_the_keyboard_too(page):
    numbers = [float(text.split()[0]) for text in column(page, 1)]
    button = page.locator("#scores-1 thead button").nth(1)
    head = page.locator("#scores-1 thead th").nth(1)
    button.click()
    assert [float(text.split()[0]) for text in column(page, 1)] == sorted(numbers)
    assert head.get_attribute("aria-sort") == "ascending"
    button.focus()
    page.keyboard.press("Enter")
    assert [float(text.split()[0]) for text in column(page, 1)] == sorted(numbers, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    assert "sorted by en, descending" in page.locator("#said").inner_text()
    page.locator("#scores-1 thead button").first.click()
    assert head.get_attribute("aria-sort") is None


def test_a_column_hides_and_comes_back(page):
    page.locator("#scores-1 .choose summary").click()
    box = page.locator("#scores-1 .choose").get_by_label("de", exact=True)
    cells = page.locator("#scores-1 td:nth-child(3), #scores-1 th:nth-child(3)")
    box.uncheck()
    assert not any(cell.is_visible() for cell in cells.all())
    box.check()
    assert all(cell.is_visible() for cell in cells.all())


def test_a_number_leads_to_its_run_and_on_to_its_files(page, report):
    row = next(row for row in page.locator("#scores-1 tbody tr").all() if "vanilla" in row.inner_text())
    link = row.locator("td a").first
    card = page.locator(str(link.get_attribute("href")))
    assert not card.locator("pre").is_visible()
    link.click()
    card.locator("pre").wait_for(state="visible")
    assert "vanilla" in card.locator("summary").inner_text()
    assert "recipe: vanilla" in card.locator("pre").inner_text()
    assert "raypft run vanilla" in card.locator("dl").inner_text()
    for file in card.get_by_role("link", name="predictions.parquet").all():
        assert (report / str(file.get_attribute("href"))).is_file()
    assert card.get_by_role("link", name="predictions.parquet").count() == 5


def test_no_table_is_cut_on_paper(page):
    page.set_viewport_size({"width": 1031, "height": 700})  # A4 across without its margins, at 96 dots an inch
    page.emulate_media(media="print")
    assert page.evaluate("[...document.querySelectorAll('.scroll table')].every(t => t.scrollWidth <= innerWidth)")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not page.locator("nav").is_visible()


def test_the_page_is_one_file(report):
    text = Path(report / "index.html").read_text(encoding="utf-8")
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    assert '<link rel="stylesheet"' not in text

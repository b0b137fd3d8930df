"""The documentation as it is built: no warning, no link that leads nowhere, every key told, what a browser shows."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from markdown.extensions.toc import slugify

ROOT = Path(__file__).parents[2]
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
IN_THE_REPOSITORY = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
IN_THE_REPOSITORY += [ROOT / "cluster" / "README.md", ROOT / "benchmarks" / "RESULTS.md"]
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
MADE = "docs/reference/"
"""Pages that only the site has."""


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING -" not in done.stdout + done.stderr
    return folder


class Page(HTMLParser):
    """What a page links to, and the places that can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the links and the id of a tag."""
        for key, value in attrs:
            if key in ("href", "src") and value:
                self.links.add(value)
            if key == "id" and value:
                self.ids.add(value)


@functools.cache
def page_of(path: Path) -> Page:
    """A page of the site, read once."""
    return Page(path.read_text(encoding="utf-8"))


def test_every_link_of_the_site_leads_somewhere(site):
    lost, count = [], 0
    for path in sorted(site.rglob("*.html")):
        if path.name == "404.html":
            continue  # its links are those of a server's root
        for link in page_of(path).links:
            if re.match(r"[a-z]+:", link):
                assert not link.startswith(("http:", "https:")) or "/squidfunk." in link or "material" in link, link
                continue
            address, anchor = urldefrag(link)
            there = (path.parent / unquote(address)).resolve() if address else path
            count += 1
            if not there.is_file() or (anchor and there.suffix == ".html" and anchor not in page_of(there).ids):
                lost.append(f"{path.relative_to(site)}: {link}")
    assert lost == []
    assert count > 1000


@pytest.mark.parametrize("page", IN_THE_REPOSITORY, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_of_the_repository_leads_somewhere(page):
    prose = FENCED.sub("", page.read_text(encoding="utf-8"))
    for link in LINK.findall(prose):
        if re.match(r"[a-z]+:", link):
            continue
        address, anchor = urldefrag(link)
        there = (page.parent / address).resolve() if address else page
        if there.is_relative_to(ROOT / MADE):
            continue  # looked at in the site
        assert there.exists(), f"{link} leads nowhere"
        if anchor:
            headings = HEADING.findall(FENCED.sub("", there.read_text(encoding="utf-8")))
            assert anchor in {slugify(heading, "-") for heading in headings}, f"{link}: no such heading"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("name", ["job", "task", "campaign"])
def test_every_key_of_a_file_is_told(site, name):
    text = (site / "reference" / f"{name}.html").read_text(encoding="utf-8")
    rows = re.findall(r"<tr>\s*<td><code>([^<]+)</code></td>(.*?)</tr>", text, re.DOTALL)
    assert len(rows) > 30
    assert [key for key, row in rows if re.search(r"<td></td>\s*$", row)] == []


@pytest.fixture
def server(site):
    """The address at which a server on this machine shows the site."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
@pytest.mark.parametrize(
    ("width", "height", "scheme", "served"),
    [(1280, 900, "light", True), (390, 844, "dark", False)],
    ids=["desktop, from a server", "phone, from files"],
)
def test_in_a_browser(server, site, width, height, scheme, served, tmp_path):
    from playwright.sync_api import sync_playwright

    address = server if served else f"{site.as_uri()}/"
    said, asked = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme).new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        for path in ("index", "concepts", "results", "reference/job"):
            page.goto(f"{address}{path}.html")
            page.screenshot(path=tmp_path / f"{path.replace('/', '-')}.png")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
            assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)"), path
        if width < 1000:
            page.locator("label.md-header__button[for=__search]").click()
        page.locator("input.md-search__input").press_sequentially("verbalizer")
        first = page.locator("a.md-search-result__link").first
        first.wait_for(state="visible")
        first.click()
        page.wait_for_load_state()
        assert "verbalizer" in page.locator("article").inner_text().lower()
        browser.close()
    assert said == []
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []

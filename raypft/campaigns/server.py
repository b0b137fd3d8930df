"""The page of a campaign on this machine's loopback, for who looks at it while it runs: read-only.

/ is the page, which asks every few seconds: /now for how far the campaign is, /report for the report of what is
finished, made in a folder of its own when that has changed. What the report links to is served, nothing else, and only
to who asks for this machine by name: a page of another host that reaches here can't read it.
"""

from __future__ import annotations

import html
import json
import re
import tempfile
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from raypft.campaigns.watched import Look, Watched, WatchedCell
from raypft.errors import UserError, first_line
from raypft.report.figures import Drawn, draw
from raypft.report.folder import write_report
from raypft.report.now import clock, curves, now, state_line
from raypft.report.page import watch_page
from raypft.storage import is_remote

HOST = "127.0.0.1"
SECONDS, REMOTE_SECONDS = 2.0, 10.0
"""Between two looks, at a folder and at an object store."""
PACE = 10
"""What takes a second to make is made again so many seconds later at the earliest: the campaign runs beside it."""
T = TypeVar("T")


class Paced(Generic[T]):
    """What is made from the campaign as it is, and kept until it has changed and the time has come."""

    def __init__(self, first: T) -> None:
        self.value, self.due = first, 0.0
        self.key: Hashable = None

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value; made anew where the key is another and the last making is long enough ago."""
        if key != self.key and time.monotonic() >= self.due:
            began = time.monotonic()
            self.value, self.key = make(), key
            self.due = time.monotonic() + PACE * (time.monotonic() - began)
        return self.value


class Watch:
    """What the pages of a campaign say.

    Args:
        scratch: a folder for what is drawn and for the report's files.
    """

    def __init__(self, watched: Watched, scratch: Path) -> None:
        self.watched, self.scratch = watched, scratch
        self.seconds = REMOTE_SECONDS if is_remote(watched.folder) else SECONDS
        self.making = threading.Lock()
        """Held while something is drawn: matplotlib is no two threads'."""
        self._looking = threading.Lock()
        self._look: Paced[Look | None] = Paced(None)
        self._curves: Paced[list[Drawn]] = Paced([])
        self._report: Paced[tuple[str, str]] = Paced(("", ""))
        self._linked: set[str] = set()

    def look(self) -> Look:
        """The campaign as it is, at most a moment ago."""
        with self._looking:
            found = self._look.get(time.monotonic_ns(), self.watched.look)
        assert found is not None
        return found

    def page(self) -> str:
        """The page without its parts."""
        return watch_page(self.watched.campaign.about, str(self.watched.folder), self.seconds)

    def now(self) -> dict[str, Any]:
        """How far the campaign is, and the key of what a report would be made of."""
        look = self.look()
        figures = curves(look)
        if self.making.acquire(blocking=False):  # else the last ones do
            try:
                key = json.dumps([figure.data.rows for figure in figures])
                self._curves.get(key, lambda: draw(figures, self.scratch))
            finally:
                self.making.release()
        shown = now(self.watched.campaign, look, self._curves.value, self.watched.folder)
        return {"state": state_line(look), "done": look.done, "total": look.total, "html": shown, "key": _key(look)}

    def report(self, shown: str) -> dict[str, Any]:
        """The page of the report, None where it is that which is shown already."""
        look = self.look()
        with self.making:
            key, page = self._report.get(_key(look), lambda: (_key(look), self._made(look)))
        return {"key": key, "html": None if key == shown else page}

    def _made(self, look: Look) -> str:
        rows = [cell.row for cell in look.cells]
        if not any(row["status"] == "finished" for row in rows):
            return "<main><p>Nothing is finished yet.</p></main>"
        try:
            (page, *_) = write_report(
                self.watched.campaign, rows, self.scratch / "report", seen_from=self.watched.folder.parent
            )
        except UserError as error:
            return f"<main><p>{html.escape(str(error))}</p></main>"
        ended = len(_ended(look))
        told = (
            f"<p>The report of the {ended} cells that had ended by {clock(time.time())}; it follows those that end.</p>"
        )
        found = page.read_text(encoding="utf-8").replace('<main id="main">', f'<main id="main">{told}', 1)
        self._linked = {html.unescape(link) for link in re.findall(r'href="([^"#]+)"', found)}
        return found

    def file(self, link: str) -> Path | None:
        """The file behind a link of the report, None where the report has no such link."""
        if link not in self._linked or ":" in link:
            return None
        name = unquote(link)
        return next(
            (path for path in (self.scratch / "report" / name, self.watched.folder.parent / name) if path.is_file()),
            None,
        )


def _key(look: Look) -> str:
    """What a report is made of: cells that ended, and when."""
    ended = _ended(look)
    return f"{len(ended)}-{max((cell.heard or 0.0 for cell in ended), default=0.0)}"


def _ended(look: Look) -> list[WatchedCell]:
    return [cell for cell in look.cells if cell.row["status"] in ("finished", "failed", "pruned")]


class Handler(BaseHTTPRequestHandler):
    """Answers a browser; says nothing on the terminal."""

    watch: Watch
    timeout = 30

    def do_GET(self) -> None:
        """A page, a part of it, or a file that the report links to."""
        if urlsplit(f"//{self.headers.get('Host', '')}").hostname not in (HOST, "localhost"):
            self.send_error(403)
            return
        asked = urlsplit(self.path)
        try:
            if asked.path == "/":
                self._send(self.watch.page().encode(), "text/html; charset=utf-8")
            elif asked.path == "/now":
                self._send(json.dumps(self.watch.now()).encode(), "application/json")
            elif asked.path == "/report":
                shown = parse_qs(asked.query).get("shown", [""])[0]
                self._send(json.dumps(self.watch.report(shown)).encode(), "application/json")
            else:
                file = self.watch.file(asked.path.removeprefix("/"))
                if file is None:
                    self.send_error(404)
                else:
                    text = file.suffix in (".csv", ".json", ".jsonl")
                    self._send(file.read_bytes(), "text/plain; charset=utf-8" if text else "application/octet-stream")
        except ConnectionError:  # the browser went away
            pass

    def _send(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@contextmanager
def serving(folder: Path, port: int = 0) -> Iterator[ThreadingHTTPServer]:
    """A server of a campaign's page, ready for `serve_forever`; port 0 is a free one. Its files are gone afterwards.

    Raises:
        UserError: the folder is no campaign's; the port can't be had.
    """
    watched = Watched(folder)
    with tempfile.TemporaryDirectory(prefix="raypft-watch-", ignore_cleanup_errors=True) as scratch:
        watch = Watch(watched, Path(scratch))
        handler = type("Handler", (Handler,), {"watch": watch})
        try:
            server = ThreadingHTTPServer((HOST, port), handler)
        except (OSError, OverflowError) as error:
            told = getattr(error, "strerror", None) or first_line(error)
            raise UserError(f"watch: port {port} can't be opened: {told}; leave --port out for a free one") from None
        with server:
            server.daemon_threads = True
            yield server
        with watch.making:  # nothing is drawn any more
            pass

"""The page of a report: one HTML file that asks no host for anything."""

from __future__ import annotations

import base64
import functools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from raypft.errors import visible
from raypft.report.analyses import Shown
from raypft.report.cards import link
from raypft.report.figures import Drawn
from raypft.report.table import Number
from raypft.storage import on_disk

HERE = Path(__file__).parent


def page(report: Any, cards: Iterable[Any], figures: Sequence[Drawn], analysed: Sequence[Shown], place: Path) -> str:
    """The page's text.

    Args:
        report: a `raypft.report.folder.Report`; cards: `raypft.report.cards.Cards`; place: the folder from which links
            are seen.
    """
    found = {"report": report, "cards": list(cards), "figures": figures, "analysed": analysed}
    return rendered("page.html.j2", place, css=_text("page.css"), js=_text("page.js"), **found)


def watch_page(title: str, folder: str, seconds: float) -> str:
    """The page that asks for a campaign's parts every so many seconds, see `raypft.report.now`."""
    css, js = _text("page.css"), _text("page.js") + _text("watch.js")
    return rendered("watch.html.j2", HERE, title=title, folder=folder, seconds=seconds, css=css, js=js)


def rendered(template: str, place: Path, **values: Any) -> str:
    """A template of this folder with its values, which are text and no tags."""
    made = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.finalize = _shown
    made.filters |= {"order": order, "link": functools.partial(link, out=place), "image": _data_uri}
    made.tests["number"] = lambda cell: isinstance(cell, Number)
    return made.get_template(template).render(**values)


def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _shown(value: Any) -> Any:
    """What stands in the page: a text that may hold markup of its own has its control characters as escapes."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def order(cell: str) -> str:
    """What a cell sorts by, empty where that is its text: a number, however it is written."""
    if isinstance(cell, Number):
        return "" if math.isnan(cell.value) else f"{cell.value:.4f}"
    try:
        return str(float(cell.replace(",", "").lstrip("<")))
    except ValueError:
        return ""


def _data_uri(path: Path) -> str:
    """A figure as a link that holds it: its ids and styles stay its own."""
    with on_disk(path) as file:
        return "data:image/svg+xml;base64," + base64.b64encode(file.read_bytes()).decode()

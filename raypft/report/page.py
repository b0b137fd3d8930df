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


def page(report: Any, cards: Iterable[Any], figures: Sequence[Drawn], analysed: Sequence[Shown], out: Path) -> str:
    """The page's text.

    Args:
        report: a `raypft.report.folder.Report`; cards: `raypft.report.cards.Cards`; out: the page's folder.
    """
    made = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.finalize = _shown
    made.filters |= {"order": order, "link": functools.partial(link, out=out), "image": _data_uri}
    made.tests["number"] = lambda cell: isinstance(cell, Number)
    parts = {name: (HERE / f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    return made.get_template("page.html.j2").render(
        report=report, cards=list(cards), figures=figures, analysed=analysed, **parts
    )


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

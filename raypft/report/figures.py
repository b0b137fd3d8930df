"""Figures of a report: each is data, and a picture of it where the data are there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypft.report.formats import csv_text
from raypft.report.table import Table
from raypft.storage import written

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES = (4.6, 3.6)
"""Of one panel."""
UNDATED = {"Date": None}
MARKERS = "osD^vPX*<>"
SETTINGS: Any = {"svg.hashsalt": "raypft", "text.parse_math": False}
"""Ids of SVG elements that chance has no part in; a dollar in a name begins no formula."""


@dataclass(frozen=True)
class Figure:
    """A figure. name: of its files; about: what it shows, in a sentence; panels: across and down; draw: fills them."""

    name: str
    about: str
    data: Table
    draw: Callable[[list[Axes]], None]
    panels: tuple[int, int] = (1, 1)
    inches: tuple[float, float] = INCHES


@dataclass(frozen=True)
class Drawn:
    """A figure on disk, its SVG and data beside its PNG."""

    name: str
    about: str
    data: Table
    png: Path


def draw(figures: Iterable[Figure], folder: Path, data: bool = True) -> list[Drawn]:
    """Write <name>.svg, .png and, with `data`, .csv of each figure."""
    asked = list(figures)
    return _drawn(asked, folder, data) if asked else []


def _drawn(figures: list[Figure], folder: Path, data: bool) -> list[Drawn]:
    import matplotlib  # noqa: PLC0415  (slow to import)

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    drawn = []
    for figure in figures:
        across, down = figure.panels
        size = (figure.inches[0] * across, figure.inches[1] * down)
        with matplotlib.rc_context(SETTINGS):
            made, axes = pyplot.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
            figure.draw(list(axes.flat))
            path = folder / f"{figure.name}.png"
            settings: dict[Path, dict[str, Any]] = {path: {"dpi": 150}, path.with_suffix(".svg"): {"metadata": UNDATED}}
            for target, how in settings.items():
                with written(target) as file:
                    made.savefig(file, **how)
            pyplot.close(made)
        if data:
            text = csv_text([figure.data.columns, *figure.data.rows])
            path.with_suffix(".csv").write_text(text, encoding="utf-8", newline="")
        drawn.append(Drawn(figure.name, figure.about, figure.data, path))
    return drawn


def style(number: int) -> dict[str, Any]:
    """Colour and marker of a row: never the colour alone."""
    return {"color": f"C{number % 10}", "marker": MARKERS[number % len(MARKERS)]}


def spread_axis(axes: Axes, values: Iterable[float]) -> None:
    """A logarithmic x axis where positive values differ by a factor of 16 and more; up to the least of them linear
    where 0 is among them, what trains nothing, say."""
    known = [value for value in values if not math.isnan(value)]
    above = [value for value in known if value > 0]
    if not above or min(known) < 0 or max(above) < 16 * min(above):
        axes.locator_params("x", nbins=5)  # seven numbers of six digits run into each other
    elif len(above) < len(known):
        axes.set_xscale("symlog", linthresh=min(above))
    else:
        axes.set_xscale("log")
    plain_ticks(axes)


def plain_ticks(axes: Axes) -> None:
    """Numbers along x as text, 2, 50, 100k, 10M: those of logarithmic axes are formulas, and names may not be read as
    such."""
    from matplotlib.ticker import EngFormatter  # noqa: PLC0415  (slow to import)

    large = EngFormatter(sep="")
    axes.xaxis.set_major_formatter(lambda value, _: large(value) if value >= 1000 else f"{value:g}")
    axes.minorticks_off()

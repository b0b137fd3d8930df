"""An analysis as files, in a folder of its own that a report beside it finds:

<folder>/analysis-<name>/analysis.json           name, title, how, notes, runs, tables with their rows, figures
                         <table>.csv             the rows of a table; an empty cell is None
                         <figure>.svg, .png
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raypft._version import __version__
from raypft.analysis._runs import Run
from raypft.analysis.base import Analysis, Draw, Row
from raypft.records import sealed
from raypft.report.formats import csv_text
from raypft.storage import check_writable, written

FACTS = "analysis.json"


def write(found: Analysis, runs: Sequence[Run], folder: Path) -> Path:
    """Write an analysis below a folder; returns the folder of its own.

    Raises:
        UserError: nothing can be written there.
    """
    own = folder / f"analysis-{found.name}"
    check_writable(own, "analyse")
    own.mkdir(parents=True, exist_ok=True)
    for name, rows in found.tables.items():
        with written(own / f"{name}.csv") as file:
            file.write_text(_csv(rows), encoding="utf-8", newline="")
    for name, draw in found.figures.items():
        _draw(draw, own / f"{name}.svg")
    facts = {
        "name": found.name,
        "title": found.title,
        "how": found.how,
        "notes": list(found.notes),
        "runs": [{"name": run.name, "folder": str(run.folder)} for run in runs],
        "tables": {name: list(rows) for name, rows in found.tables.items()},
        "figures": list(found.figures),
        "raypft": __version__,
    }
    with written(own / FACTS) as file:
        file.write_text(sealed(facts, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    return own


def _csv(rows: Sequence[Row]) -> str:
    head = list(rows[0]) if rows else []
    return csv_text([head, *(list(map(_cell, row.values())) for row in rows)])


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


def _draw(draw: Draw, path: Path) -> None:
    import matplotlib  # noqa: PLC0415  (slow to import)
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    settings: dict[str, dict[str, Any]] = {".svg": {"metadata": {"Date": None}}, ".png": {"dpi": 150}}
    with matplotlib.rc_context({"svg.hashsalt": "raypft"}):  # ids of SVG elements, else drawn by chance
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        for ending, how in settings.items():
            with written(path.with_suffix(ending)) as file:
                figure.savefig(file, **how)

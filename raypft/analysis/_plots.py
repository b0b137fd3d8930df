"""What several analyses draw."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MANY = 400
"""Cells above which numbers are not written into them."""


def heat_map(
    figure: Figure,
    down: Sequence[str],
    across: Sequence[str],
    cells: Mapping[tuple[str, str], float],
    title: str,
    limits: tuple[float, float] | None = None,
) -> None:
    """Numbers by two names as colours, the numbers inside where they are not too many.

    Args:
        down, across: the names; a pair without a number stays white; limits: of the colours, about 0 where None.
    """
    long = max(map(len, across)) > 8
    figure.set_size_inches(max(4.2, 0.8 * len(across) + 2.4), max(2.2, 0.3 * len(down) + (2.0 if long else 1.3)))
    axes = figure.subplots()
    numbers = [cells.get(pair, math.nan) for pair in itertools.product(down, across)]
    values = [numbers[start : start + len(across)] for start in range(0, len(numbers), len(across))]
    largest = max((abs(value) for value in cells.values()), default=1.0) or 1.0
    low, high = limits or (-largest, largest)
    image = axes.imshow(values, cmap="RdBu" if limits is None else "viridis", vmin=low, vmax=high, aspect="auto")
    figure.colorbar(image, ax=axes)
    axes.set_xticks(
        range(len(across)), across, rotation=45 if long else 0, ha="right" if long else "center", fontsize=8
    )
    axes.set_yticks(range(len(down)), down, fontsize=8)
    axes.set_title(title, fontsize=9)
    for (one, other), value in cells.items() if len(cells) <= MANY else ():
        place = (value - low) / (high - low)
        dark = place < 0.5 if limits else not 0.25 < place < 0.75
        at = across.index(other), down.index(one)
        axes.text(*at, f"{value:.1f}", ha="center", va="center", fontsize=7, color="white" if dark else "black")

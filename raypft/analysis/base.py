"""What an analysis is: something that finished runs show beside their scores, as tables and figures.

To add one, write `raypft/analysis/<name>.py` with a subclass of `Kind`, named to the folder by a last line
`Kind = <its name>`, and a test; or keep the file where you like: `raypft analyse my/file.py RUN`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from raypft.schema import Strict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from raypft.analysis._runs import Run

Row = dict[str, Any]
"""Column to text, number or None; all rows of a table have the same columns."""
Draw = Callable[["Figure"], None]
"""Draws into an empty figure and gives it its size."""


class Options(Strict):
    """The keys of an analysis; a kind subclasses this."""


class ModelOptions(Options):
    """Of an analysis that runs the model."""

    seed: int | None = Field(default=None, description="which seed of each run; None: its first finished one")
    rows: int = Field(default=50, ge=1, description="test rows at most, spread evenly over them")


@dataclass(frozen=True)
class Analysis:
    """What was found.

    name: of the kind; title: of the page; how: how it is computed and after which paper, a sentence or two; tables,
    figures: by name, the first is the one to look at first; notes: what a reader must know, a line each.
    """

    name: str
    title: str
    how: str
    tables: Mapping[str, Sequence[Row]]
    figures: Mapping[str, Draw]
    notes: Sequence[str] = field(default_factory=list)


class Kind(ABC):
    """The interface of an analysis.

    Class attributes: Options: its keys with their defaults; fewest, most: how many runs it takes, None any number.
    """

    Options: ClassVar[type[Options]] = Options
    fewest: ClassVar[int] = 1
    most: ClassVar[int | None] = None

    @abstractmethod
    def compute(self, runs: Sequence[Run], options: Any) -> Analysis:
        """The analysis of finished runs.

        Args:
            options: of the subclass's own `Options`.

        Raises:
            UserError: a run is none that can be looked at so.
        """

"""Functions of the user's that hear a run's events: one that fails ends neither the run nor the others."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from raypft.errors import first_line
from raypft.runs.results import Tell


def together(tell: Tell | Sequence[Tell] | None) -> Tell:
    """One function, several or none as one.

    One that raises an Exception is told of in a warning, a line with its name, and hears no more. What stops Python
    stops the run as Ctrl-C does: KeyboardInterrupt, SystemExit.
    """
    left = [] if tell is None else [tell] if callable(tell) else list(tell)

    def each(event: dict[str, Any]) -> None:
        for one in tuple(left):
            try:
                one(event)
            except Exception as error:
                left.remove(one)
                name = getattr(one, "__qualname__", type(one).__qualname__)
                found = f"{type(error).__name__}: {first_line(error)}"
                line = f"tell: {name} raised {found} at {event['event']}; it hears no more, the run goes on"
                warnings.warn(line, stacklevel=2)

    return each

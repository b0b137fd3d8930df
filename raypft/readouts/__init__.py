"""The readout catalogue: `readout: verbalizer` is raypft/readouts/verbalizer.py, whose last line
`Readout = Verbalizer` names its class."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path

from raypft.errors import UserError, nearest
from raypft.readouts.base import Readout

FOLDER = Path(__file__).parent


@functools.cache
def readout_names() -> list[str]:
    """The names of all readouts: the files of this folder."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "base" and path.stem[0] != "_")


def readout_class(name: str) -> type[Readout]:
    """The class of the readout called `name`.

    Raises:
        UserError: unknown name; the nearest is named.
    """
    if name not in readout_names():
        raise UserError(f'readout: "{name}" is unknown; {nearest(name, readout_names())}')
    return importlib.import_module(f"raypft.readouts.{name}").Readout

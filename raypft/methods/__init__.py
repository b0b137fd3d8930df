"""The method catalogue: `method: gnnavi` is raypft/methods/gnnavi.py, whose last line `Method = GNNavi`
names its class."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path

from raypft.errors import UserError, nearest
from raypft.methods.base import Method

FOLDER = Path(__file__).parent


@functools.cache
def method_names() -> list[str]:
    """The names of all methods: the files of this folder."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "base" and path.stem[0] != "_")


def method_class(name: str) -> type[Method]:
    """The class of the method called `name`.

    Raises:
        UserError: unknown name; the nearest is named.
    """
    if name not in method_names():
        raise UserError(f'method: "{name}" is unknown; {nearest(name, method_names())}')
    return importlib.import_module(f"raypft.methods.{name}").Method

"""The method catalogue: `method: gnnavi` is raypft/methods/gnnavi.py, its class the file's `Method`."""

from __future__ import annotations

from raypft.catalogue import Catalogue

METHODS = Catalogue("method", __name__, "Method")

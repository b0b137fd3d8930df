"""The catalogue of analyses: `raypft analyse flow RUN…` is raypft/analysis/flow.py, its class the file's `Kind`."""

from __future__ import annotations

from raypft.catalogue import Catalogue

ANALYSES = Catalogue("analysis", __name__, "Kind")

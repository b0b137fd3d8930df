"""The readout catalogue: `readout: verbalizer` is raypft/readouts/verbalizer.py, its class the file's `Readout`."""

from __future__ import annotations

from raypft.catalogue import Catalogue

READOUTS = Catalogue("readout", __name__, "Readout")

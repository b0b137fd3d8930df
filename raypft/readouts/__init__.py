"""The readout catalogue: `readout: verbalizer` is raypft/readouts/verbalizer.py, its class behind the name `Readout`."""

from __future__ import annotations

from raypft.catalogue import Catalogue

READOUTS = Catalogue("readout", __name__, "Readout")

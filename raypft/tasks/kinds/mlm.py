"""mlm: rows are running text, what is asked is hidden in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from raypft.tasks.kinds import base


class MaskedText(base.Kind):
    """A text a row, without a label."""

    name = "mlm"
    metrics = ("token_accuracy",)
    reads_labels = False

    def read_labels(self, values: Sequence[Any], rows: base.ReadRows) -> dict[str, pa.Array]:
        return {"label": pa.array([""] * len(rows.ids), pa.string())}

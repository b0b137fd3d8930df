"""mlm: rows are running text, what is asked is hidden in them."""

from __future__ import annotations

import pyarrow as pa

from raypft.tasks.kinds import base


class MaskedText(base.Kind):
    """A text a row, without a label."""

    name = "mlm"
    metrics = ("token_accuracy",)
    reads_labels = False

    def read_labels(self, values: base.Values, rows: base.ReadRows) -> dict[str, pa.ChunkedArray]:
        return {"label": pa.chunked_array([pa.repeat("", len(rows.ids))])}

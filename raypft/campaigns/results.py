"""What a campaign has found, as an object and as tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class CampaignResults:
    """The cells of a campaign's table, in its order.

    folder: the campaign's, with table.md, table.csv, table.tex and the ledger; cells: one dict a cell, see
    `raypft.campaigns.state.CampaignState.rows`.
    """

    folder: Path
    cells: list[dict[str, Any]]

    def to_arrow(self) -> pa.Table:
        """One row a cell: row, task, the axes, seed, status, reason, and of finished ones dev and mean (percent, over
        languages; null where the test was withheld)."""
        rows = []
        for cell in self.cells:
            result = cell["result"] or {}
            scores = {"dev": result.get("dev"), "mean": result.get("mean")}
            placed = {key: cell[key] for key in ("row", "task", "seed", "status", "reason")}
            rows.append(placed | {f"axis.{key}": value for key, value in cell["axes"].items()} | scores)
        columns: dict[str, list[Any]] = {}
        for row in rows:
            columns |= {name: [] for name in row if name not in columns}
        for name, values in columns.items():
            values += [row.get(name) for row in rows]
        return pa.table(columns)

    def to_pandas(self) -> pandas.DataFrame:
        """`to_arrow` as a pandas table."""
        return self.to_arrow().to_pandas()

    def table(self) -> str:
        """The campaign's tables as Markdown, with the paper's numbers beside."""
        return (self.folder / "table.md").read_text(encoding="utf-8")

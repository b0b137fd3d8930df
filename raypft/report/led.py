"""Results as another of their metrics shows them."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

from raypft.errors import UserError
from raypft.tasks.metrics import pivot_in


def led_by(name: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cells whose results have a metric in the place of their task's first; those without it count as not tested.

    Args:
        name: of a metric, with or without its version.

    Raises:
        UserError: no result has it.
    """
    each = ((row["result"] or {}).get("metrics", {}) for row in rows)
    known = sorted(set(itertools.chain.from_iterable(each)))
    having = [metric for metric in known if name in (metric, metric.split("@")[0])]
    if not having:
        raise UserError(f'report: no run has metric "{name}"; there is {", ".join(known) or "none"}')
    return [{**row, "result": row["result"] and _led(having, row["result"])} for row in rows]


def _led(names: Sequence[str], result: dict[str, Any]) -> dict[str, Any]:
    metric = next((name for name in names if name in result.get("metrics", {})), None)
    if metric is None:
        return {key: value for key, value in result.items() if key not in ("scores", "mean")}
    if metric == result["metric"]:
        return result
    scores = result["metrics"][metric]
    others = [value for language, value in scores.items() if language != pivot_in(result)]
    mean, without = statistics.fmean(scores.values()), statistics.fmean(others) if others else None
    means = {"mean": mean, "mean_without_english": without, "majority": {}}
    return {**result, "metric": metric, "scores": scores, **means}

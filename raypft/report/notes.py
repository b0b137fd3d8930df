"""What a reader of a campaign's tables must know: how numbers were made, what was chosen, what is missing and why."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from raypft.report.formats import metric_name
from raypft.report.groups import MAJORITY, Cells, Chosen, text
from raypft.report.paper import RULE, Paper

MOST = 40
"""Lines about single configurations before the rest is only counted."""


def notes(cells: Cells, paper: Paper) -> list[str]:
    """The lines below the tables."""
    rows = cells.campaign.rows
    lines = [
        f"mean ± sample standard deviation over {cells.seeds} seeds; "
        "another number of seeds stands as (n=…); - is not run yet"
    ]
    majorities = [row for row, kind in rows.items() if kind == MAJORITY]
    if majorities:
        lines.append(f"{', '.join(majorities)}: share of the largest class of the test rows")
    lines += _tested(cells)
    if paper.values:
        lines.append(RULE)
        lines += [f"{row}: protocol differs: {why}" for row, why in paper.differs.items() if row in rows]
        lines += [f"paper: {note}" for note in paper.notes]
    if cells.searched:
        lines += _searched(cells)
    return lines + lost(cells)


def _tested(cells: Cells) -> list[str]:
    lines = []
    for task, result in cells.first.items():
        counts = sorted(set(result.get("rows", {}).values()))
        size = f", {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} rows a language" if counts else ""
        rule = f", protocol {result['protocol']}" if result.get("protocol") else ""
        lines.append(
            f"{text(task)}: {result['metric']} on test rows {result['test_rows']}{size}{rule}, the same for every row"
        )
    return sorted(lines)


def _searched(cells: Cells) -> list[str]:
    search = cells.campaign.search
    budget = "every configuration" if search.searcher == "grid" else f"{search.trials} configurations"
    scheduler = "" if search.scheduler in (None, "none") else f", seeds raced by {search.scheduler}"
    lines = [
        f"search: {search.searcher}{scheduler}, {budget} for each row and task; "
        "the best mean on dev over seeds is shown, test rows had no part in the choice"
    ]
    picked = [chosen for chosen in cells.chosen.values() if len(chosen.tried) > 1 and chosen.best.dev.values]
    lines += sorted(map(_pick, picked))[:MOST]
    return lines + ([f"{len(picked) - MOST} more choices are in the runs' folders"] if len(picked) > MOST else [])


def _pick(chosen: Chosen) -> str:
    best, dev = chosen.best, chosen.best.dev
    point = "".join(f", {text(value)}" for value in best.point)
    settings = ", ".join(f"{key}={text(value)}" for key, value in best.choice.items())
    whole = sum(len(group.dev.values) == len(dev.values) for group in chosen.tried)
    tried = f"of {len(chosen.tried)} configurations, {whole} with as many seeds"
    return f"{best.row} on {text(best.task)}{point}: {settings} (dev {dev.mean:.1f}) {tried}"


def lost(cells: Cells) -> list[str]:
    """Failed and pruned seeds by reason."""
    seeds_of: dict[tuple[str, str, str, str], list[int]] = defaultdict(list)
    for groups in cells.groups.values():
        for group in groups.values():
            where = ", ".join(map(text, (*group.point, *group.choice.values())))
            for seed, (status, reason) in group.unfinished.items():
                if status != "missing":
                    seeds_of[status, f"{group.row} on {text(group.task)}", where, reason].append(seed)
    lines = []
    for (status, row, where, reason), seeds in sorted(seeds_of.items()):
        at, because = f" ({where})" if where else "", f": {reason}" if reason else ""
        lines.append(f"{status}: {row}{at}, seeds {', '.join(map(str, sorted(seeds)))}{because}")
    return lines[:MOST] + ([f"{len(lines) - MOST} more configurations lost seeds"] if len(lines) > MOST else [])


def selected(job: dict[str, Any], dev_rows: int, metric: str) -> str:
    """Which epoch was tested."""
    if not job["train"]["epochs"]:
        return "nothing trained"
    if job["train"]["select"] == "last":
        return "last epoch"
    if not dev_rows:
        return "last epoch, as there are no dev rows"
    return f"epoch chosen by best {job['dev'].get('metric') or metric_name(metric)} on {dev_rows} dev rows"


def label(job: dict[str, Any]) -> str:
    """The run's name in a table: its recipe, and its pattern where that is called otherwise."""
    return job["recipe"] if job["recipe"] == job["pattern"] else f"{job['recipe']} ({job['pattern']})"

"""What a reader of a campaign's tables must know: how numbers were made, what was chosen, what is missing and why."""

from __future__ import annotations

from collections import defaultdict

from raypft.report.groups import MAJORITY, Cells, Chosen, text
from raypft.report.paper import RULE, Paper

MOST = 40
"""Lines about single configurations before the rest is only counted."""


def notes(cells: Cells, paper: Paper) -> list[str]:
    """The lines below the tables."""
    rows = cells.campaign.rows
    found = [
        f"mean ± sample standard deviation over {cells.seeds} seeds; another number of seeds stands as (n=…); - is not run yet"
    ]
    if any(kind == MAJORITY for kind in rows.values()):
        found.append(
            f"{', '.join(row for row, kind in rows.items() if kind == MAJORITY)}: share of the largest class of the test rows"
        )
    found += _tested(cells)
    if paper.values:
        found.append(RULE)
        found += [f"{row}: protocol differs: {why}" for row, why in paper.differs.items() if row in rows]
        found += [f"paper: {note}" for note in paper.notes]
    if cells.searched:
        found += _searched(cells)
    return found + _lost(cells)


def _tested(cells: Cells) -> list[str]:
    lines = []
    for task, result in cells.first.items():
        counts = sorted(set(result.get("rows", {}).values()))
        size = (
            f", {counts[0]} rows a language"
            if len(counts) == 1
            else f", {counts[0]} to {counts[-1]} rows a language"
            if counts
            else ""
        )
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
        f"search: {search.searcher}{scheduler}, {budget} for each row and task; the best mean on dev over seeds is shown, test rows had no part in the choice"
    ]
    picked = [
        (place, chosen) for place, chosen in cells.chosen.items() if len(chosen.tried) > 1 and chosen.best.dev.values
    ]
    lines += sorted(_pick(cells.searched, chosen) for _, chosen in picked)[:MOST]
    return lines + ([f"{len(picked) - MOST} more choices are in the runs' folders"] if len(picked) > MOST else [])


def _pick(searched: list[str], chosen: Chosen) -> str:
    best, dev = chosen.best, chosen.best.dev
    point = "".join(f", {text(value)}" for value in best.point)
    settings = ", ".join(f"{key}={text(value)}" for key, value in zip(searched, best.choice, strict=True))
    whole = sum(len(group.dev.values) == len(dev.values) for group in chosen.tried)
    return f"{best.row} on {text(best.task)}{point}: {settings} (dev {dev.mean:.1f}) of {len(chosen.tried)} configurations, {whole} with as many seeds"


def _lost(cells: Cells) -> list[str]:
    """Failed and pruned seeds by reason."""
    of: dict[tuple[str, str, str, str], list[int]] = defaultdict(list)
    for groups in cells.groups.values():
        for group in groups.values():
            where = ", ".join(map(text, (*group.point, *group.choice)))
            for seed, (status, reason) in group.unfinished.items():
                if status != "missing":
                    of[status, f"{group.row} on {text(group.task)}", where, reason].append(seed)
    lines = [
        f"{status}: {row}{f' ({where})' if where else ''}, seeds {', '.join(map(str, sorted(seeds)))}{f': {reason}' if reason else ''}"
        for (status, row, where, reason), seeds in sorted(of.items())
    ]
    return lines[:MOST] + ([f"{len(lines) - MOST} more configurations lost seeds"] if len(lines) > MOST else [])

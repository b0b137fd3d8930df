"""What keeps a campaign from running, found before anything of it runs: one answer, for `plan` and for `tune`."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raypft.campaigns.campaign import Campaign, TableCell
from raypft.campaigns.state import CampaignState, Configuration
from raypft.config.job import Resources
from raypft.config.load import resources_of
from raypft.errors import Faults, UserError
from raypft.runs.trackers import check_tracker
from raypft.scale.resources import Shape, trials_at_once
from raypft.storage import is_remote, remove


def refusals(campaign: Campaign, state: CampaignState, fresh: bool = False) -> list[str]:
    """Why a campaign can't run, a line each: its tracker, a job that comes first, a configuration that is not finished
    (one that needs a run which comes first is asked when that is done), what the cluster or this machine has.

    Args:
        fresh: whether finished cells are run again.
    """
    faults, asked, there = Faults(), list[Resources](), functools.cache(nodes)
    with faults.caught():
        check_tracker(campaign.tracker)
    _prerequisites(campaign, state, faults)
    for table_cell in campaign.table_cells():
        with faults.caught():
            for number, configuration in enumerate(_unfinished(table_cell, state, fresh)):
                asked.append(resources_of(table_cell.values(configuration.values), table_cell.where))
                with faults.caught():
                    state.check(configuration, None if number else there())
    with faults.caught():
        trials_at_once(asked, shapes() if asked else [])
    return list(faults.lines)


def _prerequisites(campaign: Campaign, state: CampaignState, faults: Faults) -> None:
    if not campaign.before:
        return
    from raypft.runs.prepare import prepare  # noqa: PLC0415  (needs torch)

    with faults.caught():
        for prerequisite in campaign.prerequisites():
            with faults.caught():
                prepare(prerequisite, state.memo)


def _unfinished(table_cell: TableCell, state: CampaignState, fresh: bool) -> Iterator[Configuration]:
    """The configurations of a table cell that will run; of a search that thinks of them as it goes, an example."""
    if table_cell.waits:
        return
    search = table_cell.search
    tried = list(state.tried(table_cell))
    for configuration in tried:
        if fresh or any(state.where(configuration, seed, search is None) is None for seed in configuration.keys):
            yield configuration
    if search is not None and table_cell.listed() is None and not tried:
        yield state.configuration(table_cell, table_cell.example() or {})


def shapes() -> list[Shape]:
    """Nodes of the cluster that $RAY_ADDRESS names or this process is in, else this machine."""
    if os.environ.get("RAY_ADDRESS") or ("ray" in sys.modules and sys.modules["ray"].is_initialized()):
        from raypft.scale.session import capacity  # noqa: PLC0415  (ray is loaded only where it is used)

        return capacity()
    import torch  # noqa: PLC0415  (loaded only where something is to be run)

    return [Shape("this machine", {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}, 1)]


def nodes() -> list[float]:
    """Bytes of memory of the nodes that trials may run on, see `node_memory`; nothing where that is this machine."""
    if not os.environ.get("RAY_ADDRESS"):
        return []
    from raypft.scale.session import node_memory  # noqa: PLC0415  (ray is loaded only where it is used)

    return node_memory()


@contextmanager
def left_as_it_was(folder: Path) -> Iterator[list[str]]:
    """A list for refusals: where it has some at the end, or an error was raised, folders that were made on the way to
    `folder` are removed."""
    top, refused, done = _missing(folder), list[str](), False
    try:
        yield refused
        done = not refused
    finally:
        if top is not None and not done:
            remove(top)


def _missing(folder: Path) -> Path | None:
    """The topmost folder of a path that is not there yet, None where all are."""
    if is_remote(folder) or folder.exists():
        return None
    there = folder.absolute()
    while not there.parent.exists():
        there = there.parent
    return there


def refuse(lines: list[str]) -> None:
    """Raise a UserError of these lines, where there are any."""
    if lines:
        raise UserError("\n".join(lines))

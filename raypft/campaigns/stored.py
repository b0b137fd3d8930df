"""What lies in a storage: its runs and campaigns, how two runs differ, and which can go since nothing leans on them.

No model and no data is read, and nothing is written but what `remove` removes.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from raypft.campaigns.ledger import FILE, Ledger
from raypft.campaigns.state import FILE_OF_CAMPAIGN
from raypft.errors import UserError, nearest
from raypft.records import Damaged, read_or_none
from raypft.report.formats import metric_name
from raypft.report.table import Table, mean_std
from raypft.runs.results import EVENTS, JOB_FILE, LOG, PROVENANCE, TESTED, UNTESTED, damaged, read_job, read_results
from raypft.schema import flat, read_yaml
from raypft.storage import default_storage, is_locked, is_remote, locked, path_of, remove

STATES = ("finished", "at work", "unfinished", "failed", "damaged")


@dataclass(frozen=True)
class Stored:
    """A run or campaign.

    kind: run or campaign; state: one of STATES; done, asked: seeds of a run, cells of a campaign; mean, std: in percent
    over seeds, nan where there are too few; when: of the last result or event, in seconds since 1970; size: in bytes;
    why: what a state follows from, where that is to be told.
    """

    folder: Path
    kind: str
    state: str
    recipe: str = ""
    task: str = ""
    backbone: str = ""
    done: int = 0
    asked: int = 0
    mean: float = math.nan
    std: float = math.nan
    metric: str = ""
    when: float = 0.0
    size: int = 0
    why: str = ""


def stored(folder: Path) -> list[Stored]:
    """The runs and campaigns in a storage, the latest last; a run or campaign alone where that is given.

    Raises:
        UserError: there is no such folder.
    """
    alone = _one(folder)
    if alone is not None:
        return [alone]
    if not folder.is_dir():
        raise UserError(f"runs: no folder {folder}; expected a storage, {default_storage()} by default, or a run of it")
    files = [*folder.glob(f"*/{JOB_FILE}"), *folder.glob(f"*/{FILE_OF_CAMPAIGN}")]
    found = filter(None, map(_one, sorted({file.parent for file in files}, key=str)))
    return sorted(found, key=lambda one: one.when)


def _one(folder: Path) -> Stored | None:
    if (folder / JOB_FILE).is_file():
        return _run(folder)
    return _campaign(folder) if (folder / FILE_OF_CAMPAIGN).is_file() else None


def _run(folder: Path) -> Stored:
    when, size = _when(folder), _size(folder)
    try:
        job = read_job(folder)
    except UserError as error:
        return Stored(folder, "run", "damaged", when=when, size=size, why=str(error))
    results = [result for result in read_results(folder) if result["seed"] in job["seeds"]]
    tested = {result["seed"] for result in results}
    searched = [seed for seed in job["seeds"] if (folder / f"seed-{seed}" / UNTESTED).is_file()]  # by a campaign
    done = tested.union(searched)
    means = [result["mean"] for result in results]
    why = damaged(folder).removeprefix("; ")
    failed = [seed for seed in job["seeds"] if seed not in done and (folder / f"seed-{seed}" / LOG).is_file()]
    state = "damaged" if why else "failed" if failed else "unfinished"
    state = "finished" if len(done) == len(job["seeds"]) and not why else state
    return Stored(
        *(folder, "run", "at work" if is_locked(folder) else state),
        *(str(job["recipe"]), PurePosixPath(str(job["task"])).stem, str(job["backbone"]), len(done), len(job["seeds"])),
        *(statistics.fmean(means) if means else math.nan, statistics.stdev(means) if len(means) > 1 else math.nan),
        *(metric_name(results[0]["metric"]) if results else "", when, size, why),
    )


def _campaign(folder: Path) -> Stored:
    when, size = _when(folder), _size(folder)
    try:
        values = read_yaml(folder / FILE_OF_CAMPAIGN, str(folder / FILE_OF_CAMPAIGN))
        entries = list(Ledger(folder)) if (folder / FILE).is_file() else []
    except UserError as error:
        return Stored(folder, "campaign", "damaged", when=when, size=size, why=str(error))
    count = Counter(entry["status"] for entry in entries)
    over = count["finished"] + count["pruned"]
    state = "failed" if count["failed"] else "finished" if entries and over == len(entries) else "unfinished"
    state = "at work" if is_locked(folder) else state
    name, tasks = str(values.get("name", "")), values.get("tasks") or ()
    backbone = str(flat(values.get("defaults") or {}).get("backbone", ""))
    return Stored(
        *(folder, "campaign", state, name, ", ".join(map(str, tasks)), backbone, count["finished"], len(entries)),
        when=when,
        size=size,
    )


def _when(folder: Path) -> float:
    """When something of a run or campaign was last written that tells of it, as the files say."""
    names = (JOB_FILE, FILE_OF_CAMPAIGN, FILE, f"seed-*/{TESTED}", f"seed-*/{UNTESTED}", f"seed-*/{EVENTS}")
    times = [0.0]
    for name in names:
        for path in folder.glob(name):
            with suppress(OSError):  # another process may have moved it
                times.append(path.stat().st_mtime)
    return max(times)


def _size(folder: Path) -> int:
    if is_remote(folder):
        return int(cast(Any, folder).fs.du(cast(Any, folder).path))
    sizes = [0]
    for path in folder.rglob("*"):
        with suppress(OSError):
            sizes.append(path.lstat().st_size if not path.is_dir() else 0)
    return sum(sizes)


def compared(first: Path, second: Path) -> list[Table]:
    """The keys in which the jobs of two runs differ, and their scores side by side.

    Raises:
        UserError: a folder is no run.
    """
    folders = (first, second)
    names = [folder.name for folder in folders] if first.name != second.name else list(map(str, folders))
    jobs = [dict(_leaves(read_job(folder))) for folder in folders]
    keys = Table("keys that differ", ["key", *names])
    for key in dict.fromkeys([*jobs[0], *jobs[1]]):
        one, other = (_shown(job.get(key)) for job in jobs)
        if one != other:
            keys.rows.append([key, one, other])
    packages = [((read_or_none(folder / PROVENANCE) or {}).get("packages") or {}) for folder in folders]
    for name in dict.fromkeys([*packages[0], *packages[1]]):
        one, other = (_shown(of.get(name)) for of in packages)
        if one != other:
            keys.rows.append([f"{name} (version)", one, other])
    if not keys.rows:
        keys.notes.append("no key differs")
    return [keys, _scores(folders, names)]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each dotted key and its value, those of a method, too."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> str:
    return "-" if value is None else str(value)


def _scores(folders: Sequence[Path], names: list[str]) -> Table:
    """Metric and language to mean and deviation over seeds of each run."""
    results = [read_results(folder) for folder in folders]
    table = Table("scores, mean ± sample standard deviation over seeds", ["metric", "language", *names, "difference"])
    each: list[dict[tuple[str, str], list[float]]] = []
    for of_run in results:
        scores: dict[tuple[str, str], list[float]] = {}
        for result in of_run:
            scores.setdefault((result["metric"], "mean"), []).append(result["mean"])
            for metric, by_language in result["metrics"].items():
                for language, score in by_language.items():
                    scores.setdefault((metric, language), []).append(score)
        each.append(scores)
    for metric, language in dict.fromkeys([*each[0], *each[1]]):
        one, other = (scores.get((metric, language), []) for scores in each)
        both = f"{statistics.fmean(other) - statistics.fmean(one):+.1f}" if one and other else "-"
        cells = [mean_std(values) if values else "-" for values in (one, other)]
        table.rows.append([metric_name(metric), language, *cells, both])
    rows = list[set[str]]()
    for name, folder, of_run in zip(names, folders, results, strict=True):
        seeds = ", ".join(str(result["seed"]) for result in of_run) or "none"
        table.notes.append(f"{name}: seeds {seeds}{damaged(folder)}")
        rows.append({result["test_rows"] for result in of_run})
    if all(rows) and rows[0] != rows[1]:
        table.notes.append("the two were tested on other rows: the difference says nothing of the methods")
    return table


def check_removable(folders: Sequence[Path]) -> None:
    """Raise a UserError where a folder is no run or campaign, a process works on it, or what stays leans on it."""
    going = {str(folder) for folder in folders}
    for folder in folders:
        if _one(folder) is None:
            known = [one.folder.name for one in stored(folder.parent)] if folder.parent.is_dir() else []
            hint = f"; {nearest(folder.name, known)}" if known else ""
            raise UserError(f"runs: {folder} is no run and no campaign{hint}")
        if is_locked(folder):
            raise UserError(f"runs: a process is at work on {folder}; end it first")
        needs = [one for one in _leaning(folder) if str(one[0]) not in going]
        if needs:
            told = "; ".join(f"{place.name} ({why})" for place, why in needs[:5])
            raise UserError(f"runs: {folder} is needed by {told}; remove that, too, or keep it")


def _leaning(folder: Path) -> Iterator[tuple[Path, str]]:
    """What in the same storage needs a run: campaigns whose ledger has a cell of it, runs whose method names it."""
    for path in folder.parent.glob(f"*/{FILE}"):
        cells = [entry for entry in Ledger(path.parent) if Path(entry.get("folder") or "").parent.name == folder.name]
        if cells:
            yield path.parent, f"a campaign that has {len(cells)} cells there"
    for path in folder.parent.glob(f"*/{JOB_FILE}"):
        if path.parent == folder:
            continue
        with suppress(UserError, Damaged):
            for key, value in _leaves(read_job(path.parent)):
                if isinstance(value, str) and key != "storage" and folder.name in PurePosixPath(value).parts:
                    yield path.parent, key


def remove_all(folders: Sequence[Path]) -> None:
    """Remove runs and campaigns, each while no other process has it.

    Raises:
        UserError: as `check_removable`; nothing is removed then.
    """
    check_removable(folders)
    for folder in folders:
        with locked(folder):
            remove(folder)


def place(name: str, storage: str | None = None) -> Path:
    """The folder that a name stands for: as it is, else in the storage."""
    given = path_of(name)
    if given.exists() or "/" in name:
        return given
    inside = path_of(storage or default_storage()) / name
    return inside if inside.exists() else given

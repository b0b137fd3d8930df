"""Keys of cells that were worked out before, so that what is finished is recognised without making a job, which loads
torch.

A configuration's keys are kept under a hash of all they follow from: the job's values, raypft's own files, and size and
time of every file that the values name (data, model, task, ticket, a user's own plug-ins), and the commits of data sets
on the hub.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raypft.backbones.fetch import locate
from raypft.catalogue import is_own, own_path
from raypft.data import sources
from raypft.data.origin import choose, commits
from raypft.errors import UserError
from raypft.records import Log, opened, sealed
from raypft.schema import digest
from raypft.storage import default_storage
from raypft.tasks.load import load_task

FILE = "keys.jsonl"
Stamp = list[Any]
"""Path, size and time of change of a file."""


@dataclass(frozen=True)
class Known:
    """What a configuration's values came to: the key of the job without its seeds, its run's folder, cell keys by
    seed."""

    name: str
    run: str
    keys: dict[int, str]


class KnownKeys:
    """The keys kept in a campaign's folder; a line that can't be read is as if it were not there.

    Args:
        keeps: whether what is added is written there.
    """

    def __init__(self, folder: Path, keeps: bool = True) -> None:
        self.log, self.keeps = Log(folder / FILE), keeps
        self._known: dict[str, Known] = {}
        self._asked: dict[str, Known] = {}
        self._stamps: dict[str, list[Stamp] | None] = {}
        for line in self.log.read().splitlines():
            try:
                entry = opened(line, inputs=str, name=str, run=str, keys=dict)
                keys = {int(seed): key for seed, key in entry["keys"].items()}
                known = Known(entry["name"], entry["run"], keys)
                if entry["inputs"] is not None:
                    self._known[entry["inputs"]] = known
                if "asked" in entry:
                    self._asked[entry["asked"]] = known
            except (ValueError, KeyError, TypeError, AttributeError):
                continue

    def inputs(self, values: Mapping[str, Any]) -> str | None:
        """Hash of all that the keys of a job with these values follow from; None where that can't be told from
        files."""
        try:
            named = [self._once(f"{key} {value}", key, value, values) for key, value in _named_files(values)]
        except (UserError, OSError, KeyError, TypeError, AttributeError):  # making the job says what is wrong
            return None
        if any(stamps is None for stamps in named):
            return None
        plain = json.loads(json.dumps({"storage": default_storage(), **values}, default=str))
        return digest({"values": plain, "code": _code(), "files": named})

    def _once(self, name: str, key: str, value: Any, values: Mapping[str, Any]) -> list[Stamp] | None:
        if key == "data":
            name = f"data {json.dumps([values.get(part) for part in ('task', 'data', 'shots')], default=str)}"
        if name not in self._stamps:
            self._stamps[name] = _stamps(key, value, values)
        return self._stamps[name]

    def get(self, inputs: str | None) -> Known | None:
        """What is known under a hash."""
        return self._known.get(inputs) if inputs is not None else None

    def asked(self, asked: str) -> Known | None:
        """What a configuration came to when the campaign last began, by the name that `add` was given: for who looks at
        a campaign where its data, model or code are not."""
        return self._asked.get(asked)

    def add(self, inputs: str | None, known: Known, asked: str | None = None) -> None:
        """Keep what was worked out.

        Args:
            asked: what the campaign calls the configuration, from its file alone.
        """
        is_new = inputs is not None and self._known.get(inputs) != known
        if not is_new and (asked is None or self._asked.get(asked) == known):
            return
        if inputs is not None:
            self._known[inputs] = known
        entry: dict[str, Any] = {"inputs": inputs, "name": known.name, "run": known.run, "keys": known.keys}
        if asked is not None:
            self._asked[asked] = known
            entry["asked"] = asked
        if self.keeps:
            self.log.append(sealed(entry).encode() + b"\n")


def _named_files(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a job's values name: key and value."""
    yield "backbone", values["backbone"]
    yield "task", values["task"]
    yield "data", values.get("data") or {}
    for part in ("method", "readout"):
        group = values.get(part)
        for value in group.values() if isinstance(group, Mapping) else [group]:
            if isinstance(value, str):
                yield part, value


def _stamps(key: str, value: Any, values: Mapping[str, Any]) -> list[Stamp] | None:
    if key == "backbone":
        return _of_folder(locate(value).folder)
    if key == "task":
        task = load_task(value)
        return _of_paths([value, *task.metrics])
    if key == "data":
        return _of_data(values)
    return _of_paths([value])


def _of_paths(names: list[str]) -> list[Stamp]:
    """The files among these names, those of the modules, and what lies in the folders among them."""
    stamps = []
    for name in names:
        path = Path(os.path.expanduser(name))
        if path.is_dir():
            stamps += _of_folder(path)
        elif path.is_file():
            stamps.append(_of_file(path))
        elif is_own(name):
            stamps.append(_of_file(own_path("module", name)))
    return stamps


def _of_folder(folder: Path) -> list[Stamp]:
    return [_of_file(path) for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock"]


def _of_file(path: Path) -> Stamp:
    stat = path.stat()
    return [str(path), stat.st_size, stat.st_mtime_ns]


def _of_data(values: Mapping[str, Any]) -> list[Stamp] | None:
    data = values.get("data") or {}
    origin = choose(
        load_task(values["task"]), data.get("source"), data.get("root"), values.get("shots"), data.get("revision")
    )
    on_hub = commits(origin)
    if on_hub:
        return [[place, 0, 0] for place in on_hub.values()]
    if origin.source.hub is not None:  # a folder that is laid out as a data set
        return None
    return [[info.path, info.size, info.mtime_ns] for info in sources.existing_files(origin)]


@functools.cache
def _code() -> str:
    """Hash over path, size and time of raypft's own files, which say how keys are made."""
    folder = Path(__file__).parents[1]
    files = [*sorted(folder.rglob("*.py")), *sorted(folder.rglob("*.yaml"))]
    return digest({"files": [_of_file(path) for path in files]})

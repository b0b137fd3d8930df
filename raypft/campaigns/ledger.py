"""The ledger: what is known of a campaign's cells, one JSON line for every change, the last line of a cell counts.

Lines are only appended, so a kill at any moment loses at most the line being written. A line that can't be read is
told, and the rest is used; who writes moves it to ledger.bad.jsonl beside it first. Who only reads writes nothing: the
campaign may be at work. Results themselves are in the cells' own folders.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from raypft.records import Log, opened, sealed

STATUSES = ("running", "finished", "failed", "pruned")
KINDS = {
    **{"folder": str | None, "config": str | None, "study": str | None, "reason": str | None},
    **{"values": dict | None, "seed": int | None, "dev": int | float | None},
}
"""What else a line may say of a cell, and of which type."""
FILE, BAD = "ledger.jsonl", "ledger.bad.jsonl"


class Ledger:
    """The cells of a campaign by their key.

    An entry: cell (its key), status (see STATUSES), seed, config (key of the job without its seeds), study (the search
    it belongs to, or None), values (what the search chose, dotted key to value), folder, dev (score that selects, or
    None), reason (of failed and pruned), time (seconds since 1970).

    Args:
        tell: hears one line where something in the file could not be read.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None] = lambda line: None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = Log(folder / FILE)
        self.entries: dict[str, dict[str, Any]] = {}
        self.began: dict[str, float] = {}
        """When a cell was last said to be running, in seconds since 1970."""
        raw = self.log.read()
        self._bad = [line for line in raw.split(b"\n") if line and not self._take(line)]
        self._torn = bool(raw) and not raw.endswith(b"\n")
        if self._bad:
            tell(
                f"ledger: {self.log.path}: {len(self._bad)} unreadable line{'s' * (len(self._bad) > 1)} left out, kept "
                f"in {BAD}; the other {len(self.entries)} cells are used"
            )

    def note(self, **entry: Any) -> None:
        """Append what is now known of a cell; `cell` is needed, see the class for the other keys."""
        self._mend()
        entry = {**self.entries.get(entry["cell"], {}), "reason": None, **entry, "time": round(time.time(), 3)}
        self.log.append(_line(entry))
        self._keep(entry)

    def _mend(self) -> None:
        """Move lines that can't be read aside, and end the last."""
        if self._bad:
            Log(self.log.path.with_name(BAD)).append(b"".join(line + b"\n" for line in self._bad))
        if self._bad or self._torn:
            self.log.rewrite(b"".join(_line(entry) for entry in self.entries.values()))
        self._bad, self._torn = [], False

    def get(self, key: str) -> dict[str, Any]:
        """The entry of a cell, empty where there is none."""
        return self.entries.get(key, {})

    def study(self, name: str) -> dict[str, list[dict[str, Any]]]:
        """The configurations of a search, in the order they began, each with the entries of its cells."""
        by_config: dict[str, list[dict[str, Any]]] = {}
        for entry in self.entries.values():
            if entry.get("study") == name:
                by_config.setdefault(entry["config"], []).append(entry)
        return by_config

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.entries.values())

    def _take(self, line: bytes) -> bool:
        try:
            entry = opened(line, cell=str, status=str)
        except ValueError:
            return False
        known = {key: entry.get(key) for key in KINDS}
        if entry["status"] not in STATUSES or not all(isinstance(known[key], kind) for key, kind in KINDS.items()):
            return False
        self._keep(entry)
        return True

    def _keep(self, entry: dict[str, Any]) -> None:
        self.entries[entry["cell"]] = entry
        if entry["status"] == "running":
            self.began[entry["cell"]] = entry.get("time", 0.0)


def _line(entry: dict[str, Any]) -> bytes:
    return sealed(entry, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

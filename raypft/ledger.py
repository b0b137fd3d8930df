"""The ledger: what is known of a campaign's cells, one JSON line for every change, the last line of a cell counts.

Lines are only appended, so a kill at any moment loses at most the line being written. A line that can't be read is moved to
ledger.bad.jsonl beside it, told, and the rest is used. Results themselves are in the cells' own folders.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STATUSES = ("running", "finished", "failed", "pruned")
FILE, BAD = "ledger.jsonl", "ledger.bad.jsonl"


class Ledger:
    """The cells of a campaign by their key.

    An entry: cell (its key), status, seed, config (key of the job without its seeds), study (the search it belongs to, or
    None), values (what the search chose, dotted key to value), folder, dev (score that selects, or None), reason (of failed
    and pruned), time.

    Args:
        tell: hears one line where something in the file could not be read.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None] = lambda line: None) -> None:
        self.path = folder / FILE
        folder.mkdir(parents=True, exist_ok=True)
        self.entries: dict[str, dict[str, Any]] = {}
        raw = self.path.read_bytes() if self.path.is_file() else b""
        bad = [line for line in raw.split(b"\n") if line and not self._take(line)]
        if bad or (raw and not raw.endswith(b"\n")):
            with (folder / BAD).open("ab") as stream:
                stream.writelines(line + b"\n" for line in bad)
            partial = self.path.with_suffix(".partial")
            partial.write_bytes(b"".join(_line(entry) for entry in self.entries.values()))
            partial.replace(self.path)
        if bad:
            tell(f"ledger: {self.path}: {len(bad)} unreadable line{'s' * (len(bad) > 1)} moved to {BAD}; the other {len(self.entries)} cells are used")
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def note(self, **entry: Any) -> None:
        """Append what is now known of a cell; see the class for the keys."""
        entry = {**self.entries.get(entry["cell"], {}), "reason": None, **entry, "time": round(time.time(), 3)}
        os.write(self._file, _line(entry))
        self.entries[entry["cell"]] = entry

    def get(self, key: str) -> dict[str, Any]:
        """The entry of a cell, empty where there is none."""
        return self.entries.get(key, {})

    def study(self, name: str) -> dict[str, list[dict[str, Any]]]:
        """The configurations of a search, in the order they began, each with the entries of its cells."""
        found: dict[str, list[dict[str, Any]]] = {}
        for entry in self.entries.values():
            if entry.get("study") == name:
                found.setdefault(entry["config"], []).append(entry)
        return found

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.entries.values())

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

    def _take(self, line: bytes) -> bool:
        try:
            entry = json.loads(line)
        except ValueError:
            return False
        if not isinstance(entry, dict) or not isinstance(entry.get("cell"), str) or entry.get("status") not in STATUSES:
            return False
        self.entries[entry["cell"]] = entry
        return True


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

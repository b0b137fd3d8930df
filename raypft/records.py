"""Text that is read again: it ends with the hash of what stands before, so that what was cut or changed is never taken
for what was written. Text of versions that wrote no hash is taken as it is.

A JSON record has it as its last key, `"check": "0123456789abcdef"`, YAML as its last line, `# check: 0123456789abcdef`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raypft.errors import UserError, first_line
from raypft.schema import read_yaml
from raypft.storage import is_remote, move, written

CHECK = "check"
IN_JSON = re.compile(rb',\s*"check": ?"([0-9a-f]{16})"\s*\}\s*')
IN_YAML = re.compile(rb"# check: ([0-9a-f]{16})\s*")
LONGEST = 60
"""Bytes at the end of a text that hold its hash."""
SAMPLES = "samples.json"
"""Beside job.yaml: the sample manifest and cell key of every seed, and the hash of job.yaml."""
JOB = ("recipe", "task", "backbone", "method", "protocol", "shots", "seeds", "train", "storage")
"""Keys that job.yaml has in every version, the last of them its last."""
PART = 1 << 18
"""Bytes after which an appended file goes on in a new object."""
Kind = type | tuple[type, ...]


class Damaged(UserError):
    """A file that is there but is not what was written, or belongs elsewhere."""


def sealed(record: Mapping[str, Any], **options: Any) -> str:
    """A record that is not empty as JSON with its hash; options: those of `json.dumps`."""
    body = json.dumps(record, **options)[:-1].rstrip()
    before, after = ("\n ", "\n") if "\n" in body else ("", "")
    return f'{body},{before}"check": "{hash_of(body.encode())}"{after}}}'


def opened(text: bytes, **kinds: Kind) -> dict[str, Any]:
    """The record that a JSON text holds, without its hash.

    Args:
        kinds: of values that it must have, by key.

    Raises:
        ValueError: it is none, or not what was written.
    """
    check_seal(text, IN_JSON)
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("its values stand too deep in each other") from None
    except ValueError:
        raise ValueError("it is not whole" if text.strip() else "it is empty") from None
    if not isinstance(found, dict):
        raise ValueError(f"found {type(found).__name__}; expected a mapping")
    found.pop(CHECK, None)
    for key, kind in kinds.items():
        if not isinstance(found.get(key), kind) or isinstance(found[key], bool):
            raise ValueError(f"it has no {key}, or one of another kind")
    return found


def check_seal(text: bytes, form: re.Pattern[bytes]) -> bool:
    """Whether a text ends with a hash, of what stands before it.

    Raises:
        ValueError: with the hash of something else.
    """
    start = max(0, len(text) - LONGEST)
    match = next((one for one in form.finditer(text, start) if one.end() == len(text)), None)
    if match is not None and hash_of(text[: match.start()]) != match[1].decode():
        raise ValueError("it was changed after it was written")
    return match is not None


def read(path: Path, **kinds: Kind) -> dict[str, Any] | None:
    """The record in a file, None where there is no file.

    Args:
        kinds: as `opened` has them.

    Raises:
        Damaged: the file is not what was written.
    """
    try:
        return opened(path.read_bytes(), **kinds)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise Damaged(f"{path} can't be read ({first_line(error)})") from None


def read_or_none(path: Path) -> dict[str, Any] | None:
    """The record in a file that nothing depends on; None where there is none, or it is not what was written."""
    try:
        return read(path)
    except Damaged:
        return None


def sealed_yaml(text: str) -> str:
    """YAML with its hash, as a comment."""
    return f"{text}# check: {hash_of(text.encode())}\n"


def check_yaml(path: Path) -> None:
    """Raise Damaged where a YAML file was changed after `sealed_yaml` wrote it."""
    try:
        check_seal(path.read_bytes(), IN_YAML)
    except ValueError as error:
        raise Damaged(f"{path} can't be read ({error})") from None


def job_in(path: Path) -> dict[str, Any]:
    """The resolved job in a run's job.yaml.

    Raises:
        UserError: it is not what was written.
    """
    check_yaml(path)
    known = (read_or_none(path.with_name(SAMPLES)) or {}).get("job")
    if known not in (None, hash_of(path.read_bytes())):
        raise Damaged(f"{path} is not the one that {SAMPLES} beside it was written with; run the job again")
    job = read_yaml(path, str(path))
    missing = [key for key in JOB if key not in job]
    if missing or not isinstance(job["seeds"], list):
        raise Damaged(f"{path} can't be read (it has no {', '.join(missing) or 'list of seeds'}); run the job again")
    return job


def set_aside(path: Path) -> str:
    """Give a file that is not whole another name beside it, in place of one that has it; that name."""
    aside = path.with_name(f"{path.name}.damaged")
    move(path, aside)
    return aside.name


def hash_of(text: bytes) -> str:
    """16 hex digits over a text."""
    return hashlib.sha256(text).hexdigest()[:16]


class Log:
    """Lines that are only appended, so that a kill at any moment loses at most the one being written.

    Objects can't be appended to: behind a URI they are written anew, and each `PART` another follows, name-1.jsonl,
    name-2.jsonl, …
    """

    def __init__(self, path: Path) -> None:
        self.path, self._tail, self._number, self._ended = path, b"", -1, False

    def read(self) -> bytes:
        """All lines; nothing where there is no file."""
        return b"".join(part.read_bytes() for _, part in self._parts())

    def append(self, line: bytes) -> None:
        """Add a line, which ends in a newline."""
        if not is_remote(self.path):
            with self.path.open("ab", buffering=0) as stream:
                if not self._ended:  # a process may have been killed in the middle of the last line
                    stream.write(b"" if _ends_in_newline(self.path) else b"\n")
                    self._ended = True
                if stream.write(line) < len(line):
                    self._ended = False
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return
        if self._number < 0 or len(self._tail) > PART:
            last = max((number for number, _ in self._parts()), default=-1) if self._number < 0 else self._number
            self._number, self._tail = last + 1, b""
        self._tail += line
        self._part(self._number).write_bytes(self._tail)

    def rewrite(self, lines: bytes) -> None:
        """Put these lines in the place of all others."""
        others = [part for number, part in self._parts() if number]
        with written(self.path) as file:
            file.write_bytes(lines)
        for part in others:
            part.unlink()
        self._number = -1

    def remove(self) -> None:
        """Remove all lines."""
        for _, part in self._parts():
            part.unlink()
        self._number = -1

    def _part(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.stem}-{number}{self.path.suffix}") if number else self.path

    def _parts(self) -> list[tuple[int, Path]]:
        """The parts that there are, with their numbers."""
        if not is_remote(self.path):
            return [(0, self.path)] if self.path.is_file() else []
        pattern = re.compile(rf"{re.escape(self.path.stem)}(?:-(\d+))?{re.escape(self.path.suffix)}")
        named = [pattern.fullmatch(path.name) for path in self.path.parent.glob(f"{self.path.stem}*{self.path.suffix}")]
        numbers = sorted(int(match[1] or 0) for match in named if match)
        return [(number, self._part(number)) for number in numbers]


def _ends_in_newline(path: Path) -> bool:
    """Whether the last line of a file is whole; that of an empty one is."""
    with path.open("rb") as stream:
        if not stream.seek(0, os.SEEK_END):
            return True
        stream.seek(-1, os.SEEK_END)
        return stream.read() == b"\n"

"""Text that is read again: it ends with the hash of what stands before, so that what was cut or changed is never taken
for what was written. Text of versions that wrote no hash is taken as it is.

A JSON record has it as its last key, `"check": "0123456789abcdef"`, YAML as its last line, `# check: 0123456789abcdef`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raypft.errors import UserError, first_line
from raypft.storage import move

CHECK = "check"
IN_JSON = re.compile(rb',\s*"check": ?"([0-9a-f]{16})"\s*\}\s*')
IN_YAML = re.compile(rb"# check: ([0-9a-f]{16})\s*")
LONGEST = 60
"""Bytes at the end of a text that hold its hash."""
Kind = type | tuple[type, ...]


class Damaged(UserError):
    """A file that is there but is not what was written, or belongs elsewhere."""


def sealed(record: Mapping[str, Any], **options: Any) -> str:
    """A record that is not empty as JSON with its hash; options: those of `json.dumps`."""
    body = json.dumps(record, **options)[:-1].rstrip()
    before, after = ("\n ", "\n") if "\n" in body else ("", "")
    return f'{body},{before}"check": "{_hash(body.encode())}"{after}}}'


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
    if match is not None and _hash(text[: match.start()]) != match[1].decode():
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
    return f"{text}# check: {_hash(text.encode())}\n"


def check_yaml(path: Path) -> None:
    """Raise Damaged where a YAML file was changed after `sealed_yaml` wrote it."""
    try:
        check_seal(path.read_bytes(), IN_YAML)
    except ValueError as error:
        raise Damaged(f"{path} can't be read ({error})") from None


def set_aside(path: Path) -> str:
    """Give a file that is not whole another name beside it, in place of one that has it; that name."""
    aside = path.with_name(f"{path.name}.damaged")
    move(path, aside)
    return aside.name


def _hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]

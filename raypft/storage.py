"""Where results are kept: a folder, or an object store behind a URI such as s3://bucket/folder.

Paths below a folder are pathlib's, those behind a URI are UPath's, which read, write and list alike. What the two do
not share is here: a file that is whole or not there, lines that are only appended, the copy that a library reads,
locks.
"""

from __future__ import annotations

import atexit
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, cast

from filelock import BaseFileLock, FileLock, Timeout

from raypft.errors import UserError, first_line

MARKER = ".begun"
"""The object that is written behind a URI before anything else, which can't be made there as a folder can."""
PASSWORD = re.compile(r"(\w+://)[^/@:]*:[^@]*@")
"""The beginning of a URI that holds a password."""
ASKED = 0.2
"""Seconds in which a lock is asked for more than once."""
BEGUN = 60
"""Seconds after which a folder that is made to be `owned` has its lock."""


def default_storage() -> str:
    """The storage of the cluster that a job was submitted to (in RAYPFT_CLUSTER), else the folder runs."""
    return json.loads(os.environ.get("RAYPFT_CLUSTER", "{}")).get("storage", "runs")


def path_of(text: str) -> Path:
    """The path that a folder or URI names.

    Raises:
        UserError: the store's client is not installed, ~name is no one's home folder, or a URI holds a password.
    """
    if "://" not in text:
        try:
            return Path(text).expanduser()
        except RuntimeError:
            raise UserError(f"path: {text}: there is no such home folder; write ./{text} if it is called so") from None
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    if PASSWORD.match(text):
        shown = PASSWORD.sub(r"\1…@", text)
        raise UserError(
            f"storage: {shown} holds a password, which would stand in files and logs; leave it out, and give it as the "
            "store's client asks for it: in its environment variables or its own file"
        )
    from upath import UPath  # noqa: PLC0415  (needed only here)

    try:
        path = UPath(text, use_listings_cache=False)  # other processes write there too
        path.fs  # noqa: B018  (loads the client)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"storage: {text} can't be reached: {error}; its client comes with pip install 'raypft[s3]' (or gcs, azure)"
        ) from None
    return cast(Path, path)


def is_remote(path: Path) -> bool:
    """Whether a path is behind a URI."""
    return not isinstance(path, Path)


def absolute(path: str | Path) -> str:
    """A path as other processes find it: a URI as it is, a folder from the root.

    Raises:
        UserError: as `path_of`.
    """
    named = path_of(str(path))
    return str(named if is_remote(named) else named.resolve())


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A local file to write, which then stands at `path` whole: a kill leaves the old file or the new one, and so does
    a machine that dies."""
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / path.name
            yield file
            cast(Any, path).fs.put_file(str(file), cast(Any, path).path)
        return
    own = uuid.uuid4().int >> 64  # other hosts have processes of the same number
    partial = path.with_name(f"{path.stem}.{own}.partial{path.suffix}")
    try:
        yield partial
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())  # its bytes reach the disk before its name does
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text, see `written`; nothing where it stands there already.

    Raises:
        UserError: it can't be written.
    """
    content = text.encode()
    try:
        if path.is_file() and path.read_bytes() == content:
            return
        with written(path) as file:
            file.write_bytes(content)
    except OSError as error:
        raise not_written(path, error) from None


def not_written(path: Path, error: OSError) -> UserError:
    """The line about a file that a full, read-only or broken disk did not take."""
    return UserError(
        f"storage: {path} can't be written: {error.strerror or first_line(error)}; mend that and run again, which goes "
        "on from what is kept"
    )


TROUBLES = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.EACCES,
)  # fmt: skip


@contextmanager
def one_line_of_disk() -> Iterator[None]:
    """Around work on files: a disk that is full, read-only or broken, or too many open files, is one line.

    Raises:
        UserError: that line.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in TROUBLES:
            raise
        raise not_written(Path(error.filename or "a file"), error) from None


def tidy(folder: Path) -> None:
    """Remove what killed processes left of files that `written` was to write; only where no other is at work."""
    for path in folder.glob("*.partial*"):
        if re.search(r"\.\d+\.partial(\.\w+)?$", path.name):
            path.unlink(missing_ok=True)


@contextmanager
def on_disk(path: Path) -> Iterator[Path]:
    """The file itself, or a local copy of it while it is read."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield _fetched(path, folder)


def _fetched(path: Path, folder: str) -> Path:
    file = Path(folder) / path.name
    cast(Any, path).fs.get_file(cast(Any, path).path, str(file))
    return file


def sha256(file: Path) -> str:
    """The sha256 of a local file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def move(path: Path, to: Path) -> None:
    """Give a file another name, in the place of one that has it."""
    if is_remote(path):
        cast(Any, path).fs.mv(cast(Any, path).path, cast(Any, to).path)
    else:
        path.replace(to)


@functools.cache
def lasting(path: Path) -> Path:
    """The file itself, or a local copy of it until this process ends: for what is read again and again."""
    if not is_remote(path):
        return path
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return _fetched(path, folder.name)


def remove(folder: Path) -> None:
    """Remove a folder and what is in it, if it is there."""
    if not is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        cast(Any, folder).rmdir(recursive=True)


@contextmanager
def locked(folder: Path, wait: float = 0) -> Iterator[None]:
    """The folder, made and this process's alone.

    An object store has no locks: that two processes work on the same runs there costs time, not numbers.

    Args:
        wait: seconds for another process to end.

    Raises:
        UserError: another process has it; or nothing can be written there.
    """
    if is_remote(folder):
        _write_remote(folder)
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # a null byte in a name is a ValueError
        raise _not_made(folder, error) from None
    lock = _acquired(folder, wait)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def owned(folder: Path) -> Iterator[Path]:
    """A new folder for what is needed while this process works. Once the process is gone, killed or not, `remove_left`
    may remove it; behind a URI, where nothing says that, it is left.

    Raises:
        OSError: it can't be made.
    """
    folder.mkdir(parents=True)
    with nullcontext() if is_remote(folder) else FileLock(folder / ".lock"):
        yield folder


def remove_left(parent: Path, names: str) -> None:
    """Remove the folders of these names, a glob, that were `owned` by processes that are gone."""
    for folder in [] if is_remote(parent) else parent.glob(names):
        with suppress(OSError):  # another process may have removed it
            if time.time() - folder.stat().st_mtime > BEGUN and is_locked(folder) is False:
                remove(folder)


def check_free(folder: Path) -> None:
    """Raise a UserError where another process has a folder that `locked` would give; nothing is made."""
    if not is_remote(folder) and (folder / ".lock").is_file():
        _acquired(folder, 0).release()


def is_locked(folder: Path) -> bool | None:
    """Whether a process has a folder that `locked` gave; None where that can't be told: behind a URI, on a system or a
    file system without flock. Nothing is written."""
    if is_remote(folder):
        return None
    try:
        import fcntl  # noqa: PLC0415  (Unix alone has it)

        with (folder / ".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, BlockingIOError) as error:
        return isinstance(error, BlockingIOError)
    except (OSError, ImportError):
        return None
    return False


def _acquired(folder: Path, wait: float) -> BaseFileLock:
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=max(wait, ASKED))  # `is_locked` has it for a moment
    except Timeout:
        raise UserError(
            f"run: another process is at work on {folder}; wait for it, or choose another storage="
        ) from None
    except OSError as error:
        raise _not_made(folder, error) from None
    return lock


def check_writable(folder: Path, part: str = "storage") -> None:
    """Raise a UserError where a folder can't be made or written to; nothing is left behind.

    Args:
        part: how messages call what the folder is for.
    """
    if is_remote(folder):
        _write_remote(folder, part)
        (folder / MARKER).unlink()
        return
    there, missing = folder.absolute(), list[str]()
    try:
        while not there.exists():
            missing.append(there.name)
            there = there.parent
        with tempfile.TemporaryDirectory(prefix=".raypft-", dir=there) as made:
            Path(made, *reversed(missing)).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise _not_made(folder, error, part) from None


def _write_remote(folder: Path, part: str = "storage") -> None:
    """Write an empty object behind a URI.

    Raises:
        UserError: nothing can be written there, or it would be gone with this process.
    """
    if str(folder).startswith("memory:"):
        raise UserError(f"{part}: {folder} ends with this process; give a folder, or a bucket such as s3://bucket/runs")
    try:
        (folder / MARKER).write_bytes(b"")
    except Exception as error:  # each client has its own
        raise UserError(
            f"{part}: {folder} can't be written: {first_line(error)}; see its credentials and address"
        ) from None


def _not_made(folder: Path, error: Exception, part: str = "storage") -> UserError:
    told = getattr(error, "strerror", None) or error
    how = " with storage=…" if part == "storage" else ""
    return UserError(f"{part}: {folder} can't be written: {told}; give another folder{how}")

"""Which files a split's path stands for, below a folder or a URI; and what lies there where none is found."""

from __future__ import annotations

import difflib
import json
import os
import re
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import fs

from raypft.data import hub
from raypft.data.formats import TOLD, ending_of
from raypft.errors import UserError, first_line

UNREAD = {
    "xlsx": "save it as CSV UTF-8",
    "xls": "save it as CSV UTF-8",
    "ods": "save it as CSV UTF-8",
    "zip": "unpack it",
    "tar": "unpack it",
    "tgz": "unpack it",
    "pkl": "write it as Parquet",
    "txt": "rename it by its layout (.tsv, .conll, …), or write its whole name and format in the task's source",
}
"""What to do with a file of an ending that is not read."""

HIDDEN = re.compile(r"(^|/)\.[^/.]")
"""A part of a path that * does not stand for."""


@dataclass(frozen=True)
class Place:
    """A path that stands for files.

    base: how it begins, as it is written; name: how it goes on, where * stands for any text; scheme: of its URI, before
    both in messages.
    """

    system: fs.FileSystem
    base: str
    name: str
    scheme: str = ""

    def __str__(self) -> str:
        return self.scheme + self.path

    @property
    def path(self) -> str:
        """The path in the file system."""
        return self.base + self.name

    def find(self, format: str | None) -> list[str]:
        """The file there, an ending added if it lacks one; the parts of a folder of `datasets.save_to_disk`; or in
        order all files that a path with * stands for.

        Raises:
            UserError: files of several endings are at a path without one, or a folder can't be listed.
        """
        try:
            return self._several(format) if "*" in self.name else self._one(format)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"data: {self} can't be reached: {first_line(error)}") from None

    def _several(self, format: str | None) -> list[str]:
        folder = _folder(self.base + self.name.partition("*")[0])
        if not self._is(folder, fs.FileType.Directory):
            return []
        # only * stands for others: a folder may be called "data [v2]"
        tail = ".*".join(map(re.escape, self.name.split("*")))
        named = re.compile(re.escape(self.base) + tail, re.DOTALL)
        below = self.system.get_file_info(fs.FileSelector(folder, recursive=True))
        files = [info.path for info in below if info.is_file and (format or ending_of(info.path)[0])]
        meant = [file for file in files if named.fullmatch(file)]
        if not HIDDEN.search(self.name):  # as of a shell: copies of notebooks and of other systems begin with a dot
            meant = [file for file in meant if not HIDDEN.search(file.removeprefix(self.base))]
        if isinstance(self.system, fs.LocalFileSystem):  # a link to a folder above shows its files again and again
            meant = {os.path.realpath(file): file for file in sorted(meant, key=len, reverse=True)}.values()
        return sorted(meant)

    def _one(self, format: str | None) -> list[str]:
        path = self.path
        if format or ending_of(path)[0]:
            found = [[path]] if self._is(path, fs.FileType.File) else []
        else:
            found = [[info.path] for info in self._beside() if info.is_file and _bare(info.path) == _last(path)]
        saved = self._saved(path)
        found += [saved] if saved else []
        if len(found) > 1:
            told = " and ".join(f"{self.scheme}{files[0]}" for files in found)
            raise UserError(f"data: found {told}; expected one file of these rows; move the others away")
        return found[0] if found else []

    def _beside(self) -> list[fs.FileInfo]:
        """What lies in the folder of the path, in order."""
        folder = _folder(self.path)
        if not self._is(folder, fs.FileType.Directory):
            return []
        return sorted(self.system.get_file_info(fs.FileSelector(folder)), key=lambda info: info.path)

    def _is(self, path: str, type: fs.FileType) -> bool:
        return self.system.get_file_info(path).type == type

    def _saved(self, folder: str) -> list[str]:
        """The files of a data set that `datasets.save_to_disk` wrote."""
        state = f"{folder}/state.json"
        if not self._is(state, fs.FileType.File):
            return []
        with self.system.open_input_file(state) as stream:
            try:
                return [f"{folder}/{part['filename']}" for part in json.loads(stream.read())["_data_files"]]
            except (ValueError, KeyError, TypeError):
                raise UserError(f"data: {state} can't be read; expected that of datasets.save_to_disk") from None

    def missing(self, format: str | None, purpose: str = "") -> UserError:
        """What to say where `find` finds nothing.

        Args:
            purpose: what the file is for, with a blank before.
        """
        try:
            if not format and self._is(self.path, fs.FileType.File):
                advice = UNREAD.get(_ending(self.path), "rename it, or write its format in the task's source")
                return UserError(f"data: {self}: expected a file that ends in {TOLD}; {advice}")
            hint = self._hint()
        except (pa.ArrowException, OSError):  # what lies beside may be another's
            hint = ""
        endings = "" if format or ending_of(self.path)[0] else f" ({TOLD})"
        return UserError(f"data: no file {self}{endings}{purpose}{hint}")

    def _hint(self) -> str:
        """What is there instead."""
        path = self.base + self.name.partition("*")[0]
        folders = path.split("/")[:-1]
        for depth in range(1, len(folders) + 1):
            folder = "/".join(folders[:depth])
            if folder and not self._is(folder, fs.FileType.Directory):
                slashes = "; folders are divided by /" if "\\" in path else ""
                return f"; there is no folder {self.scheme}{folder}{slashes}"
        if "*" in self.name:
            return ""
        if self._is(path, fs.FileType.Directory):
            return f"; it is a folder: name {f'its files, such as {self.name}/*' if self.name else 'one of its files'}"
        names = [_last(info.path) + ("" if info.is_file else "/") for info in self._beside()]
        stem = _last(path)
        parts = next((name for name in names if name.endswith("/") and _bare(name[:-1]) == stem), None)
        if parts is not None:  # as Spark writes a table
            return f"; {parts} is a folder: name its files, such as {self.name.removesuffix(stem)}{parts}*"
        near = [name for name in names if name.lower().startswith(stem.lower().partition(".")[0])]
        near = (near or [name for name in names if _is_close(stem, name)] or names)[:5]
        advice = [
            f"a .{ending} is not read, {UNREAD[ending]}"
            for ending in dict.fromkeys(map(_ending, near))
            if ending in UNREAD
        ]
        return "; ".join(["", f"found there: {', '.join(near) or 'nothing'}", *advice])


def place_of(root: str | None, name: str) -> Place:
    """Where `name` lies below a folder or URI, or on its own.

    Raises:
        UserError: as `system_of`.
    """
    whole = name if root is None else root
    system, inner = system_of(whole)
    scheme = whole[: whole.index("://") + 3] if "://" in whole else ""
    return Place(system, "", inner, scheme) if root is None else Place(system, f"{inner.rstrip('/')}/", name, scheme)


def system_of(path: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path in it.

    Raises:
        UserError: an unknown kind of URI, or one that can't be reached.
    """
    if path.startswith(hub.SCHEME):
        return hub.system_of(path, whole=True)
    try:
        return fs.FileSystem.from_uri(path) if "://" in path else (fs.LocalFileSystem(), path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"data: {path} can't be reached: {first_line(error)}") from None


def _is_close(stem: str, name: str) -> bool:
    return bool(difflib.get_close_matches(stem, [name.partition(".")[0]], cutoff=0.5))


def _folder(path: str) -> str:
    folder, slash, _ = path.rpartition("/")
    return folder or slash or "."


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _ending(name: str) -> str:
    return name.lower().rpartition(".")[2]


def _bare(path: str) -> str | None:
    """A file's name without the endings that say how it is read, None where they say nothing."""
    format, compression = ending_of(path)
    return None if format is None else _last(path).rsplit(".", 1 if compression is None else 2)[0]

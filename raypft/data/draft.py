"""A task drafted from someone's files: which files hold which split, what their columns are for, the YAML, and whether
it can be read as it stands."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from raypft.data.drafted_yaml import task_yaml
from raypft.data.files import place_of, system_of
from raypft.data.formats import READERS, Columns, ending_of, read_file
from raypft.data.guess import Choose, Guess, guess
from raypft.data.origin import choose as choose_source
from raypft.data.sources import languages_of, read_split, split_parts
from raypft.data.split import sizes_told
from raypft.errors import UserError, first_line, nearest
from raypft.storage import not_written, written
from raypft.tasks.load import load_task
from raypft.tasks.task import SPLITS

CALLED = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing", "eval"), "test"),
}
"""What files of a split are called."""
NO_NAMES = re.compile(r"[{}*\x00-\x1f]|^samples:")
"""What a file's name can't hold where a task names it: it would stand for something else."""
HEADED = ("csv", "tsv")
"""Formats whose first line names the columns."""


@dataclass(frozen=True)
class Files:
    """Files below a folder or URI: one for all splits, or split to file.

    stem: what a task out of them is called.
    """

    root: str
    stem: str
    of: str | dict[str, str]

    @property
    def first(self) -> str:
        """The file whose columns are looked at."""
        return self.of if isinstance(self.of, str) else self.of["train"]

    @property
    def others(self) -> list[str]:
        """The other files."""
        return [] if isinstance(self.of, str) else [file for split, file in self.of.items() if split != "train"]


def files_at(data: str, format: str | None) -> Files:
    """The file at a path or URI, or the files of splits in the folder there, or beside a file that is called train.

    Raises:
        UserError: nothing is there that is read, or more than one file of a split, or no train and test.
    """
    if format not in (None, *READERS):
        raise UserError(f"init: found format={format}; {nearest(str(format), READERS)}")
    data = os.path.expanduser(data) if "://" not in data else data
    system, inner = system_of(data)
    try:
        kind = system.get_file_info(inner).type
        folder = (data.rstrip("/") or "/") if kind == fs.FileType.Directory else data.rpartition("/")[0]
        below = _below(*system_of(folder or ("/" if data.startswith("/") else ".")), format)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"init: {data} can't be read: {first_line(error)}") from None
    name = data.rpartition("/")[2]
    if kind == fs.FileType.Directory:
        return _of_folder(folder, below)
    if kind != fs.FileType.File or not (format or ending_of(name)[0]):
        raise place_of(None, data).missing(format)
    splits = _splits(below)
    if name in splits.get("train", []) and "test" in splits:  # who names the train file means its folder
        return _of_folder(folder or ".", below)
    _check_name(name)
    return Files(folder, _stem(name), name)


def _below(system: fs.FileSystem, folder: str, format: str | None) -> list[str]:
    """The names of the files of rows in a folder."""
    infos = system.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    names = sorted(info.path.rpartition("/")[2] for info in infos if info.is_file)
    return [name for name in names if (format or ending_of(name)[0]) and not name.startswith((".", "_"))]


def _splits(names: list[str]) -> dict[str, list[str]]:
    """Split to the files that are called so."""
    found: dict[str, list[str]] = {}
    for name in names:
        said = {CALLED[part] for part in re.split(r"[^a-z]+", _stem(name).lower()) if part in CALLED}
        if len(said) == 1:
            found.setdefault(said.pop(), []).append(name)
    return {split: found[split] for split in SPLITS if split in found}


def _of_folder(folder: str, names: list[str]) -> Files:
    splits, stem = _splits(names), folder.rstrip("/").rpartition("/")[2]
    stem = stem if stem.strip(".") else os.path.basename(os.path.abspath(folder))
    if len(names) == 1 and not splits:
        _check_name(names[0])
        return Files(folder, _stem(names[0]), names[0])
    for split, files in splits.items():
        if len(files) > 1:
            raise UserError(
                f"init: {folder} has {len(files)} files of the {split} split: {', '.join(files[:5])}; give one, or "
                f"write files: {{{split}: …}} with a * in it"
            )
    if "train" not in splits or "test" not in splits:
        found = ", ".join(names[:8]) or "none"
        raise UserError(
            f"init: {folder}: expected a file called train and one called test; found: {found}; or name one file, of "
            "which rows are held out"
        )
    for files in splits.values():
        _check_name(files[0])
    return Files(folder, stem, {split: files[0] for split, files in splits.items()})


def _check_name(name: str) -> None:
    if NO_NAMES.search(name):
        raise UserError(f"init: the file name {name!r} holds what stands for others in a task (*, {{, }}); rename it")


def _stem(name: str) -> str:
    """A file's name without its endings."""
    return re.sub(r"(?i)(?<=.)\.[a-z]+(\.(gz|bz2|zst|xz))?$", "", name)


def drafted(files: Files, given: Mapping[str, str], choose: Choose) -> tuple[Guess, int]:
    """What the columns of the first file are for, with the languages of all; and its rows.

    Args:
        given, choose: see `guess`.

    Raises:
        UserError: a file can't be read, or see `guess`.
    """
    format = given.get("format")
    table = _read(files, files.first, format)
    headed = (format or ending_of(files.first)[0]) in HEADED
    found = guess(table, files.first, given, choose, headed)
    languages = dict(found.languages)
    for name in files.others if found.language else ():
        other = _read(files, name, format)
        if found.language in other.names:
            spoken = map(str, pa.array(list(other.values(found.language)), pa.string()).unique().to_pylist())
            languages |= {code: 0 for code in sorted(spoken) if code not in languages}
    return replace(found, languages=languages), table.rows


def _read(files: Files, name: str, format: str | None) -> Columns:
    place = place_of(files.root or None, name) if files.root else place_of(None, name)
    return read_file(place.system, place.path, format)


def write(found: Guess, files: Files, to: Path, format: str | None) -> list[str]:
    """Write the task's YAML, read it and the rows it names as a run would, and leave nothing where that is refused; the
    sizes of its splits, a line.

    Raises:
        UserError: what a run would say.
    """
    here = "://" not in files.root and os.path.realpath(to.parent) == os.path.realpath(files.root or ".")
    root = None if here else files.root if "://" in files.root else os.path.abspath(files.root or ".")
    try:
        with written(to) as file:
            file.write_text(task_yaml(found, files.of, root, format, files.first), encoding="utf-8")
            return list(_sizes(file, to.stem))
    except OSError as error:
        raise not_written(to, error) from None


def _sizes(file: Path, name: str) -> Iterator[str]:
    task = load_task(str(file)).model_copy(update={"name": name})
    origin = choose_source(task, None, None)
    if origin.source.is_split:
        yield sizes_told(task, str(origin.source.files), split_parts(origin))
        return
    counts = []
    for split in filter(origin.source.has, SPLITS):
        table = read_split(origin, split, languages_of(origin, split))
        counts.append(f"{0 if table is None else len(table)} {split}")
    yield f"{', '.join(counts)} rows"

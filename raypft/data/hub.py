"""Data sets on the hub: which commit a revision is, which files a split is made of, and the files themselves.

Of a data set with many languages and splits only the files of the split and the languages that are asked for are
fetched, into the hub's own cache. Such a file is fetched whole, also where a few rows are drawn of it: which rows are
drawn depends on the ids of all. A revision is resolved to its commit once a process; what was read once at a commit is
read again without the hub.
"""

from __future__ import annotations

import atexit
import functools
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from fsspec import AbstractFileSystem
from huggingface_hub import (
    HfFileSystem,
    constants,
    get_cached_repo_tree,
    hf_hub_download,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError
from pyarrow import fs

from raypft import hub
from raypft.errors import UserError, first_line

SCHEME = "hf://"
WRITTEN_OUT = r"refs/(?:convert|pr)/[^/]+"
"""Revisions that are written as they are; slashes of others are %2F."""
PLACE = re.compile(rf"(?:hf://)?datasets/([^/@]+(?:/[^/@]+)?)(?:@({WRITTEN_OUT}|[^/]+))?(?:/(.*))?")
"""A data set, its revision and a path in it."""
CARDS = {"README.md", ".huggingface.yaml"}
"""Files that may say how a data set is laid out."""


class Missing(UserError):
    """The hub does not give a data set, and the cache does not hold it."""


@contextmanager
def _telling(name: str, revision: str | None) -> Iterator[None]:
    """One line for whatever the libraries raise.

    Raises:
        Missing: with that line.
    """
    try:
        yield
    except Exception as error:
        raise Missing(f"data: {hub.reason(error, name, revision, 'dataset')}") from None


def place_of(name: str, revision: str, path: str = "") -> str:
    """How a path in a data set is called: hf://datasets/OWNER/NAME@REVISION/PATH."""
    at = revision if re.fullmatch(WRITTEN_OUT, revision) else quote(revision, safe="")
    return f"{SCHEME}datasets/{name}@{at}/{path}".rstrip("/")


def parsed(place: str) -> tuple[str, str | None, str]:
    """Data set, revision and path of a place.

    Raises:
        UserError: it is none.
    """
    match = PLACE.fullmatch(place)
    if match is None:
        raise UserError(f"data: found {place}; expected hf://datasets/OWNER/NAME[@REVISION][/FOLDER]")
    return match[1], unquote(match[2]) if match[2] else None, (match[3] or "").strip("/")


def pinned(place: str) -> str:
    """A place with the commit that its revision is now; asked once a process for each data set.

    Raises:
        Missing: no such data set or revision, or neither the hub nor the cache can say.
    """
    name, revision, path = parsed(place)
    revision = revision or constants.DEFAULT_REVISION
    with _telling(name, revision):
        return place_of(name, hub.commit_of(name, revision, "dataset"), path)


def split_files(place: str, config: str | None, split: str) -> list[str]:
    """The files of a split, in order, as the data set's card or else its layout says.

    Args:
        place: of a data set, or a folder that is laid out as one.
        config, split: as the data set calls them; None for its only configuration.

    Raises:
        UserError: no such data set, configuration or split, or only a script knows them.
    """
    if place.startswith(SCHEME):
        place = pinned(place)
        splits = _layout_on_hub(place)(config)
    else:
        splits = _layout(Path(place), place)(config)
    if split not in splits:
        found = ", ".join(splits) or "none"
        raise UserError(f"data: {place} has no split {split}; found: {found}; name theirs in the source's splits")
    return [file if "://" in file else f"{place}/{file}" for file in splits[split]]


def _layout(folder: Path, name: str) -> Callable[[str | None], dict[str, list[str]]]:
    """What tells a configuration's splits and their files, as paths in the folder of a data set.

    Args:
        name: what messages call the data set.

    Raises:
        Missing: the library can't tell, here or when a configuration is asked for; what it raises is of many kinds.
    """
    from datasets.load import dataset_module_factory, get_dataset_builder_class  # noqa: PLC0415  (slow to import)

    root = f"{folder.expanduser().resolve().as_posix()}/"

    @contextmanager
    def telling() -> Iterator[None]:
        try:
            yield
        except Exception as error:
            line = first_line(error).replace(str(folder), name)
            if "scripts are no longer supported" in line:
                line += "; if its revision refs/convert/parquet holds files, name them in the source's files"
            raise Missing(f"data: {name} can't be read as a data set of the hub: {line}") from None

    with telling():
        module = dataset_module_factory(str(folder))
        builder = functools.partial(get_dataset_builder_class(module), hash=module.hash, **module.builder_kwargs)
        default = module.builder_configs_parameters.default_config_name

    def splits(config: str | None) -> dict[str, list[str]]:
        with telling():
            files = builder(config_name=config or default).config.data_files or {}
        found = dict[str, list[str]]()
        for split, paths in files.items():
            found[str(split)] = [str(path).removeprefix(root) for path in paths]
        return found

    return splits


@functools.lru_cache(maxsize=16)
def _layout_on_hub(place: str) -> Callable[[str | None], dict[str, list[str]]]:
    """The same of a data set at a commit: its card, and its other files as empty ones, say how it is laid out."""
    name, commit, _ = parsed(place)
    scratch = tempfile.mkdtemp(prefix="raypft-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    folder = Path(scratch, Path(name).name)
    for file in _tree(place):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for card in CARDS & set(_tree(place)):
        with _telling(name, commit):
            fetched = hf_hub_download(name, card, repo_type="dataset", revision=commit)
        shutil.copyfile(fetched, folder / card)
    return _layout(folder, name)


@functools.lru_cache(maxsize=16)
def _tree(place: str) -> dict[str, int]:
    """The files of a data set at a commit, and their sizes in bytes."""
    name, commit, _ = parsed(place)
    at = functools.partial(get_cached_repo_tree, name, repo_type="dataset", revision=commit)
    with _telling(name, commit):
        try:
            tree = at()
        except CachedRepoTreeNotFoundError:
            # it keeps the listing; without the hub it may do with a folder that another program left
            snapshot_download(name, repo_type="dataset", revision=commit, allow_patterns=sorted(CARDS))
            if hub.unreachable() is not None:
                raise LocalEntryNotFoundError("no listing") from None
            tree = at()
    return {file.path: file.size for file in tree}


def fetch(places: Iterable[str]) -> None:
    """Get those files into the cache that are not there yet.

    Raises:
        Missing: the hub does not give them.
    """
    lacking: dict[str, list[str]] = defaultdict(list)
    for place in places:
        name, commit, file = parsed(place)
        if not _cached(place):
            lacking[place_of(name, str(commit))].append(file)
    for head, files in lacking.items():
        _fetch(head, files)


def _fetch(place: str, files: list[str]) -> None:
    name, commit, _ = parsed(place)
    with _telling(name, commit):
        hub.snapshot(name, str(commit), lambda _: files, "dataset")


def _cached(place: str) -> str | None:
    """The copy of a file in the cache."""
    name, commit, file = parsed(place)
    found = try_to_load_from_cache(name, file, revision=commit, repo_type="dataset")
    return found if isinstance(found, str) else None


def system_of(place: str, whole: bool) -> tuple[fs.FileSystem, str]:
    """The file system of a place, and the path in it, pinned to a commit.

    Args:
        whole: files are fetched when they are opened, else read in parts where they lie, unless they are in the cache.

    Raises:
        Missing: as `pinned`.
    """
    return fs.PyFileSystem(fs.FSSpecHandler(HubFiles(whole))), pinned(place).removeprefix(SCHEME)


class HubFiles(AbstractFileSystem):
    """The files of data sets at their commits; paths are places without hf://."""

    protocol = "hf"
    cachable = False

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.whole = whole

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        if "@" not in path:  # above a data set
            return {"name": path, "size": 0, "type": "directory"}
        entry = _entries(path).get(path.strip("/"))
        if entry is None:
            raise FileNotFoundError(path)
        return entry

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        entries = _entries(path)
        inside = [name for name in entries if name.rpartition("/")[0] == path.strip("/")]
        return [entries[name] for name in inside] if detail else inside

    def _open(self, path: str, *_: Any, **__: Any) -> Any:
        if self.whole:
            fetch([path])
        cached = _cached(path)
        if cached is not None:
            return open(cached, "rb")
        with _telling(*parsed(path)[:2]):
            # only the bytes asked for: Parquet says where they lie
            return HfFileSystem().open(path, "rb", cache_type="none")


def _entries(path: str) -> dict[str, dict[str, Any]]:
    """Every file and folder of the data set that a path lies in, by its path."""
    name, commit, _ = parsed(path)
    return _entries_of(place_of(name, str(commit)))


@functools.lru_cache(maxsize=16)
def _entries_of(place: str) -> dict[str, dict[str, Any]]:
    root, entries = place.removeprefix(SCHEME), dict[str, dict[str, Any]]()
    for file, size in _tree(place).items():
        path = f"{root}/{file}"
        entries[path] = {"name": path, "size": size, "type": "file"}
        while (path := path.rpartition("/")[0]) not in entries and path.startswith(root):
            entries[path] = {"name": path, "size": 0, "type": "directory"}
    return entries

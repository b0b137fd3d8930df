"""Data sets on the hub: which commit a revision is, which files a split is made of, and the files themselves.

Files are read one by one, in the hub's own cache: of a data set with many languages and splits only those of the split
and the languages that are asked for. Such a file is read whole, also where a few rows are drawn of it: which rows are
drawn depends on the ids of all.

A revision is resolved to its commit once a process. What the hub says of a commit can't change, so it is kept beside
the data set's files in the cache, and what was read once is read again without the hub.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from fsspec import AbstractFileSystem
from huggingface_hub import HfApi, HfFileSystem, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoFile
from pyarrow import fs

from raypft import hub
from raypft.errors import UserError, first_line
from raypft.schema import digest
from raypft.storage import written

SCHEME = "hf://"
PLACE = re.compile(r"(?:hf://)?datasets/([^/@]+(?:/[^/@]+)?)(?:@(refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(.*))?")
"""A data set, its revision and a path in it; slashes of a revision that is no refs/… are %2F."""
COMMIT = re.compile("[0-9a-f]{40}")

_commits: dict[str, str] = {}
"""What this process found out: place of a data set with a revision to that with its commit."""


class Missing(UserError):
    """The hub does not give a data set, and the cache does not hold it."""


def place_of(name: str, revision: str, path: str = "") -> str:
    """How a path in a data set is called: hf://datasets/OWNER/NAME@REVISION/PATH."""
    at = revision if revision.startswith("refs/") else quote(revision, safe="")
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
        UserError: no such data set or revision, or neither the hub nor the cache can say.
    """
    name, revision, path = parsed(place)
    revision = revision or "main"
    head = place_of(name, revision)
    if not COMMIT.fullmatch(revision):
        if head not in _commits:
            _commits[head] = place_of(name, _commit(name, revision))
        head = _commits[head]
    return f"{head}/{path}".rstrip("/")


def adopt(commits: Mapping[str, str]) -> None:
    """Take over what another process of the same command found: place of a data set to that with its commit."""
    _commits.update(commits)


def _commit(name: str, revision: str) -> str:
    why, kept = hub.unreachable(), _kept(name, revision)
    if why is None:
        ask = functools.partial(HfApi().dataset_info, name, revision=revision, expand=["sha"], timeout=hub.TIMEOUT)
        commit = str(_asked(name, revision, ask).sha)
        _keep(name, revision, commit)
        return commit
    if kept is None:
        raise _not_cached(f"{name} at {revision}", why)
    hub.tell_of_cache(why)
    return kept


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
        name, commit, _ = parsed(place)
        splits = _remembered(place, ["splits", config], functools.partial(_splits, name, config, commit))
    else:
        splits = _asked(place, None, functools.partial(_splits, place, config, None))
    if split not in splits:
        found = ", ".join(splits) or "none"
        raise UserError(f"data: {place} has no split {split}; found: {found}; name theirs in the source's splits")
    return splits[split]


def _splits(name: str, config: str | None, commit: str | None) -> dict[str, list[str]]:
    """Each split's files."""
    from datasets import load_dataset_builder  # noqa: PLC0415  (slow to import, rarely needed)

    files = load_dataset_builder(name, config, revision=commit).config.data_files or {}
    return {str(split): [str(file) for file in of_split] for split, of_split in files.items()}


def system_of(place: str, whole: bool) -> tuple[fs.FileSystem, str]:
    """The file system of a place, and the path in it, pinned to a commit.

    Args:
        whole: files are fetched into the hub's cache when they are opened, else read in parts where they lie.

    Raises:
        UserError: as `pinned`.
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
        entry = _entries(path).get(path.strip("/"))
        if entry is None:
            raise FileNotFoundError(path)
        return entry

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        entries = _entries(path)
        inside = [name for name in entries if name.rpartition("/")[0] == path.strip("/")]
        return [entries[name] for name in inside] if detail else inside

    def _open(self, path: str, mode: str = "rb", *_: Any, **__: Any) -> Any:
        name, commit, file = parsed(path)
        assert commit is not None
        cached = try_to_load_from_cache(name, file, revision=commit, repo_type="dataset")
        if isinstance(cached, str):
            return open(cached, mode)
        why = hub.unreachable()
        if why is not None:
            raise _not_cached(SCHEME + path, why)
        if not self.whole:
            return _asked(name, commit, lambda: HfFileSystem().open(path, mode))
        fetch = functools.partial(hf_hub_download, name, file, repo_type="dataset", revision=commit)
        return open(_asked(name, commit, fetch), mode)


def _entries(path: str) -> dict[str, dict[str, Any]]:
    """Every file and folder of the data set that a path lies in, by its path."""
    name, commit, _ = parsed(path)
    return _listing(place_of(name, str(commit)))


@functools.lru_cache(maxsize=16)
def _listing(place: str) -> dict[str, dict[str, Any]]:
    name, commit, _ = parsed(place)

    def ask() -> dict[str, int]:
        tree = HfApi().list_repo_tree(name, recursive=True, revision=commit, repo_type="dataset")
        return {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}

    root, entries = place.removeprefix(SCHEME), dict[str, dict[str, Any]]()
    for file, size in _remembered(place, "files", ask).items():
        path = f"{root}/{file}"
        entries[path] = {"name": path, "size": size, "type": "file"}
        while (path := path.rpartition("/")[0]) not in entries and path.startswith(root):
            entries[path] = {"name": path, "size": 0, "type": "directory"}
    return entries


def _remembered(place: str, question: Any, ask: Callable[[], Any]) -> Any:
    """What the hub says of a commit, or once said."""
    name, commit, _ = parsed(place)
    kept = _kept(name, [commit, question])
    if kept is None:
        why = hub.unreachable()
        if why is not None:
            raise _not_cached(place, why)
        kept = _asked(name, commit, ask)
        _keep(name, [commit, question], kept)
    return kept


def _fact(name: str, question: Any) -> Path:
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="dataset")
    return folder / ".raypft" / f"{digest({'of': question})}.json"


def _kept(name: str, question: Any) -> Any:
    try:
        return json.loads(_fact(name, question).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _keep(name: str, question: Any, answer: Any) -> None:
    path = _fact(name, question)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written(path) as file:
            file.write_text(json.dumps(answer), encoding="utf-8")
    except OSError:  # the cache may be read only
        return


def _asked(name: str, revision: str | None, ask: Callable[[], Any]) -> Any:
    """An answer of the hub, or one line that says why there is none.

    Raises:
        Missing: what it raised; the libraries raise many kinds.
    """
    try:
        return ask()
    except Exception as error:
        causes = (error, error.__cause__)
        page = f"https://huggingface.co/datasets/{name}"
        if any(isinstance(cause, GatedRepoError) for cause in causes):
            raise Missing(f"data: {name} is gated; ask for access at {page} and set HF_TOKEN") from None
        if isinstance(error, RevisionNotFoundError):
            raise Missing(f"data: the hub's data set {name} has no revision {revision}; see {page}/tree/main") from None
        if isinstance(error, RepositoryNotFoundError):
            raise Missing(f"data: the hub has no data set {name} (or HF_TOKEN may not see it)") from None
        hint = ""
        if "scripts are no longer supported" in str(error):
            hint = (
                "; see whether its revision refs/convert/parquet holds the rows as files, and name them in the source"
            )
        raise Missing(f"data: {name} can't be read from the hub: {first_line(error)}{hint}") from None


def _not_cached(what: str, why: str) -> Missing:
    return Missing(f"data: {what} is not in the local cache and the hub can't be asked ({why})")

"""The Hugging Face hub as every room meets it: waited for briefly and once, quiet, with one line for what it refuses.

Importing this module bounds all that huggingface_hub does in this process, and what datasets does through it: a host
that does not answer the first request is not asked again for some minutes, and the libraries go on with what they have
cached, as with HF_HUB_OFFLINE=1.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import glob
import itertools
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import HfApi, constants, get_cached_repo_tree, get_session, set_client_factory, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import disable_progress_bars, logging
from huggingface_hub.utils._http import default_client_factory

from raypft.errors import UserError, first_line
from raypft.progress import polled

CONNECT, FIRST, ANSWER, WORK = 5.0, 6.0, 10.0, 300.0
"""Seconds to connect to a host; to its first answer in all; between parts of a download; for it to take an upload."""
FORGOTTEN, TRUSTED = 300.0, 60.0
"""Seconds after which a host that did not answer is asked again; in which one that did is left to the libraries, which
retry what breaks off."""
COMMIT = re.compile(r"[0-9a-f]{40}")

UNHEARD = (ConnectionError, LocalEntryNotFoundError, RevisionResolutionError, httpx2.TransportError)
"""What the libraries raise where a host does not answer and nothing is cached."""
SILENT = (httpx2.NetworkError, httpx2.TimeoutException, httpx2.ProxyError, httpx2.RemoteProtocolError, TimeoutError)
"""What a host that does not answer makes the client raise."""

_answered: dict[str, float] = {}
"""Hosts that answered, and when they last did."""
_commits: dict[str, str] = {}
_away: dict[str, tuple[float, str]] = {}
"""Hosts that did not answer: when that was, and why."""


def unreachable() -> str | None:
    """Why the hub is not asked now; None where it answered, or was not asked yet."""
    return "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else _why_away(urlsplit(constants.ENDPOINT).netloc)


def asked() -> str | None:
    """Why the hub can't be reached, None where it answers: it is asked."""
    if constants.is_offline_mode():
        return unreachable()
    try:
        get_session().head(constants.ENDPOINT)
    except Exception as error:  # the client raises many kinds
        return unreachable() or first_line(error)
    return None


def commit_of(name: str, revision: str | None = None, kind: str = "model") -> str:
    """The commit that a branch or tag is, asked for once a process; of the cache where the hub can't be reached.

    Args:
        name: OWNER/NAME; revision: None is the default branch; kind: model or dataset.

    Raises:
        Exception: one of huggingface_hub; `reason` makes a line of it.
    """
    key = f"{constants.ENDPOINT} {kind} {name} {revision or ''}"
    if key not in _commits:
        _commits[key] = HfApi().resolve_revision(name, revision=revision, repo_type=kind).resolved
        if (why := unreachable()) and not constants.is_offline_mode():
            say(f"the hub can't be reached ({why}); what is cached is used")
    return _commits[key]


def commits() -> dict[str, str]:
    """What `commit_of` found so far, for another process to `adopt`."""
    return dict(_commits)


def adopt(found: Mapping[str, str]) -> None:
    """Take branches and tags for the commits that another process found, which may have moved since."""
    _commits.update(found)


def snapshot(name: str, commit: str, choose: Callable[[list[str]], list[str]], kind: str = "model") -> Path:
    """The folder of a repository's files at a commit, fetched unless they are there.

    Args:
        choose: which of a repository's paths are wanted.

    Raises:
        Exception: one of huggingface_hub; `reason` makes a line of it.
    """
    fetched = functools.partial(snapshot_download, name, repo_type=kind, revision=commit)
    try:
        listed = get_cached_repo_tree(name, repo_type=kind, revision=commit)
    except CachedRepoTreeNotFoundError:
        try:
            below = HfApi().list_repo_tree(name, recursive=True, repo_type=kind, revision=commit)
            listed = [file for file in below if isinstance(file, RepoFile)]
        except OfflineModeIsEnabled:  # what another library has cached may do
            return Path(fetched(local_files_only=True))
    sizes = {file.path: file.size for file in listed}
    wanted = choose(list(sizes))
    fetched = functools.partial(fetched, allow_patterns=[glob.escape(path) for path in wanted])
    try:
        return Path(fetched(local_files_only=True))
    except LocalEntryNotFoundError:
        size = in_bytes(sum(sizes[path] for path in wanted))
        if unreachable() is None:
            say(f"fetching {name} at {commit[:12]} from the hub: {len(wanted)} files, {size}")
        before = _held(name, kind)
        with polled(f"fetching {name}", sum(sizes[path] for path in wanted), lambda: _held(name, kind) - before):
            return Path(fetched())


def _held(name: str, kind: str) -> float:
    """Bytes of a repository in the cache, parts of files that are being fetched among them."""
    blobs = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=kind), "blobs")
    sizes = [0]
    for path in blobs.glob("*"):
        with contextlib.suppress(OSError):  # it got its last name
            sizes.append(path.stat().st_size)
    return float(sum(sizes))


def check_upload(name: str) -> None:
    """See that `upload` may make this repository, before anything is computed.

    Raises:
        UserError: no OWNER/NAME, no token, one that is not known or may not write there; the hub can't be reached; the
            repository holds something.
    """
    owner, slash, rest = name.partition("/")
    if not slash or not re.fullmatch(r"[\w.-]+", owner) or not re.fullmatch(r"[\w.-]+", rest):
        raise UserError(f"export: found --push {name}; expected OWNER/NAME, a new repository of the hub")
    try:
        user = HfApi().whoami()
    except LocalTokenNotFoundError:
        raise UserError(
            "export: --push needs a token that may write: set HF_TOKEN, or log in by hf auth login"
        ) from None
    except Exception as error:
        raise _not_pushed(error, name) from None
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise UserError("export: the token may only read; --push needs one that may write, in HF_TOKEN")
    owners = [user["name"], *(org["name"] for org in user.get("orgs", []))]
    if owner not in owners:
        raise UserError(
            f"export: the token is of {owners[0]}, who may not push to {owner}; expected {' or '.join(owners)}"
        )
    try:
        held = [path for path in HfApi().list_repo_files(name) if path != ".gitattributes"]
    except RepositoryNotFoundError:
        return
    except Exception as error:
        raise _not_pushed(error, name) from None
    if held:
        raise UserError(f"export: {name} holds something already ({held[0]}); give a new name")


def upload(folder: Path, name: str, message: str) -> str:
    """Make a private repository, or take an empty one, and commit the files of a folder to it; the address of its page.

    Raises:
        UserError: as `check_upload`.
    """
    check_upload(name)
    try:
        api = HfApi()
        api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    except Exception as error:
        raise _not_pushed(error, name) from None
    return f"{constants.ENDPOINT}/{name}"


def _not_pushed(error: Exception, name: str) -> UserError:
    why = unreachable()
    told = reason(error, name) if why is None else f"the hub can't be reached: {why}"
    return UserError(f"export: {name} can't be pushed: {told}")


def reason(error: BaseException, name: str, revision: str | None = None, kind: str = "model") -> str:
    """One line that says why something is not to be had from the hub, without the token."""
    chain = list(itertools.islice(_causes(error), 20))

    def is_one(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in chain)

    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
    if is_one(GatedRepoError):
        return f"{name} is gated; accept its licence at {page} and set HF_TOKEN"
    if is_one(RepositoryNotFoundError):
        return f"the hub has no {kind} {name} (or HF_TOKEN may not see it)"
    if is_one(RevisionNotFoundError):
        return f'{name} has no revision "{revision or constants.DEFAULT_REVISION}" on the hub; see {page}/tree/main'
    status = next((cause.response.status_code for cause in chain if isinstance(cause, HfHubHTTPError)), None)
    if status == 401:
        return "the hub does not know the token in HF_TOKEN (or of hf auth login)"
    if status == 403:
        return "the token in HF_TOKEN (or of hf auth login) may not do that"
    why = unreachable()
    if why is not None and is_one(*UNHEARD):
        return f"{name} is not in the local cache and the hub can't be reached: {why}"
    if is_one(EntryNotFoundError) and not is_one(LocalEntryNotFoundError):
        return f"{name} lacks a file on the hub: {first_line(chain[0])}"  # pyright: ignore[reportArgumentType]
    line = next((first_line(cause) for cause in chain if isinstance(cause, Exception)), type(error).__name__)
    return re.sub(r"Bearer [^'\"]*|hf_\w{20,}", "(token)", f"{name} can't be read from the hub: {line}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@functools.cache
def say(line: str) -> None:
    """A line for the person at the terminal, once a process."""
    print(f"raypft: {line}", file=sys.stderr, flush=True)


def in_bytes(size: float) -> str:
    """A size as people write it: 0.3 MB, 2.3 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _why_away(host: str) -> str | None:
    since, why = _away.get(host, (float("-inf"), ""))
    return why if time.monotonic() - since < FORGOTTEN else None


def _client() -> httpx2.Client:
    """The client of huggingface_hub, bounded."""
    client = default_client_factory()
    client.send = functools.partial(_send, client.send)
    return client


def _send(
    send: Callable[..., httpx2.Response], request: httpx2.Request, stream: bool = False, **keywords: Any
) -> httpx2.Response:
    """`Client.send`, bounded as the module says."""
    host, reads = request.url.netloc.decode(), request.method in ("GET", "HEAD")
    why = _why_away(host)
    if why is not None:
        raise OfflineModeIsEnabled(why)
    given = request.extensions.get("timeout", {})
    waits = {"connect": CONNECT, "read": max(given.get("read") or 0, ANSWER if reads else WORK)}
    request.extensions["timeout"] = {**given, **waits}
    if time.monotonic() - _answered.get(host, float("-inf")) < TRUSTED or constants.is_offline_mode():
        return send(request, stream=stream, **keywords)
    call = functools.partial(send, request, stream=True, **keywords)
    try:
        response = _within(FIRST, call) if reads else call()
        if reads and response.status_code >= 500:
            response.close()
            raise TimeoutError(f"it answers {response.status_code}")
    except SILENT as error:
        why = f"{request.url.host}: {first_line(error)}"
        _away[host] = (time.monotonic(), why)
        raise OfflineModeIsEnabled(why) from error
    _answered[host] = time.monotonic()
    if not stream:
        response.read()
    return response


def _within(seconds: float, call: Callable[[], httpx2.Response]) -> httpx2.Response:
    """What a call gives or raises, or a TimeoutError: no library bounds how long a name is looked up."""
    done: queue.SimpleQueue[tuple[httpx2.Response | None, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            done.put((call(), None))
        except BaseException as error:
            done.put((None, error))

    threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True).start()
    try:
        response, error = done.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:.0f} seconds") from None
    if response is None:
        assert error is not None
        raise error
    return response


set_client_factory(_client)
logging.set_verbosity_error()
constants.HF_HUB_DISABLE_TELEMETRY = True  # for which it asks the hub before it asks for anything that is wanted
if os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") is None:
    disable_progress_bars()

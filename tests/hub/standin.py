"""A hub on this machine for tests: what huggingface_hub, transformers, peft and datasets ask of the real one, over HTTP
on loopback. Repositories are plain dictionaries, path to bytes; what was asked stands in `Hub.log`.

Not here: pages of listings, discussions, the Xet storage (switched off by `Hub.env` and `Hub.patch`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin", ".parquet", ".model", ".pt", ".gguf", ".h5", ".msgpack", ".onnx")
"""Endings of files that the hub keeps apart (LFS), under the sha256 of their content."""
DATE = "2024-01-01T00:00:00.000Z"


class Access(NamedTuple):
    """One request: path without its query, bytes of the answer's body, whether a token came along."""

    method: str
    path: str
    status: int
    sent: int
    token: str | None


@dataclass
class Repo:
    """commits: sha to path to content; refs: branch, tag or refs/… to sha; readers: tokens that see it where it is
    private or may read files where it is gated (its listing is open)."""

    name: str
    kind: str
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    readers: set[str] = field(default_factory=set)

    def commit(self, files: dict[str, bytes], revision: str) -> str:
        """Make a commit of exactly these files the head of a revision; its sha."""
        content = sorted((path, hashlib.sha256(value).hexdigest()) for path, value in files.items())
        sha = hashlib.sha1(repr((self.name, revision, len(self.commits), content)).encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.refs[revision] = sha
        return sha


class Failed(Exception):
    """An answer that is an error: status, code and message as the hub sends them."""

    def __init__(self, status: int, code: str | None, message: str) -> None:
        self.status, self.code, self.message = status, code, message


class Hub:
    """The running server.

    tokens: token to the user it belongs to, who may write below the user's name; readonly: those that may not;
    broken: a status that every request is answered with; slow: seconds before the last byte of a body.
    """

    def __init__(self, home: Path) -> None:
        self.home, self.repos, self.log = home, dict[tuple[str, str], Repo](), list[Access]()
        self.tokens: dict[str, str] = {}
        self.readonly: set[str] = set()
        self.blobs: dict[str, bytes] = {}
        self.broken: int | None = None
        self.slow = 0.0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def add(
        self, name: str, files: dict[str, bytes], revision: str = "main", kind: str = "models", **state: Any
    ) -> str:
        """Commit exactly these files to a revision of a repository, made where it is new; the commit's sha.

        Args:
            kind: models or datasets; state: gated, private, readers.
        """
        repo = self.repos.setdefault((kind, name), Repo(name, kind))
        for key, value in state.items():
            setattr(repo, key, value)
        return repo.commit(files, revision)

    def add_folder(self, name: str, folder: Path, revision: str = "main", kind: str = "models", **state: Any) -> str:
        """`add` of the files in a folder."""
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        return self.add(name, files, revision, kind, **state)

    def fetched(self) -> list[str]:
        """Files whose content was sent, in order: the path behind resolve/REVISION/."""
        got = [access.path for access in self.log if access.method == "GET" and access.status in (200, 206)]
        return [unquote(path.split("/resolve/", 1)[1].split("/", 1)[1]) for path in got if "/resolve/" in path]

    @property
    def env(self) -> dict[str, str]:
        """The whole environment of a process that has this hub, an empty cache below `home` and no token."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
        kept.pop("TRANSFORMERS_OFFLINE", None)
        return kept | {"HF_ENDPOINT": self.url, "HF_HOME": str(self.home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}

    def patch(self, monkeypatch: Any) -> None:
        """Make it the hub of this process, whose libraries read the environment when they were imported."""
        import huggingface_hub
        import transformers.utils.hub
        from datasets import config
        from huggingface_hub import constants, hf_api

        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        for name in ("HF_ENDPOINT", "HF_HOME", "HF_HUB_DISABLE_XET", "NO_PROXY"):
            monkeypatch.setenv(name, self.env[name])
        cache = str(self.home / "hub")
        now = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        }
        now |= {"HF_HOME": str(self.home), "HF_HUB_CACHE": cache, "HF_TOKEN_PATH": str(self.home / "token")}
        now |= {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
        for name, value in now.items():
            monkeypatch.setattr(constants, name, value)
        rows = {
            "HF_ENDPOINT": self.url,
            "HUB_DATASETS_URL": f"{self.url}/datasets/{{repo_id}}/resolve/{{revision}}/{{path}}",
        }
        rows |= {"HF_HUB_OFFLINE": False, "HF_DATASETS_OFFLINE": False, "HF_DATASETS_CACHE": self.home / "datasets"}
        rows |= {"HF_CACHE_HOME": str(self.home), "DOWNLOADED_DATASETS_PATH": self.home / "datasets" / "downloads"}
        for name, value in rows.items():
            monkeypatch.setattr(config, name, value)
        for api in (hf_api.api, transformers.utils.hub.hf_api()):
            monkeypatch.setattr(api, "endpoint", self.url)
        huggingface_hub.HfFileSystem.clear_instance_cache()


@contextmanager
def serving(home: Path) -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    hub = Hub(home)
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()


def blob_id(content: bytes) -> str:
    """Git's name of a content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def listed(path: str, content: bytes, commit: str) -> dict[str, Any]:
    """A file as listings show it."""
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
    entry["lastCommit"] = {"id": commit, "title": "commit", "date": DATE}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


def folders_of(files: dict[str, bytes]) -> list[str]:
    """Every folder that holds a file, however deep."""
    found = {parent.as_posix() for path in files for parent in Path(path).parents}
    return sorted(found - {"."})


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the terminal."""

    def do(self) -> None:
        """Answer any request."""
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ").strip() or None
        self.body = self._body()
        path, headers, body = urlsplit(self.path).path, dict[str, str](), b""
        try:
            status, headers, body = self._answer(path)
        except Failed as failed:
            status, body = failed.status, json.dumps({"error": failed.message}).encode()
            headers = {"X-Error-Message": failed.message} | ({"X-Error-Code": failed.code} if failed.code else {})
        sent = 0 if self.command == "HEAD" else len(body)
        self.hub.log.append(Access(self.command, path, status, sent, self.token))
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if sent:
            self.wfile.write(body[:-1])
            self.wfile.flush()
            time.sleep(self.hub.slow)
            self.wfile.write(body[-1:])

    do_GET = do_HEAD = do_POST = do_PUT = do  # the names that http.server looks for

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if self.hub.broken is not None:
            raise Failed(self.hub.broken, None, "out of order")
        if self.token is not None and self.token not in self.hub.tokens:
            raise Failed(401, None, "Invalid credentials in Authorization header")
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, answer in ROUTES:
            found = re.fullmatch(pattern, path)
            if wanted == method and found:
                answered = answer(self, **{name: unquote(value or "") for name, value in found.groupdict().items()})
                return answered if isinstance(answered, tuple) else (200, {}, json.dumps(answered).encode())
        raise Failed(404, None, f"no such address: {path}")

    def _repo(self, kind: str, name: str) -> Repo:
        repo = self.hub.repos.get((kind, name))
        if repo is None or (repo.private and self.token not in repo.readers):
            raise Failed(401 if self.token is None else 404, "RepoNotFound", "Repository not found")
        return repo

    def _files(self, kind: str, name: str, revision: str) -> tuple[Repo, str, dict[str, bytes]]:
        repo = self._repo(kind, name)
        commit = repo.refs.get(revision or "main", revision)
        if commit not in repo.commits:
            raise Failed(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo, commit, repo.commits[commit]

    def _writes(self, owner: str) -> str:
        if self.token is None:
            raise Failed(401, None, "Invalid username or password.")
        if self.hub.tokens[self.token] != owner or self.token in self.hub.readonly:
            raise Failed(403, None, f"You don't have the rights to create a model under the namespace {owner}")
        return self.token

    def info(self, kind: str, name: str, revision: str = "") -> Any:
        repo, commit, files = self._files(kind, name, revision)
        shown = {"id": name, "sha": commit, "private": repo.private, "gated": "manual" if repo.gated else False}
        siblings = [{"rfilename": path} for path in files]
        return {**shown, "tags": [], "downloads": 0, "likes": 0, "lastModified": DATE, "siblings": siblings}

    def tree(self, kind: str, name: str, revision: str, below: str = "") -> Any:
        _, commit, files = self._files(kind, name, revision)
        start = below.strip("/") + "/" if below.strip("/") else ""
        query = parse_qs(urlsplit(self.path).query)
        deep = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = [
            {"type": "directory", "path": path, "size": 0, "oid": blob_id(path.encode())} for path in folders_of(files)
        ]
        entries += [listed(path, content, commit) for path, content in files.items()]
        here = [e for e in entries if e["path"].startswith(start) and (deep or "/" not in e["path"][len(start) :])]
        if start and not here:
            raise Failed(404, "EntryNotFound", f"{below} does not exist on {revision}")
        return here

    def paths(self, kind: str, name: str, revision: str) -> Any:
        _, commit, files = self._files(kind, name, revision)
        asked = parse_qs(self.body.decode()).get("paths", [])
        folders = [{"type": "directory", "path": p, "size": 0, "oid": blob_id(p.encode())} for p in folders_of(files)]
        return [listed(p, files[p], commit) for p in asked if p in files] + [e for e in folders if e["path"] in asked]

    def refs(self, kind: str, name: str) -> Any:
        found = [
            {"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in self._repo(kind, name).refs.items()
        ]
        converted = [ref for ref in found if ref["name"].startswith("refs/")]
        return {"branches": [ref for ref in found if ref not in converted], "converts": converted, "tags": []}

    def resolve(self, kind: str, name: str, revision: str, file: str) -> Any:
        repo, commit, files = self._files(kind.strip("/") or "models", name, revision)
        if repo.gated and self.token not in repo.readers:
            raise Failed(403 if self.token else 401, "GatedRepo", f"Access to model {name} is restricted")
        if file not in files:
            raise Failed(404, "EntryNotFound", "Entry not found")
        content, entry = files[file], listed(file, files[file], commit)
        tag = entry.get("lfs", entry)["oid"]
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        headers |= {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(len(content))} if "lfs" in entry else {}
        headers["Content-Type"] = "application/octet-stream"
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return 200, headers, content
        first, last = wanted.groups()
        start = int(first) if first else max(0, len(content) - int(last))
        end = min(int(last) + 1, len(content)) if first and last else len(content)
        return 206, headers | {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}, content[start:end]

    def whoami(self) -> Any:
        if self.token is None:
            raise Failed(401, None, "Invalid username or password.")
        token = {"displayName": "test", "role": "read" if self.token in self.hub.readonly else "write"}
        auth = {"type": "access_token", "accessToken": token}
        return {"type": "user", "name": self.hub.tokens[self.token], "orgs": [], "auth": auth}

    def create(self) -> Any:
        wanted = json.loads(self.body)
        kind, owner = f"{wanted.get('type') or 'model'}s", wanted.get("organization") or self.whoami()["name"]
        token, name = self._writes(owner), f"{owner}/{wanted['name']}"
        if (kind, name) in self.hub.repos:
            raise Failed(409, None, "You already created this model repo")
        private = wanted.get("private") is True or wanted.get("visibility") == "private"
        self.hub.add(name, {".gitattributes": b""}, kind=kind, private=private, readers={token})
        return {"url": f"{self.hub.url}/{name}", "name": name, "id": name}

    def preupload(self, kind: str, name: str, revision: str) -> Any:
        self._files(kind, name, revision)
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        modes = [(path, "lfs" if path.endswith(LARGE) else "regular") for path in paths]
        return {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes]}

    def batch(self, kind: str, name: str) -> Any:
        self._writes(self._repo(kind.strip("/") or "models", name).name.split("/")[0])
        objects = json.loads(self.body)["objects"]
        for entry in objects:
            if entry["oid"] not in self.hub.blobs:
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/blobs/{entry['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    def store(self, oid: str) -> Any:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Failed(400, None, "the content has another sha256")
        self.hub.blobs[oid] = self.body
        return {}

    def commit(self, kind: str, name: str, revision: str) -> Any:
        repo, _, files = self._files(kind, name, revision)
        self._writes(name.split("/")[0])
        files = dict(files)
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(files, revision)
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"}

    def valid(self) -> Any:
        return {"errors": [], "warnings": []}

    def registry(self) -> Any:
        return {"standardEnvVars": [], "harnesses": {}}


_API = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
_AT = r"/(?P<revision>[^/]+)"
_FILES = r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", _API, _Handler.info),
    ("GET", f"{_API}/revision{_AT}", _Handler.info),
    ("GET", rf"{_API}/tree{_AT}(?P<below>/.*)?", _Handler.tree),
    ("POST", f"{_API}/paths-info{_AT}", _Handler.paths),
    ("GET", f"{_API}/refs", _Handler.refs),
    ("GET", rf"{_FILES}/resolve{_AT}/(?P<file>.+)", _Handler.resolve),
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", f"{_API}/preupload{_AT}", _Handler.preupload),
    ("POST", rf"{_FILES}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", "/blobs/(?P<oid>[0-9a-f]+)", _Handler.store),
    ("POST", f"{_API}/commit{_AT}", _Handler.commit),
    ("POST", "/api/validate-yaml", _Handler.valid),
    ("GET", "/api/agent-harnesses", _Handler.registry),
]

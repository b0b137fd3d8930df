"""A client of Ray's job server over its REST interface: where it is, which token opens it, one line for whatever fails.

Ray's own client takes the address from the environment over the one it is given, waits for ever for a silent server,
and tells failures as tracebacks.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from raypft.errors import UserError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
TIMEOUT_SECONDS = 30


class Unreachable(UserError):
    """No job server answers at the address."""

    code = 69


class Lost(UserError):
    """The job server went away while a job was followed."""

    code = 74


class Denied(UserError):
    """The job server wants another token."""

    code = 77


class NoJob(UserError):
    """The job server knows no job of that id."""


@dataclass(frozen=True)
class Address:
    """A job server's URL and where the user gave it."""

    url: str
    source: str


def find_address(given: str | None, cluster: Any = None) -> Address:
    """The address from --address, a definition of a cluster on this machine, or the environment; else Ray's default.

    Raises:
        UserError: an address of another protocol.
    """
    port = getattr(cluster, "dashboard_port", None)
    candidates = [
        (given, "--address"),
        (f"http://127.0.0.1:{port}" if port else None, f"cluster {getattr(cluster, 'name', '')}"),
    ]
    candidates += [(os.environ.get(key), f"${key}") for key in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")]
    url, source = next(((url, source) for url, source in candidates if url), (DEFAULT_ADDRESS, "the default"))
    url = url.rstrip("/")
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(
            f'address "{url}" ({source}): expected the job server\'s URL, e.g. {DEFAULT_ADDRESS}; give --address'
        )
    return Address(url, source)


def find_token() -> tuple[str | None, str]:
    """The token as Ray looks for it, and where it was found."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip(), "$RAY_AUTH_TOKEN"
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if path.is_file():
        return path.read_text().strip(), str(path)
    return None, f"no $RAY_AUTH_TOKEN and no file {path}"


class JobServer:
    """Ray's job server at an address.

    Args:
        address: where.
        insecure: send a token unencrypted to another machine.

    Raises:
        UserError: a token would travel unencrypted.
        Unreachable: nobody answers. Denied: the token is missing or wrong.
    """

    def __init__(self, address: Address, insecure: bool = False) -> None:
        self.address = address
        token, self.token_source = find_token()
        where = urlsplit(address.url)
        if token and where.scheme == "http" and where.hostname not in LOOPBACK and not insecure:
            raise UserError(
                f"address {address.url} ({address.source}): the token would travel unencrypted; "
                "use https, a tunnel to 127.0.0.1 (ray dashboard, kubectl port-forward, ssh -L), or --insecure"
            )
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.ray_version = self.ask("GET", "/api/version")["ray_version"]

    def ask(self, method: str, path: str, body: Any = None, raw: bytes | None = None) -> Any:
        """One request; the answer's JSON, or its text where it is none.

        Raises:
            Unreachable, Denied; UserError: what the server refused, in its last line.
        """
        data = json.dumps(body).encode() if body is not None else raw
        kind = (
            {"Content-Type": "application/json" if body is not None else "application/octet-stream"}
            if data is not None
            else {}
        )
        request = urllib.request.Request(
            self.address.url + path, data=data, method=method, headers={**self.headers, **kind}
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as error:
            raise self._refused(error.code, error.read().decode(errors="replace")) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise Unreachable(
                f"no job server at {self.address.url} ({self.address.source}): {reason}; "
                "is the head up? raypft cluster status"
            ) from None
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text

    def _refused(self, status: int, text: str) -> UserError:
        if status in (401, 403):
            token = "no token" if not self.headers else "a wrong token"
            return Denied(
                f"{self.address.url} answers {status}: {token} ({self.token_source}); "
                "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's"
            )
        lines = [line for line in text.strip().splitlines() if line.strip()] or ["no reason given"]
        return Refused(f"{self.address.url} answers {status}: {lines[-1].strip()}", status)

    def check_version(self) -> None:
        """Refuse a cluster of another Ray: jobs would fail later and less clearly.

        Raises:
            UserError: versions differ.
        """
        if self.ray_version != version("ray"):
            raise UserError(
                f"{self.address.url} runs Ray {self.ray_version}, here is {version('ray')}; "
                "install raypft with the cluster's version"
            )

    def job(self, job_id: str) -> dict[str, Any]:
        """Status, message, driver_exit_code, metadata … of a job.

        Raises:
            NoJob: no such job.
        """
        try:
            return self.ask("GET", f"/api/jobs/{quote(job_id, safe='')}")
        except Refused as error:
            if error.status == 404:
                raise NoJob(f'job "{job_id}": not on {self.address.url}; see raypft submit list') from None
            raise

    def jobs(self) -> list[dict[str, Any]]:
        """All submitted jobs, oldest first."""
        submitted = [job for job in self.ask("GET", "/api/jobs/") if job.get("submission_id")]
        return sorted(submitted, key=lambda job: job.get("start_time") or 0)

    def submit(self, request: dict[str, Any]) -> str:
        """Submit a job; its id."""
        return self.ask("POST", "/api/jobs/", request)["submission_id"]

    def stop(self, job_id: str) -> None:
        """Ask a job to stop: SIGTERM to it and its children, SIGKILL after its stop wait."""
        self.ask("POST", f"/api/jobs/{quote(job_id, safe='')}/stop")

    def log(self, job_id: str) -> str:
        """A job's whole output so far."""
        return self.ask("GET", f"/api/jobs/{quote(job_id, safe='')}/logs")["logs"]

    def upload(self, name: str, content: bytes) -> None:
        """Store a package, unless the cluster has it."""
        path = f"/api/packages/gcs/{name}"
        try:
            self.ask("GET", path)
        except Refused as error:
            if error.status != 404:
                raise
            self.ask("PUT", path, raw=content)

    async def tail(self, job_id: str) -> AsyncIterator[str]:
        """A job's output from its first byte, until it ends.

        Raises:
            ConnectionError: the connection broke before.
        """
        import aiohttp  # noqa: PLC0415  (comes with Ray's job server)

        try:
            async with (
                aiohttp.ClientSession(headers=self.headers) as session,
                session.ws_connect(
                    f"{self.address.url}/api/jobs/{quote(job_id, safe='')}/logs/tail", max_msg_size=0
                ) as socket,
            ):
                async for message in socket:
                    yield message.data
                if socket.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE or socket.exception():
                    raise ConnectionError(f"closed with code {socket.close_code}")
        except aiohttp.ClientError as error:
            raise ConnectionError(str(error)) from None


class Refused(UserError):
    """The job server understood and said no."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status

"""Whether a Ray cluster answers at an address; within seconds, and without Ray where none does."""

from __future__ import annotations

import os
import socket
from typing import Any, cast
from urllib.parse import urlsplit

from raypft.errors import UserError, first_line

ANSWER_SECONDS = 5
"""How long a cluster's address may take to answer."""
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
SETTINGS = b"\4"
"""What a client of HTTP/2, which Ray speaks, says first, and the type of the frame that answers it (RFC 9113, 3.4)."""


def check_address(address: str | None) -> None:
    """Raise a UserError where no Ray answers at a cluster's address: Ray would ask again for a quarter of an hour."""
    try:
        at = urlsplit(address if "://" in str(address) else f"//{address}")
        if not at.hostname or not at.port:
            return
        with socket.create_connection((str(at.hostname), at.port), timeout=ANSWER_SECONDS) as connection:
            if "RAY_USE_TLS" in os.environ:
                return
            connection.sendall(HELLO)
            if connection.recv(4)[3:] != SETTINGS:
                raise ValueError("something other than Ray listens there")
        if not at.scheme:
            _ask(str(address))
    except (OSError, ValueError) as error:
        raise no_cluster(address, str(error)) from None


def _ask(address: str) -> None:
    from ray import _raylet  # noqa: PLC0415  (only where something answers is ray loaded)
    from ray.exceptions import RayError  # noqa: PLC0415

    try:
        cast(Any, _raylet).GcsClient(address=address)
    except RayError as error:
        raise ValueError(first_line(error)) from None


def no_cluster(address: str | None, reason: str) -> UserError:
    """What is said where no cluster is at an address."""
    return UserError(
        f"RAY_ADDRESS: no Ray cluster at {address}: {reason}; start it, name another, or unset RAY_ADDRESS"
    )

"""The hub, whoever asks it: whether it answers, found out once a process, so that no one waits for it twice."""

from __future__ import annotations

import functools
import logging
import threading

from huggingface_hub import constants, get_session

from raypft.errors import first_line

TIMEOUT = 8.0
"""Seconds that the hub has to answer."""

_log = logging.getLogger("raypft")


def unreachable() -> str | None:
    """Why the hub can't be asked, None where it answers."""
    return "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else _tried(constants.ENDPOINT)


def tell_of_cache(why: str) -> None:
    """Say, once a process, that what is in the cache is used as the hub can't be asked; nothing where that is meant."""
    if not constants.is_offline_mode():
        _say(f"hub: {constants.ENDPOINT} can't be reached ({why}); what is in the cache is used")


@functools.cache
def _say(line: str) -> None:
    _log.warning(line)


@functools.cache
def _tried(endpoint: str) -> str | None:
    found: list[str | None] = []

    def try_it() -> None:
        try:
            status = get_session().head(endpoint, timeout=TIMEOUT).status_code
            found.append(f"it answers with status {status}" if status >= 500 else None)
        except Exception as error:  # those of the HTTP client, which are huggingface_hub's choice
            found.append(f"{type(error).__name__}: {first_line(error)}")

    # looking up a name knows no timeout
    thread = threading.Thread(target=try_it, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    return found[0] if found else f"no answer in {TIMEOUT:g} s"

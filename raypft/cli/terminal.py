"""The terminal a command runs in: what it can't show, what others would print into it, words that are no text."""

from __future__ import annotations

import codecs
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from raypft.errors import UserError


class Terminated(KeyboardInterrupt):
    """SIGTERM came: what a command does at Ctrl-C it does then."""


@contextmanager
def terminable() -> Iterator[None]:
    """In this context SIGTERM raises `Terminated` in the main thread."""

    def terminate(number: int, frame: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def quiet() -> None:
    """Progress belongs to raypft; the libraries' chatter stays off the terminal."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def speak_anyhow() -> None:
    """What the terminal's encoding can't show is printed as JSON escapes it, \\u00b1 for ±, which JSON lines allow."""

    def escaped(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)
        return json.dumps(error.object[error.start : error.end])[1:-1], error.end

    codecs.register_error("raypft", escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="raypft")


def check_words() -> None:
    """Read the words of the command as UTF-8, whatever the locale's encoding.

    Raises:
        UserError: bytes that are no UTF-8.
    """
    for number, word in enumerate(sys.argv[1:], 1):
        try:
            sys.argv[number] = os.fsencode(word).decode("utf-8")
        except UnicodeError:
            raise UserError(
                f"command: word {number}, {word!r}, holds bytes that are no UTF-8; expected UTF-8 text"
            ) from None


def say_interrupted(line: str, stop: KeyboardInterrupt) -> NoReturn:
    """Say what an interrupted command leaves and how it goes on, and exit as the shell expects it of Ctrl-C, or of
    SIGTERM."""
    print(f"raypft: interrupted; {line}; the same command (without --fresh) goes on", file=sys.stderr, flush=True)
    raise typer.Exit(143 if isinstance(stop, Terminated) else 130)

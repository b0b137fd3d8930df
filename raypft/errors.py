"""The one error a user meets: a line that says where, what was found, what was expected, what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

SECRET = re.compile(
    r"""(?ix)
    (?<= :// ) [^/@\s]* : [^@\s]* (?= @ )  # the user of a URI
    | (?<= [?&] ) (?: [^=&\s]* (?: sig | signature | token | credential | key ) = ) [^&\s]+  # a signed URI
    | (?: ^ | (?<= [-_.] ) ) (?: token | secret | password | passwd | api_?key | access_?key ) [= ] .+
    """
)
"""What must not be told of a command's word, or of an address."""


class UserError(ValueError):
    """Something the user can mend: a line, or several where `Faults` found them in one file.

    The command line prints them and exits with `code`.
    """

    code = 2


class Faults:
    """What is wrong with a file, collected so that it is told at once and not one line a start."""

    def __init__(self) -> None:
        self.lines: dict[str, None] = {}

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Keeps the lines of a UserError raised inside."""
        try:
            yield
        except UserError as error:
            self.add(str(error).split("\n"))

    def add(self, lines: Iterable[str]) -> None:
        """Keep lines, each once."""
        self.lines |= dict.fromkeys(lines)

    def tell(self) -> None:
        """Raise one UserError of all lines, where there are any."""
        if self.lines:
            raise UserError("\n".join(self.lines))


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean "x"? known: a, b, c`, for messages about an unknown name."""
    names = sorted(map(str, known))
    close = closest(name, names)
    hint = f'did you mean "{close}"? ' if close else ""
    return f"{hint}known: {', '.join(names) or 'none'}"


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is meant by a misspelt one, None where none is near."""
    return next(iter(difflib.get_close_matches(str(name), list(map(str, known)), n=1, cutoff=0.5)), None)


def visible(text: str) -> str:
    """A text whose control characters, which would command a terminal, are told as escapes; ends of lines and tabs
    stay."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def first_line(error: Exception) -> str:
    """What an error of another library says first, at most 200 characters; its type where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def without_secrets(text: str) -> str:
    """A text without the passwords, keys and tokens in it."""
    return SECRET.sub(_hidden, text)


def _hidden(secret: re.Match[str]) -> str:
    name, equals, _ = secret[0].partition("=")
    return f"{name}{equals}…" if equals else "…"

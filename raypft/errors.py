"""The one error a user meets: a line that says where, what was found, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can mend. The command line prints its line and exits with `code`."""

    code = 2


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean "x"? known: a, b, c`, for messages about an unknown name."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f'did you mean "{close[0]}"? ' if close else ""
    return f"{hint}known: {', '.join(names)}"


def first_line(error: Exception) -> str:
    """What an error of another library says first, at most 200 characters; its type where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__

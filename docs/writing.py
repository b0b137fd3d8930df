"""Pieces of Markdown."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a bar in a cell would end it."""
    lines = [" | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {line} |" for line in lines)])


def code(text: object, language: str = "") -> str:
    """A block of code."""
    return f"```{language}\n{str(text).strip()}\n```"


def inline(value: object) -> str:
    """A value as code, nothing for no value."""
    return f"`{value}`" if str(value) else ""


def prose(text: str | None) -> str:
    """A docstring's text: what looks like a tag is none."""
    return re.sub(r"<(?=[\w/])", "&lt;", inspect.cleandoc(text or ""))

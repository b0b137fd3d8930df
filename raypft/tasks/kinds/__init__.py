"""The kinds of tasks: `kind: tags` is tags.py."""

from __future__ import annotations

from raypft.tasks.kinds.base import Kind
from raypft.tasks.kinds.choice import Choice
from raypft.tasks.kinds.mlm import MaskedText
from raypft.tasks.kinds.span import Span
from raypft.tasks.kinds.tags import Tags
from raypft.tasks.kinds.text import Text

__all__ = ["KINDS", "Kind"]

KINDS: dict[str, Kind] = {kind.name: kind for kind in (Choice(), Tags(), Span(), Text(), MaskedText())}
"""Name to kind; the order is that of messages."""

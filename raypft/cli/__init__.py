"""The command line: words in, lines out."""

from __future__ import annotations

from raypft.cli.app import app, main

__all__ = ["app", "main"]

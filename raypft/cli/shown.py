"""What commands print: tables, and lines of what was found out."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from raypft.errors import visible

console = Console(markup=False, emoji=False)  # [b] in a path or an answer is no style
Json = Annotated[bool, typer.Option("--json", help="Print JSON lines instead of text.")]


def print_table(table: Any) -> None:
    """A report table: as one where a terminal is wide enough for its words and numbers, else as Markdown."""
    shown = RichTable(title=Text(visible(table.title)), title_justify="left")
    for i, column in enumerate(table.columns):
        shown.add_column(Text(visible(column)), justify="left" if i == 0 else "right")
    for row in table.rows:
        shown.add_row(*(Text(visible(cell)) for cell in row))
    least = console.measure(shown, options=console.options.update(max_width=sys.maxsize)).minimum
    if not console.is_terminal or least > console.width:
        print(table.markdown(), end="")
        return
    console.print(shown)
    for note in table.notes:
        console.print(f"- {visible(note)}", highlight=False, style="dim", soft_wrap=True)


def print_found(found: dict[str, Any], as_json: bool) -> None:
    """What was found out: its lines for a person, or all of it as JSON."""
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        for line in found["lines"]:
            console.print(visible(line), highlight=False, soft_wrap=True)

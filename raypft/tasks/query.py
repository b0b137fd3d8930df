"""What a row becomes before it is cut into tokens: pieces of text with marks, shared demonstrations first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Row = Mapping[str, object]


@dataclass(frozen=True)
class Piece:
    """One part of a prompt.

    kind: "text", "slot", "soft", "sep" or "tokens" (already cut into `tokens`); mark: the name under which the position
    of its first token is recorded; field: its text is a field's, the only text that may be shortened; count: number of
    soft tokens.
    """

    kind: str
    text: str = ""
    mark: str | None = None
    field: bool = False
    count: int = 1
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class Demonstration:
    """A labelled training row that stands before every query, `label` a label name."""

    row: Row
    label: str
    language: str


@dataclass(frozen=True)
class Query:
    """The pieces of one prompt: shared demonstrations first, then the row's own."""

    demos: tuple[Piece, ...]
    pieces: tuple[Piece, ...]

    def about(self, word: str) -> Query:
        """The query about a word, of one whose "word" pieces are empty but for the blank before them."""
        pieces = list(self.pieces)
        for place, piece in enumerate(pieces):
            if piece.mark == "word":
                pieces[place] = Piece("text", piece.text + word, mark="word", field=True)
        return Query(self.demos, tuple(pieces))

"""The text side of causal language models (GPT-2, Llama, Qwen, Gemma)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from raypft.backbones.text import PromptError, PromptTokenizer
from raypft.encoded import Encoded
from raypft.tasks.query import Piece, Query

ANCHORS = ("\n", ":", ".", "1")
"""What a text may be tokenized after; the first that a tokenizer keeps apart from it is taken."""
DEMO_SHARE = 0.75
"""At most this share of max_tokens goes to the demonstrations, which are cut to it once, the same in every prompt."""


class CausalTokenizer(PromptTokenizer):
    """Demonstrations stand before the query; <slot> must end the pattern and takes no token, <sep> is a line break."""

    family = "causal"
    takes_demos = True

    def __init__(self, *arguments, **keywords) -> None:
        super().__init__(*arguments, **keywords)
        self._demos: dict[tuple[tuple[Piece, ...], int], tuple[list[int], dict[str, list[int]]]] = {}
        plain = self.tokenizer("a", return_special_tokens_mask=True)
        special = plain["special_tokens_mask"]
        self._begin = plain["input_ids"][: special.index(0) if 0 in special else 0]
        # Llama-2's tokenizer puts a blank before every text; behind something else it does not
        self._anchors = [anchor for anchor in ANCHORS if self._keeps_away_blanks(anchor)] if self._adds_blank() else []
        self._folds = self._cut("a\nb") == self._cut("a b")
        """Whether line breaks are blanks to the tokenizer."""
        self.cuts_apart = not self._folds  # where it does, a blank goes from piece to piece

    def _cut(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _adds_blank(self) -> bool:
        return self.tokenizer.convert_ids_to_tokens(self._cut("a"))[0].startswith("▁")

    def _keeps_away_blanks(self, anchor: str) -> bool:
        ids, bare, blank = self._cut(anchor), self._cut(anchor + "a"), self._cut(anchor + " a")
        return bool(ids) and bare != blank and bare[: len(ids)] == blank[: len(ids)] == ids

    def _anchor(self, text: str) -> tuple[str, int]:
        for anchor in self._anchors:
            ids = self._cut(anchor)
            if self._cut(anchor + text)[: len(ids)] == ids:  # the text's beginning did not grow into it
                return anchor, len(ids)
        return "", 0

    def tokens_of(self, text: str) -> list[int]:
        anchor, size = self._anchor(text)
        return self._cut(anchor + text)[size:]

    def word_ids(self, word: str, blank: str) -> list[int]:
        return self.tokenize(blank + word)

    def special(self, piece: Piece) -> list[int]:
        if piece.kind == "slot":
            return []
        if piece.kind == "sep":
            return [] if self._folds else self.tokenize("\n")
        return [self.filler] * piece.count

    def spaced(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The pieces as they are; where line breaks are blanks, a break between two pieces goes to the second as a
        blank, since alone it makes no token."""
        if not self._folds:
            return list(pieces)
        made: list[Piece] = []
        blank = True
        for piece in pieces:
            if piece.kind != "text":
                made.append(piece)
                blank = blank or piece.kind == "sep"
                continue
            text = (" " if blank else "") + piece.text
            made.append(replace(piece, text=text.rstrip()))
            blank = text[-1:].isspace()
        return [piece for piece in made if piece.text or piece.mark or piece.kind != "text"]

    def encode(self, query: Query, key: str = "", language: str = "", max_tokens: int = 128) -> Encoded:
        if any(piece.kind == "slot" for piece in query.pieces[:-1]):
            raise PromptError(
                "slot", "a causal model reads the answer at the end; <slot> must be the last part of the pattern's text"
            )
        demos, marks = self._demo_tokens(query.demos, max_tokens)
        start = len(self._begin) + len(demos)
        where = f"the pattern (row {key})" if key else "the pattern"
        pieces = self.spaced(query.pieces)
        ids = self.shorten(pieces, max_tokens - start, where)
        asked, asked_marks = self.place(pieces, ids, start)
        tokens = self._begin + demos + asked
        words = [piece for piece in query.pieces if piece.mark == "slot" and piece.kind == "text"]
        slots = asked_marks["slot"] if words else [len(tokens) - 1]
        marks = {**marks, **asked_marks, "slot": slots}
        return Encoded(
            key, language, tokens, [0] * len(tokens), marks, gold=[-1] * len(slots), demo_tokens=start if demos else 0
        )

    def _demo_tokens(self, pieces: tuple[Piece, ...], max_tokens: int) -> tuple[list[int], dict[str, list[int]]]:
        if (pieces, max_tokens) not in self._demos:
            spaced = self.spaced(pieces)
            ids = self.shorten(spaced, int(max_tokens * DEMO_SHARE), "the demonstrations")
            self._demos = {(pieces, max_tokens): self.place(spaced, ids, len(self._begin))}
        return self._demos[pieces, max_tokens]

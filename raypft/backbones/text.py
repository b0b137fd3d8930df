"""The text side of a backbone: from a query to tokens with marks, from tokens back to text. It needs no weights.

Families differ in how they tokenize and lay out a prompt; each has its subclass in its own file.
"""

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from raypft.encoded import Encoded
from raypft.errors import UserError
from raypft.tasks.query import Piece, Query

FAST = {name: getattr(PreTrainedTokenizerFast, name) for name in ("encode", "_encode_plus")}
REMEMBERED = 1 << 15
"""Texts whose tokens are remembered at most: a sentence is asked for once a word, its words again in others."""


class PromptError(UserError):
    """A prompt that a model can't take. `about` says what is wrong with it, so that who knows the key to set can name
    it: "length", "slot" or "demonstrations"."""

    def __init__(self, about: str, message: str) -> None:
        super().__init__(message)
        self.about = about


def plain(tokenizer: Any) -> Any:
    """The tokenizers library's own object behind a tokenizer that adds nothing to it, in a fraction of the time; None
    where it does."""
    adds = [name for name in ("encode", "_encode_plus") if getattr(type(tokenizer), name, 0) is not FAST[name]]
    if adds:
        return None
    tokenizer.encode("a", add_special_tokens=False)  # which puts off the padding and cutting that a file may ask for
    return tokenizer.backend_tokenizer


class PromptTokenizer(ABC):
    """A model's tokenizer and what its family makes of prompts.

    Args:
        tokenizer: the model's tokenizer.
        config: the model's transformers configuration.
        source: the folder it was read from, None for a model made in memory; heads read their weights there.
        revision: what identifies the weights (hub commit or content hash).
        hub: the id of the hub model that the folder is a copy of.
    """

    family: str
    cuts_apart: bool = True
    """Whether the tokens of a piece do not depend on the pieces beside it."""
    takes_demos: bool = False
    """Whether a prompt may begin with demonstrations."""

    def __init__(
        self, tokenizer, config, source: str | None = None, revision: str = "in memory", hub: str | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.source = source
        self.revision = revision
        self._known: dict[str, list[int]] = {}
        self._plain = plain(tokenizer)
        self.hub = hub

    @property
    def pad(self) -> int:
        """The token id that fills batches; 0 where the tokenizer names none, since no one looks there."""
        return self.tokenizer.pad_token_id or 0

    @property
    def filler(self) -> int:
        """The token id that stands where a method puts a vector of its own."""
        named = (self.tokenizer.unk_token_id, self.tokenizer.eos_token_id, self.tokenizer.mask_token_id)
        return next((token for token in named if token is not None), 0)

    @property
    def vocab_size(self) -> int:
        """V, the rows of the model's embedding."""
        return self.config.vocab_size

    # what families differ in

    @abstractmethod
    def word_ids(self, word: str, blank: str) -> list[int]:
        """Token ids of a label word where it stands in a prompt, after `blank`."""

    @abstractmethod
    def special(self, piece: Piece) -> list[int]:
        """The token ids of a "slot", "soft" or "sep" piece."""

    @abstractmethod
    def encode(self, query: Query, key: str = "", language: str = "", max_tokens: int = 128) -> Encoded:
        """Tokens of a query with the position of every mark; its slots have no gold yet.

        Raises:
            PromptError: the prompt does not fit `max_tokens` even with its fields cut to one token; or it has what this
                family can't take.
        """

    def encode_words(
        self, query: Query, words: Sequence[str], key: str = "", language: str = "", max_tokens: int = 128
    ) -> list[Encoded]:
        """What `encode` gives of a query about each of some words. Their prompts differ in the tokens of the word
        alone, as long as none is cut: these are put in the place of another's.

        Raises:
            PromptError: see `encode`.
        """
        made, asked = list[Encoded](), [piece.text for piece in query.pieces if piece.mark == "word"]
        apart, shown, around = self.cuts_apart and len(asked) == 1, None, 0
        for word in words:
            ids = (self.tokenize(asked[0] + word) or [self.filler]) if apart else []
            if shown is not None and around + len(ids) <= max_tokens:
                made.append(_with_word(shown, ids, len(shown.ids) - around))
                continue
            made.append(self.encode(query.about(word), key, language, max_tokens))
            if apart and len(made[-1].ids) < max_tokens:
                shown, around = made[-1], len(made[-1].ids) - len(ids)
        return made

    def tokens_of(self, text: str) -> list[int]:
        """Token ids of a text inside a prompt, without special tokens, found anew."""
        if self._plain is None:
            return self.tokenizer.encode(text, add_special_tokens=False)
        return self._plain.encode(text, add_special_tokens=False).ids

    # shared by the families

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text inside a prompt, without special tokens; of texts met before they are remembered."""
        ids = self._known.get(text)
        if ids is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            ids = self._known[text] = self.tokens_of(text)
        return ids.copy()

    def _anchor(self, text: str) -> tuple[str, int]:
        """What a text is tokenized after, where the tokenizer would put a blank before it, and how many tokens that is;
        they are dropped again."""
        return "", 0

    def offsets(self, text: str) -> tuple[list[int], list[int], list[int]]:
        """Token ids of a text as `tokenize` gives them, and the characters [start, end) of it that each stands for,
        without the blanks that some tokenizers count to the word after them.

        Raises:
            UserError: the tokenizer knows no places.
        """
        if not self.tokenizer.is_fast:
            raise UserError(
                f"backbone: {type(self.tokenizer).__name__} does not say which characters a token stands for, which "
                "passages need; choose a backbone with a tokenizer.json"
            )
        anchor, size = self._anchor(text)
        anchored = anchor + text
        tokenized = self.tokenizer(anchored, add_special_tokens=False, return_offsets_mapping=True)
        ids, spans = tokenized["input_ids"][size:], tokenized["offset_mapping"][size:]
        if not ids:  # as in `_ids`
            ids, spans = [self.filler], [(len(anchor), len(anchored))]
        starts = [end - len(anchored[start:end].lstrip()) for start, end in spans]
        ends = [end for _, end in spans]
        for i, limit in enumerate([*starts[1:], len(anchored)]):
            # a normaliser that joins e and its accent gives the place of the e alone
            while ends[i] < limit and unicodedata.combining(anchored[ends[i]]):
                ends[i] += 1
        return ids, [start - len(anchor) for start in starts], [end - len(anchor) for end in ends]

    def shorten(self, pieces: Sequence[Piece], budget: int, where: str) -> list[list[int]]:
        """Token ids per piece, fields cut at their end until all fit `budget`: the longest first, the last of equals,
        one token at a time; a queried word only when no field has more than one token left.

        Differs: the released codes of ProFiT, ToPro and Zhao & Schuetze cut the longer segment; of two fields in one
        segment (ProFiT pattern 0, SP, DP, MP) they cut the last one first, down to nothing.

        Raises:
            PromptError: literals and one token per field alone need more than `budget`.
        """
        ids = [self._ids(piece) for piece in pieces]
        total = sum(map(len, ids))
        while total > budget:
            longer = [(piece, tokens) for piece, tokens in zip(pieces, ids, strict=True) if len(tokens) > 1]
            fields = [tokens for piece, tokens in longer if piece.field and piece.mark != "word"]
            words = [tokens for piece, tokens in longer if piece.mark == "word"]
            if not fields and not words:
                raise PromptError(
                    "length",
                    f"{where} needs {total} tokens for its fixed parts; only {budget} are left; raise max_tokens",
                )
            max(reversed(fields or words), key=len).pop()
            total -= 1
        return ids

    def place(
        self, pieces: Sequence[Piece], ids: Sequence[list[int]], start: int
    ) -> tuple[list[int], dict[str, list[int]]]:
        """Join the pieces' tokens; positions of marks count from `start`."""
        joined: list[int] = []
        marks: dict[str, list[int]] = {}
        for piece, tokens in zip(pieces, ids, strict=True):
            if piece.mark:
                count = piece.count if piece.kind == "soft" else 1
                at = start + len(joined)
                marks.setdefault(piece.mark, []).extend(range(at, at + count))
            joined += tokens
        return joined, marks

    def _ids(self, piece: Piece) -> list[int]:
        if piece.kind == "tokens":
            return list(piece.tokens)
        if piece.kind != "text":
            return self.special(piece)
        # a marked piece must have a token to stand at, even where the tokenizer drops all of its characters
        return self.tokenize(piece.text) or ([self.filler] if piece.mark else [])


def _with_word(prompt: Encoded, ids: list[int], size: int) -> Encoded:
    """A prompt with other tokens in the place of its word, which is `size` tokens."""
    (at,), further = prompt.marks["word"], len(ids) - size
    end, marks = at + size, dict[str, list[int]]()
    for mark, places in prompt.marks.items():
        inside = not (prompt.target and mark == "slot")  # else they are places in the target
        marks[mark] = [place + further if inside and place > at else place for place in places]
    segments = prompt.segments[:at] + prompt.segments[at : at + 1] * len(ids) + prompt.segments[end:]
    return prompt.but(ids=prompt.ids[:at] + ids + prompt.ids[end:], segments=segments, marks=marks)

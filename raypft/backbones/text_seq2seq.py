"""The text side of text-to-text models (T5, mT5): <slot> is the first sentinel."""

from __future__ import annotations

from collections.abc import Sequence

from raypft.backbones.text import PromptError, PromptTokenizer
from raypft.encoded import Encoded
from raypft.errors import UserError
from raypft.tasks.query import Piece, Query

SENTINEL = "<extra_id_0>"


class Seq2SeqTokenizer(PromptTokenizer):
    """<slot> is the first sentinel; <sep> is the end token that T5 puts between two texts."""

    family = "seq2seq"

    def __init__(self, *arguments, **keywords) -> None:
        super().__init__(*arguments, **keywords)
        if self.tokenizer.eos_token_id is None:
            raise UserError(f"backbone: the tokenizer of {self.source} has no end token; expected T5's </s>")
        if getattr(self.config, "decoder_start_token_id", None) is None:
            raise UserError(
                f"backbone: config.json of {self.source} has no decoder_start_token_id, which a decoder begins with; "
                "expected T5's, the id of its padding"
            )
        alone = self.tokenize(SENTINEL)
        self._sentinel = alone[-1] if self.tokenizer.decode(alone[-1:]).strip() == SENTINEL else None

    def word_ids(self, word: str, blank: str) -> list[int]:
        return self.tokenize(" " + word)

    def special(self, piece: Piece) -> list[int]:
        if piece.kind == "sep":
            return [self.tokenizer.eos_token_id]
        if piece.kind == "soft":
            return [self.filler] * piece.count
        if self._sentinel is None:
            raise PromptError(
                "slot",
                f"the tokenizer of {self.source} has no {SENTINEL}, which <slot> stands for; use a pattern without "
                "<slot> and readout=text",
            )
        return [self._sentinel]

    def encode(self, query: Query, key: str = "", language: str = "", max_tokens: int = 128) -> Encoded:
        if query.demos:
            raise PromptError(
                "demonstrations",
                "a text-to-text model takes no demonstrations; use a causal backbone, or a pattern without <demos>",
            )
        where = f"the pattern (row {key})" if key else "the pattern"
        ids, marks = self.place(query.pieces, self.shorten(query.pieces, max_tokens - 1, where), 0)
        ids.append(self.tokenizer.eos_token_id)
        start = self.config.decoder_start_token_id
        asks = any(piece.kind == "slot" for piece in query.pieces)
        target = [start, self._sentinel] if asks else [start]
        return Encoded(
            key, language, ids, [0] * len(ids), {**marks, "slot": [len(target) - 1]}, gold=[-1], target=target
        )

    def answer_ids(self, text: str) -> list[int]:
        """What the decoder should say for a text, its end included."""
        return [*self.tokenize(text), self.tokenizer.eos_token_id]

    def answer_texts(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """What the decoder said, up to its end."""
        end = self.tokenizer.eos_token_id
        cut = [list(row[: row.index(end)] if end in row else row) for row in ids]
        return [text.strip() for text in self.tokenizer.batch_decode(cut, skip_special_tokens=True)]

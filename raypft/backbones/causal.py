"""Causal language models (GPT-2, Llama, Qwen, Gemma): the answer is read at the last token of the prompt."""

from __future__ import annotations

from torch import nn

from raypft.backbones.base import Backbone
from raypft.backbones.masked import sequence_classifier
from raypft.backbones.text import PromptError, PromptTokenizer
from raypft.batch import Batch
from raypft.encoded import Encoded
from raypft.tasks.query import Piece, Query

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
        self._begin = plain["input_ids"][: special.index(0)]
        # Llama-2's tokenizer puts a blank before every text; a line break before it keeps that blank away from ours
        first = self.tokenizer.convert_ids_to_tokens(self.tokenizer.encode("a", add_special_tokens=False))[0]
        self._anchor = "\n" if first.startswith("▁") else ""
        self._anchor_size = len(self.tokenizer.encode(self._anchor, add_special_tokens=False)) if self._anchor else 0

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer.encode(self._anchor + text, add_special_tokens=False)[self._anchor_size :]

    def word_ids(self, word: str, blank: str) -> list[int]:
        return self.tokenize(blank + word)

    def special(self, piece: Piece) -> list[int]:
        if piece.kind == "slot":
            return []
        if piece.kind == "sep":
            return self.tokenize("\n")
        filler = self.tokenizer.unk_token_id
        return [self.tokenizer.eos_token_id if filler is None else filler] * piece.count

    def encode(self, query: Query, key: str = "", language: str = "", max_tokens: int = 128) -> Encoded:
        if any(piece.kind == "slot" for piece in query.pieces[:-1]):
            raise PromptError(
                "slot", "a causal model reads the answer at the end; <slot> must be the last part of the pattern's text"
            )
        demos, marks = self._demo_tokens(query.demos, max_tokens)
        start = len(self._begin) + len(demos)
        where = f"the pattern (row {key})" if key else "the pattern"
        ids = self.shorten(query.pieces, max_tokens - start, where)
        asked, asked_marks = self.place(query.pieces, ids, start)
        tokens = self._begin + demos + asked
        words = [piece for piece in query.pieces if piece.mark == "slot" and piece.kind == "text"]
        slots = asked_marks["slot"] if words else [len(tokens) - 1]
        marks = {**marks, **asked_marks, "slot": slots}
        return Encoded(
            key, language, tokens, [0] * len(tokens), marks, gold=[-1] * len(slots), demo_tokens=start if demos else 0
        )

    def _demo_tokens(self, pieces: tuple[Piece, ...], max_tokens: int) -> tuple[list[int], dict[str, list[int]]]:
        if (pieces, max_tokens) not in self._demos:
            budget = int(max_tokens * DEMO_SHARE)
            ids = self.shorten(pieces, budget, "the demonstrations")
            self._demos = {(pieces, max_tokens): self.place(pieces, ids, len(self._begin))}
        return self._demos[pieces, max_tokens]


class CausalBackbone(Backbone):
    """A decoder."""

    family = CausalTokenizer.family
    outputs = (("attn.c_proj", "mlp.c_proj"), ("self_attn.o_proj", "mlp.down_proj"))

    def arguments(self, batch: Batch) -> dict:
        return {"use_cache": False}

    @property
    def language_model_head(self) -> nn.Module:
        return self.decoder

    def head(self, num_labels: int) -> nn.Module:
        return sequence_classifier(self, num_labels).get_submodule("score")

"""The text side of masked language models (BERT, RoBERTa, XLM-R)."""

from __future__ import annotations

from raypft.backbones.text import PromptError, PromptTokenizer
from raypft.encoded import Encoded
from raypft.errors import UserError
from raypft.tasks.query import Piece, Query


class MaskedTokenizer(PromptTokenizer):
    """<slot> is the mask token; pieces after <sep> are the second segment of the pair."""

    family = "masked"

    def __init__(self, *arguments, **keywords) -> None:
        super().__init__(*arguments, **keywords)
        pair = self.tokenizer("a", "b", return_special_tokens_mask=True)
        ids, special = pair["input_ids"], pair["special_tokens_mask"]
        of_text = [i for i, is_special in enumerate(special) if not is_special]
        if len(of_text) < 2:
            raise UserError(
                f"backbone: the tokenizer of {self.source} makes no tokens of letters; expected the model's own"
            )
        size = len(self.tokenize("a"))
        first, second = of_text[0], of_text[size]
        self._mask = self.tokenizer.mask_token_id
        self._begin = ids[:first]
        self._between = ids[first + size : second]
        self._end = ids[of_text[-1] + 1 :]
        self._second_segment = pair["token_type_ids"][second] if "token_type_ids" in pair else 0

    def word_ids(self, word: str, blank: str) -> list[int]:
        return self.tokenize(" " + word)

    def special(self, piece: Piece) -> list[int]:
        if piece.kind == "sep":
            return self._between
        mask = self._mask
        if piece.kind == "slot" and mask is None:
            raise PromptError(
                "slot", f"the tokenizer of {self.source} has no mask token, which <slot> stands for; use readout=head"
            )
        return [self.filler if mask is None else mask] * piece.count

    def encode(self, query: Query, key: str = "", language: str = "", max_tokens: int = 128) -> Encoded:
        if query.demos:
            raise PromptError(
                "demonstrations",
                "a masked model takes no demonstrations; use a causal backbone, or a pattern without <demos>",
            )
        budget = max_tokens - len(self._begin) - len(self._end)
        ids = self.shorten(query.pieces, budget, f"the pattern (row {key})" if key else "the pattern")
        body, marks = self.place(query.pieces, ids, len(self._begin))
        marks.setdefault("slot", [0])
        split = next((i for i, piece in enumerate(query.pieces) if piece.kind == "sep"), len(ids))
        first_size = len(self._begin) + sum(map(len, ids[: split + 1]))
        tokens = self._begin + body + self._end
        first_size = min(first_size, len(tokens))
        segments = [0] * first_size + [self._second_segment] * (len(tokens) - first_size)
        if split == len(ids):
            segments = [0] * len(tokens)
        return Encoded(key, language, tokens, segments, marks, gold=[-1] * len(marks["slot"]))

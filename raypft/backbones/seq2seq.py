"""Text-to-text models (T5, mT5): the encoder reads the prompt, the answer is read in the decoder.

With <slot> the prompt holds the first sentinel and the decoder is asked what stands there: its slot is the position of
the sentinel, whose next token is the word. Without <slot> the decoder is asked from its start; a readout gives it
targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from raypft.backbones.attention import find_attention
from raypft.backbones.base import Backbone
from raypft.backbones.text import PromptError, PromptTokenizer
from raypft.batch import Batch
from raypft.encoded import Encoded
from raypft.tasks.query import Piece, Query

SENTINEL = "<extra_id_0>"


class Seq2SeqTokenizer(PromptTokenizer):
    """<slot> is the first sentinel; <sep> is the end token that T5 puts between two texts."""

    family = "seq2seq"

    def __init__(self, *arguments, **keywords) -> None:
        super().__init__(*arguments, **keywords)
        self._sentinel = self.tokenizer.convert_tokens_to_ids(SENTINEL)

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def word_ids(self, word: str, blank: str) -> list[int]:
        return self.tokenize(" " + word)

    def special(self, piece: Piece) -> list[int]:
        if piece.kind == "sep":
            return [self.tokenizer.eos_token_id]
        return [self._sentinel if piece.kind == "slot" else self.tokenizer.unk_token_id] * piece.count

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


class ScaledHead(nn.Module):
    """The output embedding behind the scaling that T5's tied form has."""

    decoder: nn.Module

    def __init__(self, decoder: nn.Module, scale: float) -> None:
        super().__init__()
        self.__dict__["decoder"] = decoder  # a plain reference: it is the model's
        self.scale = scale

    def forward(self, states: Tensor) -> Tensor:
        return self.decoder(states * self.scale)


class Seq2SeqBackbone(Backbone):
    """An encoder and a decoder; layers are counted in the encoder."""

    family = Seq2SeqTokenizer.family
    _head: ScaledHead

    def __init__(self, *arguments, **keywords) -> None:
        super().__init__(*arguments, **keywords)
        scaled = getattr(self.config, "scale_decoder_outputs", False)
        vars(self)["_head"] = ScaledHead(self.decoder, self.hidden**-0.5 if scaled else 1.0)

    def arguments(self, batch: Batch) -> dict:
        return {}

    @property
    def attentions(self) -> list[nn.Module]:
        """The encoder's self-attentions, then the decoder's."""
        blocks = [*self._blocks_of("encoder"), *self._blocks_of("decoder")]
        return [find_attention(block) for block in blocks]

    @property
    def key_shape(self) -> tuple[int, int]:
        return self.config.num_heads, self.config.d_kv

    @property
    def language_model_head(self) -> nn.Module:
        return self._head

    def _find_blocks(self) -> nn.ModuleList:
        return self._blocks_of("encoder")

    def _blocks_of(self, side: str) -> nn.ModuleList:
        return cast(nn.ModuleList, self.model.get_submodule(f"{side}.block"))

    def _run(self, states: Tensor, batch: Batch) -> Tensor:
        """The decoder's states, [B, U, H]."""
        encoded = self.model.get_submodule("encoder")(inputs_embeds=states, attention_mask=batch.mask).last_hidden_state
        decoded = self.model.get_submodule("decoder")(
            input_ids=batch.target, encoder_hidden_states=encoded, encoder_attention_mask=batch.mask, use_cache=False
        )
        return decoded.last_hidden_state

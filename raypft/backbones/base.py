"""A pretrained model with its tokenizer: from a query to tokens with marks, from a batch to the states at its slots.

Methods touch it through the seams of `seams.py` only; families (masked, causal, seq2seq) are subclasses.
"""

from __future__ import annotations

import contextlib
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from raypft.backbones.frozen_states import FrozenStates
from raypft.backbones.seams import Seams
from raypft.batch import Batch
from raypft.encoded import Encoded
from raypft.errors import UserError
from raypft.tasks.query import Piece, Query


class ColumnLinear(nn.Linear):
    """The output embedding, able to compute only some vocabulary columns.

    It stays a module of the model (its class is exchanged, its parameters are not), so that ZeRO-3 gathers its weight.
    """

    columns: Tensor | None = None

    def forward(self, states: Tensor) -> Tensor:
        """[S, H] -> [S, n] for n chosen columns, [S, V] where none are chosen."""
        if self.columns is None:
            return super().forward(states)
        bias = None if self.bias is None else self.bias[self.columns]
        return functional.linear(states, self.weight[self.columns], bias)


class _Below(nn.Module):
    """Stands in for a block whose output is already known."""

    def forward(self, states: Tensor, *_, **__) -> Tensor:
        return states


class Backbone(Seams, ABC):
    """One pretrained model with its tokenizer.

    Args:
        model: a transformers model with a language-model head.
        tokenizer: its tokenizer.
        source: the folder or hub id it was read from, None for a model made in memory; heads read their weights there.
        revision: what identifies the weights (hub commit or content hash).
    """

    family: str
    _anchor: str = ""
    """What every text is tokenized after, where a tokenizer would put a blank before it; its tokens are dropped again."""
    _anchor_size: int = 0
    decoder: ColumnLinear

    def __init__(self, model: nn.Module, tokenizer, source: str | None = None, revision: str = "in memory") -> None:
        model.get_output_embeddings().__class__ = ColumnLinear
        super().__init__(model)
        self.tokenizer = tokenizer
        self.source = source
        self.revision = revision
        self.frozen_states = FrozenStates(self.lower, 0 if tokenizer is None else self.pad)

    @property
    def pad(self) -> int:
        """The token id that fills batches; 0 where the tokenizer names none, since no one looks there."""
        return self.tokenizer.pad_token_id or 0

    # what families differ in

    @abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text inside a prompt, without special tokens."""

    def offsets(self, text: str) -> tuple[list[int], list[int], list[int]]:
        """Token ids of a text as `tokenize` gives them, and the characters [start, end) of it that each stands for, without the
        blanks that some tokenizers count to the word after them."""
        anchored = self._anchor + text
        found = self.tokenizer(anchored, add_special_tokens=False, return_offsets_mapping=True)
        ids, spans = found["input_ids"][self._anchor_size :], found["offset_mapping"][self._anchor_size :]
        if not ids:  # as in `_text_ids`
            ids, spans = [self.tokenizer.unk_token_id or 0], [(len(self._anchor), len(anchored))]
        starts = [end - len(anchored[start:end].lstrip()) for start, end in spans]
        ends = [end for _, end in spans]
        for i, limit in enumerate([*starts[1:], len(anchored)]):
            # a normaliser that joins e and its accent gives the place of the e alone
            while ends[i] < limit and unicodedata.combining(anchored[ends[i]]):
                ends[i] += 1
        return ids, [start - len(self._anchor) for start in starts], [end - len(self._anchor) for end in ends]

    @abstractmethod
    def word_ids(self, word: str, blank: str) -> list[int]:
        """Token ids of a label word where it stands in a prompt, after `blank`."""

    @abstractmethod
    def encode(self, query: Query, key: str = "", language: str = "", max_tokens: int = 128) -> Encoded:
        """Tokens of a query with the position of every mark; its slots have no gold yet.

        Raises:
            UserError: the prompt does not fit `max_tokens` even with its fields cut to one token.
        """

    @abstractmethod
    def arguments(self, batch: Batch) -> dict:
        """What the model's body is called with beside embeddings and mask."""

    def head(self, num_labels: int) -> nn.Module:
        """The family's own classification head, [S, H] -> [S, C], equal to AutoModelForSequenceClassification's.

        Raises:
            UserError: the family has none.
        """
        raise UserError(
            f"readout: {self.family} models have no classification head; use readout=verbalizer or readout=text"
        )

    def word_head(self, num_labels: int) -> nn.Module:
        """Dropout and a linear layer, [S, H] -> [S, C], as AutoModelForTokenClassification has them."""
        rate = next(
            (
                getattr(self.config, key)
                for key in ("classifier_dropout", "hidden_dropout_prob")
                if getattr(self.config, key, None) is not None
            ),
            0.1,
        )
        linear = nn.Linear(self.hidden, num_labels)
        nn.init.normal_(linear.weight, std=getattr(self.config, "initializer_range", 0.02))
        nn.init.zeros_(linear.bias)
        return nn.Sequential(nn.Dropout(rate), linear)

    @property
    @abstractmethod
    def language_model_head(self) -> nn.Module:
        """The module from states to vocabulary scores, [S, H] -> [S, V]."""

    # running

    def forward(self, batch: Batch) -> Tensor:
        """The states at the slots after all blocks, [S, H]."""
        hidden = self.body(batch)
        return hidden[batch.slots[:, 0], batch.slots[:, 1]]

    def body(self, batch: Batch, after: int | None = None) -> Tensor:
        """The states of all tokens after all blocks, [B, T, H]; blocks below `batch.lower` are not run.

        Args:
            after: how many blocks those are; those below the first layer seam where None.
        """
        self._batch = batch
        if batch.lower is None:
            states = self.model.get_input_embeddings()(batch.ids)
            for module in self._embed_seams:
                states = module(states, batch)
            return self._run(states, batch)
        cut = after or min(self._layer_seams)
        states = batch.lower.to(self.dtype)
        with self._known_below(cut, states):
            return self._run(states, batch)

    @torch.no_grad()
    def lower(self, batch: Batch, layer: int, after: int = 0) -> Tensor:
        """The states after `layer` blocks, [B, T, H], in eval mode and before any layer seam; the blocks above are not run.

        Args:
            after: how many blocks stand behind `batch.lower`, and are not run either; 0 where it is None.
        """
        self.check_layer(layer)
        kept: list[Tensor] = []
        handle = self._blocks[layer - 1].register_forward_hook(lambda _, __, output: kept.append(output), prepend=True)
        training, self.training = self.training, False
        self.model.eval()
        try:
            with self._replaced(range(layer, self.num_layers)), self._seams_off():
                self.body(batch, after)
        finally:
            handle.remove()
            self.train(training)
        return kept[0]

    def vocabulary_scores(self, states: Tensor, columns: Tensor | None = None) -> Tensor:
        """[S, H] -> [S, n] scores of the given vocabulary columns [n] (all V where None)."""
        self.decoder.columns = columns
        try:
            scores = self.language_model_head(states)
        finally:
            self.decoder.columns = None
        cap = getattr(self.config, "final_logit_softcapping", None)
        return scores if cap is None else cap * torch.tanh(scores / cap)

    # inside

    def _run(self, states: Tensor, batch: Batch) -> Tensor:
        positions = {}
        if self._positions_taken:
            first = self.first_position + self._positions_taken
            positions["position_ids"] = torch.arange(first, first + states.shape[1], device=states.device).expand(
                len(states), -1
            )
        return self.model.base_model(
            inputs_embeds=states, attention_mask=batch.mask, **positions, **self.arguments(batch)
        ).last_hidden_state

    @contextlib.contextmanager
    def _replaced(self, layers: Sequence[int]) -> Iterator[None]:
        """The blocks with these 0-based numbers pass their input on."""
        saved = [self._blocks[i] for i in layers]
        for i, block in zip(layers, saved, strict=True):
            stand_in = _Below()
            stand_in.__dict__.update({k: v for k, v in vars(block).items() if k in ("attention_type", "layer_type")})
            self._blocks[i] = stand_in
        try:
            yield
        finally:
            for i, block in zip(layers, saved, strict=True):
                self._blocks[i] = block

    @contextlib.contextmanager
    def _known_below(self, cut: int, states: Tensor) -> Iterator[None]:
        """The first `cut` blocks give `states`, then the seams of that layer."""
        with self._replaced(range(cut)):
            self._blocks[cut - 1].register_forward_hook(lambda _, __, ___: self._through_seams(cut, states))
            yield

    @contextlib.contextmanager
    def _seams_off(self) -> Iterator[None]:
        seams, self._layer_seams = self._layer_seams, {}
        try:
            yield
        finally:
            self._layer_seams = seams

    # shortening, shared by the families

    def shorten(self, pieces: Sequence[Piece], budget: int, where: str) -> list[list[int]]:
        """Token ids per piece, fields cut at their end until all fit `budget`: the longest first, one token at a time; a
        queried word only when no field has more than one token left.

        Raises:
            UserError: literals and one token per field alone need more than `budget`.
        """
        ids = [self._ids(piece) for piece in pieces]
        total = sum(map(len, ids))
        while total > budget:
            fields = [
                i for piece, i in zip(pieces, ids, strict=True) if piece.field and len(i) > 1 and piece.mark != "word"
            ]
            words = [i for piece, i in zip(pieces, ids, strict=True) if piece.mark == "word" and len(i) > 1]
            if not fields and not words:
                raise UserError(
                    f"train.max_tokens: {where} needs {total} tokens for its fixed parts; only {budget} are left; raise max_tokens"
                )
            max(fields or words, key=len).pop()
            total -= 1
        return ids

    def _ids(self, piece: Piece) -> list[int]:
        if piece.kind == "tokens":
            return list(piece.tokens)
        if piece.kind != "text":
            return self.special(piece)
        # a marked piece must have a token to stand at, even where the tokenizer drops all of its characters
        return self.tokenize(piece.text) or ([self.tokenizer.unk_token_id or 0] if piece.mark else [])

    @abstractmethod
    def special(self, piece: Piece) -> list[int]:
        """The token ids of a "slot", "soft" or "sep" piece."""

    def place(
        self, pieces: Sequence[Piece], ids: Sequence[list[int]], start: int
    ) -> tuple[list[int], dict[str, list[int]]]:
        """Join the pieces' tokens; positions of marks count from `start`."""
        joined: list[int] = []
        marks: dict[str, list[int]] = {}
        for piece, own in zip(pieces, ids, strict=True):
            if piece.mark:
                count = piece.count if piece.kind == "soft" else 1
                at = start + len(joined)
                marks.setdefault(piece.mark, []).extend(range(at, at + count))
            joined += own
        return joined, marks

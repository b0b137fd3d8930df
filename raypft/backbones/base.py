"""The model side of a backbone: from a batch to the states at its slots, and the heads that read them.

Methods touch it through the seams of `seams.py` only; families (masked, causal, seq2seq) are subclasses.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from raypft.backbones.frozen_states import FrozenStates
from raypft.backbones.seams import Seams
from raypft.backbones.text import PromptTokenizer
from raypft.batch import Batch


class ColumnLinear(nn.Linear):
    """The output embedding, able to compute only some vocabulary columns.

    It stays a module of the model (its class is exchanged, its parameters are not), so that ZeRO-3 gathers its weight.
    """

    columns: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        """[S, H] -> [S, n] for n chosen columns, [S, V] where none are chosen."""
        if self.columns is None:
            return super().forward(input)
        bias = None if self.bias is None else self.bias[self.columns]
        return functional.linear(input, self.weight[self.columns], bias)


class _Below(nn.Module):
    """Stands in for a block whose output is already known."""

    def forward(self, states: Tensor, *_, **__) -> Tensor:
        return states


class Backbone(Seams, ABC):
    """One pretrained model, and its text side beside.

    Args:
        model: a transformers model with a language-model head.
        text: what makes its prompts; None where the model is only run.
    """

    family: str
    text: PromptTokenizer
    """None where the model is only run; typed as if it never were, since all but tests of the model have one."""

    def __init__(self, model: PreTrainedModel, text: PromptTokenizer | None = None) -> None:
        cast(nn.Module, model.get_output_embeddings()).__class__ = ColumnLinear
        super().__init__(model)
        self.text = cast(PromptTokenizer, text)
        self.frozen_states = FrozenStates(self.lower, self.pad)

    @property
    def pad(self) -> int:
        """The token id that fills batches; 0 without a text side, since no one looks there."""
        return 0 if self.text is None else self.text.pad

    @property
    def source(self) -> str | None:
        """The folder or hub id the model was read from, None for one made in memory."""
        return None if self.text is None else self.text.source

    @property
    def revision(self) -> str:
        """What identifies the weights (hub commit or content hash)."""
        return "in memory" if self.text is None else self.text.revision

    # what families differ in

    @abstractmethod
    def arguments(self, batch: Batch) -> dict:
        """What the model's body is called with beside embeddings and mask."""

    def head(self, num_labels: int) -> nn.Module | None:
        """The family's own classification head, [S, H] -> [S, C], equal to AutoModelForSequenceClassification's; None
        where it has none."""
        return None

    def word_head(self, num_labels: int) -> nn.Module:
        """Dropout and a linear layer, [S, H] -> [S, C], as AutoModelForTokenClassification has them."""
        rates = [getattr(self.config, key, None) for key in ("classifier_dropout", "hidden_dropout_prob")]
        rate = next((rate for rate in rates if rate is not None), 0.1)
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
        """The states after `layer` blocks, [B, T, H], in eval mode and before any layer seam; the blocks above are not
        run.

        Args:
            after: how many blocks stand behind `batch.lower`, and are not run either; 0 where it is None.
        """
        self.check_layer(layer)
        kept: list[Tensor] = []

        def keep(_block: nn.Module, _inputs: tuple, output: Tensor) -> None:
            kept.append(output)

        handle = self._blocks[layer - 1].register_forward_hook(keep, prepend=True)
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
        decoder = cast(ColumnLinear, self.decoder)
        decoder.columns = columns
        try:
            scores = self.language_model_head(states)
        finally:
            decoder.columns = None
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

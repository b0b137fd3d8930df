"""Causal language models (GPT-2, Llama, Qwen, Gemma): the answer is read at the last token of the prompt."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from raypft.backbones.base import Backbone
from raypft.backbones.heads import new_linear
from raypft.backbones.text_causal import CausalTokenizer
from raypft.batch import Batch, Beginning, collate
from raypft.encoded import Encoded
from raypft.errors import UserError


class CausalBackbone(Backbone):
    """A decoder."""

    family = CausalTokenizer.family
    outputs = (
        ("attn.c_proj", "mlp.c_proj"),
        ("self_attn.o_proj", "mlp.down_proj"),
        ("self_attn.o_proj", "feed_forward.down_proj"),
        ("self_attn.dense", "mlp.fc2"),
        ("attention.dense", "mlp.dense_4h_to_h"),
        ("self_attention.dense", "mlp.dense_4h_to_h"),
        ("self_attn.out_proj", "fc2"),
    )

    @property
    def state_size(self) -> int:
        return self.decoder.in_features

    def __init__(self, *arguments, **keywords) -> None:
        self._cache: DynamicCache | None = None
        super().__init__(*arguments, **keywords)

    def arguments(self, batch: Batch) -> dict:
        cache = self._cache if batch.beginning is None else copies(batch.beginning.cache, len(batch.ids))
        return {"use_cache": False} if cache is None else {"use_cache": True, "past_key_values": cache}

    @property
    def takes_beginnings(self) -> bool:
        return self._can_begin and self.shortcuts and self.seams_take_beginnings

    @torch.no_grad()
    def begin(self, batch: Batch, layer: int | None = None, after: int = 0) -> Beginning:
        cache, before = DynamicCache(config=self.config), dict[nn.Module, Tensor]()
        self._cache, self._before = cache, before
        try:
            states = self.body(batch) if layer is None else self.lower(batch, layer, after)
        finally:
            self._cache = self._before = None
        length = batch.ids.shape[1]
        for block in cache.layers:
            if not isinstance(block, DynamicLayer):
                raise TypeError(f"{type(block).__name__} keeps no keys and values")
            if block.keys is None:  # a block that did not run; a model asks the first how much is known
                block.keys = block.values = states.new_zeros(1, 1, 1, 1).expand(1, 1, length, 1)
                block.is_initialized = True
                if isinstance(block, DynamicSlidingWindowLayer):
                    block.cumulative_length = length
        return Beginning(length, states, before, cache)

    @torch.no_grad()
    def _goes_on_behind_a_beginning(self) -> bool:
        """Whether the states of a text's end are the same where its beginning was run before (transformers keeps keys
        and values of most decoders, but not what a state-space part knows)."""
        if self.on_meta or self._blocks is None:
            return False
        self.model.eval()
        some = [3 + (7 * place) % max(1, self.config.vocab_size - 3) for place in range(8)]
        made = [Encoded(f"en/{size}", "en", some[:size], [0] * size, {"slot": [size - 1]}) for size in (8, 6)]
        device = self.decoder.weight.device
        whole = collate(made, 0).to(device)
        try:
            beginning = self.begin(collate([made[0].until(3)], 0).to(device))
            rest = collate([prompt.behind(3) for prompt in made], 0, beginning=beginning).to(device)
            apart = self.body(whole)[:, 3:] - self.body(rest)
        except Exception:  # whatever a model raises that keeps something else
            return False
        prompts, places = whole.slots.unbind(1)
        apart = apart[prompts, places - 3]
        return float(apart.abs().max()) <= 1e-5 * float(beginning.states.abs().max())

    def whole_model(self, batch: Batch) -> Tensor:
        return self.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits

    def head(self, num_labels: int) -> nn.Module:
        """The linear layer that transformers' classifiers call `score`; a new one for a model type that has none."""
        model = self._classifier(num_labels)
        if model is None:
            return new_linear(self.state_size, self.config, num_labels, bias=False)
        score = getattr(model, "score", None)
        if not isinstance(score, nn.Linear):
            raise UserError(
                f"readout: {type(model).__name__} is no linear layer on the last token, the only one of a decoder that "
                "has seen the text; choose another backbone, or readout=verbalizer"
            )
        return score


def copies(cache: DynamicCache, size: int) -> DynamicCache:
    """A cache of one prompt for so many; what is added to it is not added to the other."""
    made = copy.copy(cache)
    made.layers = [copy.copy(block) for block in cache.layers]
    blocks: list[Any] = made.layers
    for block in blocks:
        block.keys, block.values = (kept.expand(size, -1, -1, -1) for kept in (block.keys, block.values))
    return made

"""Text-to-text models (T5, mT5): the encoder reads the prompt, the answer is read in the decoder.

With <slot> the prompt holds the first sentinel and the decoder is asked what stands there: its slot is the position of
the sentinel, whose next token is the word. Without <slot> the decoder is asked from its start; a readout gives it
targets.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from raypft.backbones.attention import find_attention
from raypft.backbones.base import Backbone
from raypft.backbones.heads import given_states
from raypft.backbones.text_seq2seq import Seq2SeqTokenizer
from raypft.batch import Batch, Beginning


class Seq2SeqBackbone(Backbone):
    """An encoder and a decoder; layers are counted in the encoder."""

    family = Seq2SeqTokenizer.family

    def arguments(self, batch: Batch) -> dict:
        return {}

    @property
    def stacks(self) -> list[nn.ModuleList]:
        """The encoder's blocks, then the decoder's."""
        return [self._blocks_of("encoder"), self._blocks_of("decoder")]

    @property
    def attentions(self) -> list[nn.Module]:
        """The encoder's self-attentions, then the decoder's."""
        blocks = [*self._blocks_of("encoder"), *self._blocks_of("decoder")]
        return [find_attention(block) for block in blocks]

    def output_names(self) -> list[tuple[str, str]]:
        """The encoder's blocks, then the decoder's."""
        names = []
        for side, last in (("encoder", 1), ("decoder", 2)):
            for i in range(len(self._blocks_of(side))):
                block = f"{side}.block.{i}.layer"
                names.append((f"{block}.0.SelfAttention.o", f"{block}.{last}.DenseReluDense.wo"))
        return names

    @property
    def key_shape(self) -> tuple[int, int]:
        return self.config.num_heads, self.config.d_kv

    def own_scores(self, states: Tensor) -> Tensor:
        with given_states(self.model, "decoder", states.unsqueeze(0)):
            some_ids = torch.zeros((1, len(states)), dtype=torch.long, device=states.device)
            known = BaseModelOutput(last_hidden_state=cast(torch.FloatTensor, states.unsqueeze(0)))
            return self.model.forward(encoder_outputs=known, decoder_input_ids=some_ids).logits[0]

    def whole_model(self, batch: Batch) -> Tensor:
        return self.model(input_ids=batch.ids, attention_mask=batch.mask, decoder_input_ids=batch.target).logits

    def _find_blocks(self) -> nn.ModuleList:
        return self._blocks_of("encoder")

    def _blocks_of(self, side: str) -> nn.ModuleList:
        return cast(nn.ModuleList, self.model.get_submodule(f"{side}.block"))

    def _find_embedding(self) -> nn.Module:
        return self.model.get_encoder().get_input_embeddings()

    @torch.no_grad()
    def encode(self, batch: Batch) -> Beginning:
        self._batch, self._before_embedding = batch, True
        with self._sparse_put():
            states = self._encoded(batch)
        return Beginning(0, states, {}, EncoderDecoderCache(DynamicCache(), DynamicCache()))

    def _run(self, batch: Batch) -> Tensor:
        """The decoder's states, [B, U, H]."""
        if batch.beginning is None:
            encoded, kept = self._encoded(batch), {"use_cache": False}
        else:
            self._before_embedding = False  # the encoder's embeddings are behind
            encoded, kept = batch.beginning.states, {"use_cache": True, "past_key_values": batch.beginning.cache}
        decoded = self.model.get_submodule("decoder")(
            input_ids=batch.target, encoder_hidden_states=encoded, encoder_attention_mask=batch.mask, **kept
        )
        return decoded.last_hidden_state

    def _encoded(self, batch: Batch) -> Tensor:
        return self.model.get_submodule("encoder")(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state

"""Masked language models (BERT, RoBERTa, XLM-R): the answer is read at the mask token, a head reads the first token."""

from __future__ import annotations

import functools

from torch import Tensor, nn

from raypft.backbones.base import Backbone
from raypft.backbones.heads import ClassificationHead
from raypft.backbones.text_masked import MaskedTokenizer
from raypft.batch import Batch
from raypft.errors import UserError


class MaskedBackbone(Backbone):
    """A model with a masked-language-model head."""

    family = MaskedTokenizer.family
    outputs = (
        ("attention.output.dense", "output.dense"),
        ("attn.Wo", "mlp.Wo"),
        ("self_attn.o_proj", "mlp.down_proj"),
        ("attention.out_lin", "ffn.lin2"),
    )

    def __init__(self, *arguments, **keywords) -> None:
        super().__init__(*arguments, **keywords)
        if not self.takes("attention_mask"):
            raise UserError(
                f"backbone: model type {self.config.model_type} is not supported: it has no attention mask, so that "
                "the scores of a text depend on the texts beside it in a batch; choose another backbone"
            )
        named = [module for name, module in self.model.named_modules() if name.endswith("position_embeddings")]
        padding = [module.padding_idx for module in named if isinstance(module, nn.Embedding)]
        # RoBERTa's positions start after its padding id, BERT's at 0
        self.first_position = padding[0] + 1 if padding and padding[0] is not None else 0

    @functools.cached_property
    def takes_segments(self) -> bool:
        """Whether the model knows a second segment; an XLM would add the embeddings of words 0 and 1."""
        return self.takes("token_type_ids") and getattr(self.config, "type_vocab_size", 0) > 1

    def arguments(self, batch: Batch) -> dict:
        return {"token_type_ids": batch.segments} if self.takes_segments else {}

    def whole_model(self, batch: Batch) -> Tensor:
        return self.model(input_ids=batch.ids, attention_mask=batch.mask, **self.arguments(batch)).logits

    def head(self, num_labels: int) -> nn.Module | None:
        model = self._classifier(num_labels)
        return None if model is None else ClassificationHead(model)

"""Masked language models (BERT, RoBERTa, XLM-R): the answer is read at the mask token, a head reads the first token."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from raypft.backbones.base import Backbone
from raypft.backbones.text import PromptError, PromptTokenizer
from raypft.batch import Batch
from raypft.encoded import Encoded
from raypft.tasks.query import Piece, Query


class MaskedTokenizer(PromptTokenizer):
    """<slot> is the mask token; pieces after <sep> are the second segment of the pair."""

    family = "masked"

    def __init__(self, *arguments, **keywords) -> None:
        super().__init__(*arguments, **keywords)
        pair = self.tokenizer("a", "b", return_special_tokens_mask=True)
        special = pair["special_tokens_mask"]
        first, second = (i for i, is_special in enumerate(special) if not is_special)
        self._begin = pair["input_ids"][:first]
        self._between = pair["input_ids"][first + 1 : second]
        self._end = pair["input_ids"][second + 1 :]
        self._second_segment = pair["token_type_ids"][second] if "token_type_ids" in pair else 0

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def word_ids(self, word: str, blank: str) -> list[int]:
        return self.tokenize(" " + word)

    def special(self, piece: Piece) -> list[int]:
        if piece.kind == "sep":
            return self._between
        return [self.tokenizer.mask_token_id] * piece.count

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


class MaskedBackbone(Backbone):
    """A model with a masked-language-model head."""

    family = MaskedTokenizer.family
    outputs = (("attention.output.dense", "output.dense"),)

    def __init__(self, *arguments, **keywords) -> None:
        super().__init__(*arguments, **keywords)
        named = [module for name, module in self.model.named_modules() if name.endswith("position_embeddings")]
        padding = [module.padding_idx for module in named if isinstance(module, nn.Embedding)]
        # RoBERTa's positions start after its padding id, BERT's at 0
        self.first_position = padding[0] + 1 if padding and padding[0] is not None else 0

    def arguments(self, batch: Batch) -> dict:
        return {"token_type_ids": batch.segments}

    @property
    def language_model_head(self) -> nn.Module:
        return self.model.get_submodule("cls" if hasattr(self.model, "cls") else "lm_head")

    def head(self, num_labels: int) -> nn.Module:
        return ClassificationHead(sequence_classifier(self, num_labels))


class ClassificationHead(nn.Module):
    """BERT's pretrained pooler, dropout and classifier; RoBERTa's dense, tanh and classifier."""

    def __init__(self, classifier_model: PreTrainedModel) -> None:
        super().__init__()
        pooler: nn.Module | None = getattr(classifier_model.base_model, "pooler", None)
        self.pooler = pooler
        self.dropout = classifier_model.get_submodule("dropout") if pooler is not None else None
        self.classifier = classifier_model.get_submodule("classifier")

    def forward(self, states: Tensor) -> Tensor:
        """[S, H] -> [S, C]."""
        first = states.unsqueeze(1)
        if self.pooler is None or self.dropout is None:
            return self.classifier(first)
        return self.classifier(self.dropout(self.pooler(first)))


def sequence_classifier(backbone: Backbone, num_labels: int) -> PreTrainedModel:
    """The family's AutoModelForSequenceClassification, read where the backbone was read; what is not stored there is
    new."""
    config = type(backbone.config).from_dict({**backbone.config.to_dict(), "num_labels": num_labels})
    if backbone.source is None:
        return AutoModelForSequenceClassification.from_config(config)
    return AutoModelForSequenceClassification.from_pretrained(backbone.source, config=config, dtype=torch.float32)

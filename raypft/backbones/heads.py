"""The model's own code behind its body: from states to vocabulary scores, and the family's classification heads.

What stands between the last block and the scores differs from family to family (a transform, a multiplier, a cap, a
bias, a matrix shared with the embedding) and is nowhere said in a configuration. So it is not written again here: the
body is exchanged for a stand-in that gives states which are known already, and the model's own forward does the rest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from raypft.backbones.checkpoint import as_stored, in_fp32, keys_of
from raypft.errors import UserError


class ColumnLinear(nn.Linear):
    """The output embedding, able to compute only some vocabulary columns.

    It stays a module of the model (its class is exchanged, its parameters are not), so that ZeRO-3 gathers its weight.
    """

    columns: Tensor | None = None
    adds_to_embedding: bool = False
    """Whether the weight is the input embedding's, whose gradient that of the columns is added to where they are."""

    def forward(self, input: Tensor) -> Tensor:
        """[S, H] -> [S, n] for n chosen columns, [S, V] where none are chosen."""
        if self.columns is None:
            return super().forward(input)
        bias = None if self.bias is None else self.bias[self.columns]
        weight = functional.embedding(self.columns, self.weight, sparse=self.adds_to_embedding)
        return functional.linear(input, weight, bias)


class _Known(BaseModelOutputWithPoolingAndCrossAttentions):
    """A body's output of which only the states, and what is pooled from them, are known."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class GivenStates(nn.Module):
    """Stands where a model's body stands and gives `states`, [B, T, H]; everything else of the body is the body's."""

    states: Tensor

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.__dict__["body"] = body  # a plain reference: it is the model's

    def __getattr__(self, name: str) -> Any:
        # OPT's head calls the decoder inside its body
        return self if name == "decoder" else getattr(self.__dict__["body"], name)

    def forward(self, *_: Any, **__: Any) -> _Known:
        parts = vars(self.body)["_modules"]
        pooler, activation = parts.get("pooler"), parts.get("pooler_activation")
        pooled = None
        if pooler is not None:  # ALBERT's is a linear layer, its activation beside it
            pooled = pooler(self.states) if activation is None else activation(pooler(self.states[:, 0]))
        return _Known(last_hidden_state=self.states, pooler_output=pooled)


@contextlib.contextmanager
def given_states(model: nn.Module, body: str, states: Tensor) -> Iterator[None]:
    """While open, the child `body` of a model gives these states, [B, T, H]."""
    kept = model._modules[body]
    assert kept is not None
    stand_in = GivenStates(kept)
    stand_in.states = states
    model._modules[body] = stand_in
    try:
        yield
    finally:
        model._modules[body] = kept


class ClassificationHead(nn.Module):
    """What a transformers model for classification has behind its body, called as that model calls it.

    Its parameters stand under the names they have in that model, and the body's pooler, where the head reads it, under
    `pooler`.

    Args:
        model: of AutoModelForSequenceClassification or AutoModelForTokenClassification; its body is given up.

    Raises:
        UserError: the model's scores of a short text are others, so it reads more than the states of single tokens.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        model.eval()
        states, expected = _scored(model)
        left = nn.Module()
        for name, child in head_parts(model).items():
            self.add_module(name, child)
            if name.startswith("pooler"):
                left.add_module(name, child)
        model._modules[model.base_model_prefix] = left
        self.__dict__["model"] = model  # a plain reference: the modules above are its own
        if expected is not None:
            with torch.no_grad():
                found = self(states[: len(expected)])
            if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3):
                raise UserError(
                    f"readout: the head of {type(model).__name__} reads more than the state of one token; it is not "
                    "supported; choose another backbone, or readout=verbalizer"
                )

    def forward(self, states: Tensor) -> Tensor:
        """States of the token that is read, [S, H] -> [S, C]."""
        model: PreTrainedModel = self.__dict__["model"]
        with given_states(model, model.base_model_prefix, states.unsqueeze(1)):
            some_ids = torch.zeros((len(states), 1), dtype=torch.long, device=states.device)
            return model.forward(input_ids=some_ids).logits.view(len(states), -1)


def head_parts(model: PreTrainedModel) -> dict[str, nn.Module]:
    """What a model for classification has behind its body, and the body's pooler, by their own names."""
    of_body = {name: part for name, part in model.base_model.named_children() if name.startswith("pooler")}
    return of_body | {name: part for name, part in model.named_children() if name != model.base_model_prefix}


@torch.no_grad()
def _scored(model: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """The states of a short text by a model's body, [T, H], and the scores of the whole model, of a text [1, C] or of
    its tokens [T, C]; None on the meta device."""
    ids = torch.tensor([[3, 4, 5]], device=next(model.parameters()).device)
    if ids.is_meta:
        return ids, None
    with in_fp32(model):
        states = model.base_model(input_ids=ids).last_hidden_state[0]
        return states, model(input_ids=ids).logits.flatten(0, -2)


FIRST_TOKEN = {"modernbert": "cls", "eurobert": "bos"}
"""Model type to the value of `classifier_pooling` with which its head reads the first token, as all others do."""
CLASSES = {
    AutoModelForSequenceClassification: MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    AutoModelForTokenClassification: MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
}


def classification_config(config: Any, **settings: Any) -> Any:
    """The configuration of a model with a head on another's body."""
    pooling = FIRST_TOKEN.get(config.model_type)
    settings |= {} if pooling is None else {"classifier_pooling": pooling}
    return type(config).from_dict({**config.to_dict(), **settings})


def classifier(
    auto: Any, config: Any, source: str | None, num_labels: int, pretrained: Collection[str] = ()
) -> PreTrainedModel | None:
    """The model type's AutoModelForSequenceClassification or ...TokenClassification; None where it has none.

    Args:
        source: the folder it is read from, what is not stored there is new; None: everything is new.
        pretrained: names of the language model's own children. What else stands beside the body is new even where the
            folder has it: it was trained for another task's labels.
    """
    if config.model_type not in CLASSES[auto]:
        return None
    config = classification_config(config, num_labels=num_labels)
    if source is None:
        return auto.from_config(config)
    with as_stored():  # the body stays in the files' pages
        model, info = auto.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            key_mapping=keys_of(Path(source), config),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # of another number of labels
            trust_remote_code=False,
        )
    for part in head_parts(model).values():
        for parameter in part.parameters():
            parameter.data = parameter.data.to(torch.float32, copy=True)
    fresh = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    for name, child in model.named_children():
        stored = {f"{name}.{key}" for key, _ in child.named_parameters()} - fresh
        if stored and name != model.base_model_prefix and name not in pretrained:
            _draw_again(model, child)
    return model


def _draw_again(model: PreTrainedModel, part: nn.Module) -> None:
    """Give a part of a model the values that its code begins with."""
    for tensor in part.parameters():
        vars(tensor).pop("_is_hf_initialized", None)  # transformers spares what it marked as read
    for module in part.modules():
        vars(module).pop("_is_hf_initialized", None)
        model._init_weights(module)


def word_classifier(
    config: Any, width: int, source: str | None, num_labels: int, pretrained: Collection[str] = ()
) -> nn.Module:
    """What the model type's AutoModelForTokenClassification has behind its body, [S, H] -> [S, C]: dropout and a linear
    layer in most, and where a model type has no such class.

    Args:
        width: of the states; source, pretrained: as in `classifier`.
    """
    with torch.device("meta"):
        shape = classifier(AutoModelForTokenClassification, config, None, num_labels)
    if shape is None:
        return nn.Sequential(nn.Dropout(0.1), new_linear(width, config, num_labels))
    parts = [child for name, child in shape.named_children() if name != shape.base_model_prefix]
    linears = [part for part in parts if isinstance(part, nn.Linear)]
    rates = [part.p for part in parts if isinstance(part, nn.Dropout)]
    if len(linears) == 1 and len(linears) + len(rates) == len(parts):
        linear = new_linear(linears[0].in_features, config, num_labels, bias=linears[0].bias is not None)
        return nn.Sequential(nn.Dropout(max(rates, default=0.0)), linear)
    model = classifier(AutoModelForTokenClassification, config, source, num_labels, pretrained)
    assert model is not None
    return ClassificationHead(model)


def new_linear(width: int, config: Any, num_labels: int, bias: bool = True) -> nn.Linear:
    """A linear layer on states, drawn as the model type draws its own."""
    linear = nn.Linear(width, num_labels, bias=bias)
    nn.init.normal_(linear.weight, std=getattr(config, "initializer_range", 0.02))
    if bias:
        nn.init.zeros_(linear.bias)
    return linear

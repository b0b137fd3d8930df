"""What a pretrained model is made of, found the same way in every model type: blocks, attentions, sizes, names."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from raypft.backbones.attention import find_attention
from raypft.errors import UserError


class Anatomy(nn.Module):
    """A transformers model and the parts of it that others ask for.

    Args:
        model: a transformers model with a language-model head.
    """

    outputs: tuple[tuple[str, str], ...] = ()
    """Names, inside a block, of the linear layers that end its attention and its feed-forward part; one pair a model
    type."""
    first_position: int = 0
    """The id of the first token's position."""
    model: PreTrainedModel
    _blocks: nn.ModuleList | None
    config: Any
    """The model's; its fields differ with the model type."""
    decoder: nn.Linear
    """The output embedding."""
    on_meta: bool
    """Whether the model has shapes only."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self.on_meta = next(model.parameters()).is_meta
        try:
            self.hidden: int = self.config.hidden_size
            self.num_layers: int = self.config.num_hidden_layers
            self.embedding_size: int = cast(nn.Embedding, model.get_input_embeddings()).weight.shape[1]
        except (AttributeError, NotImplementedError) as error:
            raise UserError(
                f"backbone: model type {self.config.model_type} is not supported: {error}; expected word embeddings, "
                "blocks of one width and an output embedding; choose another backbone"
            ) from None
        # plain references: registered once more, the same parameters would stand in the state dict under two names
        self.__dict__["_blocks"] = self._find_blocks()
        self.__dict__["decoder"] = self._find_decoder()

    @property
    def has_blocks(self) -> bool:
        """Whether the body is a row of blocks, each a module of its own."""
        return self._blocks is not None

    @property
    def blocks(self) -> nn.ModuleList:
        """The L blocks of the body.

        Raises:
            UserError: the model is no row of blocks (ALBERT repeats one, XLM keeps their parts in lists of their own).
        """
        if self._blocks is None:
            raise UserError(
                f"backbone: the body of {self.config.model_type} models is no row of blocks that a method could reach "
                "between; expected a model whose blocks are modules of their own"
            )
        return self._blocks

    @property
    def stacks(self) -> list[nn.ModuleList]:
        """The rows of blocks that a forward pass goes through; see `blocks`."""
        return [self.blocks]

    @property
    def scores_by_column(self) -> bool:
        """Whether the output embedding is a linear layer of the vocabulary, of which columns can be chosen; else the
        model scores with its input embedding."""
        return len(self.decoder.weight) == self.config.vocab_size

    def query_and_value(self) -> list[str] | None:
        """The ends of the names of the linear layers that make query and value, fused where the model has them fused;
        None where peft knows them."""
        from raypft.backbones.peft_layers import query_and_value  # noqa: PLC0415  (peft takes seconds to import)

        return query_and_value(self.model)

    @property
    def attentions(self) -> list[nn.Module]:
        """The self-attentions in the order `on_keys` counts them."""
        return [find_attention(block) for block in self.blocks]

    @property
    def key_shape(self) -> tuple[int, int]:
        """Number of key heads and their size, A and D."""
        try:
            heads = self.config.num_attention_heads
            size = getattr(self.config, "head_dim", None) or self.hidden // heads
            return getattr(self.config, "num_key_value_heads", None) or heads, size
        except Exception as error:  # transformers has an error of its own for a value that differs by layer
            raise UserError(
                f"backbone: {self.config.model_type} models do not say how many heads of which size all their "
                f"attentions have ({type(error).__name__}); this method can't reach their keys, choose another"
            ) from None

    def takes(self, argument: str) -> bool:
        """Whether the model's body can be called with an argument of this name."""
        return argument in inspect.signature(self.model.base_model.forward).parameters

    @property
    def num_positions(self) -> int | None:
        """How many positions the model has, None where it has no limit."""
        limit = getattr(self.config, "max_position_embeddings", None)
        return None if limit is None else limit - self.first_position

    def output_names(self) -> list[tuple[str, str]]:
        """The names in the model, block by block, of the linear layers that end attention and feed-forward part.

        Raises:
            UserError: the family does not know this model's names.
        """
        names = {block: name for name, block in self.model.named_modules()}
        for pair in self.outputs:
            pairs = [(f"{names[block]}.{pair[0]}", f"{names[block]}.{pair[1]}") for block in self.blocks]
            if set(itertools.chain.from_iterable(pairs)) <= set(names.values()):
                return pairs
        raise UserError(
            f"backbone: the blocks of {self.config.model_type} do not end in linear layers that a method could find; "
            "choose another backbone or method"
        )

    def check_layer(self, layer: int, key: str = "layer", last: int | None = None) -> None:
        """Raise a UserError, whose line begins with `key`, unless 1 <= layer <= L (or another last one)."""
        last = self.num_layers if last is None else last
        if not 1 <= layer <= last:
            raise UserError(
                f"{key}: found {layer}; expected 1 to {last}, the number of blocks below the cut of this model"
            )

    def check_output_embedding(self) -> None:
        """Raise a UserError unless the model has an output embedding, shared or not."""
        if not self.scores_by_column:
            raise UserError(
                f"backbone: this {self.config.model_type} scores with its input embedding, which can't be given a "
                "copy; choose another backbone, or method.strategy=vanilla in the search"
            )

    @property
    def decoder_is_tied(self) -> bool:
        """Whether the output embedding shares the input embedding's weight, or the sparse parameter in its place."""
        if not self.scores_by_column:
            return True
        places = [
            {**vars(module)["_parameters"], **vars(module)["_modules"]}.get("weight")
            for module in (self.decoder, self.model.get_input_embeddings())
        ]
        return places[0] is places[1]

    @property
    def dtype(self) -> torch.dtype:
        """The type the weights have now."""
        return next(self.model.parameters()).dtype

    def _find_blocks(self) -> nn.ModuleList | None:
        if self.model.base_model is self.model:
            raise UserError(
                f"backbone: model type {self.config.model_type} is not supported: transformers does not say which "
                "part of it is the body; choose another backbone"
            )
        for module in self.model.base_model.modules():
            lists = [part for part in module.children() if isinstance(part, nn.ModuleList)]
            whole = [part for part in lists if len(part) == self.num_layers]
            if whole:
                return whole[0] if len(whole) == 1 else None
        return None

    def _find_decoder(self) -> nn.Linear:
        decoder = self.model.get_output_embeddings()
        if getattr(decoder, "weight", None) is None:
            raise UserError(
                f"backbone: model type {self.config.model_type} is not supported: transformers does not say which "
                "layer its vocabulary scores come from; choose another backbone"
            )
        return cast(nn.Linear, decoder)

    def _find_embedding(self) -> nn.Module:
        """The module that is called with the prompt's ids."""
        return self.model.get_input_embeddings()


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """The modules of the outermost lists of a model."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else blocks_of(child)


def largest_layer(module: nn.Module) -> int:
    """Parameters of the largest block of a model, or of a larger module beside the blocks (the embedding, say)."""
    blocks = [_size(block) for block in blocks_of(module)]
    return max(*blocks, *(_size(part, recurse=False) for part in module.modules()))


def at_opening(model: nn.Module) -> int:
    """Parameters that are fp32 at once while a model in half precision is opened: those beside the blocks, of the last
    block and of the one that runs (`raypft.backbones.checkpoint.in_fp32`)."""
    blocks = [_size(block) for block in blocks_of(model)]
    return _size(model) - sum(blocks) + sum(sorted(blocks)[-2:])


def _size(module: nn.Module, recurse: bool = True) -> int:
    return sum(parameter.numel() for parameter in module.parameters(recurse))


def input_width(linear: Any) -> int:
    """How many numbers a linear layer takes; GPT-2's has its weight the other way round."""
    return linear.in_features if isinstance(linear, nn.Linear) else linear.weight.shape[0]

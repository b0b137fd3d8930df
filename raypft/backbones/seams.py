"""The only places where a method may touch a pretrained model, and the way back.

A backbone arrives frozen. Methods reach it through seams: `on_embed` (after the word embeddings), `on_layer` (after a
number of blocks), `on_keys` (before a layer's keys and values), `wrap` (replace linear layers), `inject` (peft's
layers), `open` (unfreeze), `sparse` (train only some entries), `untie` (an output embedding of its own). Seams take
modules, not closures, so that ZeRO-3 gathers their parameters. `reset` undoes every seam and proves by checksum that
the weights are the pristine ones.
A layer is always a number of blocks below the cut, from 1 to L.
"""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from raypft.backbones.attention import find_attention, leave_keys, take_keys
from raypft.backbones.sparse import Sparse
from raypft.batch import Batch
from raypft.errors import UserError


class Seams(nn.Module):
    """A transformers model, frozen, with its seams.

    Args:
        model: a transformers model with a language-model head.
    """

    outputs: tuple[tuple[str, str], ...] = ()
    """Names, inside a block, of the linear layers that end its attention and its feed-forward part; one pair a model
    type."""
    first_position: int = 0
    """The id of the first token's position."""
    model: PreTrainedModel
    config: Any
    """The model's; its fields differ with the model type."""
    decoder: nn.Linear
    _blocks: nn.ModuleList
    _sparse: list[Sparse]
    _tied: nn.Parameter | None

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self.hidden: int = self.config.hidden_size
        self.num_layers: int = self.config.num_hidden_layers
        # plain references: registered once more, the same parameters would stand in the state dict under two names
        self.__dict__["_blocks"] = self._find_blocks()
        self.__dict__["decoder"] = model.get_output_embeddings()
        self._embed_seams: list[nn.Module] = []
        self._layer_seams: dict[int, list[nn.Module]] = {}
        self._wrapped: list[tuple[nn.Module, str, nn.Module]] = []
        self._opened: dict[str, Tensor] = {}
        self.__dict__["_sparse"] = []  # modules of the model already
        self.__dict__["_tied"] = None
        self._positions_taken = 0
        self._batch: Batch | None = None
        self.requires_grad_(False)
        for layer, block in enumerate(self._blocks, start=1):
            block.register_forward_hook(self._after_block(layer))
        self._pristine = self.checksum()

    def on_embed(self, module: nn.Module) -> None:
        """Run `module(states [B, T, H], batch) -> [B, T, H]` on the word embeddings."""
        self._embed_seams.append(module)

    def on_layer(self, layer: int, module: nn.Module) -> None:
        """Run `module(states [B, T, H], batch) -> [B, T, H]` after `layer` blocks.

        Raises:
            UserError: no such layer.
        """
        self.check_layer(layer)
        self._layer_seams.setdefault(layer, []).append(module)

    def on_keys(self, layer: int, module: nn.Module) -> None:
        """Put `module(batch) -> (keys, values) [B or 1, A, P, D]` before the keys and values of attention `layer`,
        1 to L.

        One module an attention; A and D are `key_shape`. Every token sees all P.

        Raises:
            UserError: no such layer, or an attention that can't take keys.
        """
        self.check_layer(layer, last=len(self.attentions))
        take_keys(self.attentions[layer - 1], lambda: module(self._batch))

    @property
    def attentions(self) -> list[nn.Module]:
        """The self-attentions in the order `on_keys` counts them."""
        return [find_attention(block) for block in self._blocks]

    @property
    def key_shape(self) -> tuple[int, int]:
        """Number of key heads and their size, A and D."""
        heads = self.config.num_attention_heads
        size = getattr(self.config, "head_dim", None) or self.hidden // heads
        return getattr(self.config, "num_key_value_heads", None) or heads, size

    def take_positions(self, count: int) -> None:
        """Let the text's positions start after `count` others."""
        self._positions_taken = count

    @property
    def num_positions(self) -> int | None:
        """How many positions the model has, None where it has no limit."""
        limit = getattr(self.config, "max_position_embeddings", None)
        return None if limit is None else limit - self.first_position

    def inject(self, settings: Mapping[str, Any], key: str = "target_modules") -> list[nn.Module]:
        """Let peft put its layers into the model (fields of a peft configuration, `peft_type` among them); the new
        ones.

        Args:
            key: what an error about the modules to replace begins with.

        Raises:
            UserError: no module matches.
        """
        from raypft.backbones.peft_layers import inject_layers  # noqa: PLC0415  (peft takes seconds to import)

        replaced = inject_layers(self.model, settings, key)
        self._wrapped += replaced
        return [getattr(parent, attribute) for parent, attribute, _ in replaced]

    def output_names(self) -> list[tuple[str, str]]:
        """The names in the model, block by block, of the linear layers that end attention and feed-forward part.

        Raises:
            UserError: the family does not know this model's names.
        """
        names = {block: name for name, block in self.model.named_modules()}
        for pair in self.outputs:
            pairs = [(f"{names[block]}.{pair[0]}", f"{names[block]}.{pair[1]}") for block in self._blocks]
            if set(itertools.chain.from_iterable(pairs)) <= set(names.values()):
                return pairs
        expected = ", ".join(" and ".join(pair) for pair in self.outputs)
        raise UserError(
            f"backbone: the blocks of {self.config.model_type} end in layers of unknown names; expected {expected}; "
            "choose another backbone"
        )

    def check_layer(self, layer: int, key: str = "layer", last: int | None = None) -> None:
        """Raise a UserError, whose line begins with `key`, unless 1 <= layer <= L (or another last one)."""
        last = self.num_layers if last is None else last
        if not 1 <= layer <= last:
            raise UserError(
                f"{key}: found {layer}; expected 1 to {last}, the number of blocks below the cut of this model"
            )

    def open(self, pattern: str) -> list[nn.Parameter]:
        """Unfreeze the parameters one of whose names matches a glob pattern, and return them.

        Raises:
            UserError: no parameter matches.
        """
        named = self.model.named_parameters(remove_duplicate=False)
        matching = {p: name for name, p in named if fnmatch.fnmatchcase(name, pattern)}
        if not matching:
            known = next(self.model.named_parameters())[0]
            raise UserError(f'open("{pattern}"): no parameter of the model has such a name; e.g. {known}')
        for parameter, name in matching.items():
            if not parameter.is_meta:
                self._opened.setdefault(name, parameter.detach().clone())
            parameter.requires_grad_(True)
        return list(matching)

    def wrap(self, pattern: str, make: Callable[[nn.Module], nn.Module]) -> list[nn.Module]:
        """Replace the modules whose name matches a glob pattern by `make(module)`, and return the new ones.

        Raises:
            UserError: no module matches.
        """
        names = [name for name, _ in self.model.named_modules()]
        matching = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not matching:
            raise UserError(f'wrap("{pattern}"): no module of the model has such a name; e.g. {names[-1]}')
        made = []
        for name in matching:
            parent_name, _, attribute = name.rpartition(".")
            parent = self.model.get_submodule(parent_name)
            old = getattr(parent, attribute)
            self._wrapped.append((parent, attribute, old))
            made.append(make(old))
            setattr(parent, attribute, made[-1])
        return made

    def sparse(self, name: str, indices: Tensor) -> nn.Parameter:
        """Let only some entries of a parameter train, and return their values, [K], the parameter that does.

        A parameter that several modules share (a tied embedding) stays shared: the entries act in every use and sum the
        gradients of all; `untie` first where the output embedding must not move.

        Args:
            name: any parameter of the model, by any of its names.
            indices: flat positions, [K], K >= 1, ascending.

        Raises:
            UserError: no such parameter.
            ValueError: positions outside the parameter, repeated or not in order.
        """
        known = dict(self.model.named_parameters(remove_duplicate=False))
        if name not in known:
            raise UserError(f'sparse("{name}"): no parameter of the model has such a name; e.g. {next(iter(known))}')
        weight = known[name]
        if not indices.is_meta and (
            len(indices) == 0 or indices[0] < 0 or indices[-1] >= weight.numel() or (indices[1:] <= indices[:-1]).any()
        ):
            raise ValueError(f"sparse({name}): expected ascending positions in 0..{weight.numel() - 1}, at least one")
        made = Sparse(weight, indices)
        made.stand_in(self.model)
        self._sparse.append(made)
        return made.values

    def untie(self) -> None:
        """Give the output embedding a frozen copy of its own where it shares the input embedding's weight."""
        shared = self.decoder.weight
        if shared is self.model.get_input_embeddings().weight:
            self.__dict__["_tied"] = shared  # past nn.Module: it is a parameter of the model, not of this
            self.decoder.weight = nn.Parameter(shared.detach().clone(), requires_grad=False)

    @property
    def decoder_is_tied(self) -> bool:
        """Whether the output embedding shares the input embedding's weight, or the sparse parameter in its place."""
        places = [
            {**vars(module)["_parameters"], **vars(module)["_modules"]}.get("weight")
            for module in (self.decoder, self.model.get_input_embeddings())
        ]
        return places[0] is places[1]

    def loaded(self, name: str) -> Tensor:
        """The value a parameter opened under this name had when the model was loaded."""
        return self._opened[name]

    def reset(self) -> None:
        """Undo every seam and restore opened weights.

        Raises:
            RuntimeError: the weights are not the ones that were loaded (something wrote past the seams).
        """
        self.forget_seams()
        parameters = dict(self.model.named_parameters(remove_duplicate=False))  # those inside wrappers too
        for parent, attribute, old in reversed(self._wrapped):
            setattr(parent, attribute, old)
        self._wrapped.clear()
        vars(self.model).pop("peft_config", None)
        while self._sparse:
            self._sparse.pop().undo()
        parameters |= dict(self.model.named_parameters(remove_duplicate=False))
        for name, value in self._opened.items():
            parameters[name].data = value.to(parameters[name].device)
        self._opened.clear()
        if self._tied is not None:
            self.decoder.weight = self._tied
            self.__dict__["_tied"] = None
        self._batch = None
        self.model.zero_grad(set_to_none=True)
        self.requires_grad_(False)
        if self.checksum() != self._pristine:
            raise RuntimeError(
                "reset: the backbone's weights differ from the loaded ones; a method wrote to them past the seams"
            )

    def forget_seams(self) -> None:
        """Detach the modules put in by `on_embed`, `on_layer` and `on_keys`."""
        self._embed_seams.clear()
        self._layer_seams.clear()
        self._positions_taken = 0
        leave_keys(self.model)

    @torch.no_grad()
    def checksum(self) -> int:
        """A checksum over the bits of all parameters, sensitive to order."""
        total = 0
        for name, parameter in self.model.named_parameters():
            if parameter.is_meta:
                return 0
            bits = (
                parameter.detach()
                .contiguous()
                .view(torch.int32 if parameter.element_size() == 4 else torch.int16)
                .flatten()
            )
            folded = functional.pad(bits, (0, -len(bits) % 1024)).view(-1, 1024).sum(0, dtype=torch.int64)
            odd = torch.arange(1, 2048, 2, device=bits.device)
            total = (total * 1_000_003 + int((folded * odd).sum()) + len(name)) % (1 << 63)
        return total

    @property
    def dtype(self) -> torch.dtype:
        """The type the weights have now."""
        return next(self.model.parameters()).dtype

    # inside

    def _find_blocks(self) -> nn.ModuleList:
        for module in self.model.base_model.modules():
            if isinstance(module, nn.ModuleList) and len(module) == self.num_layers:
                return module
        raise UserError(
            f"backbone: {type(self.model).__name__} has no list of {self.num_layers} blocks; "
            "this model shape is not supported"
        )

    def _after_block(self, layer: int):
        def hook(_module, _inputs, output):
            if isinstance(output, tuple):  # T5's blocks give their attention bias beside
                return (self._through_seams(layer, output[0]), *output[1:])
            return self._through_seams(layer, output)

        return hook

    def _through_seams(self, layer: int, states: Tensor) -> Tensor:
        for module in self._layer_seams.get(layer, ()):
            states = module(states, self._batch)
        return states

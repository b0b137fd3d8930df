"""The only places where a method may touch a pretrained model, and the way back.

A backbone arrives frozen. Methods reach it through seams: `on_embed` (after the word embeddings), `on_layer` (after a
number of blocks), `on_keys` (before a layer's keys and values), `wrap` (replace linear layers), `inject` (peft's
layers), `open` (unfreeze), `sparse` (train only some entries), `untie` (an output embedding of its own). Seams take
modules, not closures, so that ZeRO-3 gathers their parameters. `reset` undoes every seam and proves by checksum that
the weights are the pristine ones.
A layer is always a number of blocks below the cut, from 1 to L.
"""

from __future__ import annotations

import contextlib
import fnmatch
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from raypft.backbones.anatomy import Anatomy
from raypft.backbones.attention import gives_keys, leave_keys, scale_keys, take_keys
from raypft.backbones.four_bit import NF4, layers
from raypft.backbones.sparse import Sparse
from raypft.batch import Batch
from raypft.errors import UserError

AT_ONCE = 1 << 20
"""Entries of a parameter that a checksum adds up at a time, a multiple of 1024."""


class Seams(Anatomy):
    """A transformers model, frozen, with its seams.

    Args:
        model: a transformers model with a language-model head.
        measures: whether the checksum is made that a reset is proved by.
    """

    quantized: str | None
    """"nf4" where linear layers of the blocks are held in 4 bits: no weight of the model can train then."""
    fixed: frozenset[str]
    """Names of parameters that no gradient reaches in any training: a router's balancing terms, say."""
    _sparse: list[Sparse]
    _tied: nn.Parameter | None

    def __init__(self, model: PreTrainedModel, measures: bool = True) -> None:
        super().__init__(model)
        self.quantized = NF4 if layers(model) else None
        self._rest_of_output: tuple | None = None
        self._before_embedding = False
        self._embed_seams: list[nn.Module] = []
        self._layer_seams: dict[int, list[nn.Module]] = {}
        self._wrapped: list[tuple[nn.Module, str, nn.Module]] = []
        self._opened: dict[str, Tensor] = {}
        self._stored: dict[str, Tensor] = {}
        self._as_stored = False
        self.__dict__["_sparse"] = []  # modules of the model already
        self.__dict__["_tied"] = None
        self._positions_taken = 0
        self._batch: Batch | None = None
        self._before: dict[nn.Module, Tensor] | None = None  # what modules behind blocks get, while a beginning runs
        self.fixed = frozenset(name for name, p in model.named_parameters() if not p.requires_grad)
        self.requires_grad_(False)
        self._find_embedding().register_forward_hook(self._after_embedding)
        for layer, block in enumerate(self._blocks or (), start=1):
            block.register_forward_hook(self._after_block(layer))
        self._pristine = self.checksum() if measures else None

    def lies_in(self, stored: dict[str, Tensor], as_stored: bool) -> None:
        """Say where the pretrained values are, by name of parameter: pages of files, which a reset reads again.

        Args:
            as_stored: whether the parameters are these very pages. What trains must get a copy where it trains; the
                model is used for one method, and not reset after.
        """
        self._stored, self._as_stored = stored, as_stored
        if as_stored:
            self._pristine = None

    def on_embed(self, module: nn.Module) -> None:
        """Run `module(states [B, T, E], batch) -> [B, T, E]` on the word embeddings; E is `embedding_size`, not
        always H. See `on_layer` for `behind_a_beginning`.

        Raises:
            UserError: the model's embedding gives more than states.
        """
        if not isinstance(self._find_embedding(), nn.Embedding):
            raise UserError(
                f"backbone: the word embedding of {self.config.model_type} models gives no plain states, nothing can "
                "be put behind it; choose another backbone or method"
            )
        self._embed_seams.append(module)

    def on_layer(self, layer: int, module: nn.Module) -> None:
        """Run `module(states [B, T, H], batch) -> [B, T, H]` after `layer` blocks.

        A module with a true attribute `behind_a_beginning` is right also where the first `batch.begins` tokens of all
        prompts were run before, and `states` are those of the others; `batch.beginning.before[module]` has theirs.

        Raises:
            UserError: no such layer.
        """
        self.check_layer(layer)
        self.blocks  # noqa: B018  (a model that is no row of blocks is refused)
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

    def scale_keys(self, layer: int, module: nn.Module) -> None:
        """Multiply the keys and values of attention `layer`, 1 to L, by `module() -> (keys, values)`, [A, 1, D] each.

        One module an attention; A and D are `key_shape`; keys are scaled as attention sees them, behind rotary
        positions.

        Raises:
            UserError: no such layer, or an attention that can't be reached.
        """
        self.check_layer(layer, last=len(self.attentions))
        scale_keys(self.attentions[layer - 1], module)

    @property
    def seams_take_beginnings(self) -> bool:
        """Whether all modules behind the embeddings and between the blocks are right behind a beginning."""
        modules = [*self._embed_seams, *itertools.chain.from_iterable(self._layer_seams.values())]
        return all(getattr(module, "behind_a_beginning", False) for module in modules)

    @property
    def is_as_loaded(self) -> bool:
        """Whether embeddings and blocks are the model's own, whatever a method put between blocks."""
        put = self._embed_seams or self._wrapped or self._opened or self._sparse or self._positions_taken
        return not put and not gives_keys(self.model)

    def take_positions(self, count: int) -> None:
        """Let the text's positions start after `count` others; nothing changes where the model's positions are relative
        to each other."""
        self._positions_taken = count

    def inject(self, settings: Mapping[str, Any], key: str = "target_modules") -> list[nn.Module]:
        """Let peft put its layers into the model (fields of a peft configuration, `peft_type` among them); the new
        ones.

        Args:
            key: what an error about the modules to replace begins with.

        Raises:
            UserError: no module matches.
        """
        from raypft.backbones.peft_layers import inject_layers  # noqa: PLC0415  (peft takes seconds to import)

        with self._fp32_to_look_at():
            replaced = inject_layers(self.model, settings, key)
        self._wrapped += replaced
        return [getattr(parent, attribute) for parent, attribute, _ in replaced]

    def open(self, pattern: str) -> list[nn.Parameter]:
        """Unfreeze the parameters one of whose names matches a glob pattern, and return them.

        Raises:
            UserError: no parameter matches; the model is held in 4 bits.
        """
        self.check_can_train()
        named = self.model.named_parameters(remove_duplicate=False)
        matching = {p: name for name, p in named if fnmatch.fnmatchcase(name, pattern)}
        if not matching:
            known = next(self.model.named_parameters())[0]
            raise UserError(f'open("{pattern}"): no parameter of the model has such a name; e.g. {known}')
        for parameter, name in matching.items():
            if not parameter.is_meta:
                self._opened.setdefault(name, self._kept(name, parameter))
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
            UserError: no such parameter; the model is held in 4 bits.
            ValueError: positions outside the parameter, repeated or not in order.
        """
        self.check_can_train()
        known = dict(self.model.named_parameters(remove_duplicate=False))
        if name not in known:
            raise UserError(f'sparse("{name}"): no parameter of the model has such a name; e.g. {next(iter(known))}')
        weight = known[name]
        if not indices.is_meta and (
            len(indices) == 0 or indices[0] < 0 or indices[-1] >= weight.numel() or (indices[1:] <= indices[:-1]).any()
        ):
            raise ValueError(f"sparse({name}): expected ascending positions in 0..{weight.numel() - 1}, at least one")
        made = Sparse(weight, indices, comes_back=not self._as_stored)
        made.stand_in(self.model)
        self._sparse.append(made)
        return made.values

    def untie(self) -> None:
        """Give the output embedding a frozen copy of its own where it shares the input embedding's weight.

        Raises:
            UserError: the model scores with its input embedding and has no other.
        """
        self.check_output_embedding()
        shared = self.decoder.weight
        if shared is self.model.get_input_embeddings().weight:
            self.__dict__["_tied"] = shared  # past nn.Module: it is a parameter of the model, not of this
            self.decoder.weight = nn.Parameter(shared.detach().clone(), requires_grad=False)

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
            parameters[name].data = value.to(parameters[name])
        self._opened.clear()
        if self._tied is not None:
            self.decoder.weight = self._tied
            self.__dict__["_tied"] = None
        self._batch = None
        self.model.zero_grad(set_to_none=True)
        self.requires_grad_(False)
        if self._pristine is not None and self.checksum() != self._pristine:
            raise RuntimeError(
                "reset: the backbone's weights differ from the loaded ones; a method wrote to them past the seams"
            )

    def check_can_train(self) -> None:
        """Raise a UserError where weights of the model can't train, since it is held in 4 bits."""
        if self.quantized:
            raise UserError(
                f"train.quantize: found {self.quantized} with a method that trains weights of the model itself; use "
                "one that leaves them as they are, e.g. method=lora, or leave train.quantize out"
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
            folded = torch.zeros(1024, dtype=torch.int64, device=bits.device)
            for piece in bits.split(AT_ONCE):  # to add up as int64 makes a copy twice as large
                folded += functional.pad(piece, (0, -len(piece) % 1024)).view(-1, 1024).sum(0, dtype=torch.int64)
            odd = torch.arange(1, 2048, 2, device=bits.device)
            total = (total * 1_000_003 + int((folded * odd).sum()) + len(name)) % (1 << 63)
        return total

    # inside

    @contextlib.contextmanager
    def _fp32_to_look_at(self) -> Iterator[None]:
        """While open, weights of another type are fp32 nans without memory: peft gives its layers their type."""
        own = {parameter: parameter.data for parameter in self.model.parameters() if parameter.dtype != torch.float32}
        for parameter, value in own.items():
            parameter.data = torch.full((), math.nan, device=value.device).expand(value.shape)
        try:
            yield
        finally:
            for parameter, value in own.items():
                parameter.data = value

    def _kept(self, name: str, parameter: nn.Parameter) -> Tensor:
        """The pretrained value of a parameter that will train in place."""
        if name not in self._stored:
            # in CPU memory: on a GPU that a cell was on before, it would stand there beside the weights
            return parameter.detach().to("cpu", copy=True)
        stored = self._stored[name]
        if not self._as_stored and parameter.data_ptr() == stored.data_ptr():
            parameter.data = stored.clone()
        return stored

    def _after_embedding(self, _module: nn.Module, _inputs: tuple, states: Tensor) -> Tensor:
        if self._before_embedding:  # a decoder that shares the module calls it later
            self._before_embedding = False
            for module in self._embed_seams:
                states = module(states, self._batch)
        return states

    def _after_block(self, layer: int):
        def hook(_module, _inputs, output):
            # some give more beside the states: their attention, T5's its bias
            self._rest_of_output = tuple(output[1:]) if isinstance(output, tuple | list) else None
            return self._form(self._through_seams(layer, states_of(output)))

        return hook

    def _form(self, states: Tensor) -> Any:
        """States in the form in which a block gives its output, as the block that ran last gave it."""
        return states if self._rest_of_output is None else (states, *self._rest_of_output)

    def _through_seams(self, layer: int, states: Tensor) -> Tensor:
        for module in self._layer_seams.get(layer, ()):
            if states.ndim != 3:
                raise UserError(
                    f"backbone: the blocks of {self.config.model_type} models pass on {list(states.shape)}, expected "
                    "one state a token, [B, T, H]; nothing can be put between them; choose another backbone or method"
                )
            if self._before is not None:
                self._before[module] = states
            states = module(states, self._batch)
        return states


def states_of(output: Any) -> Tensor:
    """The states, [B, T, H], in what a block gives."""
    return output[0] if isinstance(output, tuple | list) else output

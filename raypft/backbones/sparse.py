"""A parameter of which only some entries train: a frozen weight, and a flat trainable vector with the active values.

The values are written into the weight for the forward pass and their gradient is gathered from the weight's, so frozen
entries stay bit-identical under any optimizer, and optimizer and checkpoint need memory for the K active entries only.
Masking gradients would do neither: weight decay moves what is masked. The dense gradient lives for one layer at a time.

Under ZeRO-3 weight, positions and values are shared out like every parameter. Who reads the weight gathers the three;
what it leaves for the backward pass is a name, and gathered again there: a weight is whole while it is used.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


class _Written(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, base: Tensor, index: Tensor, sparse: Sparse) -> Tensor:
        ctx.sparse = sparse
        # through .data: a second use in the same step writes the same numbers, which autograd must not take for a
        # change
        base.data.view(-1).index_copy_(0, index.long(), values)
        return base.data

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        with ctx.sparse.whole("index") as (index,):
            active = gradients[0].reshape(-1).index_select(0, index)
        ctx.sparse.expect(active)
        return active, None, None, None


class Sparse(nn.Module):
    """Stands where a parameter stood, in every module that shares it; gives the weight with the values in place.

    Args:
        weight: the pretrained parameter.
        indices: flat positions of the active entries, [K], ascending.
        comes_back: whether the pretrained values are kept, for `undo`.
    """

    def __init__(self, weight: nn.Parameter, indices: Tensor, comes_back: bool = True) -> None:
        super().__init__()
        index = indices.to(weight.device, torch.int32 if weight.numel() < 2**31 else torch.long)
        loaded = weight.detach().view(-1).index_select(0, index)
        self.loaded = loaded.clone() if comes_back else None
        self.values = nn.Parameter(loaded)
        self.base = weight
        self.index = nn.Parameter(index, requires_grad=False)  # a parameter, for ZeRO-3 shares out no buffers
        self.owners: list[tuple[nn.Module, str]] = []
        self._lets_go = False

    @property
    def is_shared_out(self) -> bool:
        """Whether ZeRO-3 has it."""
        return hasattr(self._parameters.get("values"), "ds_id")

    @contextlib.contextmanager
    def whole(self, *names: str) -> Iterator[list[Tensor]]:
        """While open, parameters of this module have all their values, which are given. They are gathered one by one:
        together they would be copied."""
        # by get: who reads `self.base` lets DeepSpeed gather it for the module that runs, ever after
        parameters: list[Any] = [self._parameters.get(name) for name in names]
        shared_out = parameters if self.is_shared_out else []
        for parameter in shared_out:
            parameter.all_gather_coalesced([parameter]).wait()
        try:
            yield [parameter.data for parameter in parameters]
        finally:
            for parameter in shared_out:
                parameter.partition()

    def weight(self) -> Tensor:
        """The weight, in its own shape."""
        with self.whole("base", "index", "values") as (base, index, _):
            made = _Written.apply(self._parameters.get("values"), base, index, self)
        made.sparse = self
        return made

    def expect(self, gradient: Tensor) -> None:
        """Be ready to take up the values' gradient, [K], which under ZeRO-3 is not where all values are: what takes it
        up looks at their shape."""
        values: Any = self._parameters.get("values")
        if self.is_shared_out:
            if not self._lets_go:  # behind DeepSpeed's hooks, which are there by now
                values.register_post_accumulate_grad_hook(_let_go)
                self._lets_go = True
            values.data = gradient.new_empty(()).expand(gradient.shape)

    def stand_in(self, model: nn.Module) -> None:
        """Take the parameter's place in every module that has it: tied uses share the values, and add up in their
        gradient."""
        for module in model.modules():
            names = [name for name, parameter in module._parameters.items() if parameter is self.base]
            self.owners += [(module, name) for name in names]
        for module, name in self.owners:
            module._parameters[name] = None  # the entry stays, and with it the order of the parameters
            module._modules[name] = self

    def put(self) -> None:
        """Give the owners the weight with the values in place, until `take`; some models read it past the module that
        holds it. Under ZeRO-3 it is made whenever it is read."""
        for module, name in self.owners:
            if self.is_shared_out:
                module.__class__ = _reading(type(module))
            else:
                module.__dict__[name] = self.weight()

    def placed(self) -> list[tuple[nn.Module, str, Tensor]]:
        """The owners, between `put` and `take`, with the name and the weight that each has."""
        return [(module, name, vars(module)[name]) for module, name in self.owners if name in vars(module)]

    def take(self) -> None:
        """Undo `put`."""
        for module, name in self.owners:
            module.__dict__.pop(name, None)

    @torch.no_grad()
    def undo(self) -> None:
        """Put the pretrained parameter back, bit for bit."""
        assert self.loaded is not None
        self.base.view(-1).index_copy_(0, self.index.long(), self.loaded.to(self.base.device))
        for module, name in self.owners:
            del module._modules[name]
            module._parameters[name] = self.base


@contextlib.contextmanager
def in_place(sparse: Sequence[Sparse]) -> Iterator[None]:
    """While open, the owners have their weights with the values in place, and no graph keeps one that was gathered."""
    shared_out = any(one.is_shared_out for one in sparse)
    for one in sparse:
        one.put()
    try:
        with saved_tensors_hooks(_named, _made_again) if shared_out else contextlib.nullcontext():
            yield
    finally:
        for one in sparse:
            one.take()


def _let_go(values: Tensor) -> None:
    values.data = values.new_empty(0)


def _named(saved: Tensor) -> Any:
    """What a graph keeps of a tensor: a gathered weight's name, and how it looked at it."""
    made: Any = saved if saved._base is None else saved._base
    if not hasattr(made, "sparse"):
        return saved
    return made.sparse, saved.size(), saved.stride(), saved.storage_offset() - made.storage_offset()


def _made_again(kept: Any) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    sparse, size, stride, start = kept
    with torch.no_grad():
        made = sparse.weight()
    return made.as_strided(size, stride, made.storage_offset() + start)


@functools.cache
def _reading(kind: type[nn.Module]) -> type[nn.Module]:
    """A type of module whose sparse parameters are made where they are read."""

    def read(module: nn.Module, name: str) -> Any:
        found = module._modules.get(name)
        return found.weight() if isinstance(found, Sparse) else kind.__getattr__(module, name)

    return kind if hasattr(kind, "reads") else type(kind.__name__, (kind,), {"__getattr__": read, "reads": True})

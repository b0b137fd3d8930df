"""States of frozen lower layers, computed once per prompt: few-shot training repeats its validation every epoch, and a
sweep over the layer repeats the layers below.

Holds while the blocks below the cut are frozen and without dropout. Same numbers as the uncached path, unless states
are kept in fewer bits. Demonstrations that begin all prompts are run and kept once, where the model allows it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor

from raypft.backbones.flops import STATES, Meter
from raypft.backbones.states_folder import StatesFolder
from raypft.batch import Batch, Beginning, Room, collate, padding_on
from raypft.encoded import Encoded, shared_tokens

CHUNK = 8
"""Prompts run together, at most; kept together too, so that a prompt's states do not depend on what ran before."""
COMPUTED = 2
"""Raised when the same blocks give states of other bits; those in a folder that were made before are not read then."""
Tokens = tuple[int, ...]
Place = tuple[Any, int]
"""Under what states are kept: what they are of, and after how many blocks."""


def tokens_of(prompt: Encoded) -> Tokens:
    """What a prompt's states depend on; not its name, since splits may repeat each other's ids."""
    return (*prompt.ids, *prompt.segments)


class Lower(Protocol):
    """What `FrozenStates` asks of a backbone."""

    @property
    def pad(self) -> int:
        """The token id that fills batches."""
        ...

    @property
    def takes_beginnings(self) -> bool:
        """Whether what all prompts begin with can be run once."""
        ...

    @property
    def source(self) -> str | None:
        """Where it was read, None for one made in memory."""
        ...

    @property
    def flops(self) -> Meter:
        """What counts the work."""
        ...

    @property
    def revision(self) -> str:
        """What identifies weights and tokenizer of one that was read."""
        ...

    @property
    def quantized(self) -> str | None:
        """How weights of the blocks are held in fewer bits, None where they are not."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The type that blocks compute in."""
        ...

    @property
    def is_as_loaded(self) -> bool:
        """Whether the blocks are the model's own, whatever a method put between them."""
        ...

    def lower(self, batch: Batch, layer: int, after: int = 0) -> Tensor:
        """The states after `layer` blocks, [B, T, H]."""
        ...

    def begin(self, batch: Batch, layer: int | None = None, after: int = 0) -> Beginning:
        """What all prompts begin with, after `layer` blocks."""
        ...


@dataclass(frozen=True)
class Known:
    """States of prompts after some blocks.

    begins: how many tokens all prompts begin with; before: their states, [begins, H]; behind: the states of the tokens
    behind them, [T - begins, H], by `tokens_of`.
    """

    begins: int
    before: Tensor
    behind: dict[Tokens, Tensor]

    def of(self, prompt: Encoded, begins: int = 0) -> Tensor:
        """The states of a prompt's tokens, without the first `begins`, none or all that are shared."""
        behind = self.behind[tokens_of(prompt)]
        return behind if begins or not self.begins else torch.cat([self.before, behind])


class FrozenStates:
    """States of prompts after some blocks, kept with the backbone that computed them, in CPU memory or in a folder:
    what is asked for above a layer that is known goes on from there, so that a sweep up the layers takes one pass over
    the backbone.

    Where a method changed the blocks, states are those of one call.

    Args:
        limit: bytes to keep in memory at most; what was not asked for longest goes first.
        folder: where states are kept, without a limit, for other processes and later ones, too; None: in memory.
        dtype: what they are kept in, such as bfloat16 for half the bytes; each layer is run from the embeddings then,
            since what goes on from rounded states depends on what was kept. None: as computed, no number changes.
    """

    def __init__(
        self,
        backbone: Lower,
        limit: int = 4 << 30,
        folder: StatesFolder | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.backbone, self.limit, self.folder, self.dtype = backbone, limit, folder, dtype
        self._known: OrderedDict[Place, Tensor] = OrderedDict()

    def fits(self, prompts: Sequence[Encoded], hidden: int) -> bool:
        """Whether the states [T, H] of these prompts stay within the limit."""
        begins, size = self._begins(prompts), (self.dtype or self.backbone.dtype).itemsize
        tokens = begins + sum(len(p.ids) - begins for p in prompts)
        return self._on_disk is not None or size * hidden * tokens <= self.limit

    def after(
        self,
        layer: int,
        prompts: Sequence[Encoded],
        device: str,
        agree: Callable[[int], int] = lambda number: number,
        begun: dict[Any, Beginning] | None = None,
    ) -> Known:
        """The states of prompts after `layer` blocks.

        Every rank must call this with equally many prompts that share as much: under ZeRO-3 each chunk gathers
        parameters on all ranks.

        Args:
            agree: a number that all ranks have, of blocks or chunks; 0 where theirs differ.
            begun: gets what was run of beginnings, and is looked into: of prompts that begin alike, of another split.

        Raises:
            UserError: the folder can't be written.
        """
        if not self.backbone.is_as_loaded:
            self._known.clear()  # and below: no key says what was changed
        begins = self._begins(prompts)
        first = prompts[0].until(begins) if begins else None
        ordered = sorted(prompts, key=lambda p: (len(p.ids), p.name))
        lengths = [len(prompt.ids) for prompt in ordered]
        runs = Room(CHUNK, padding=padding_on(device)).cuts(lengths)
        if not agree(len(runs)):
            runs = Room(CHUNK).cuts(lengths)
        chunks = dict[Any, list[Encoded]]()
        for run in runs:
            chunk = ordered[run.start : run.stop]
            chunks[(self._made(device), begins, *map(tokens_of, chunk))] = chunk
        beginning = None if first is None else (self._made(device), "beginning", tokens_of(first))
        depth = agree(self._depth([*chunks, *([] if first is None else [beginning])], layer))
        begun, place = {} if begun is None else begun, (beginning, depth, layer)
        if first is not None and depth != layer:
            if not agree(int(place in begun)):
                begun[place] = self.backbone.begin(self._collated([first], beginning, depth).to(device), layer, depth)
            self._keep((beginning, layer), begun[place].states)
        before = torch.empty(0) if first is None else self._known[beginning, layer][0]
        behind = dict[Tokens, Tensor]()
        for key, chunk in chunks.items():
            if depth != layer:
                batch = self._collated([prompt.behind(begins) for prompt in chunk], key, depth, begun.get(place))
                with self.backbone.flops.piece(STATES) as part:
                    part.tokens += batch.ids.numel()
                    states = self.backbone.lower(batch.to(device), layer, depth)
                self._keep((key, layer), states)
                self._known.pop((key, depth), None)  # a beginning stays: another split may go on from there
            self._known.move_to_end((key, layer))
            states = self._known[key, layer]
            for row, prompt in enumerate(chunk):
                behind[tokens_of(prompt)] = states[row, : len(prompt.ids) - begins]
        if not self.backbone.is_as_loaded:
            self._known.clear()
        while self._on_disk is None and sum(states.nbytes for states in self._known.values()) > self.limit:
            self._known.popitem(last=False)
        return Known(begins, before, behind)

    @property
    def _on_disk(self) -> StatesFolder | None:
        """The folder, where a file can say which weights its states are of."""
        known = self.backbone.source is not None and self.backbone.is_as_loaded
        return self.folder if known else None

    def _made(self, device: str) -> tuple[Any, ...]:
        """What states depend on beside the prompts of their chunk and the layer."""
        kind, backbone = device.partition(":")[0], self.backbone
        versions = COMPUTED, torch.__version__, transformers.__version__
        made = backbone.revision, backbone.dtype, self.dtype, kind, *versions
        return made if backbone.quantized is None else (*made, backbone.quantized)

    def _depth(self, keys: Sequence[Any], layer: int) -> int:
        """After how many blocks, the most, the states under all keys are known; 0 where there is no such layer."""
        for depth in range(layer, 0 if self.dtype is None else layer - 1, -1):
            asked = [(key, depth) for key in keys]
            if all(map(self._is_kept, asked)) and all(map(self._is_known, asked)):
                return depth
        return 0

    def _is_kept(self, place: Place) -> bool:
        return place in self._known or (self._on_disk is not None and self._on_disk.has(place))

    def _is_known(self, place: Place) -> bool:
        """Whether states are in memory, where those on disk are put."""
        if place not in self._known and self._on_disk is not None:
            states = self._on_disk.read(place)
            if states is not None:
                self._known[place] = states
        return place in self._known

    def _begins(self, prompts: Sequence[Encoded]) -> int:
        return shared_tokens(prompts) if self.backbone.takes_beginnings else 0

    def _collated(self, prompts: Sequence[Encoded], key: Any, depth: int, beginning: Beginning | None = None) -> Batch:
        """A batch of prompts, with the states that are known under a key."""
        known = self._known[key, depth] if depth else None
        return replace(collate(prompts, self.backbone.pad, beginning=beginning), lower=known)

    def _keep(self, place: Place, states: Tensor) -> None:
        states = states.to("cpu", self.dtype or states.dtype)
        self._known[place] = states if self._on_disk is None else self._on_disk.write(place, states)

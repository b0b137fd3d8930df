"""Values of a training that are kept, in memory or in files, read by ranges of whole parameters.

A piece is a range of one parameter's flat tensor, or of Adam's moments of it: "value/<name>", "exp_avg/<name>",
"exp_avg_sq/<name>".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from raypft import shards
from raypft.errors import UserError
from raypft.storage import on_disk
from raypft.training.stepper import VALUE, Give, Held

Part = dict[str, Any]
"""What a manifest says of a part: file, bytes, sha256; pieces: each to its first entry and how many it has; steps: name
to Adam's steps."""


class Kept(Protocol):
    """Values that are kept."""

    def opened(self, held: Mapping[str, Held]) -> AbstractContextManager[Give]:
        """In its context the ranges that a process holds can be read.

        Raises:
            UserError: they are not what was written.
        """
        ...

    def sizes(self) -> dict[str, int]:
        """Entries that are kept of each piece."""
        ...


@dataclass(frozen=True)
class InMemory:
    """Kept in this process: each piece's first entry and the others behind it, flat."""

    pieces: dict[str, tuple[int, Tensor]]

    @contextmanager
    def opened(self, held: Mapping[str, Held]) -> Iterator[Give]:
        """See `Kept.opened`."""
        yield self.give

    def give(self, key: str, name: str, start: int, end: int) -> Tensor:
        """See `Give`."""
        first, flat = self.pieces[f"{key}/{name}"]
        return flat[start - first : end - first]

    def sizes(self) -> dict[str, int]:
        """See `Kept.sizes`."""
        return {piece: len(flat) for piece, (_, flat) in self.pieces.items()}


def live(held: Mapping[str, Held]) -> InMemory:
    """What a process holds, as it is whenever it is read."""
    pieces: dict[str, tuple[int, Tensor]] = {}
    for name, own in held.items():
        pieces |= {f"{key}/{name}": (own.start, tensor) for key, tensor in own.tensors.items()}
    return InMemory(pieces)


def copied(held: Mapping[str, Held], keys: Sequence[str] = (VALUE,)) -> InMemory:
    """What a process holds, as it is now, on CPU: the values, or other kinds."""
    pieces = {piece: own for piece, own in live(held).pieces.items() if piece.partition("/")[0] in keys}
    return InMemory({piece: (start, tensor.to("cpu", copy=True)) for piece, (start, tensor) in pieces.items()})


@dataclass(frozen=True)
class OnDisk:
    """Kept in the parts of a folder."""

    folder: Path
    parts: Sequence[Part]

    @contextmanager
    def opened(self, held: Mapping[str, Held]) -> Iterator[Give]:
        """See `Kept.opened`; only the parts that are needed are read."""
        with ExitStack() as stack:
            needed = [part for part in self.parts if _overlap(part, held)]
            files = [(part["pieces"], stack.enter_context(self._verified(part))) for part in needed]

            def give(key: str, name: str, start: int, end: int) -> Tensor:
                out, piece = torch.empty(end - start), f"{key}/{name}"
                for pieces, file in files:
                    first, count = pieces.get(piece, (0, 0))
                    begin, stop = max(start, first), min(end, first + count)
                    if begin < stop:
                        file.read(piece, begin - first, out[begin - start : stop - start])
                return out

            yield give

    @contextmanager
    def _verified(self, part: Part) -> Iterator[shards.Flat]:
        self.check(part)
        path = self.folder / part["file"]
        with on_disk(path) as file:
            if shards.sha256(file) != part["sha256"]:
                raise UserError(f"{path} is damaged: its sha256 is not the one it was written with")
            with closing(shards.Flat(file)) as flat:
                yield flat

    def check(self, part: Part) -> None:
        """Raise a UserError where a part is missing or not as long as it was."""
        path = self.folder / part["file"]
        if not path.is_file():
            raise UserError(f"{path} is missing")
        if (found := path.stat().st_size) != part["bytes"]:
            raise UserError(f"{path} is damaged: it has {found:,} bytes; expected {part['bytes']:,}")

    def sizes(self) -> dict[str, int]:
        """See `Kept.sizes`."""
        sizes: dict[str, int] = {}
        for part in self.parts:
            for piece, (_, count) in part["pieces"].items():
                sizes[piece] = sizes.get(piece, 0) + count
        return sizes


def _overlap(part: Part, held: Mapping[str, Held]) -> bool:
    """Whether a part has entries of what a process holds."""
    for piece, (first, count) in part["pieces"].items():
        own = held.get(piece.partition("/")[2])
        if own is not None and first < own.start + len(own.tensors[VALUE]) and own.start < first + count:
            return True
    return False

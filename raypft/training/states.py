"""States of a training on disk.

Where what trains is small a state is one whole file; else each worker writes a part of it, and a manifest, written
last, makes the parts one:

    state.pt                        the whole file; state.previous.pt is the one before
    state/0007-1-of-2.safetensors   a part: values, Adam's moments
    state/0007.json                 the manifest: where the training stands, which files, their sizes and digests

Any number of workers and any stage go on from either. Until a state is whole the one before stays, and for as long as
no other is begun.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from raypft import shards
from raypft.errors import UserError, first_line
from raypft.records import opened, sealed
from raypft.storage import move, on_disk, written
from raypft.training.kept import InMemory, Kept, OnDisk, Part, live
from raypft.training.stepper import MOMENTS, VALUE, Give, Held, Stepper

MANIFEST = re.compile(r"\d+\.json")
OURS = re.compile(r"\d+(\.json|-\d+-of-\d+\.safetensors)")
HEAD = ("epoch", "step", "best_score", "best_epoch", "history", "losses")


@dataclass
class TrainState:
    """Where a training stands.

    epoch, step: the next to run; best_score, best_epoch, best: of the values kept so far, None where none are; history:
    one dict per finished epoch; scaling: of fp16's loss, see `Stepper.scaling`.
    """

    epoch: int = 0
    step: int = 0
    best_score: float = -math.inf
    best_epoch: int = -1
    best: Kept | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    scaling: dict[str, float] = field(default_factory=dict)

    def head(self) -> dict[str, Any]:
        """All but the values, as it is now."""
        found = {key: getattr(self, key) for key in HEAD}
        found = {key: [*value] if isinstance(value, list) else value for key, value in found.items()}
        return found | ({"scaling": self.scaling} if self.scaling else {})

    @classmethod
    def of(cls, head: Mapping[str, Any]) -> TrainState:
        """What `head` gave.

        Raises:
            KeyError: it did not.
        """
        return cls(**{key: head[key] for key in HEAD}, scaling=head.get("scaling", {}))


class States:
    """The states of one cell.

    Args:
        whole, previous: the file of what is small, and the one before; folder: of the parts, beside them; key: the
            cell's, so that another's state is not taken for its own.
    """

    def __init__(self, whole: Path, previous: Path, folder: Path, key: str) -> None:
        self.whole, self.previous, self.folder, self.key = whole, previous, folder, key
        self.number = 0
        self._newest: set[str] = set()  # the files of the newest manifest

    # reading

    def resume(self, stepper: Stepper) -> tuple[TrainState | None, list[str]]:
        """Put the newest state that is whole into a stepper. Every rank calls it.

        Returns:
            where it stands, None where there is none; what to say of newer ones that are not whole.
        """
        found = self._found() if stepper.rank == 0 else None
        self.number, names = cast("tuple[int, list[str]]", stepper.gather(found)[0])
        held, lost = stepper.held(), list[str]()
        for name in names:
            with ExitStack() as stack:
                told, read, give = "", cast("tuple[TrainState, Kept, dict[str, int]]", None), cast("Give", None)
                try:
                    read = self._read(self.whole.parent / name, stepper.shapes)
                    give = stack.enter_context(read[1].opened(held))
                except UserError as error:
                    told = str(error)
                reasons = [reason for reason in stepper.gather(told) if reason]
                if not reasons:
                    stepper.put(give, read[2])
                    stepper.scale(read[0].scaling)
                    return read[0], [f"{line}; goes on from the state before, {name}" for line in lost]
                lost.append(reasons[0])
        return None, [f"{line}; trained from the beginning" for line in lost]

    def _found(self) -> tuple[int, list[str]]:
        """The highest number given so far, and what may be a state, newest first, by its name in the cell's folder."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        for name in names:
            if ".partial." in name:  # of a process that was killed
                (self.folder / name).unlink(missing_ok=True)
        manifests = sorted(filter(MANIFEST.fullmatch, names), key=_number, reverse=True)
        known = [f"{self.folder.name}/{name}" for name in manifests]
        known += [path.name for path in (self.whole, self.previous) if path.is_file()]
        return max(map(_number, filter(OURS.fullmatch, names)), default=0), known

    def _read(self, path: Path, shapes: Mapping[str, torch.Size]) -> tuple[TrainState, Kept, dict[str, int]]:
        """Where a training stood, its values and moments, how many steps Adam had made with each.

        Raises:
            UserError: the state is not whole, or of another cell.
        """
        state, kept, steps = _read_whole(path, self.key) if path.parent != self.folder else self._read_parts(path)
        for what, wanted in ((kept, [VALUE, *MOMENTS]), (state.best, [VALUE])):
            sizes = what.sizes() if what is not None else {}
            for name, shape in shapes.items() if what is not None else ():
                for key in wanted if name in steps else [VALUE]:
                    if sizes.get(f"{key}/{name}") != shape.numel():
                        raise UserError(f"{path} does not fit: {key} of {name} should have {shape.numel():,} entries")
        return state, kept, steps

    def _read_parts(self, path: Path) -> tuple[TrainState, OnDisk, dict[str, int]]:
        steps: dict[str, int] = {}
        try:
            found = opened(path.read_bytes())
            state, key = TrainState.of(found), found["cell"]
            parts, best = OnDisk(self.folder, found["parts"]), OnDisk(self.folder, found["best"])
            files = [part["file"] for part in (*parts.parts, *best.parts)]
            for part in parts.parts:
                steps |= part["steps"]
            _ = parts.sizes(), best.sizes()  # each file is there, and as large as it should be
        except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} can't be read ({first_line(error)})") from None
        if key != self.key or not all(map(OURS.fullmatch, files)):
            raise UserError(f"{path} is of another run (cell {key}; expected {self.key})")
        for part in best.parts:  # read only in the end
            best.check(part)
        state.best = best if best.parts else None
        self._newest = {path.name, *files}
        return state, parts, steps

    # writing

    def save_whole(self, state: TrainState, stepper: Stepper) -> None:
        """Write a state as one file. Every rank calls it.

        Raises:
            UserError: it can't be written.
        """
        held, stored = stepper.held(), dict[str, dict[str, Tensor]]()
        for key in (VALUE, *MOMENTS):
            pieces = {name: (own.start, own.tensors[key]) for name, own in held.items() if key in own.tensors}
            stored[key] = _whole(stepper, pieces)
        best: dict[str, Tensor] = {}
        if state.best is not None:
            with state.best.opened(held) as give:
                ends = {name: own.start + len(own.tensors[VALUE]) for name, own in held.items()}
                kept = {name: (own.start, give(VALUE, name, own.start, ends[name])) for name, own in held.items()}
            best = _whole(stepper, kept)
        steps = _united(stepper.gather(_steps(held)))
        if stepper.rank:
            return
        moments: dict[str, dict[str, Tensor]] = {}
        for name in stored[MOMENTS[0]]:
            moments[name] = {key: stored[key][name] for key in MOMENTS}
        optimizer = {"step": max(steps.values(), default=0), "steps": steps, "moments": moments}
        self.whole.parent.mkdir(parents=True, exist_ok=True)
        with _written(self.whole) as file:
            told = {"cell": self.key, **state.head()}
            torch.save({**told, "values": stored[VALUE], "optimizer": optimizer, "best_values": best}, file)
            if self.whole.is_file():
                move(self.whole, self.previous)

    def begin(self, pool: Executor, stepper: Stepper, best: Kept | None = None) -> Future[Part]:
        """Begin this rank's part under the next number; it is copied when this returns, and on disk, or in the object
        store, and read back when the future is done.

        Args:
            best: values to write without moments; None: the stepper's, with them.

        Raises:
            UserError: it can't be written; the future may raise it too.
        """
        self.number += 1
        path = self.folder / f"{self.number:04}-{stepper.rank}-of-{stepper.world}.safetensors"
        held = stepper.held()
        pieces = _own_pieces(stepper, held, (VALUE,) if best is not None else (VALUE, *MOMENTS))
        part = {"file": path.name, "pieces": pieces, "steps": {} if best is not None else _steps(held)}
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            give = stack.enter_context((live(held) if best is None else best).opened(held))
            file = stack.enter_context(_written(path))
            named = ((piece, _given(give, piece, *where)) for piece, where in pieces.items())
            checksum = shards.write(file, {piece: (count,) for piece, (_, count) in pieces.items()}, named)
            rest = stack.pop_all()

        def finish() -> Part:
            with rest:
                return part | {"bytes": file.stat().st_size, "sha256": shards.checked(file, checksum)}

        return pool.submit(finish)

    def conclude(self, head: Mapping[str, Any], parts: Sequence[Part], best: Kept | None) -> None:
        """Write the manifest of the parts of the last number; on rank 0, when all are on disk."""
        best_parts = best.parts if isinstance(best, OnDisk) else ()
        manifest = {"cell": self.key, **head, "parts": parts, "best": best_parts}
        path = self.folder / f"{self.number:04}.json"
        with _written(path) as file:
            file.write_text(sealed(manifest), encoding="utf-8")
        self._newest = {path.name, *(part["file"] for part in (*parts, *best_parts))}

    def tidy(self, best: Kept | None) -> None:
        """Remove all but the newest state and the best values; on rank 0, before another is begun."""
        kept = self._newest | {part["file"] for part in (best.parts if isinstance(best, OnDisk) else ())}
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if OURS.fullmatch(path.name) and path.name not in kept and _number(path.name) <= self.number:
                path.unlink(missing_ok=True)
        for path in (self.whole, self.previous) if self._newest else ():
            path.unlink(missing_ok=True)


def _number(name: str) -> int:
    return int(re.split(r"\D", name, maxsplit=1)[0])


def _given(give: Any, piece: str, start: int, count: int) -> Tensor:
    key, _, name = piece.partition("/")
    return give(key, name, start, start + count)


def _own_pieces(stepper: Stepper, held: Mapping[str, Held], keys: Sequence[str]) -> dict[str, tuple[int, int]]:
    """What this rank writes of what it holds, all or, where every rank holds all, its share: first entry, count."""
    pieces = {}
    for name, own in held.items():
        start, count = own.start, len(own.tensors[VALUE])
        if stepper.replicated:
            size = -(-count // stepper.world)
            start, count = stepper.rank * size, min(size, count - stepper.rank * size)
        if count > 0:
            pieces |= {f"{key}/{name}": (start, count) for key in keys if key in own.tensors}
    return pieces


def _steps(held: Mapping[str, Held]) -> dict[str, int]:
    return {name: own.step for name, own in held.items() if own.step}


def _united(found: Sequence[dict[str, int]]) -> dict[str, int]:
    united: dict[str, int] = {}
    for steps in found:
        united |= steps
    return united


def _whole(stepper: Stepper, pieces: Mapping[str, tuple[int, Tensor]]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in stepper.gathered(pieces) if tensor is not None}


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """`written`, whose failure is one line."""
    try:
        with written(path) as file:
            yield file
    except (OSError, RuntimeError) as error:  # torch's own writer raises a RuntimeError where a disk is full
        told = getattr(error, "strerror", None) or first_line(error)
        raise UserError(
            f"state: {path} can't be written: {told}; mend that and run again, which goes on from the last state"
        ) from None


def _read_whole(path: Path, key: str) -> tuple[TrainState, InMemory, dict[str, int]]:
    """A state that is one file; those of earlier versions know one number of steps for all, and not whose they are.

    Args:
        key: the cell's.
    """
    with on_disk(path) as file:  # a store that fails to give it is no reason to train again
        try:
            with zipfile.ZipFile(file) as archive:
                if bad := archive.testzip():
                    raise ValueError(f"{bad} is damaged")
            found = torch.load(file, weights_only=True, mmap=True)
            state, adam = TrainState.of(found), found["optimizer"]
            known = adam.get("steps") or dict.fromkeys(adam["moments"], adam["step"])
            pieces = {f"{VALUE}/{name}": (0, tensor.reshape(-1)) for name, tensor in found["values"].items()}
            for name, moments in adam["moments"].items():
                pieces |= {f"{key}/{name}": (0, moments[key].reshape(-1)) for key in MOMENTS}
            best = {f"{VALUE}/{name}": (0, tensor.reshape(-1)) for name, tensor in found["best_values"].items()}
            cell = found.get("cell", key)
        except Exception as error:  # what torch raises depends on where the file ends
            raise UserError(f"{path.name} can't be read ({first_line(error)})") from None
    if cell != key:
        raise UserError(f"{path.name} is of another run (cell {cell}; expected {key})")
    state.best = InMemory(best) if best else None
    return state, InMemory(pieces), cast("dict[str, int]", known)

"""Lottery tickets: what a search stores, and the entries cut from it.

A search stores trained minus pretrained values of every candidate parameter, once. A ticket is the K candidates that
moved most, |trained - pretrained|, K = round(ratio * candidates): exact, equal sizes in the order of the parameters. It
is found by counting over the bits of the absolute values, chunk by chunk: no sort, and no memory beyond the answer.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from raypft import shards
from raypft.errors import UserError, first_line
from raypft.storage import lasting, path_of

FILE = "ticket.safetensors"
CHUNK = 1 << 24
"""Entries looked at together."""
HALF = 16
"""Bits decided by each of the two counting passes."""


@dataclass(frozen=True)
class Ticket:
    """A search's artefact.

    names: candidate parameters in the model's order; revision: of the pretrained model; strategy: of the search;
    digest: hash over the differences.
    """

    path: Path
    names: tuple[str, ...]
    revision: str
    strategy: str
    settings: dict[str, Any]
    digest: str

    def size(self, name: str) -> int:
        """How many entries a parameter has."""
        with safe_open(_shard(self.path, name), "pt") as stream:
            return math.prod(stream.get_slice(name).get_shape())

    def chunks(self, name: str) -> Iterator[Tensor]:
        """The bits of a parameter's |difference| as integers, which order as the sizes do; flat, `CHUNK` at a time."""
        with safe_open(_shard(self.path, name), "pt") as stream:
            for part in stream.get_tensor(name).view(-1).split(CHUNK):
                yield part.abs().view(torch.int32)


class Where(NamedTuple):
    """Of one parameter's differences, as bits: which are active (those above a threshold, and the first so many that
    equal it), and how many that are."""

    above: int
    ties: int
    active: int


class Positions(Mapping[str, Tensor]):
    """Flat positions per parameter, [K_i] int, ascending: found when they are asked for, and kept by none but who
    asks.

    Raises:
        UserError: where they are asked for, another search's artefact is in the place by now.
    """

    def __init__(self, ticket: Ticket, where: Mapping[str, Where]) -> None:
        self.ticket, self.where = ticket, where

    def __getitem__(self, name: str) -> Tensor:
        above, ties, _ = self.where[name]
        if open_ticket(str(self.ticket.path)).digest != self.ticket.digest:
            raise UserError(f"method.ticket: {self.ticket.path} was written again since it was cut; start again")
        chosen, start = [], 0
        for bits in self.ticket.chunks(name):
            keep = bits > above
            equal = (bits == above).nonzero().view(-1)[:ties]
            keep[equal] = True
            ties -= len(equal)
            chosen.append(keep.nonzero().view(-1).add_(start).to(torch.int32 if start < 2**31 - CHUNK else torch.long))
            start += len(bits)
        return torch.cat(chosen)

    def __iter__(self) -> Iterator[str]:
        return iter(self.where)

    def __len__(self) -> int:
        return len(self.where)


@dataclass(frozen=True)
class Cut:
    """Active entries, of parameters that have any.

    pool: number of candidates; zeros: how many active entries did not move at all in the search.
    """

    indices: Positions
    pool: int
    zeros: int

    @property
    def size(self) -> int:
        """K."""
        return sum(own.active for own in self.indices.where.values())


class Facts:
    """What an artefact says about itself, gathered while its differences come, in the model's order."""

    def __init__(self, revision: str, strategy: str, settings: Mapping[str, Any]) -> None:
        self.facts = {"revision": revision, "strategy": strategy, "settings": dict(settings)}
        self.names, self.digest = list[str](), hashlib.sha256()

    def seen(self, name: str, difference: Tensor) -> Tensor:
        """A difference, fp32 on CPU, noted."""
        self.names.append(name)
        self.digest.update(name.encode())
        self.digest.update(difference.contiguous().view(-1).numpy().data)
        return difference

    def metadata(self) -> dict[str, str]:
        """The facts, once all differences were seen."""
        facts = {"names": self.names, **self.facts, "digest": self.digest.hexdigest()[:16]}
        return {"ticket": json.dumps(facts)}


def find_ticket(where: str) -> Path:
    """The artefact at a path: a file, or the one in the folder of a finished search run.

    Raises:
        UserError: nothing is there, or several.
    """
    path = path_of(os.path.expanduser(where))
    file = shards.file_of(path)
    if file is not None:
        return file
    if not path.is_dir():
        raise UserError(
            f"method.ticket: no file or folder {path}; give a {FILE} or the folder of a finished ticket_search run"
        )
    tickets = _tickets_in([path]) or _tickets_in(sorted(path.glob("seed-*")))
    if not tickets:
        raise UserError(f"method.ticket: {path} holds no {FILE}; expected the folder of a finished ticket_search run")
    if len(tickets) > 1:
        raise UserError(f"method.ticket: {path} holds {len(tickets)} tickets; choose one, e.g. {tickets[0]}")
    return tickets[0]


def _tickets_in(folders: Sequence[Path]) -> list[Path]:
    """The artefacts in folders, files or indices of shards."""
    files = [shards.file_of(folder / FILE) for folder in folders]
    return [file for file in files if file is not None]


def open_ticket(where: str) -> Ticket:
    """The artefact at a path, its differences not read yet.

    Raises:
        UserError: see `find_ticket`; or the file is none.
    """
    file = find_ticket(where)
    try:
        if file.suffix == ".json":
            told = shards.read_index(file)[0]
        else:
            with safe_open(lasting(file), "pt") as stream:
                told = stream.metadata() or {}
        facts = json.loads(told["ticket"])
        names, settings = tuple(facts["names"]), dict(facts["settings"])
        revision, strategy, digest = (str(facts[key]) for key in ("revision", "strategy", "digest"))
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError):
        raise UserError(f"method.ticket: {file} is no ticket; expected the {FILE} that ticket_search writes") from None
    return Ticket(file, names, revision, strategy, settings, digest)


def _shard(file: Path, name: str) -> Path:
    """The file of a parameter's differences, on this machine."""
    if file.suffix != ".json":
        return lasting(file)
    facts, files = shards.read_index(file)
    return _verified(file.with_name(files[name]), facts["sha256"][files[name]])


@functools.cache
def _verified(file: Path, sha256: str) -> Path:
    try:
        path = lasting(file)
        if shards.sha256(path) == sha256:
            return path
        told = "its sha256 is not that of the index"
    except FileNotFoundError:
        told = "it is missing"
    raise UserError(f"method.ticket: {file} can't be read: {told}; run the search again")


@functools.cache
def _check_whole(path: Path, digest: str) -> None:
    """Raise a UserError where the differences of an artefact that is one file are not those it was written with; shards
    are looked at one by one."""
    if path.suffix == ".json":
        return
    ticket = open_ticket(str(path))
    facts = Facts("", "", {})
    with safe_open(lasting(path), "pt") as stream:
        try:
            for name in ticket.names:
                facts.seen(name, stream.get_tensor(name))
        except SafetensorError as error:
            raise UserError(f"method.ticket: {path} can't be read: {first_line(error)}; run the search again") from None
    if json.loads(facts.metadata()["ticket"])["digest"] != digest:
        told = "its differences are not those it was written with; run the search again"
        raise UserError(f"method.ticket: {path} can't be read: {told}")


def cut(
    ticket: Ticket,
    ratio: float,
    scope: str = "global",
    names: Sequence[str] | None = None,
    layers: Mapping[str, int | None] | None = None,
) -> Cut:
    """The entries that moved most.

    The answer for one artefact is kept: the seeds of a job cut alike.

    Args:
        ratio: share of the candidates that are active, in (0, 1].
        scope: "global": the K largest of all candidates; "per_tensor": the K_i = round(ratio * n_i) largest of each
            parameter; "per_layer": of each layer, what is in none (the embeddings) taken as one.
        names: the parameters whose entries are candidates; None: all.
        layers: parameter to its layer, needed per layer.

    Raises:
        UserError: not one entry would be active; or a search writes the artefact meanwhile.
    """
    chosen = ticket.names if names is None else tuple(name for name in ticket.names if name in set(names))
    groups: dict[Any, list[str]] = {}
    for name in chosen:
        place = {"global": None, "per_tensor": name, "per_layer": (layers or {}).get(name)}[scope]
        groups.setdefault(place, []).append(name)
    return _cut(ticket.path, ticket.digest, ratio, scope, tuple(map(tuple, groups.values())))


@functools.lru_cache(maxsize=1)
def _cut(path: Path, digest: str, ratio: float, scope: str, groups: tuple[tuple[str, ...], ...]) -> Cut:
    ticket = Ticket(path, (), "", "", {}, digest)
    _check_whole(path, digest)
    where: dict[str, Where] = {}
    pool = zeros = 0
    for group in groups:
        size, unmoved = _select(ticket, group, ratio, where)
        pool, zeros = pool + size, zeros + unmoved
    if open_ticket(str(path)).digest != digest:
        raise UserError(f"method.ticket: {path} was written anew while it was read; run again")
    if not where:
        raise UserError(
            f"method.ratio: {ratio} of {pool:,} candidates ({scope}) leaves not one active entry; "
            "raise it, or widen method.segment"
        )
    return Cut(Positions(ticket, where), pool, zeros)


def _select(ticket: Ticket, names: Sequence[str], ratio: float, where: dict[str, Where]) -> tuple[int, int]:
    """Add where the round(ratio * n) largest entries of these parameters are; n, and how many of them are zero."""
    # on the CPU even where a meta device is the default: a ticket is cut for real when only shapes are counted
    upper, lower = (torch.zeros(1 << HALF, dtype=torch.long, device="cpu") for _ in range(2))
    for name in names:
        for bits in ticket.chunks(name):
            upper += torch.bincount(bits >> HALF, minlength=1 << HALF)
    pool = int(upper.sum())
    wanted = round(ratio * pool)
    if not wanted:
        return pool, 0
    high, wanted_in_bin = _bin_of(upper, wanted)
    for name in names:
        for bits in ticket.chunks(name):
            lower += torch.bincount(bits[bits >> HALF == high] & 0xFFFF, minlength=1 << HALF)
    low, ties = _bin_of(lower, wanted_in_bin)
    threshold = high << HALF | low
    zeros = ties if threshold == 0 else 0
    for name in names:
        above = equal = 0
        for bits in ticket.chunks(name):
            above += int((bits > threshold).sum())
            equal += int((bits == threshold).sum())
        first = min(ties, equal)
        if above + first:
            where[name] = Where(threshold, first, above + first)
        ties -= first
    return pool, zeros


def _bin_of(counts: Tensor, wanted: int) -> tuple[int, int]:
    """The bin that holds the `wanted`-th largest value, and how many of its entries are wanted."""
    above = counts.flip(0).cumsum(0)
    position = int((above < wanted).sum())
    value = len(counts) - 1 - position
    return value, wanted - (int(above[position]) - int(counts[value]))

"""Lottery tickets: what a search stores, and the entries cut from it.

A search stores trained minus pretrained values of every candidate parameter, once. A ticket is the K candidates that
moved most, |trained - pretrained|, K = round(ratio * candidates): exact, equal sizes in the order of the parameters. It
is found by counting over the bits of the absolute values, chunk by chunk: no sort, and no memory beyond the answer.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from raypft.errors import UserError
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

    def chunks(self, name: str) -> Iterator[Tensor]:
        """The bits of a parameter's |difference| as integers, which order as the sizes do; flat, `CHUNK` at a time."""
        with safe_open(self.path, "pt") as stream:
            for part in stream.get_tensor(name).view(-1).split(CHUNK):
                yield part.abs().view(torch.int32)


@dataclass(frozen=True)
class Cut:
    """Active entries: flat positions per parameter, [K_i] int, ascending; parameters without any are left out.

    pool: number of candidates; zeros: how many active entries did not move at all in the search.
    """

    indices: dict[str, Tensor]
    pool: int
    zeros: int

    @property
    def size(self) -> int:
        """K."""
        return sum(map(len, self.indices.values()))


def metadata(
    differences: Mapping[str, Tensor], revision: str, strategy: str, settings: Mapping[str, Any]
) -> dict[str, str]:
    """What an artefact says about itself; `differences` are fp32, in the model's order."""
    digest = hashlib.sha256()
    for name, value in differences.items():
        digest.update(name.encode())
        digest.update(value.contiguous().view(-1).numpy().data)
    facts = {
        "names": list(differences),
        "revision": revision,
        "strategy": strategy,
        "settings": dict(settings),
        "digest": digest.hexdigest()[:16],
    }
    return {"ticket": json.dumps(facts)}


def find_ticket(where: str) -> Path:
    """The artefact at a path: a file, or the one in the folder of a finished search run.

    Raises:
        UserError: nothing is there, or several.
    """
    path = path_of(os.path.expanduser(where))
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(
            f"method.ticket: no file or folder {path}; give a {FILE} or the folder of a finished ticket_search run"
        )
    tickets = sorted(path.glob(FILE)) or sorted(path.glob(f"seed-*/{FILE}"))
    if not tickets:
        raise UserError(f"method.ticket: {path} holds no {FILE}; expected the folder of a finished ticket_search run")
    if len(tickets) > 1:
        raise UserError(f"method.ticket: {path} holds {len(tickets)} tickets; choose one, e.g. {tickets[0]}")
    return tickets[0]


def open_ticket(where: str) -> Ticket:
    """The artefact at a path, its differences not read yet.

    Raises:
        UserError: see `find_ticket`; or the file is none.
    """
    file = find_ticket(where)
    path = lasting(file)
    try:
        with safe_open(path, "pt") as stream:
            facts = json.loads((stream.metadata() or {})["ticket"])
    except (SafetensorError, KeyError):
        raise UserError(f"method.ticket: {file} is no ticket; expected the {FILE} that ticket_search writes") from None
    return Ticket(path, tuple(facts["names"]), facts["revision"], facts["strategy"], facts["settings"], facts["digest"])


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
        UserError: not one entry would be active.
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
    indices: dict[str, Tensor] = {}
    pool = zeros = 0
    for group in groups:
        size, unmoved = _select(ticket, group, ratio, indices)
        pool, zeros = pool + size, zeros + unmoved
    if not indices:
        raise UserError(
            f"method.ratio: {ratio} of {pool:,} candidates ({scope}) leaves not one active entry; "
            "raise it, or widen method.segment"
        )
    return Cut(indices, pool, zeros)


def _select(ticket: Ticket, names: Sequence[str], ratio: float, indices: dict[str, Tensor]) -> tuple[int, int]:
    """Add the positions of the round(ratio * n) largest entries of these parameters; n, and how many of them are
    zero."""
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
        chosen, start = [], 0
        for bits in ticket.chunks(name):
            keep = bits > threshold
            equal = (bits == threshold).nonzero().view(-1)[:ties]
            keep[equal] = True
            ties -= len(equal)
            chosen.append(keep.nonzero().view(-1).add_(start).to(torch.int32 if start < 2**31 - CHUNK else torch.long))
            start += len(bits)
        positions = torch.cat(chosen)
        if len(positions):
            indices[name] = positions
    return pool, zeros


def _bin_of(counts: Tensor, wanted: int) -> tuple[int, int]:
    """The bin that holds the `wanted`-th largest value, and how many of its entries are wanted."""
    above = counts.flip(0).cumsum(0)
    position = int((above < wanted).sum())
    value = len(counts) - 1 - position
    return value, wanted - (int(above[position]) - int(counts[value]))

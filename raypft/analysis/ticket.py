"""Where a lottery ticket's entries lie: its share per layer and in the embeddings, and what two tickets have in common.

Source: Lottery Ticket Prompt-learning (arXiv 2404.01242), section 5.3 and Figure 3 (appendix A.1): layer 0 is the
embeddings; they hold 69 % of a ticket whose embeddings are tied, 39 % of a decoupled one. The paper does not say at
which ratio; Figure 2a, which the sentence introduces, is at 20 %.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy
from pydantic import Field

from raypft.analysis import base
from raypft.analysis._runs import Run
from raypft.backbones.fetch import pinned
from raypft.backbones.load import load_skeleton
from raypft.backbones.parameters import parameter_infos, segment_layers
from raypft.errors import UserError
from raypft.methods._tickets import Cut, Ticket, cut, open_ticket
from raypft.runs.predict import started_from

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IN_THE_PAPER = {"vanilla": 69.0, "decoupled": 39.0}
"""Percent of a ticket that lie in the embeddings, by strategy of the search."""
ANY_RUN = "a run of the recipe ticket_search or ltp"


class Options(base.Options):
    """ratio, scope: how a search's ticket is cut; a run of `lottery` has its own."""

    ratio: float = Field(default=0.2, gt=0, le=1, description="active share of the candidates")
    scope: Literal["global", "per_layer", "per_tensor"] = "global"


@dataclass(frozen=True)
class Chosen:
    """A ticket as it was cut.

    layers: candidate to its layer, 0 outside the blocks; sizes: candidate to its number of entries; bits: which are
    active, packed, by candidate.
    """

    run: Run
    ticket: Ticket
    ratio: float
    scope: str
    segment: str
    layers: dict[str, int]
    sizes: dict[str, int]
    active: Counter[str]
    bits: dict[str, Any]

    @property
    def size(self) -> int:
        """K."""
        return self.active.total()


class Tickets(base.Kind):
    """Shares of tickets per layer, and their overlap."""

    Options: ClassVar[type[base.Options]] = Options

    def compute(self, runs: Sequence[Run], options: Any) -> base.Analysis:
        chosen = [_chosen(run, options) for run in runs]
        _expect_one_model(chosen)
        shares = list(itertools.chain.from_iterable(map(_shares, chosen)))
        pairs = [_overlap(*pair) for pair in itertools.combinations(chosen, 2)]
        return base.Analysis(
            name="ticket",
            title="Lottery tickets by layer",
            how="The share of a ticket's K active entries that lie in each layer, 0 being the embeddings; shared: "
            "entries that two tickets have in common, beside what two tickets of their sizes share if each is drawn "
            "by chance. Source: LTP (arXiv 2404.01242), section 5.3 and Figure 3.",
            tables={"ticket": shares, **({"overlap": pairs} if pairs else {})},
            figures={"ticket": lambda figure: _draw(figure, shares)},
            notes=["the paper's 69 % and 39 % are read as those of a ticket of 20 %, which it does not say"],
        )


def _chosen(run: Run, options: Options) -> Chosen:
    """The ticket of a search, cut as asked for; of a run of `lottery`, as it was there."""
    method, segment = run.job["method"], "all"
    ratio, scope = options.ratio, options.scope
    with started_from(run.folder):
        if run.method == "ticket_search":
            where = str(run.folder / f"seed-{run.results[0]['seed']}")
        elif run.method == "lottery":
            where = run.moved.get("method.ticket", method["ticket"])
            ratio, scope = method.get("ratio", 0.2), method.get("scope", "global")
            segment = method.get("segment", "all")
        else:
            raise run.refused("ticket", f"is of the method {run.method}", ANY_RUN)
        ticket = open_ticket(where)
        backbone = run.moved.get("backbone", run.job["backbone"])
        skeleton = load_skeleton(pinned(backbone, run.results[0]["backbone"]))
    infos = parameter_infos(skeleton)
    inside = [
        name
        for name in ticket.names
        if segment == "all" or infos[name].layer in segment_layers(segment, skeleton.num_layers)
    ]
    found = cut(ticket, ratio, scope, inside, {name: infos[name].layer for name in inside})
    layers = {name: infos[name].layer or 0 for name in inside}
    sizes = {name: ticket.size(name) for name in inside}
    return Chosen(run, ticket, ratio, scope, segment, layers, sizes, *_packed(found, sizes))


def _packed(found: Cut, sizes: dict[str, int]) -> tuple[Counter[str], dict[str, Any]]:
    """How many entries of each candidate are active, and which, a bit an entry."""
    bits = {}
    for name, indices in found.indices.items():
        every = numpy.zeros(sizes[name], dtype=bool)
        every[indices.numpy()] = True
        bits[name] = numpy.packbits(every)
    return Counter({name: len(indices) for name, indices in found.indices.items()}), bits


def _expect_one_model(chosen: Sequence[Chosen]) -> None:
    first = chosen[0]
    for other in chosen[1:]:
        if other.ticket.revision != first.ticket.revision:
            raise UserError(
                f"analyse ticket: {first.run.folder} is of model revision {first.ticket.revision}, {other.run.folder} "
                f"of {other.ticket.revision}; tickets of two models have no entry in common; look at them apart"
            )


def _shares(chosen: Chosen) -> list[base.Row]:
    """A row a layer."""
    active, pool = Counter[int](), Counter[int]()
    for name, layer in chosen.layers.items():
        active[layer] += chosen.active[name]
        pool[layer] += chosen.sizes[name]
    paper = IN_THE_PAPER.get(chosen.ticket.strategy) if (chosen.scope, chosen.segment) == ("global", "all") else None
    return [
        {
            "run": chosen.run.name,
            "strategy": chosen.ticket.strategy,
            "ratio": chosen.ratio,
            "scope": chosen.scope,
            "segment": chosen.segment,
            "layer": layer,
            "active": active[layer],
            "candidates": pool[layer],
            "percent of the ticket": 100 * active[layer] / chosen.size,
            "percent of the layer": 100 * active[layer] / pool[layer],
            "percent in the paper": paper if layer == 0 else None,
        }
        for layer in sorted(pool)
    ]


def _overlap(one: Chosen, other: Chosen) -> base.Row:
    """How many entries two tickets share, and how many they would by chance."""
    both = one.bits.keys() & other.bits.keys()
    shared = sum(int(numpy.bitwise_count(one.bits[name] & other.bits[name]).sum()) for name in both)
    pools = [sum(chosen.sizes.values()) for chosen in (one, other)]
    common = sum(one.sizes[name] for name in one.sizes.keys() & other.sizes.keys())
    return {
        "run": one.run.name,
        "other": other.run.name,
        "entries": one.size,
        "entries of other": other.size,
        "shared": shared,
        "shared by chance": common * (one.size / pools[0]) * (other.size / pools[1]),
        "percent of the smaller": 100 * shared / min(one.size, other.size),
        "jaccard": shared / (one.size + other.size - shared),
    }


def _draw(figure: Figure, rows: Sequence[base.Row]) -> None:
    names = list(dict.fromkeys(row["run"] for row in rows))
    layers = sorted({row["layer"] for row in rows})
    figure.set_size_inches(max(5.0, 0.25 * len(layers) * len(names) + 2.5), 3.4)
    axes, width = figure.subplots(), 0.8 / len(names)
    told = False
    for number, name in enumerate(names):
        own = [row for row in rows if row["run"] == name]
        places = [row["layer"] - 0.4 + (number + 0.5) * width for row in own]
        axes.bar(places, [row["percent of the ticket"] for row in own], width, label=f"{name}, {own[0]['strategy']}")
        for place, row in zip(places, own, strict=True):
            if row["percent in the paper"] is not None:
                label = None if told else "embeddings in the paper"
                axes.plot(place, row["percent in the paper"], "k_", markersize=10, markeredgewidth=2, label=label)
                told = True
    axes.set_xticks(layers, ["emb." if layer == 0 else str(layer) for layer in layers])
    axes.set(xlabel="layer", ylabel="% of the ticket's entries")
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=min(3, len(names) + 1), frameon=False, fontsize=8)


Kind = Tickets

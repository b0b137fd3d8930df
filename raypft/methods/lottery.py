"""Lottery Ticket Prompt-learning (LTP): a soft prompt and the backbone entries that a language-model search moved most.

Source: Lottery Ticket Prompt-learning (arXiv 2404.01242), sections 3.1 (selection) and 3.2 (prompt and sparse tuning).
Formula: active = the K entries with the largest |theta_searched - theta|, K = round(ratio * candidates), over all
layers (scope: global), inside every layer (per_layer: the paper's "layer separate") or inside every tensor
(per_tensor); theta and every other entry stay pretrained; the prompt encoder is that of `soft_prompt`. The search is
`ticket_search`.
Differs: the ratio is a share of the candidates (what the search trained, restricted to the segment), where the paper's
"of the original parameters" exceeds a four-layer segment; entries are trained as a flat vector of values, so none but
these can move. After a decoupled search the output embedding keeps a frozen copy, else a ticket entry would also change
the label words' scores.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator
from torch import Tensor

from raypft.backbones.parameters import parameter_infos, segment_layers
from raypft.errors import UserError
from raypft.methods import base, soft_prompt
from raypft.methods._tickets import Ticket, cut, open_ticket

if TYPE_CHECKING:
    from raypft.backbones.base import Backbone


class Config(soft_prompt.PromptConfig):
    """ticket: a search's file or finished run; ratio: share of the candidates that train; scope, segment: which
    compete."""

    ticket: str | None = Field(default=None, description="the search's ticket.safetensors, or the folder of its run")
    ratio: float = Field(default=0.2, gt=0, le=1, description="active share of the candidates")
    scope: Literal["global", "per_layer", "per_tensor"] = "global"
    segment: str = Field(
        default="all", description="all, lower, middle, higher (thirds of the layers), or FIRST-LAST from 1"
    )

    @field_validator("segment")
    @classmethod
    def _known(cls, value: str) -> str:
        if not re.fullmatch(r"all|lower|middle|higher|\d+-\d+", value):
            raise ValueError("expected all, lower, middle, higher or FIRST-LAST, e.g. 5-8")
        return value

    def artefact(self) -> str:
        return "" if self.ticket is None else open_ticket(self.ticket).digest


class LotteryTicket(base.Method):
    """The prompt encoder and the K active entries train."""

    Config = Config
    families = ("masked", "causal")  # a segment is of one stack of layers
    marks = ("soft",)

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        backbone.check_can_train()
        ticket = _ticket_of(config, backbone)
        self.prompt = soft_prompt.PromptEncoder(config.length, backbone.embedding_size, config.encoder)
        backbone.on_embed(self.prompt)
        infos = parameter_infos(backbone)
        if config.segment != "all" or config.scope == "per_layer":
            backbone.blocks  # noqa: B018  (a model that is no row of blocks is refused)
        layers = segment_layers(config.segment, backbone.num_layers, "method.segment")
        inside = [name for name in ticket.names if config.segment == "all" or infos[name].layer in layers]
        self.cut = cut(ticket, config.ratio, config.scope, inside, {name: infos[name].layer for name in inside})
        self.whole = sum(p.numel() for p in backbone.model.parameters())
        if ticket.strategy == "decoupled":
            backbone.untie()
        for name, indices in self.cut.indices.items():
            backbone.sparse(name, indices)

    def notes(self) -> list[str]:
        active, pool, zeros = self.cut.size, self.cut.pool, self.cut.zeros
        share = f"{100 * active / self.whole:.1f} % of the model's {self.whole:,}"
        lines = [f"ticket: {active:,} of {pool:,} candidate entries train, {share}"]
        if zeros:
            lines.append(
                f"ticket: {zeros:,} active entries did not move in the search; "
                "they were taken in the order of the parameters"
            )
        return lines

    def parts(self) -> dict[str, Tensor]:
        return {"prompt": self.prompt.vectors()}

    def predicted_parameters(self) -> int:
        return (
            soft_prompt.encoder_parameters(self.config.length, self.backbone.embedding_size, self.config.encoder)
            + self.cut.size
        )


def _ticket_of(config: Config, backbone: Backbone) -> Ticket:
    if config.ticket is None:
        raise UserError(
            "method.ticket: none is given; "
            "run the recipe ticket_search on this backbone and set method.ticket to the folder of its run"
        )
    ticket = open_ticket(config.ticket)
    if ticket.revision != backbone.revision:
        raise UserError(
            f"method.ticket: {ticket.path} is of model revision {ticket.revision}; "
            f"this backbone is {backbone.revision}; search a ticket for it"
        )
    return ticket


Method = LotteryTicket

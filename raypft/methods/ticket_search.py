"""The search for a lottery ticket: masked-language-model training that stays near the pretrained values; `lottery` cuts
from it.

Source: Lottery Ticket Prompt-learning (arXiv 2404.01242), section 3.1; Ansell et al. 2022 (LT-SFT), whose selection it
reuses.
Formula: loss = mean over masked tokens of the cross-entropy + (l1 / N) sum |theta_i - theta_i^0|, the penalty once per
optimizer step, N = parameters of the model, the decoupled output embedding among them. Layer normalisations are frozen.
What is kept: theta - theta^0 of every trained parameter of the body, the candidates of the ticket.

    decoupled:         the output embedding is a frozen copy, the input embedding trains on its own
    vanilla:           input and output embedding stay tied and train
    freeze_embeddings: only the layers (and the head) train

Differs: the head's normalisation is frozen like the others (their name filter misses it in RoBERTa models). The epoch
is chosen after each epoch, theirs after every 1,000 steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from raypft.backbones.parameters import ParameterInfo, parameter_infos
from raypft.methods import _tickets as tickets
from raypft.methods import base

if TYPE_CHECKING:
    from raypft.backbones.base import Backbone


class Config(base.Config):
    """strategy: what the embeddings do; l1: strength of the pull towards the pretrained values."""

    strategy: Literal["decoupled", "vanilla", "freeze_embeddings"] = "decoupled"
    l1: float = Field(default=0.1, ge=0)


class TicketSearch(base.Method):
    """Everything trains but normalisations and what the strategy freezes."""

    Config = Config
    families = ("masked",)
    numerics = 2
    max_zero_stage = 2  # the penalty reads whole parameters
    opened: dict[str, nn.Parameter]

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.strategy, self.l1 = config.strategy, config.l1
        infos = parameter_infos(backbone)
        frozen = _frozen(backbone, infos, config.strategy)
        self.num_opened = sum(backbone.model.get_parameter(name).numel() for name in infos if name not in frozen)
        if config.strategy == "decoupled":
            backbone.untie()
        self.size = sum(p.numel() for p in backbone.model.parameters())
        self.opened = {name: backbone.open(name)[0] for name in infos if name not in frozen}
        self.candidates = [name for name in self.opened if infos[name].in_body]
        self._starts: dict[str, Tensor] = {}

    def start(self, name: str) -> Tensor:
        """The pretrained value that training began from, on the parameter's device and as rounded there."""
        parameter = self.opened[name]
        kept = self._starts.get(name)
        if kept is None or kept.device != parameter.device or kept.dtype != parameter.dtype:
            kept = self._starts[name] = self.backbone.loaded(name).to(parameter.device, parameter.dtype)
        return kept

    def penalty(self) -> Tensor | None:
        """(l1 / N) sum |theta - theta^0|, a number; its gradient is 0 where nothing moved."""
        if not self.l1:
            return None
        moved = sum(_Distance.apply(p, self.start(name)) for name, p in self.opened.items())
        return self.l1 / self.size * cast(Tensor, moved)  # not the 0 of an empty sum

    def result(self, names: Iterable[str]) -> base.Result:
        """The candidates' trained minus pretrained values."""
        called = {id(p): f"method.{name}" for name, p in self.named_parameters()}
        kept = {called[id(self.opened[name])]: name for name in self.candidates}
        facts = tickets.Facts(self.backbone.revision, self.strategy, self.config.model_dump())

        def difference(name: str, value: Tensor) -> Tensor:
            return facts.seen(name, value.sub_(self.start(name).float().cpu()))

        return base.Result(tickets.FILE, kept, difference, facts.metadata)

    def predicted_parameters(self) -> int:
        return self.num_opened


class _Distance(torch.autograd.Function):
    """sum |value - start|, a number; the differences are made again for the gradient, and so not kept of all
    parameters."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, start: Tensor) -> Tensor:
        ctx.save_for_backward(value, start)
        return (value - start).abs_().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        value, start = ctx.saved_tensors
        return (value - start).sgn_().mul_(gradient), None


def _frozen(backbone: Backbone, infos: dict[str, ParameterInfo], strategy: str) -> set[str]:
    """The parameters that do not train; asked before the output embedding gets its copy, which never trains."""
    frozen = {name for name, info in infos.items() if info.is_norm}
    if strategy == "freeze_embeddings":
        backbone.blocks  # noqa: B018  (a model that is no row of blocks is refused)
        frozen |= {name for name, info in infos.items() if info.in_body and info.layer is None}
    if strategy == "decoupled":
        backbone.check_output_embedding()
        model, output = backbone.model, backbone.decoder.weight
        if output is not model.get_input_embeddings().weight:
            frozen |= {name for name in infos if model.get_parameter(name) is output}
    return frozen


Method = TicketSearch

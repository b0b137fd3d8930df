"""Operations of a training: those of known products by hand, what shortcuts leave out, and no number that moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from raypft.backbones import flops
from raypft.backbones.flops import STATES, STEPS, Meter
from raypft.backbones.frozen_states import FrozenStates
from raypft.backbones.products import exchange_linear
from raypft.contract import cases, tiny
from raypft.training.loader import PromptDataset
from raypft.training.loop import fit
from raypft.training.stepper import TorchStepper

EPOCHS = 3
SETTINGS = cases.SETTINGS.model_copy(update={"epochs": EPOCHS})


def test_products_and_attention_count_forward_and_backward():
    meter = Meter()
    weight, rows = torch.ones(4, 5, requires_grad=True), torch.ones(3, 4)
    with meter.piece(STEPS) as part:
        part.tokens += 3
        (rows @ weight).sum().backward()
    assert meter.training(1) == 2 * (2 * 3 * 4 * 5), "the product and the gradient of the weight"
    meter = Meter()
    q, k, v = (torch.randn(2, 3, 7, 8, requires_grad=True) for _ in range(3))
    with meter.piece(STEPS) as part:
        part.tokens += 1
        scaled_dot_product_attention(q, k, v).sum().backward()
    once = 2 * (2 * 2 * 3 * 7 * 7 * 8)
    assert meter.training(1) == once + 2.5 * once, "backward makes the scores again"


@pytest.mark.parametrize("on", [True, False])
def test_a_frozen_layer_counts_the_same_by_onednn(on):
    layer = torch.nn.Linear(256, 96).requires_grad_(False)
    exchange_linear(layer, on)
    meter = Meter()
    with meter.piece(STEPS) as part:
        part.tokens += 1
        layer(torch.randn(200, 256, requires_grad=True)).sum().backward()
    assert meter.training(1) == 2 * (2 * 200 * 256 * 96), "the product and the gradient of its input"


def test_other_pieces_count_by_their_tokens_and_a_resumed_training_by_its_steps():
    meter = Meter()
    for tokens in (3, 6):
        with meter.piece(STEPS) as part:
            part.tokens += tokens
            _ = torch.ones(3, 4) @ torch.ones(4, 5)
    once = 2 * 3 * 4 * 5
    assert meter.training(2) == once * 3
    assert meter.training(8) == once * 3 * 4, "six were made before"
    assert Meter().training(8) is None
    assert Meter().training(0) == 0


def trained(method: str, kind: str, shortcuts: bool = True, keep: bool = False, **options: Any):
    """A cell after its training: losses, and the meter."""
    cell = cases.cell(method, tiny.backbone(kind), **options)
    backbone = cell.learner.method.backbone
    backbone.shortcuts = shortcuts
    rows = PromptDataset(cell.prompts, cell.learner.method, backbone.pad)
    if keep:
        rows.lower = FrozenStates(backbone).after(cell.learner.method.constant_below, cell.prompts, "cpu")
    state = fit(TorchStepper(cell.learner, SETTINGS), rows, None, SETTINGS, 0, cell.score)
    return state.losses, backbone.flops, cell


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_whole_model_takes_six_operations_a_weight_and_token(kind):
    losses, meter, cell = trained("full", kind, shortcuts=False)
    blocks = cell.learner.method.backbone.blocks
    weights = sum(p.numel() for block in blocks for p in block.parameters() if p.ndim == 2)
    rule = 6 * weights * meter.parts[STEPS].tokens
    counted = meter.training(len(losses))
    assert counted is not None
    assert counted == pytest.approx(rule, rel=0.35), "attention and the head come on top"
    assert counted > rule * 0.98


def test_what_is_not_computed_is_not_counted():
    counted = list[float]()
    ways: list[tuple[str, dict[str, Any]]] = [("full", {"shortcuts": False}), ("full", {})]
    ways += [("gnnavi", {"layer": 2}), ("gnnavi", {"layer": 2, "keep": True})]
    meter = Meter()
    for method, more in ways:
        losses, meter, _ = trained(method, "gpt2", **more)
        counted.append(meter.training(len(losses)) or 0.0)
    assert counted == sorted(set(counted), reverse=True), "each leaves more out than the one before"
    assert meter.parts[STATES].flops > 0, "what is kept was computed once"


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_torch_counts_the_same_where_it_is_told_of_a_cpus_attention(kind):
    def forward(q, k, v, *more, **other):
        return sdpa_flop_count(q, k, v)

    def backward(grad, q, k, v, *more, **other):
        return sdpa_backward_flop_count(grad, q, k, v)

    cell = cases.cell("full", tiny.backbone(kind))
    method = cell.learner.method
    batch = PromptDataset(cell.prompts, method, method.backbone.pad).batch([0, 1])

    def step():
        cell.learner.readout.loss(cell.learner(batch), batch)[0].backward()

    attention = {flops.ATTENTION: forward, flops.ATTENTION_BACKWARD: backward}
    with FlopCounterMode(display=False, custom_mapping=attention) as theirs:
        step()
    meter = Meter()
    with meter.piece(STEPS) as part:
        part.tokens += 1
        step()
    assert meter.training(1) == theirs.get_total_flops()


def test_no_number_moves(monkeypatch):
    measured, meter, _ = trained("lora", "bert")
    monkeypatch.setattr(flops, "_Count", _Nothing)
    plain, _, _ = trained("lora", "bert")
    assert measured == plain
    assert meter.parts[STEPS].first_flops > 0


class _Nothing:
    flops = 0

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        pass

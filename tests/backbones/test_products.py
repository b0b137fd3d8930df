"""Frozen linear layers multiply by oneDNN: torch's own values and gradients, and only where nothing in them trains."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from raypft.backbones import products
from raypft.backbones.causal import CausalBackbone

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")


@pytest.fixture
def made(monkeypatch):
    """How many products were oneDNN's."""
    counted, own = [], products._product

    def product(*given):
        counted.append(len(given))
        return own(*given)

    monkeypatch.setattr(products, "_product", product)
    return counted


def layers(kind, bias=True):
    """A frozen layer that uses oneDNN, and torch's with the same weights."""
    torch.manual_seed(0)
    if kind is Conv1D:
        one, other = Conv1D(96, 256), Conv1D(96, 256)
        nn.init.normal_(one.bias)
    else:
        one, other = nn.Linear(256, 96, bias=bias), nn.Linear(256, 96, bias=bias)
    other.load_state_dict(one.state_dict())
    products.exchange_linear(one.requires_grad_(False), True)
    return one, other.requires_grad_(False)


STATES = {
    "as made": lambda: torch.randn(4, 60, 256),
    "turned": lambda: torch.randn(60, 4, 256).transpose(0, 1),
    "every second": lambda: torch.randn(4, 120, 256)[:, ::2],
    "one for all": lambda: torch.randn(1, 240, 256).expand(2, -1, -1),
    "flat": lambda: torch.randn(200, 256),
}


@pytest.mark.parametrize("states", STATES.values(), ids=STATES)
@pytest.mark.parametrize(("kind", "bias"), [(nn.Linear, True), (nn.Linear, False), (Conv1D, True)])
def test_values_and_gradients_are_torchs(kind, bias, states, made):
    (ours, torchs), given = layers(kind, bias), states()
    with torch.no_grad():
        assert torch.allclose(ours(given), torchs(given.contiguous()), atol=1e-4)
    gradients = []
    for layer in (ours, torchs):
        asked = given.clone().requires_grad_()
        out = layer(asked if layer is ours else asked.contiguous())
        (out * torch.linspace(-1, 1, 96)).transpose(0, -1).sum().backward()
        gradients.append(asked.grad)
    assert torch.allclose(*gradients, atol=1e-4)
    assert made == [3, 3, 3], "answered, and forward and backward"


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_what_trains_is_torchs(name, made):
    layer, _ = layers(nn.Linear)
    getattr(layer, name).requires_grad_(True)
    layer(STATES["as made"]()).sum().backward()
    assert getattr(layer, name).grad is not None
    assert not made
    with torch.no_grad():
        layer(STATES["as made"]())
    assert made, "where nothing asks for gradients it is frozen"


@pytest.mark.parametrize(
    "states", [torch.randn(8, 256), torch.randn(60, 256).double(), torch.randn(60, 256).bfloat16()]
)
def test_few_rows_and_other_types_are_torchs(states, made):
    layer, _ = layers(nn.Linear)
    layer.to(states.dtype)(states)
    assert not made


def test_autocast_is_torchs(made):
    layer, _ = layers(nn.Linear)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(STATES["flat"]()).dtype == torch.bfloat16
    assert not made


def test_a_second_derivative_is_refused():
    layer, _ = layers(nn.Linear)
    states = STATES["flat"]().requires_grad_()
    (gradient,) = torch.autograd.grad((layer(states) ** 2).sum(), states, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


def test_a_model_uses_it_unless_told_not_to(made):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=128, n_head=4, vocab_size=400)).eval().requires_grad_(False)
    backbone, ids = CausalBackbone(model), torch.arange(300).view(2, 150)
    with torch.no_grad():
        made.clear()
        ours = model(ids).logits
        assert len(made) == 2 * 4
        backbone.shortcuts = False
        torchs = model(ids).logits
    assert len(made) == 2 * 4
    assert torch.allclose(ours, torchs, atol=1e-5)
    assert not any(isinstance(module, products.FrozenConv1D) for module in model.modules())

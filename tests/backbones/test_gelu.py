"""GELU's tanh form by the sigmoid: torch's own values and gradients to 1e-6, and only where that is faster."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.activations import FastGELUActivation, GELUActivation, GELUTanh, NewGELUActivation

from raypft.backbones import gelu
from raypft.backbones.causal import CausalBackbone
from raypft.backbones.gelu import LEAST, MOST, TanhGelu, exchange_gelu


@pytest.fixture
def made(monkeypatch):
    """How many exponents of sigmoids were made."""
    counted, own = [], gelu._exponent
    monkeypatch.setattr(gelu, "_exponent", lambda x: (counted.append(x.numel()), own(x))[1])
    return counted


def written_out(x):
    """The tanh form in float64, Hendrycks & Gimpel 2016, section 2."""
    x = x.double()
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


INPUTS = {
    "one row": lambda: torch.linspace(-12, 12, LEAST),
    "a batch": lambda: 3 * torch.randn(4, 30, 512, generator=torch.Generator().manual_seed(0)),
    "turned": lambda: torch.linspace(-6, 6, LEAST).view(2, -1, 64).transpose(1, 2),
    "every second": lambda: torch.linspace(-6, 6, 2 * LEAST).view(-1, 64)[:, ::2],
    "one for all": lambda: torch.linspace(-6, 6, 512).expand(LEAST // 512, -1),
}


@pytest.mark.parametrize("name", INPUTS)
def test_values_and_gradients_are_those_of_the_formula(name, made):
    given = INPUTS[name]()
    exact = given.double().requires_grad_()
    expected = written_out(exact)
    weights = torch.linspace(-1, 1, given.numel(), dtype=torch.float64).view(given.shape)
    (slope,) = torch.autograd.grad((expected * weights).sum(), exact)
    with torch.no_grad():
        torch.testing.assert_close(TanhGelu()(given).double(), expected.detach(), rtol=1e-6, atol=1e-6)
    asked = given.clone().requires_grad_()
    out = TanhGelu()(asked)
    torch.testing.assert_close(out.detach().double(), expected.detach(), rtol=1e-6, atol=1e-6)
    (out * weights.float()).sum().backward()
    assert asked.grad is not None
    torch.testing.assert_close(asked.grad.double(), slope, rtol=1e-6, atol=2e-6)
    assert len(made) == 2
    assert torch.equal(given, INPUTS[name]()), "what is given stays as it is"


def test_large_numbers_have_the_limits():
    given = torch.tensor([-1e10, -1e4, -30.0, 30.0, 1e4, 1e10]).repeat(LEAST).requires_grad_()
    out = TanhGelu()(given)
    out.sum().backward()
    assert given.grad is not None
    assert out.detach().view(-1, 6)[0].tolist() == [0, 0, 0, 30, 1e4, 1e10]
    assert given.grad.view(-1, 6)[0].tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("count", "dtype"),
    [(LEAST - 1, torch.float32), (MOST + 1, torch.float32), (LEAST, torch.float64), (LEAST, torch.bfloat16)],
)
def test_few_numbers_very_many_and_other_types_are_torchs(count, dtype, made):
    given = torch.linspace(-6, 6, count, dtype=dtype)
    assert torch.equal(TanhGelu()(given), functional.gelu(given, approximate="tanh"))
    assert not made


def test_autocast_is_torchs(made):
    with torch.autocast("cpu", torch.bfloat16):
        TanhGelu()(torch.randn(LEAST))
    assert not made


def test_a_second_derivative_is_refused():
    states = torch.randn(LEAST).requires_grad_()
    (gradient,) = torch.autograd.grad((TanhGelu()(states) ** 2).sum(), states, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("act", "is_tanh_form"),
    [
        (NewGELUActivation(), True),
        (FastGELUActivation(), True),
        (GELUTanh(), True),
        (GELUTanh(use_gelu_tanh_python=True), True),
        (nn.GELU("tanh"), True),
        (nn.GELU(), False),
        (GELUActivation(), False),
        (nn.SiLU(), False),
    ],
    ids=str,
)
@pytest.mark.parametrize("on", [True, False])
def test_which_modules_are_exchanged_and_each_stays_its_function(act, is_tanh_form, on, made):
    given = torch.linspace(-6, 6, LEAST)
    inner = nn.Sequential(act)
    model = nn.Sequential(inner)
    expected = model(given)
    exchange_gelu(model, on)
    assert isinstance(inner[0], TanhGelu) == is_tanh_form
    torch.testing.assert_close(model(given), expected, rtol=1e-6, atol=1e-6)
    assert len(made) == (is_tanh_form and on)
    exchange_gelu(model, not on)
    model(given)
    assert len(made) == is_tanh_form


def test_a_model_uses_it_unless_told_not_to(made):
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=128, n_head=4, vocab_size=400)).eval()
    backbone, ids = CausalBackbone(model), torch.arange(300).view(2, 150)
    made.clear()
    ours = model(ids).logits
    assert made == [2 * 150 * 512] * 2
    backbone.shortcuts = False
    assert torch.allclose(ours, model(ids).logits, atol=1e-5)
    assert len(made) == 2

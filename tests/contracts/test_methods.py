"""What every method promises, on every family it supports: the checks of `raypft contract` over the catalogue."""

from __future__ import annotations

import pytest

from raypft.backbones import products
from raypft.contract import cases, checks, tiny
from raypft.methods import METHODS

CASES = []
for promise in checks.PROMISES:
    CASES += [(promise, *pair) for pair in cases.supported() if METHODS.load(pair[0]).trains or not promise.of_training]


@pytest.mark.parametrize(("promise", "method", "kind"), CASES, ids=str)
def test_every_method_keeps_its_promises(promise, method, kind, monkeypatch):
    monkeypatch.setattr(products, "LEAST", 0)  # in models as small as these, too
    monkeypatch.setattr(products, "FEW", 0)
    try:
        promise.check(method, kind)
    except checks.DoesNotApply as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_method_can_overfit_five_rows(kind):
    """The whole chain learns: full fine-tuning reaches 100 on its training rows."""
    settings = cases.SETTINGS.model_copy(update={"epochs": 60, "lr": 1e-2})
    assert checks.trained(cases.cell("full", tiny.backbone(kind)), settings)[1].best_score == 100

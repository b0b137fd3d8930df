"""The loop's own promises: what it tells on the way, and the learning rate of every step."""

from __future__ import annotations

import pytest
import torch

from raypft.config.job import Train
from raypft.contract import cases, tiny
from raypft.training import checkpoint, loop
from raypft.training.loader import PromptDataset
from raypft.training.loop import fit, learning_rate
from raypft.training.stepper import TorchStepper


def test_a_long_epoch_is_told_while_it_runs(monkeypatch):
    """Steps are told beside epochs, but not the last one of an epoch, which the epoch's own event tells."""
    monkeypatch.setattr(loop, "TELL_SECONDS", -1)
    cell = cases.cell("full", tiny.backbone("bert"))
    settings = cases.SETTINGS.model_copy(update={"epochs": 2, "batch_size": 2})
    rows = PromptDataset(cell.prompts, cell.learner.method, 1)
    events: list[dict] = []
    progress = fit(TorchStepper(cell.learner, settings), rows, None, settings, 0, cell.score, tell=events.append)
    told = [(event["event"], event["epoch"], event.get("step")) for event in events]
    assert told == [
        ("step", 1, 1),
        ("step", 1, 2),
        ("epoch", 1, None),
        ("step", 2, 1),
        ("step", 2, 2),
        ("epoch", 2, None),
    ]
    assert events[0]["loss"] == progress.losses[0]
    assert events[0]["steps"] == 3


@pytest.mark.parametrize("save_every", [None, 100])
def test_a_worker_whose_node_goes_away_keeps_its_state_at_once(save_every, monkeypatch):
    """After every step from the notice on while that costs less than half of the time, whatever the settings say."""
    monkeypatch.setattr(checkpoint, "DISK", 1e15)
    cell = cases.cell("full", tiny.backbone("bert"))
    settings = cases.SETTINGS.model_copy(update={"epochs": 3, "batch_size": 2, "save_every": save_every})
    notices = iter([False, False, False, True, True, True, False, False, False])
    stepper = TorchStepper(cell.learner, settings)
    stepper.leaving = lambda: next(notices)
    saved: list[tuple[int, int]] = []
    rows = PromptDataset(cell.prompts, cell.learner.method, 1)
    fit(
        stepper,
        rows,
        None,
        settings,
        0,
        cell.score,
        save=lambda progress: saved.append((progress.epoch, progress.step)),
    )
    within = [at for at in saved if at[1]]
    assert within == [(1, 1), (1, 2), (1, 3)], "states inside of an epoch, those of the epoch of the notice"


@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
@pytest.mark.parametrize(
    ("method", "kind"), [("full", kind) for kind in (*tiny.KINDS, "t5")] + [("soft_prompt", "bert")]
)
def test_biases_and_normalisations_do_not_decay(method, kind, optimizer):
    """A step without a gradient moves what decays, and only that, in whatever words a model calls its norms."""
    learner = cases.cell(method, tiny.backbone(kind)).learner
    settings = cases.SETTINGS.model_copy(update={"weight_decay": 0.5, "optimizer": optimizer, "lr": 0.1})
    stepper = TorchStepper(learner, settings)
    for parameter in learner.trainable().values():
        with torch.no_grad():
            parameter.fill_(1.0)
        parameter.grad = torch.zeros_like(parameter)
    stepper.step(0.1)
    still = {name for name, value in stepper.values().items() if (value == 1).all()}
    moved = set(learner.trainable()) - still
    norms = ("LayerNorm", "layer_norm", "layernorm", ".ln_", ".norm.")
    assert still == {name for name in learner.trainable() if "bias" in name or any(norm in name for norm in norms)}
    assert any(word in name for name in moved for word in ("embed", "wte", "shared")), "word embeddings decay"
    assert method == "full" or {name for name in moved if ".prompt." in name} >= {"method.prompt.embedding"}


def test_the_rate_of_every_step():
    """Warm-up rises to the full rate; then constant, linear to 0, or 0.95 an epoch."""
    rates = {
        name: [learning_rate(Train(lr=1.0, epochs=2, schedule=name), step, 4) for step in range(4)]
        for name in ("constant", "linear", "exponential")
    }
    assert rates["constant"] == [1, 1, 1, 1]
    assert rates["linear"] == [1, 0.75, 0.5, 0.25]
    assert rates["exponential"] == pytest.approx([1, 1, 0.95, 0.95])
    assert [learning_rate(Train(lr=1.0, epochs=2, warmup=0.5), step, 4) for step in range(4)] == [0.5, 1, 1, 1]

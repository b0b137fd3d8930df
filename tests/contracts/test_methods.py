"""What every method promises, on every family it supports."""

from __future__ import annotations

import cases
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from raypft.batch import collate
from raypft.methods import METHODS
from raypft.training.loader import PromptDataset
from raypft.training.loop import evaluate, fit
from raypft.training.stepper import TorchStepper

CASES = cases.supported()
TRAINING = [(method, kind) for method, kind in CASES if METHODS.load(method).trains]


def run(cell: cases.Cell, settings=cases.SETTINGS, seed: int = 0):
    """Fit a cell; its stepper and progress."""
    stepper = TorchStepper(cell.learner, settings)
    rows = PromptDataset(cell.prompts, cell.learner.method, 1)
    return stepper, fit(stepper, rows, rows, settings, seed, cell.score)


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_states_are_one_row_per_slot(method, kind):
    cell = cases.cell(method, tiny.backbone(kind))
    batch = PromptDataset(cell.prompts, cell.learner.method, 1).batch([0, 1, 2])
    assert cell.learner.method(batch).shape == (3, tiny.HIDDEN)


@pytest.mark.parametrize(("method", "kind"), TRAINING)
def test_exactly_the_declared_parameters_move(method, kind):
    """A trainable tensor moves somewhere in ten steps (rows of unused tokens stay), a frozen one never does."""
    cell = cases.cell(method, tiny.backbone(kind))
    before = {name: p.detach().clone() for name, p in cell.learner.named_parameters()}
    trainable = set(cell.learner.trainable())
    run(cell)
    moved = {name for name, p in cell.learner.named_parameters() if not torch.equal(p, before[name])}
    assert moved <= trainable
    # attention key biases have no gradient: softmax ignores what all keys share
    still = {name for name in trainable - moved if "key.bias" not in name and "token_type" not in name}
    assert not still, still


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_trainable_count_is_the_predicted_one(method, kind):
    method = cases.cell(method, tiny.backbone(kind)).learner.method
    assert sum(p.numel() for p in method.trainable().values()) == method.predicted_parameters()


@pytest.mark.parametrize(("method", "kind"), TRAINING)
def test_saved_parameters_give_equal_scores_in_a_fresh_model(method, kind, tmp_path):
    cell = cases.cell(method, tiny.backbone(kind))
    stepper, _ = run(cell)
    save_file({name: value.contiguous() for name, value in stepper.values().items()}, tmp_path / "x.safetensors")
    again = cases.cell(method, tiny.backbone(kind), seed=9)
    fresh = TorchStepper(again.learner, cases.SETTINGS)
    fresh.set_values(load_file(tmp_path / "x.safetensors"))
    rows, other = (PromptDataset(c.prompts, c.learner.method, 1) for c in (cell, again))
    assert evaluate(stepper, rows, 2) == evaluate(fresh, other, 2)


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_cached_states_give_the_uncached_numbers(method, kind):
    cell = cases.cell(method, tiny.backbone(kind))
    made = cell.learner.method
    if not made.constant_below:
        pytest.skip("nothing constant below this method")
    states = made.backbone.frozen_states.after(made.constant_below, cell.prompts, "cpu")
    plain, cached = (PromptDataset(cell.prompts, made, 1, lower).batch([2, 0, 4]) for lower in (None, states))
    torch.testing.assert_close(cell.learner(plain), cell.learner(cached), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("method", "kind"), TRAINING)
def test_cells_a_b_a_on_one_backbone_give_equal_bits(method, kind):
    backbone = tiny.backbone(kind, dropout=0.1)
    losses, values = [], []
    for seed in (0, 1, 0):
        cell = cases.cell(method, backbone, seed)
        stepper, progress = run(cell, seed=seed)
        losses.append(progress.losses)
        values.append(stepper.values())
    assert losses[0] == losses[2] != losses[1]
    assert all(torch.equal(values[0][name], values[2][name]) for name in values[0])


@pytest.mark.parametrize(("method", "kind"), TRAINING)
def test_bf16_stays_finite(method, kind):
    _, progress = run(cases.cell(method, tiny.backbone(kind)), cases.SETTINGS.model_copy(update={"precision": "bf16"}))
    assert all(torch.isfinite(torch.tensor(progress.losses)))


@pytest.mark.parametrize(("method", "kind"), TRAINING)
def test_micro_batches_do_not_change_the_losses(method, kind):
    curves = [
        run(cases.cell(method, tiny.backbone(kind)), cases.SETTINGS.model_copy(update={"micro_batch": n}))[1].losses
        for n in (None, 1)
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_method_can_overfit_five_rows(kind):
    """The whole chain learns: full fine-tuning reaches 100 on its training rows."""
    settings = cases.SETTINGS.model_copy(update={"epochs": 60, "lr": 1e-2})
    assert run(cases.cell("full", tiny.backbone(kind)), settings)[1].best_score == 100


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_filler_rows_weigh_nothing(kind):
    cell = cases.cell("full", tiny.backbone(kind))
    filler = PromptDataset(cell.prompts, cell.learner.method, 1).batch([])
    loss, weight = cell.learner.readout.loss(cell.learner(filler), filler)
    assert float(loss.detach()) == 0
    assert float(weight) == 0
    assert collate(cell.prompts[:1], 1).weight.sum() == 1

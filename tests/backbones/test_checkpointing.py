"""Blocks that keep their inputs alone and run again in the backward pass: what is kept, what runs, what is drawn."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from raypft.backbones.frozen_states import FrozenStates
from raypft.contract import cases, tiny
from raypft.contract.checks import CLOSE, dataset, dropping, trained
from raypft.training.dropout import RowDropout

SETTINGS = cases.SETTINGS.model_copy(update={"epochs": 1})


def kept(cell: cases.Cell, on: bool) -> int:
    """Bytes of the tensors, other than parameters, that a forward pass keeps for the backward pass."""
    backbone, sizes = cell.learner.method.backbone, dict[int, int]()
    backbone.checkpointing = on
    weights = {p.untyped_storage().data_ptr() for p in cell.learner.parameters()}
    held = []  # an address is not another tensor's while it is

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        batch = dataset(cell).batch([0, 1, 2, 3, 4])
        loss, _ = cell.learner.readout.loss(cell.learner(batch), batch)
    loss.backward()
    return sum(sizes.values())


def runs(cell: cases.Cell) -> list[int]:
    """How often each block has run, counted from now on."""
    counts = []
    for number, block in enumerate(cell.learner.method.backbone.blocks):
        counts.append(0)

        def counted(*_, number=number):
            counts[number] += 1

        block.register_forward_pre_hook(counted)
    return counts


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5"])
@pytest.mark.parametrize("method", ["full", "lora", "prefix"])
def test_less_is_kept(method, kind):
    cell = dropping(method, kind)
    cell.learner.train()
    assert kept(cell, True) < kept(cell, False) / 4


@pytest.mark.parametrize("kind", [kind for kind in tiny.MODELS if tiny.backbone(kind).has_blocks])
def test_losses_of_every_model_type_are_the_same(kind):
    curves = []
    for on in (False, True):
        cell = dropping("full", kind)
        cell.learner.method.backbone.checkpointing = on
        curves.append(trained(cell, SETTINGS)[1].losses)
    assert curves[1] == pytest.approx(curves[0], rel=1e-6)


def test_blocks_below_the_cut_run_once():
    cell = cases.cell("gnnavi", tiny.backbone("gpt2"), layer=2)
    cell.learner.method.backbone.checkpointing = True
    counts, batch = runs(cell), dataset(cell).batch([0, 1])
    cell.learner.readout.loss(cell.learner(batch), batch)[0].backward()
    # the last block is called twice for the slots alone, and a second time so
    assert counts == [1, 1 + 1, 2 + 2]


def test_states_below_the_cut_may_be_known():
    found = []
    for on in (False, True):
        cell = cases.cell("gnnavi", tiny.backbone("gpt2"), layer=2)
        method = cell.learner.method
        method.backbone.checkpointing = on
        rows = dataset(cell)
        rows.lower = FrozenStates(method.backbone).after(method.constant_below, cell.prompts, "cpu")
        batch = rows.batch([0, 1, 2])
        cell.learner.readout.loss(cell.learner(batch), batch)[0].backward()
        found.append([p.grad for p in cell.learner.trainable().values()])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("method", ["full", "prefix", "lottery"])
def test_a_batch_between_does_not_mix_with_it(method):
    """Two forward passes before a backward pass: each runs again with its own rows, masks and weights."""
    kinds = {"full": "bert", "prefix": "bert", "lottery": "bert"}
    found = []
    for on in (False, True):
        cell = dropping(method, kinds[method])
        cell.learner.train()
        cell.learner.method.backbone.checkpointing = on
        losses = []
        for step, rows in enumerate(([0, 1, 2], [3, 4])):
            batch = dataset(cell).batch(rows)
            with RowDropout(batch, 0, step):
                losses.append(cell.learner.readout.loss(cell.learner(batch), batch)[0])
        torch.stack(losses).sum().backward()
        found.append({name: p.grad for name, p in cell.learner.trainable().items()})
    for name, gradient in found[0].items():
        assert (gradient is None) == (found[1][name] is None)
        assert gradient is None or torch.allclose(found[1][name], gradient, atol=CLOSE * float(gradient.abs().max()))


def test_what_torch_draws_is_drawn_again():
    """A model or method may drop what is no row's; then its masks come from torch's generator."""
    found = []
    for on in (False, True):
        cell = cases.cell("full", tiny.backbone("gpt2"))
        backbone = cell.learner.method.backbone
        backbone.checkpointing = on
        backbone.blocks[0].register_forward_hook(lambda *given: functional.dropout(given[-1][:, None], 0.5)[:, 0])
        torch.manual_seed(3)
        batch = dataset(cell).batch([0, 1, 2])
        cell.learner.readout.loss(cell.learner(batch), batch)[0].backward()
        found.append([p.grad for p in cell.learner.trainable().values() if p.grad is not None])
    assert all(map(torch.equal, *found))

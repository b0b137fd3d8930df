"""Loaders, by hand: what runs at once, the shares of ranks, what a batch holds, in which order rows come."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from raypft.batch import Beginning, Room, collate, padding_on
from raypft.config.job import Train
from raypft.contract import cases, tiny
from raypft.encoded import Encoded
from raypft.training import room
from raypft.training.loader import PromptDataset, Streamed, order
from raypft.training.loop import evaluate
from raypft.training.room import room_for
from raypft.training.rows import asked
from raypft.training.stepper import TorchStepper

# what runs at once


@pytest.mark.parametrize(
    ("rows", "tokens", "world", "stops"),
    [
        (None, None, 1, [6]),
        (2, None, 1, [2, 4, 6]),
        (4, None, 1, [4, 6]),
        (None, 4, 1, [2, 3, 4, 5, 6]),  # 2 x 2, then 1 x 3 and 1 x 4; what has no room runs alone
        (None, 3, 1, [1, 2, 3, 4, 5, 6]),
        (None, 12, 1, [3, 5, 6]),  # 3 x 3 (4 x 4 is too much), 2 x 5 (3 x 6 is too much)
        (2, 12, 1, [2, 4, 6]),
        (3, 8, 1, [2, 4, 5, 6]),
        (1, None, 2, [2, 4, 6]),
        (2, None, 2, [4, 6]),
        (None, 6, 2, [2, 4, 6]),  # the longest of both ranks counts: 1 x 2, 1 x 4
        (None, 8, 2, [4, 6]),  # 2 x 4
        (None, 1, 4, [4, 6]),
    ],
)
def test_rows_of_ascending_length_are_cut_where_no_more_have_room(rows, tokens, world, stops):
    runs = Room(rows, tokens).cuts([1, 2, 3, 4, 5, 6], world)
    assert runs == [range(start, stop) for start, stop in zip([0, *stops], stops, strict=False)]
    assert Room(rows, tokens).cuts([], world) == []


@pytest.mark.parametrize(
    ("padding", "world", "stops"),
    [
        (0, 1, [1, 5, 6]),
        (2, 1, [1, 5, 6]),
        (3, 1, [5, 6]),  # up to 4
        (12, 1, [5, 6]),
        (13, 1, [6]),  # up to 6
        (1, 2, [2, 4, 6]),  # two ranks have twice as much
        (2, 2, [4, 6]),
        (7, 2, [6]),
    ],
)
def test_rows_are_cut_where_too_much_would_pad(padding, world, stops):
    runs = Room(padding=padding).cuts([1, 4, 4, 4, 4, 6], world)
    assert runs == [range(start, stop) for start, stop in zip([0, *stops], stops, strict=False)]


def test_an_evaluation_pads_little_on_a_cpu_unless_a_job_says_how_many_run_at_once():
    for device, padding in (("cpu", 24), ("cuda:0", None)):
        assert padding_on(device) == padding
    assert room_for(worker(), Train(), None, trains=False) == Room(None, 1024, 24)
    assert room_for(worker(), Train(), None, trains=True) == Room(None, 1024)
    assert room_for(worker(), Train(), 4, trains=False) == Room(4)
    assert room_for(worker(), Train(tokens_at_once=8), None, trains=False) == Room(None, 8)


def test_of_each_run_a_rank_has_every_world_th_row():
    rows, lengths = [15, 14, 13, 12, 11], [1, 1, 2, 2, 9]
    assert Room(1).parts(rows, lengths, 0, 2) == [[15], [13], [11]]
    assert Room(1).parts(rows, lengths, 1, 2) == [[14], [12], []]
    assert Room(2).parts(rows, lengths, 1, 2) == [[14, 12], []]
    assert Room().parts(rows, lengths) == [rows]


def worker(halvings: int = 0, others: tuple[int, ...] = (), device: str = "cpu") -> Any:
    """A stepper as far as room is concerned; others: what the other ranks have."""
    backbone = SimpleNamespace(num_layers=24, hidden=1024)
    learner = SimpleNamespace(method=SimpleNamespace(backbone=backbone))
    return SimpleNamespace(
        halvings=halvings, device=device, learner=learner, gather=lambda own: [own, *others], rank=0, world=1
    )


@pytest.mark.parametrize(
    ("settings", "rows", "halvings", "expected"),
    [
        ({}, None, 0, Room(None, 700)),  # what the smallest rank has
        ({}, 4, 0, Room(4, None)),
        ({"tokens_at_once": 64}, None, 0, Room(None, 64)),
        ({"tokens_at_once": 64}, 4, 0, Room(4, 64)),
        ({"tokens_at_once": 64}, 4, 1, Room(2, 32)),
        ({"tokens_at_once": 2}, 5, 2, Room(1, 1)),
        ({"tokens_at_once": 64}, 5, 9, Room(1, 1)),
    ],
)
def test_the_room_is_that_of_the_settings_or_of_the_smallest_worker(settings, rows, halvings, expected):
    assert room_for(worker(halvings, (700, 900)), Train(**settings), rows, trains=True) == expected


@pytest.mark.parametrize(
    ("free", "trains", "expected"),
    [
        (80 * 10**9, True, 11_967),  # 40 GB, of which a token takes 24 blocks x 34 x 1024 x 4 bytes
        (80 * 10**9, False, 1 << 16),  # of one block, and no more than there is use for
        (10**9, True, 1024),
        (10**10, False, 35_903),
    ],
)
def test_a_gpu_has_room_for_what_is_free_or_torch_keeps_unused(free, trains, expected, monkeypatch):
    kept = {"mem_get_info": (free - 10**9, 10**12), "memory_reserved": 3 * 10**9, "memory_allocated": 2 * 10**9}
    for name, value in kept.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert room_for(worker(device="cuda:0"), Train(), None, trains).tokens == expected
    assert room_for(worker(), Train(), None, trains).tokens == 1024


def test_a_training_asks_for_room_to_train_and_an_evaluation_for_less(monkeypatch):
    asked = list[bool]()
    monkeypatch.setattr(room, "_tokens", lambda stepper, trains: asked.append(trains) or 8)
    cell = cases.cell("full", tiny.backbone("bert"))
    stepper, rows = TorchStepper(cell.learner, cases.SETTINGS), PromptDataset(cell.prompts, cell.learner.method, 1)
    for step in rows.epoch(stepper, cases.SETTINGS, 0, 0, 0):
        assert all(len(batch.names) == 1 for batch in step.batches)
    evaluate(stepper, rows, Train())
    streamed = Streamed(Given([cell.prompts]), cell.prompts[0], cell.learner.method, 1)
    (step,) = streamed.epoch(stepper, cases.SETTINGS, 0, 0, 0)
    assert step.count == len(cell.prompts)
    assert asked == [True, False, True]
    settings = Train(micro_batch=2, eval_batch=3, batch_size=5)
    for loaded in (rows, streamed):
        (step,) = loaded.epoch(stepper, settings, 0, 0, 0)
        assert [len(batch.names) for batch in step.batches] == [2, 2, 1]


# the order of rows, and shares of it


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (1, 2), (2**45, 1)])
def test_the_order_is_torchs_for_a_seed_of_seed_and_epoch(seed, epoch):
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    assert order(9, seed, epoch) == torch.randperm(9, generator=generator).tolist()


def test_an_epoch_begins_at_its_step_and_every_step_is_by_length():
    cell = cases.cell("full", tiny.backbone("bert"))
    rows = PromptDataset(cell.prompts, cell.learner.method, 1)
    stepper, settings = TorchStepper(cell.learner, cases.SETTINGS), Train(batch_size=2)
    assert [rows.steps(size) for size in (1, 2, 4, 5, 6)] == [5, 3, 2, 1, 1]
    drawn = order(5, 7, 3)
    for begin in range(4):
        found = [[*step.batches] for step in rows.epoch(stepper, settings, 7, 3, begin)]
        names = [[cell.prompts[row].name for row in drawn[at : at + 2]] for at in range(2 * begin, 5, 2)]
        assert [sorted(name for batch in step for name in batch.names) for step in found] == [*map(sorted, names)]
    assert rows.by_length([4, 0, 3, 1]) == sorted([4, 0, 3, 1], key=lambda row: (len(cell.prompts[row].ids), row))
    assert rows.lengths([2, 0]) == [len(cell.prompts[2].ids), len(cell.prompts[0].ids)]


@pytest.mark.parametrize("streamed", [False, True])
def test_prompts_are_drawn_anew_in_every_epoch(streamed):
    cell = cases.cell("full", tiny.backbone("bert"))
    readout: Any = cell.learner.readout
    readout.redraw = lambda prompt, seed, epoch: prompt.but(key=f"{prompt.key}/{seed}/{epoch}")
    rows: Any = PromptDataset(cell.prompts, cell.learner.method, 1)
    if streamed:
        rows = Streamed(Given([cell.prompts]), cell.prompts[0], cell.learner.method, 1)
    (step,) = rows.epoch(TorchStepper(cell.learner, cases.SETTINGS), Train(batch_size=5), 7, 3, 0)
    names = {name for batch in step.batches for name in batch.names}
    assert names == {f"{prompt.key}/7/3#0" for prompt in cell.prompts}


class Given:
    """A flow of steps that are known."""

    def __init__(self, steps: list[list[Encoded]], rows: int = 5) -> None:
        self.steps, self.rows, self.shares = steps, rows, []

    def __call__(self, share):
        self.shares.append(share)
        return iter(self.steps)


def test_a_rank_of_a_stream_runs_as_many_batches_as_the_others():
    """Fillers of weight 0 behind its own; the step weighs what all ranks have."""
    cell = cases.cell("full", tiny.backbone("bert"))
    flow = Given([cell.prompts[:3], []])
    streamed = Streamed(flow, cell.prompts[4], cell.learner.method, 1)
    assert [streamed.steps(size) for size in (1, 2, 5, 6)] == [5, 3, 1, 1]
    stepper = TorchStepper(cell.learner, cases.SETTINGS)
    stepper.rank, stepper.world = 1, 2
    stepper.gather_numbers = lambda *own: [[7.0, 4.0], list(own)]  # type: ignore[method-assign]
    first, second = streamed.epoch(stepper, Train(micro_batch=2, batch_size=6), 3, 2, 1)
    assert vars(flow.shares[0]) == {"seed": 3, "epoch": 2, "step": 1, "batch_size": 6, "rank": 1, "world": 2}
    assert (first.weight, first.count, first.repeats) == (10.0, 4, False)
    assert (second.weight, second.count) == (7.0, 4)
    batches = [*first.batches]
    assert [len(batch.names) for batch in batches] == [2, 1, 1, 1]
    assert [float(batch.weight.sum()) for batch in batches] == [2, 1, 0, 0]
    assert {name for batch in batches[2:] for name in batch.names} == {cell.prompts[4].name}
    lengths = [batch.ids.shape[1] for batch in batches[:2]]
    assert lengths == sorted(lengths)


def test_a_batch_of_rows_counts_each_as_often_as_is_said_and_of_none_nothing():
    cell = cases.cell("full", tiny.backbone("bert"))
    rows = PromptDataset(cell.prompts, cell.learner.method, 1)
    assert rows.batch([3, 1]).names == [cell.prompts[3].name, cell.prompts[1].name]
    assert rows.batch([3, 1]).weight.tolist() == [1.0, 1.0]
    whole = collate([cell.prompts[3], cell.prompts[1]], 1)
    assert torch.equal(rows.batch([3, 1]).ids, whole.ids)
    behind = rows.batch([3, 1], beginning=Beginning(2, torch.zeros(1, 2, tiny.HIDDEN), {}, None))
    assert torch.equal(behind.ids, whole.ids[:, 2:])
    assert rows.batch([3, 1], times={3: 2.0}).weight.tolist() == [2.0, 1.0]
    filler = rows.batch([], drawn={})
    assert (filler.names, filler.weight.tolist()) == ([cell.prompts[0].name], [0.0])
    other = cell.prompts[2].but(key="other")
    assert rows.batch([0, 1], {1: other}).names == [cell.prompts[0].name, other.name]


def test_demonstrations_run_once_where_two_prompts_or_more_begin_with_them():
    cell = cases.cell("gnnavi", tiny.backbone("gpt2"))
    method = cell.learner.method
    assert len({tuple(prompt.ids[: prompt.demo_tokens]) for prompt in cell.prompts}) == 1
    size = cell.prompts[0].demo_tokens
    for prompts, begins in ((cell.prompts, True), (cell.prompts[:2], True), (cell.prompts[:1], False)):
        beginning = PromptDataset(prompts, method, 1).begin(method.backbone, "cpu")
        assert (None if beginning is None else beginning.length) == (size if begins else None)
    bare = [prompt.but(demo_tokens=0) for prompt in cell.prompts]
    assert PromptDataset(bare, method, 1).begin(method.backbone, "cpu") is None
    ran = list[int]()
    for number, block in enumerate(method.backbone.blocks):
        block.register_forward_hook(lambda *told, number=number: ran.append(number))
    for kept, begins in ((size, True), (size + 1, False), (0, False)):
        ran.clear()
        lower: Any = SimpleNamespace(begins=kept, before=torch.zeros(size, tiny.HIDDEN))
        beginning = PromptDataset(cell.prompts, method, 1, lower).begin(method.backbone, "cpu")
        assert (beginning is not None) == begins
        assert ran == ([*range(method.constant_below, tiny.LAYERS)] if begins else []), "those above the states kept"


# what a batch holds


def encoded(number: int, size: int, slots: list[int], **more: Any) -> Encoded:
    ids = list(range(10 * number, 10 * number + size))
    return Encoded(f"en/{number}", "en", ids, [number] * size, {"slot": slots}, [number + at for at in slots], **more)


def test_a_batch_by_hand():
    prompts = [encoded(1, 2, [1], wording=1, part=1), encoded(2, 4, [0, 2, 3], target=[7])]
    batch = collate(prompts, 99)
    assert batch.names == ["en/1#1", "en/2#0"]
    assert batch.ids.tolist() == [[10, 11, 99, 99], [20, 21, 22, 23]]
    assert batch.mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch.segments.tolist() == [[1, 1, 0, 0], [2, 2, 2, 2]]
    assert batch.slots.tolist() == [[0, 1], [1, 0], [1, 2], [1, 3]]
    assert batch.gold.tolist() == [2, 2, 4, 5]
    assert batch.wording.tolist() == [1, 0, 0, 0]
    assert batch.weight.tolist() == [1.0] * 4
    assert batch.read.tolist() == [[1, 1, 1], [0, 2, 3]]
    assert batch.number.tolist() == [0, 0, 1, 2]
    assert (batch.soft, batch.target, batch.lower, batch.extra, batch.begins) == (None, None, None, {}, 0)
    assert collate(prompts[:1], 99).read.tolist() == [[1, 1]], "two queries at least"
    assert all(torch.equal(batch.ids, same.ids) for same in (batch.to("cpu"), batch.pinned()))


def test_what_stands_beside_a_batchs_tokens():
    prompts = [encoded(1, 2, [0], target=[3, 4]), encoded(2, 3, [0, 1], target=[5, 6, 7])]
    prompts = [prompt.but(marks={**prompt.marks, "soft": [0, 1]}) for prompt in prompts]
    lower = [torch.full((size, 2), float(size)) for size in (2, 3)]
    columns = [{"mix": torch.ones(1), "count": 4}, {"mix": torch.zeros(2), "count": 5}]
    states = torch.zeros(1, 6, 2)
    batch = collate(prompts, 9, columns, [0.5, 2.0], lower, Beginning(6, states, {}, None))
    assert batch.weight.tolist() == [0.5, 2.0, 2.0]
    assert batch.soft is not None
    assert batch.soft.tolist() == [[0, 1], [0, 1]]
    assert batch.target is not None
    assert batch.target.tolist() == [[3, 4, 9], [5, 6, 7]]
    assert batch.lower is not None
    assert batch.lower.tolist() == [[[2, 2], [2, 2], [0, 0]], [[3, 3]] * 3]
    assert (batch.begins, batch.extra["count"]) == (6, [4, 5])
    moved = batch.to("meta")
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 12
    assert {tensor.device.type for tensor in [*tensors, *moved.extra["mix"]]} == {"meta"}
    assert moved.extra["count"] == [4, 5]


def test_on_a_machine_with_a_gpu_batches_are_pinned(monkeypatch):
    batch, pinned = collate([encoded(1, 2, [1])], 0), list[tuple[int, ...]]()
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tuple(tensor.shape)) or tensor)
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        batch.pinned()
        assert len(pinned) == (9 if there else 0)


def test_a_prompt_that_stands_there_twice_is_answered_once():
    cell = cases.cell("gnnavi", tiny.backbone("gpt2"))
    prompts = [*cell.prompts, cell.prompts[0]]
    rows = PromptDataset(prompts, cell.learner.method, 1)
    whole = range(len(prompts))
    assert sorted(rows.distinct(False, whole)) == [*whole]
    once = rows.distinct(True, whole)
    assert len(prompts) - 1 not in once
    assert len(once) == len(set(once)) == len({asked(prompt) for prompt in prompts})

"""What a worker will hold, by hand, and what is told where it is too much."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from raypft.backbones.load import load_skeleton
from raypft.config.job import Job, Resources, Train, Zero
from raypft.contract import cases, tiny
from raypft.errors import UserError
from raypft.methods import METHODS
from raypft.readouts import READOUTS
from raypft.runs import memory
from raypft.runs.memory import Counts, check_memory, foreseen, rows_held, told

FULL = Counts(everything=1000, trainable=1000, largest=100, states=34 * 8)
FEW = Counts(everything=1000, trainable=10, largest=100, states=34 * 8)
HALF = Counts(everything=1000, trainable=10, largest=100, states=34 * 8, stored=2)
"""Of files in bf16."""


def job(workers: int = 0, stage: int = 0, **train) -> Job:
    return Job(
        task="t",
        pattern="p",
        backbone="b",
        method={"name": "full"},
        train=Train(**train),
        zero=Zero.model_validate({"stage": stage}),
        resources=Resources(workers=workers),
    )


@pytest.mark.parametrize(
    ("asked", "counts", "expected"),
    [
        (job(), FULL, (4000, 4000, 8000, 0)),
        (job(precision="bf16"), FULL, (4000, 4000, 8000, 0)),  # autocast
        (job(), FEW, (40, 40, 80, 3960)),
        (job(4, 0), FULL, (4000, 4000, 8000, 0)),
        (job(4, 1), FULL, (4000, 4000, 3000, 0)),
        (job(4, 2), FULL, (4000, 1000, 3000, 0)),
        (job(4, 3), FULL, (4000 / 4 + 400, 1000, 2000, 0)),
        (job(4, 3), FEW, (4000 / 4 + 400, 10, 20, 0)),
        (job(4, 3, precision="bf16"), FULL, (2000 / 4 + 200, 500, 3000, 0)),
        (job(4, 0, precision="bf16"), FULL, (2000, 2000, 12000, 0)),
        (job(), HALF, (4000, 40, 80, 0)),  # fp32 is made of them
        (job(4, 2, precision="bf16"), FEW, (2000, 5, 30, 0)),
        (job(4, 2, precision="bf16"), HALF, (20, 5, 30, 1980)),
    ],
    ids=str,
)
def test_what_a_worker_holds(asked, counts, expected):
    found = foreseen(asked, counts)
    assert (found.weights, found.gradients, found.optimizer, found.common) == pytest.approx(expected)


def test_weights_in_four_bits_are_each_workers_own_and_one_at_a_time_is_unpacked(tmp_path):
    made = tiny.backbone("llama")
    cast(Any, made.model).save_pretrained(tmp_path)
    made.text.tokenizer.save_pretrained(tmp_path)
    lora = METHODS.load("lora")
    whole, packed = (Counts.of(lora(lora.Config(), load_skeleton(str(tmp_path), held))) for held in (None, "nf4"))
    weights = whole.everything - packed.everything
    assert weights / 2 * 1.125 <= packed.packed <= weights / 2 * 1.2
    assert 0 < packed.unpacked < weights
    before, found = foreseen(job(2, 2), whole), foreseen(job(2, 2), packed)
    assert found.weights == before.weights + packed.packed
    assert found.common == before.common - 4 * weights
    assert found.passing == before.passing + 4 * packed.unpacked
    assert [way for way, _ in memory.ways(job(2, 0, quantize="nf4"))] == ["zero.stage=1", "zero.stage=2"]


def test_activations_are_of_the_tokens_at_once_and_fewer_with_checkpointing():
    assert foreseen(job(tokens_at_once=10), FULL).activations == 4 * 10 * 34 * 8
    assert foreseen(job(tokens_at_once=10, checkpointing=True), FULL).activations == 4 * 10 * 8
    assert foreseen(job(), Counts(1000, 0, 100, 34 * 8)).activations == 0
    assert foreseen(job(4, 3, batch_size=6, max_tokens=5), FULL).activations == 4 * 10 * 34 * 8  # two rows a worker


def test_scores_of_the_vocabulary_are_foreseen_where_a_readout_makes_them():
    full, backbone = METHODS.load("full"), tiny.backbone("bert")
    method = full(full.Config(), backbone)
    assert Counts.of(method).scores == 0
    counts = Counts.of(method, 0.25)
    assert counts.scores == 3 * 0.25 * backbone.text.vocab_size
    found = [foreseen(job(tokens_at_once=10), one).activations for one in (Counts.of(method), counts)]
    assert found[1] - found[0] == 4 * 10 * counts.scores
    shares = {name: READOUTS.load(name).scored(READOUTS.load(name).Config(), 64) for name in READOUTS.names()}
    assert shares == dict.fromkeys(READOUTS.names(), 0) | {"mlm": 0.15 * 64, "text": 8}


def test_files_of_another_type_are_known_before_they_are_read(tmp_path):
    for dtype in (torch.float32, torch.bfloat16):
        made = tiny.backbone("llama")
        cast(Any, made.model).to(dtype).save_pretrained(tmp_path / str(dtype))
        made.text.tokenizer.save_pretrained(tmp_path / str(dtype))
        full, skeleton = METHODS.load("full"), load_skeleton(str(tmp_path / str(dtype)))
        assert Counts.of(full(full.Config(), skeleton)).stored == dtype.itemsize


def test_the_peak_is_all_of_a_worker_but_files():
    found = foreseen(job(4, 3, tokens_at_once=10), FULL)
    assert found.passing == 4 * 4 * 100
    assert found.peak == memory.LIBRARIES + 1400 + 1000 + 2000 + 4 * 10 * 34 * 8 + 1600
    assert [foreseen(job(4, stage), FULL).passing for stage in range(3)] == [4 * 1000, 8 * 1000, 8 * 1000]
    assert foreseen(job(), FULL).passing == 0


@pytest.mark.parametrize("method", ["full", "lora", "prefix"])
def test_parameters_of_a_model_are_counted_once(method):
    learner = cases.cell(method, tiny.backbone("llama")).learner.method
    counts = Counts.of(learner)
    assert counts.everything == sum(p.numel() for p in learner.parameters())
    assert counts.trainable == sum(p.numel() for p in learner.parameters() if p.requires_grad)
    assert 0 < counts.largest < counts.everything
    assert counts.states == learner.backbone.num_layers * 34 * learner.backbone.hidden


@pytest.mark.parametrize(
    ("asked", "there", "do"),
    [
        (job(), 15_000, "choose a smaller backbone or a method that trains less"),
        (job(2, 0), 31_000, "use zero.stage=1"),
        (job(2, 0), 25_000, "use zero.stage=2"),
        (job(2, 0), 18_000, "use zero.stage=3"),
        (job(2, 3), 16_000, "choose a smaller backbone or a method that trains less"),
    ],
)
def test_too_much_is_refused_with_what_would_fit(asked, there, do, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(memory, "machine_memory", lambda: there)
    with pytest.raises(UserError, match="memory: the job holds at least") as error:
        check_memory(asked, FULL)
    assert str(error.value).endswith(f"this machine has 0.0; {do}")
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    if asked.resources.workers:
        check_memory(asked, FULL)  # of a cluster nothing is known here


@pytest.mark.parametrize(
    ("asked", "counts", "nodes", "holds"),
    [
        (job(2, 0), FULL, [16_000, 16_000], True),
        (job(2, 0), FULL, [32_000], True),
        (job(2, 0), FULL, [15_000, 20_000], False),  # whole workers, no halves
        (job(2, 0), FEW, [4120, 4120], True),  # what trains once a worker, what is frozen once a node
        (job(2, 0), FEW, [4280], True),
        (job(2, 0), FEW, [4270], False),
        (job(2, 0), FEW, [2200, 2200], False),
        (job(2, 0), FULL, [1, math.inf], True),  # not known
        (job(), FULL, [16_000], True),  # a trial without workers
        (job(), FULL, [15_900, 15_900], False),
    ],
)
def test_a_cluster_is_compared_node_by_node(asked, counts, nodes, holds, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    monkeypatch.setattr(memory, "machine_memory", lambda: 1)
    if holds:
        check_memory(asked, counts, nodes)
        return
    with pytest.raises(UserError, match=r"; the cluster, with 0\.0 on its largest node, has 0\.0; "):
        check_memory(asked, counts, nodes)


def test_gpus_of_a_cluster_are_not_known(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    asked = job(2, 0)
    on_gpus = asked.model_copy(update={"resources": Resources(workers=2, gpus_per_worker=1)})
    check_memory(on_gpus, FULL, [1000])


def test_a_line_tells_each_part():
    line = told(job(2, 3), foreseen(job(2, 3), Counts(2_000_000_000, 1_000_000_000, 100_000_000, 34 * 8)))
    assert line == (
        "memory: about 12.45 GB a worker, ZeRO 3, 2 in all (weights 4.40, gradients 2.00, optimizer 4.00, "
        "activations 0.00, passing 1.60, libraries 0.45)"
    )


def test_opening_files_of_half_precision_is_foreseen(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(memory, "machine_memory", lambda: 2 * 1208 + 1979)
    opened = replace(HALF, opened=300, packed=8)
    found = foreseen(job(2, 2, precision="bf16"), opened)
    assert found.opening == 4 * 300 + 8
    assert replace(found, activations=0).peak == memory.LIBRARIES + 1208
    assert found.on_machine(2) == 2 * 1208 + found.common
    assert " in all while the model is opened (" in told(job(2, 2), replace(found, activations=0))
    with pytest.raises(UserError, match=r"at least 0\.0 GB while its model is opened; "):
        check_memory(job(2, 2, precision="bf16"), opened)
    assert foreseen(job(2, 3), opened).opening == 4 * 300 + 8
    assert [foreseen(job(workers), opened).opening for workers in (0, 2)] == [0, 0], "made in fp32 once and for all"


@pytest.mark.parametrize("held", [None, "nf4"])
def test_what_is_fp32_at_the_opening_lies_beside_the_blocks_but_for_two(held, tmp_path):
    made = tiny.backbone("llama")
    cast(Any, made.model).to(torch.bfloat16).save_pretrained(tmp_path)
    made.text.tokenizer.save_pretrained(tmp_path)
    lora, skeleton = METHODS.load("lora"), load_skeleton(str(tmp_path), held)
    blocks = [sum(p.numel() for p in block.parameters()) for block in skeleton.blocks]
    beside = sum(p.numel() for p in skeleton.model.parameters()) - sum(blocks)
    adapted = lora(lora.Config(), skeleton)
    trains = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert beside + 2 * blocks[0] <= Counts.of(adapted).opened <= beside + 2 * blocks[0] + trains


def test_encoded_rows_are_told_beside_the_peak():
    rows = rows_held(1_000_000, 1_000_000 * 100)
    assert rows == 1_000_000 * (300 + 8 * 100)
    found = foreseen(job(2, 3), FULL)
    assert told(job(2, 3), found, rows) == told(job(2, 3), found) + "; rows 1.10 GB a machine"

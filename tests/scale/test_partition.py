"""ZeRO-3 from a model's files: no process holds the model, the curve is that of one process of plain torch."""

from __future__ import annotations

import functools
import gc
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from raypft.backbones.sparse import Sparse
from raypft.contract import cases, tiny
from raypft.contract.engines import expect_the_curve
from raypft.contract.group import Case, run_case, run_group
from raypft.training.loader import PromptDataset
from raypft.training.loop import fit
from raypft.training.stepper import Stepper

pytestmark = pytest.mark.timeout(600)

KINDS = {"gpt2": torch.float32, "qwen2": torch.bfloat16, "t5": torch.float32, "bert": torch.bfloat16}
"""Kind of tiny model to the type of its files."""
PAIRS = (
    *(("full", kind) for kind in KINDS),
    ("lora", "qwen2"),
    ("prefix", "t5"),
    ("gnnavi", "gpt2"),
    ("lottery", "qwen2"),
    ("lottery", "bert"),
)
"""Those whose parameters reach the model in different ways."""


def held(cell: cases.Cell, stepper: Stepper) -> dict[str, Any]:
    """Which parameters have more here than this rank's part, and the types of those that are computed with; bytes of
    buffers, which are whole, and of all parameters."""
    named: dict[str, Any] = dict(cell.learner.named_parameters())
    whole = [
        name
        for name, parameter in named.items()
        if parameter.untyped_storage().nbytes() or parameter.ds_tensor.numel() > -(-parameter.ds_numel // stepper.world)
    ]
    return {
        "whole": whole,
        "types": {str(p.dtype) for p in cell.learner.parameters() if p.is_floating_point()},
        "buffers": sum(buffer.nbytes for buffer in cell.learner.buffers()),
        "parameters": sum(parameter.ds_numel * parameter.itemsize for parameter in named.values()),
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny models in shards of a few tensors, with their tokenizers."""
    made = {}
    for kind, dtype in KINDS.items():
        folder = tmp_path_factory.mktemp(kind)
        backbone = tiny.backbone(kind)
        model: Any = backbone.model
        model.to(dtype).save_pretrained(folder, max_shard_size="20KB")
        backbone.text.tokenizer.save_pretrained(folder)
        made[kind] = str(folder)
    return made


@pytest.fixture(scope="module")
def plans(folders):
    """Each pair, and one with parameters offloaded."""
    made = [Case(method, kind, 3, files=folders[kind], epochs=2, probe=held) for method, kind in PAIRS]
    return [*made, Case("full", "gpt2", 3, files=folders["gpt2"], epochs=2, offload=True, probe=held)]


@pytest.fixture(scope="module")
def found(plans):
    """What two processes find, one model after the other."""
    return dict(zip(plans, run_group(2, plans), strict=True))


def test_the_curve_is_that_of_one_process(plans, found):
    for plan in plans:
        expected = run_case(Case(plan.method, plan.kind, "torch", files=plan.files, epochs=2))
        expect_the_curve(plan, found[plan]["losses"], expected["losses"], 2)


def test_no_parameter_is_whole_between_steps_and_all_are_of_the_type_that_computes(found):
    assert {plan.kind for plan in found} == set(KINDS)
    for plan, result in found.items():
        probe = result["probe"]
        assert (probe["whole"], probe["types"]) == ([], {"torch.float32"}), plan
        assert probe["buffers"] < probe["parameters"] / 10, plan


def gathered(cell: cases.Cell, stepper: Stepper) -> dict[str, Any]:
    """Numbers of the weights with active entries that are whole at once in two epochs, at most, and how often one was
    made; numbers of them all and of the largest."""
    made, most = list[StorageWeakRef](), 0
    sparse = [module for module in cell.learner.modules() if isinstance(module, Sparse)]

    def watched(own: Callable[[], torch.Tensor]) -> torch.Tensor:
        nonlocal most
        weight = own()
        made.append(StorageWeakRef(weight.untyped_storage()))
        alive = {ref.cdata for ref in made if not ref.expired()}
        sizes = [torch.UntypedStorage._new_with_weak_ptr(cdata).nbytes() // 4 for cdata in alive]
        most = max(most, sum(sizes))
        return weight

    for module in sparse:
        vars(module)["weight"] = functools.partial(watched, module.weight)
    settings = cases.SETTINGS.model_copy(update={"epochs": 2, "select": "last"})
    fit(stepper, PromptDataset(cell.prompts, cell.learner.method, 1), None, settings, 0, cell.score)
    sizes = [cast(Any, module._parameters.get("base")).ds_numel for module in sparse]
    return {"most": most, "made": len(made), "all": sum(sizes), "largest": max(sizes)}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_weights_with_active_entries_are_whole_one_at_a_time(checkpointing):
    """And made again for the backward pass, which keeps none; a block that runs again has its own."""
    kinds = ("gpt2", "bert")
    plans = [Case("lottery", kind, 3, checkpointing=checkpointing, epochs=1, probe=gathered) for kind in kinds]
    for plan, result in zip(plans, run_group(2, plans), strict=True):
        probe = result["probe"]
        assert probe["made"] > 0
        assert probe["largest"] <= probe["most"] <= (probe["all"] / 3 if checkpointing else probe["largest"]), plan


def watch(cell: cases.Cell, _stepper: Stepper) -> dict[str, Any]:
    """How many of the learners that were watched before are there still."""
    gc.collect()
    alive = sum(learner() is not None for learner in WATCHED)
    WATCHED.append(weakref.ref(cell.learner))
    return {"alive": alive}


WATCHED: list[weakref.ref] = []


def test_a_closed_stepper_lets_its_learner_go():
    """DeepSpeed would keep each for as long as the process lives."""
    plan = Case("full", "gpt2", 3, epochs=2, probe=watch)
    assert [result["probe"]["alive"] for result in run_group(1, [plan] * 3)] == [0, 0, 0]


def pages(_cell: cases.Cell, stepper: Stepper) -> dict[str, Any]:
    """Of each rank, kB of the pages of model files, and of those among them that it has a copy of."""
    entries = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    of_files = [entry for entry in entries if ".safetensors" in entry.partition("\n")[0]]
    sizes = {key: [int(re.findall(rf"^{key}: +(\d+)", entry, re.MULTILINE)[0]) for entry in of_files] for key in PAGES}
    return {"pages": stepper.gather([sum(sizes[key]) for key in PAGES])}


PAGES = ("Rss", "Private_Dirty")


def test_workers_share_the_pages_of_frozen_weights(folders):
    """At stages that partition none: DeepSpeed would send them from the first worker to the others."""
    plans = [Case("lora", "gpt2", stage, files=folders["gpt2"], epochs=1, probe=pages) for stage in (0, 1, 2)]
    for plan, found in zip(plans, run_group(2, plans), strict=True):
        for there, copied in found["probe"]["pages"]:
            assert there > 0
            assert copied == 0, plan

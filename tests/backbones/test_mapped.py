"""Weights are pages of the model's files until they train: one copy in each process, and the file brings them back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.profiler import ProfilerActivity, profile

from raypft.backbones import guard, seams
from raypft.backbones.checkpoint import in_fp32
from raypft.backbones.load import load_again, load_backbone
from raypft.contract import tiny
from raypft.contract.tiny import MODELS
from raypft.errors import UserError

SHARDS = "20KB"


def written(folder: Path, kind: str, dtype: torch.dtype = torch.float32, pickled: bool = False) -> str:
    """A tiny model as it lies on the hub, in shards."""
    made = tiny.backbone(kind)
    model: Any = made.model
    model.to(dtype).save_pretrained(folder, max_shard_size="1GB" if pickled else SHARDS)
    made.text.tokenizer.save_pretrained(folder)
    if pickled:
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    return str(folder)


def mapped_bytes(folder: str) -> list[range]:
    """Addresses at which this process has the weights of a folder mapped."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, *_, path = line.split(maxsplit=5)
        if path.startswith(folder):
            found.append(range(*(int(end, 16) for end in place.split("-"))))
    return found


def lie_in(tensors, folder: str) -> bool:
    places = mapped_bytes(folder)
    return all(any(tensor.data_ptr() in place for place in places) for tensor in tensors)


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
def test_frozen_weights_are_pages_of_the_files_and_opened_ones_a_copy(pickled, tmp_path):
    folder = written(tmp_path, "llama", pickled=pickled)
    backbone = load_backbone(folder)
    assert lie_in(backbone.model.parameters(), folder)
    before = backbone.checksum()
    opened = backbone.open("*layers.1.*")
    closed = [parameter for parameter in backbone.model.parameters() if not parameter.requires_grad]
    assert closed
    assert lie_in(closed, folder)
    assert not any(lie_in([parameter], folder) for parameter in opened)
    assert lie_in(backbone._opened.values(), folder), "what a reset needs is the file"
    with torch.no_grad():
        for parameter in opened:
            parameter += 1
    assert backbone.checksum() != before
    backbone.reset()
    assert backbone.checksum() == before
    assert lie_in(backbone.model.parameters(), folder)


def test_weights_of_half_precision_are_held_once_in_fp32(tmp_path):
    folder = written(tmp_path, "llama", torch.bfloat16)
    backbone = load_backbone(folder)
    assert {parameter.dtype for parameter in backbone.model.parameters()} == {torch.float32}
    before, places = backbone.checksum(), [parameter.data_ptr() for parameter in backbone.model.parameters()]
    backbone.open("*")
    assert [parameter.data_ptr() for parameter in backbone.model.parameters()] == places
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            parameter += 1
    backbone.reset()
    assert backbone.checksum() == before


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_is_asked_the_same_whether_it_is_read_or_left_in_its_files(kind, tmp_path):
    """Half-precision files: the guard and the shortcuts' probes compute in fp32, with one block at a time."""
    folder = written(tmp_path, kind, torch.bfloat16)
    whole, mapped = load_backbone(folder), load_backbone(folder, as_stored=True)
    assert mapped.known._replace(text=whole.text) == whole.known
    again = load_again(mapped.known)
    assert again.known == mapped.known
    for backbone in (mapped, again):
        parameters = dict(backbone.model.named_parameters())
        for name, value in whole.model.named_parameters():
            assert torch.equal(parameters[name].float(), value), name
        assert {name for name, value in parameters.items() if not value.is_floating_point()} == set()
        buffers = dict(backbone.model.named_buffers())
        for name, value in whole.model.named_buffers():
            assert torch.equal(buffers[name], value), name
            assert buffers[name].dtype == value.dtype
    with in_fp32(again.model):
        assert max(guard.differences(again).values()) <= guard.CLOSE
    assert [parameter.dtype for parameter in again.model.parameters()] == [
        parameter.dtype for parameter in mapped.model.parameters()
    ]


def test_files_that_changed_since_the_last_cell_are_not_read_again(tmp_path):
    folder = written(tmp_path, "llama")
    known = load_backbone(folder, as_stored=True).known
    load_again(known)
    other = tiny.backbone("llama", seed=1)
    other.model.save_pretrained(folder, max_shard_size=SHARDS)
    with pytest.raises(UserError, match=f"the files in {folder} have changed since the last cell, from revision "):
        load_again(known)


def test_layers_of_peft_on_weights_left_in_their_files_are_drawn_in_fp32(tmp_path):
    folder = written(tmp_path, "llama", torch.bfloat16)
    drawn = []
    for as_stored in (False, True):
        backbone = load_backbone(folder, as_stored=as_stored)
        torch.manual_seed(0)
        backbone.inject({"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]})
        drawn.append({name: p for name, p in backbone.model.named_parameters() if "lora" in name})
    assert drawn[0].keys() == drawn[1].keys()
    for name, value in drawn[0].items():
        assert value.dtype == drawn[1][name].dtype == torch.float32
        assert torch.equal(value, drawn[1][name])


@pytest.mark.parametrize("kind", ["bert", "xlmr", "modernbert"])
def test_a_head_has_its_own_weights_and_leaves_the_body_in_the_files(kind, tmp_path):
    folder = written(tmp_path, kind, torch.bfloat16)
    backbone = load_backbone(folder, as_stored=True)
    torch.manual_seed(0)
    head = backbone.head(2)
    assert head is not None
    assert {parameter.dtype for parameter in head.parameters()} == {torch.float32}
    torch.manual_seed(0)
    expected = load_backbone(folder).head(2)
    assert expected is not None
    for (name, value), other in zip(head.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(value, other), name


def test_a_checksum_is_the_same_in_pieces_and_copies_no_parameter(monkeypatch):
    backbone = tiny.backbone("gpt2")
    whole = backbone.checksum()
    monkeypatch.setattr(seams, "AT_ONCE", 1024)
    assert backbone.checksum() == whole
    monkeypatch.undo()
    large = torch.nn.Parameter(torch.randn(4, 1 << 20), requires_grad=False)  # 16 MB
    monkeypatch.setattr(backbone.model, "named_parameters", lambda: [("w", large)])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        backbone.checksum()
    assert max(event.cpu_memory_usage for event in seen.events() or []) <= 8 * seams.AT_ONCE

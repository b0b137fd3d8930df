"""States below a frozen cut: of the right prompt, once for all layers of a sweep, in memory and on disk."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from raypft.backbones import frozen_states, states_folder
from raypft.backbones.frozen_states import FrozenStates, tokens_of
from raypft.backbones.states_folder import StatesFolder
from raypft.batch import collate
from raypft.contract import tiny
from raypft.encoded import Encoded
from raypft.errors import UserError
from raypft.storage import BEGUN, owned


def prompt(key: str, gold: list[int], part: int = 0, ids: int = 5) -> Encoded:
    return Encoded(
        key,
        key[:2],
        [ids] * max(2, len(gold)),
        [0] * max(2, len(gold)),
        {"slot": list(range(len(gold)))},
        gold=gold,
        part=part,
    )


def states_of(backbone, **options):
    """States kept by nobody else."""
    return FrozenStates(backbone, **options)


def test_cached_states_are_those_of_the_prompt_not_of_its_name():
    """PromptDataset of train and dev may have one id: SST-2 counts both from 0."""
    backbone = tiny.backbone("llama")
    train, dev = prompt("en/0", [0], ids=9), Encoded("en/0", "en", [20, 21, 22], [0] * 3, {"slot": [2]}, gold=[1])
    found = [states_of(backbone).after(2, own, "cpu") for own in ([train], [dev], [train, dev])]
    for own in (train, dev):
        expected = backbone.lower(collate([own], 1), 2)[0]
        assert [
            torch.allclose(known.of(own), expected, atol=1e-6) for known in found if tokens_of(own) in known.behind
        ] == [True, True]


def test_a_sweep_up_the_layers_takes_one_pass_over_the_backbone():
    backbone, run = tiny.backbone("llama"), list[int]()
    prompts = [prompt(f"en/{number}", [0], ids=9 + number) for number in range(11)]
    for number, block in enumerate(backbone.blocks):
        block.register_forward_hook(lambda *_, number=number: run.append(number))
    kept = states_of(backbone)
    for layer, expected in ((1, [0, 0]), (1, []), (3, [1, 2, 1, 2]), (2, [0, 1, 0, 1])):
        run.clear()
        found = kept.after(layer, prompts, "cpu")
        assert run == expected, "two chunks, and only the blocks not run before"
        fresh = states_of(backbone).after(layer, prompts, "cpu")
        assert all(torch.equal(found.of(prompt), fresh.of(prompt)) for prompt in prompts)
    small = states_of(backbone, limit=4 * backbone.hidden * 15 * 8)
    for _ in range(2):
        small.after(1, prompts, "cpu")
        assert sum(states.nbytes for states in small._known.values()) <= small.limit


def begun(key: str, ids: list[int]) -> Encoded:
    """A prompt behind twelve tokens of demonstrations, more than the models' windows."""
    shown = [7 + number % 5 for number in range(12)]
    marks = {"demo_label": [3, 9], "slot": [len(shown) + len(ids) - 1]}
    return Encoded(key, "en", shown + ids, [0] * (len(shown) + len(ids)), marks, [1], demo_tokens=len(shown))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "gpt-oss", "opt"])
def test_a_sweep_runs_demonstrations_once_for_all_prompts(kind):
    """Train, then dev, then the layer above: states are those of the whole prompts."""
    backbone, lengths = tiny.backbone(kind), list[int]()
    train, dev = ([begun(f"en/{i}", [20 + i] * (2 + i)) for i in range(first, 5, 2)] for first in (0, 1))
    backbone.blocks[0].register_forward_hook(lambda _block, given, _output: lengths.append(given[0].shape[1]))
    kept = states_of(backbone)
    for layer in (1, 3):
        for split in (train, dev):
            lengths.clear()
            known = kept.after(layer, split, "cpu")
            assert lengths == ([] if layer == 3 else [12, max(len(p.ids) for p in split) - 12])
            for own in split:
                whole = backbone.lower(collate([own], 1), layer)[0]
                assert torch.allclose(known.of(own), whole, atol=1e-5)
                assert torch.allclose(known.of(own, 12), whole[12:], atol=1e-5)
    assert known.begins == 12
    backbone.shortcuts = False
    assert states_of(backbone).after(1, train, "cpu").begins == 0


# states on disk


def on_disk(backbone, folder, **options) -> FrozenStates:
    """States in a folder, of a model that stands for one that was read from files."""
    backbone.text.source, backbone.text.revision = "some/folder", options.pop("revision", "1")
    return states_of(backbone, folder=StatesFolder(folder), **options)


def watch_blocks(backbone) -> list[int]:
    """The 0-based numbers of the blocks that run from now on."""
    run = list[int]()
    for number, block in enumerate(backbone.blocks):
        block.register_forward_hook(lambda *_, number=number: run.append(number))
    return run


@pytest.mark.parametrize("shared", [False, True])
def test_states_on_disk_serve_other_processes_and_the_layers_above(tmp_path, shared):
    """Each of these stands for a process of its own: the same bits, and only blocks that no one ran."""
    prompts = [prompt(f"en/{number}", [0], ids=9 + number) for number in range(11)]
    if shared:
        prompts = [begun(f"en/{number}", [20 + number] * (2 + number)) for number in range(11)]
    for layer, blocks in ((1, {0}), (1, set()), (3, {1, 2}), (2, {1}), (3, set())):
        backbone = tiny.backbone("llama")
        run, kept = watch_blocks(backbone), on_disk(backbone, tmp_path, limit=1)
        assert kept.fits(prompts, backbone.hidden), "what memory does not hold goes to the disk"
        run.clear()
        found = kept.after(layer, prompts, "cpu")
        assert set(run) == blocks
        fresh = states_of(tiny.backbone("llama")).after(layer, prompts, "cpu")
        assert all(torch.allclose(found.of(own), fresh.of(own), atol=1e-6) for own in prompts)
        assert bool(found.begins) == shared
    assert not states_of(backbone, limit=1).fits(prompts, backbone.hidden)


@pytest.mark.parametrize("other", ["revision", "type", "code", "tokens", "segments", "beginning", "pad", "layer"])
def test_states_on_disk_are_taken_for_no_others(tmp_path, other, monkeypatch):
    backbone = tiny.backbone("llama")
    prompts, layer = [begun(f"en/{number}", [20 + number] * 3).but(demo_tokens=0) for number in range(3)], 2
    on_disk(backbone, tmp_path).after(layer, prompts, "cpu")
    run, options = watch_blocks(backbone), {}
    if other == "revision":
        options["revision"] = "2"
    elif other == "type":
        options["dtype"] = torch.bfloat16
    elif other == "code":
        monkeypatch.setattr(frozen_states, "COMPUTED", frozen_states.COMPUTED + 1)
    elif other == "layer":
        layer = 1
    elif other == "tokens":
        prompts[1] = prompts[1].but(ids=[*prompts[1].ids[:-1], 3])
    elif other == "segments":
        prompts[1] = prompts[1].but(segments=[1] * len(prompts[1].ids))
    elif other == "beginning":
        prompts = [own.but(demo_tokens=12) for own in prompts]
    same = other == "pad"  # what fills a batch decides no state
    known = on_disk(backbone, tmp_path, **options).after(layer, prompts, "cpu")
    assert bool(run) != same
    whole = backbone.lower(collate([prompts[1]], 1), layer)[0]
    close = 0.05 if other == "type" else 1e-5
    assert torch.allclose(known.of(prompts[1]).float(), whole, atol=close)


@pytest.mark.parametrize("damage", ["cut", "empty", "changed", "swapped", "foreign"])
def test_a_damaged_file_of_states_is_made_again_and_others_are_left_alone(tmp_path, damage):
    backbone = tiny.backbone("llama")
    prompts = [prompt(f"en/{number}", [0], ids=9 + number) for number in range(11)]
    expected = on_disk(backbone, tmp_path).after(2, prompts, "cpu")
    path, other = sorted(tmp_path.iterdir())
    content = path.read_bytes()
    (tmp_path / "notes.txt").write_text("mine")
    broken = {
        "cut": content[:-5],
        "empty": b"",
        "changed": content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
        "swapped": other.read_bytes(),
        "foreign": save({"states": torch.zeros(8, 16, backbone.hidden)}),
    }
    path.unlink()
    path.write_bytes(broken[damage])
    run = watch_blocks(backbone)
    found = on_disk(backbone, tmp_path).after(2, prompts, "cpu")
    assert set(run) == {0, 1}
    assert all(torch.equal(found.of(own), expected.of(own)) for own in prompts)
    run.clear()
    on_disk(backbone, tmp_path).after(2, prompts, "cpu")
    assert run == [], "the file is whole again"
    assert {file.name for file in tmp_path.iterdir()} == {path.name, other.name, "notes.txt"}


def write_states(folder: Path, times: int) -> None:
    """What a process does in the next test: it reads whole states or none, and writes them."""
    states, kept = torch.arange(8 * 64 * 32, dtype=torch.float32).view(8, 64, 32), StatesFolder(folder)
    for number in range(times):
        found = kept.read(("key", number % 2))
        assert found is None or torch.equal(found, states + number % 2)
        assert torch.equal(kept.write(("key", number % 2), states + number % 2), states + number % 2)


def test_processes_that_write_the_same_states_at_once_do_not_disturb_each_other(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_states, args=(tmp_path, 60)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len([*tmp_path.iterdir()]) == 2
    assert StatesFolder(tmp_path).read(("key", 0)) is not None


def killed_while_it_writes(folder: Path) -> None:
    """What a process does in the next test."""
    states_folder.safe_open = lambda *told: os.kill(os.getpid(), signal.SIGKILL)
    StatesFolder(folder).write("key", torch.zeros(1, 2, 3))


def test_what_a_killed_process_left_half_written_is_removed_when_no_one_can_be_writing_it(tmp_path):
    """With what the library had written beside; another's folder is left alone, and so is a file of the user's."""
    process = multiprocessing.get_context("fork").Process(target=killed_while_it_writes, args=(tmp_path,))
    process.start()
    process.join()
    (left,) = tmp_path.iterdir()
    (left / ".tmpXYZ").touch()
    (tmp_path / "mine.partial").touch()
    with owned(living := tmp_path / left.name.replace(left.suffixes[0], f".{'0' * 32}")):
        StatesFolder(tmp_path)
        assert left.is_dir(), "another process may be about to lock it"
        for file in tmp_path.iterdir():
            os.utime(file, (0, time.time() - 2 * BEGUN))
        assert StatesFolder(tmp_path).read("key") is None
        assert {file.name for file in tmp_path.iterdir()} == {"mine.partial", living.name}


def test_a_folder_that_can_not_be_written_is_told_in_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    expected = f"^train.cache_folder: {tmp_path}/file can't be written: .*; give another folder, or leave the key out$"
    with pytest.raises(UserError, match=expected):
        on_disk(tiny.backbone("llama"), tmp_path / "file").after(1, [prompt("en/0", [0], ids=9)], "cpu")


def test_states_in_half_the_bytes_do_not_depend_on_what_was_kept(tmp_path):
    """They are those of the whole pass, rounded once, whichever layer was asked for before, in memory and on disk."""
    backbone = tiny.backbone("llama")
    prompts = [prompt(f"en/{number}", [0], ids=9 + number) for number in range(4)]
    exact = states_of(backbone).after(3, prompts, "cpu")
    for kept in (states_of(backbone, dtype=torch.bfloat16), on_disk(backbone, tmp_path, dtype=torch.bfloat16)):
        for layer in (1, 3):
            found = kept.after(layer, prompts, "cpu")
        for own in prompts:
            assert torch.equal(found.of(own), exact.of(own).bfloat16())
    tokens = sum(len(own.ids) for own in prompts)
    for bits, fits in ((torch.bfloat16, True), (None, False)):
        kept = states_of(backbone, limit=2 * backbone.hidden * tokens, dtype=bits)
        assert kept.fits(prompts, backbone.hidden) == fits


class Shift(torch.nn.Module):
    """A module behind the embedding that is no one's but this cell's."""

    behind_a_beginning = True

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, states, batch):
        return states + self.by


def test_states_of_blocks_that_a_method_changed_are_kept_for_no_other_cell(tmp_path):
    """In memory and on disk: the key says nothing of what a method of one's own puts behind the embeddings."""
    backbone = tiny.backbone("llama")
    own, kept = prompt("en/0", [0], ids=9), on_disk(backbone, tmp_path)
    found = [kept.after(2, [own], "cpu").of(own)]
    for by in (0.5, 1.0):
        backbone.reset()
        backbone.on_embed(Shift(by))
        found.append(kept.after(2, [own], "cpu").of(own))
        assert torch.allclose(found[-1], backbone.lower(collate([own], 1), 2)[0], atol=1e-6)
    backbone.reset()
    assert torch.equal(kept.after(2, [own], "cpu").of(own), found[0])
    assert not torch.allclose(found[1], found[2], atol=1e-3)
    assert len([*tmp_path.iterdir()]) == 1
    for change in (
        lambda: backbone.take_positions(2),
        lambda: backbone.scale_keys(1, torch.nn.Identity()),
        lambda: backbone.open("*norm*"),
        lambda: backbone.wrap("*q_proj", torch.nn.Sequential),
        lambda: backbone.sparse(next(iter(dict(backbone.model.named_parameters()))), torch.tensor([0])),
    ):
        backbone.reset()
        assert backbone.is_as_loaded
        change()
        assert not backbone.is_as_loaded
    backbone.reset()


def test_ranks_that_know_unlike_layers_all_begin_anew():
    """Under ZeRO-3 all must run the same blocks."""
    backbone, own = tiny.backbone("llama"), prompt("en/0", [0], ids=9)
    kept, asked = states_of(backbone), list[int]()

    def differ(depth: int) -> int:
        asked.append(depth)
        return 0

    first = kept.after(1, [own], "cpu")
    run = watch_blocks(backbone)
    assert torch.equal(kept.after(1, [own], "cpu", differ).of(own), first.of(own))
    assert (asked, set(run)) == ([1, 1], {0}), "chunks, and blocks"


@pytest.mark.parametrize(
    ("lengths", "agreed", "sizes"),
    [
        ([9] * 9, True, [8, 1]),
        ([6, 30, 30], True, [3]),  # 24 tokens pad
        ([5, 30, 30], True, [1, 2]),
        ([5, 30, 30], False, [3]),  # ranks whose prompts are of other lengths would run fewer or more
    ],
)
def test_prompts_run_together_until_too_much_of_them_is_padding(lengths, agreed, sizes):
    backbone, found = tiny.backbone("llama"), list[int]()
    backbone.blocks[0].register_forward_hook(lambda _block, given, _output: found.append(len(given[0])))
    prompts = [prompt(f"en/{n}", [0]).but(ids=[n + 5] * size, segments=[0] * size) for n, size in enumerate(lengths)]
    known = states_of(backbone).after(1, prompts, "cpu", lambda number: number if agreed else 0)
    assert found == sizes
    for own in prompts:
        assert torch.allclose(known.of(own), backbone.lower(collate([own], 1), 1)[0], atol=1e-6)


@pytest.mark.parametrize("known", ["both", "one rank"])
def test_what_was_begun_for_one_split_serves_another_where_all_ranks_have_it(known):
    backbone, run = tiny.backbone("llama"), list[int]()
    train, dev = ([begun(f"en/{i}", [20 + i] * 3) for i in range(first, 6, 2)] for first in (0, 1))
    backbone.blocks[0].register_forward_hook(lambda _block, given, _output: run.append(given[0].shape[1]))
    for change in (lambda: None, lambda: backbone.on_embed(Shift(0.5))):  # where nothing is kept between the calls, too
        change()
        kept, beginnings = states_of(backbone), {}
        run.clear()
        kept.after(2, train, "cpu", begun=beginnings)
        found = kept.after(2, dev, "cpu", lambda number: number * (known == "both"), begun=beginnings)
        assert run == [12, 3] + [12] * (known != "both") + [3]
        for own in dev:
            assert torch.allclose(found.of(own), backbone.lower(collate([own], 1), 2)[0], atol=1e-6)

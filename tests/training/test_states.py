"""States on disk: one file or parts, by size; what counts, what is damaged, what is written beside the training."""

from __future__ import annotations

import errno
import itertools
import json
import threading
import time
from concurrent.futures import Executor, Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from raypft import shards
from raypft.contract import cases, tiny
from raypft.contract.checks import dataset
from raypft.errors import UserError
from raypft.training import checkpoint, loop
from raypft.training import states as states_module
from raypft.training.checkpoint import StateWriter
from raypft.training.kept import InMemory, OnDisk
from raypft.training.loop import fit
from raypft.training.states import States, TrainState
from raypft.training.stepper import MOMENTS, VALUE, Held, TorchStepper


def states_in(place: Path, key: str = "cell") -> States:
    return States(place / "state.pt", place / "state.previous.pt", place / "state", key)


IS_DUE = StateWriter._is_due


class Now(Executor):
    """Runs at once what is submitted, so that a test knows when it is done."""

    def submit(self, fn, /, *args, **kwargs):
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture(autouse=True)
def looked_at_each_step(request, monkeypatch):
    monkeypatch.setattr(loop, "TELL_SECONDS", -1)
    monkeypatch.setattr(checkpoint, "LOOK", 1)
    monkeypatch.setattr(StateWriter, "_is_due", lambda self, patience=10: False)  # as often as told, whatever it costs
    if "goes_on_while" not in request.node.name:
        monkeypatch.setattr(checkpoint, "ThreadPoolExecutor", lambda threads: Now())


def fitted(
    place: Path | None, scores=(1, 2, 3, 4), until=(0, 0), key: str = "cell", **changes: Any
) -> tuple[TorchStepper, Any, list[str]]:
    """A training with these dev scores, three steps an epoch, with a state after every second; the stepper, where it
    stands and what was lost. Left after epoch and step `until`; goes on from the last state where there is one."""
    cell = cases.cell("full", tiny.backbone("bert", dropout=0.1))
    own = {"batch_size": 2, "epochs": len(scores), "save_every": 2, **changes}
    settings = cases.SETTINGS.model_copy(update=own)
    stepper, states = TorchStepper(cell.learner, settings), states_in(place, key) if place is not None else None
    state, lost = states.resume(stepper) if states is not None else (None, [])
    given = iter(scores[state.epoch if state is not None else 0 :])

    def tell(event: dict[str, Any]) -> None:
        if (event.get("epoch"), event.get("step", 3)) == until:
            raise KeyboardInterrupt

    try:
        state = fit(stepper, dataset(cell), dataset(cell), settings, 0, lambda _: next(given), state, states, tell)
    except KeyboardInterrupt:
        state = None
    return stepper, state, lost


def equal(one: TorchStepper, other: TorchStepper) -> bool:
    expected = other.values()
    return all(torch.equal(value, expected[name]) for name, value in one.values().items())


@pytest.fixture(params=["parts", "whole"])
def form(request, monkeypatch):
    """States of this form, which the size decides."""
    stepper, *_ = fitted(None)
    monkeypatch.setattr(shards, "WHOLE", shards.nbytes(stepper.shapes) - (request.param == "parts"))
    return request.param


def files(place: Path) -> list[str]:
    return sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())


def test_the_size_decides_whether_a_state_is_one_file(form, tmp_path):
    fitted(tmp_path, until=(2, 2))
    names = ["0001-0-of-1.safetensors", "0001.json", "0002-0-of-1.safetensors", "0003-0-of-1.safetensors", "0003.json"]
    expected = {"whole": ["state.previous.pt", "state.pt"], "parts": [f"state/{name}" for name in names]}
    assert files(tmp_path) == expected[form], "two states, in parts with the best values of the first epoch"


@pytest.mark.parametrize("scores", [(1, 3, 2, 2), (4, 3, 2, 1), (1, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("until", [(1, 2), (2, 2), (2, 3), (3, 1)], ids=str)
def test_a_training_goes_on_to_the_same_bits_and_the_same_best_epoch(form, scores, until, tmp_path):
    expected, whole, _ = fitted(None, scores)
    fitted(tmp_path, scores, until)
    stepper, state, lost = fitted(tmp_path, scores)
    assert (lost, state.losses, state.best_epoch) == ([], whole.losses, whole.best_epoch)
    assert equal(stepper, expected)


def test_the_best_epoch_of_what_is_large_is_on_disk(form, tmp_path):
    expected, *_ = fitted(None, (1, 3, 2, 2))
    stepper, state, _ = fitted(tmp_path, (1, 3, 2, 2), save_every=None)
    assert isinstance(state.best, OnDisk) == (form == "parts")
    assert equal(stepper, expected)
    assert not list((tmp_path / "state").glob("*.json")), "no state was due"


def test_the_last_epoch_is_in_the_model_and_is_not_written_as_the_best(monkeypatch, tmp_path):
    monkeypatch.setattr(shards, "WHOLE", 0)
    fitted(tmp_path, (1, 2), save_every=None)
    assert files(tmp_path) == ["state/0001-0-of-1.safetensors"], "the first epoch's"


def test_two_states_are_kept_at_most(form, tmp_path):
    sizes = []
    for until in ((2, 2), (3, 2), (4, 2)):
        stepper, *_ = fitted(tmp_path, until=until)
        sizes.append(sum((tmp_path / file).stat().st_size for file in files(tmp_path)))
    values = shards.nbytes(stepper.shapes)
    assert max(sizes) < 1.2 * (2 * (3 * values + values)), "two states, each with the best values"


def changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "one bit": changed,
    "garbage": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "missing": Path.unlink,
}


def newest(place: Path, form: str) -> list[Path]:
    """The files of the last state, parts before their manifest."""
    if form == "whole":
        return [place / "state.pt"]
    manifest = max((place / "state").glob("*.json"))
    found = json.loads(manifest.read_text())
    return [*(place / "state" / part["file"] for part in found["parts"]), manifest]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("which", [0, -1])
def test_a_state_that_is_not_whole_is_named_and_the_one_before_used(form, which, damage, tmp_path):
    expected, whole, _ = fitted(None)
    fitted(tmp_path, until=(2, 2))
    path = newest(tmp_path, form)[which]
    if path.suffix == ".json" and damage == "one bit":
        path.write_text(path.read_text().replace('"epoch": 1', '"epoch": x'))
    else:
        DAMAGES[damage](path)
    stepper, state, lost = fitted(tmp_path)
    if (form == "whole" and damage == "missing") or (path.suffix == ".json" and damage == "missing"):
        assert lost == []
    else:
        (line,) = lost
        assert path.name in line
        assert "; goes on from the state before, state" in line
        assert "\n" not in line
    assert state.losses == whole.losses
    assert equal(stepper, expected)


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_state_without_its_best_values_is_not_whole(damage, monkeypatch, tmp_path):
    """They are read only when the training ends: too late to find them gone."""
    monkeypatch.setattr(shards, "WHOLE", 0)
    expected, whole, _ = fitted(None)
    fitted(tmp_path, until=(2, 2))
    (best,) = json.loads((tmp_path / "state" / "0003.json").read_text())["best"]
    DAMAGES[damage](tmp_path / "state" / best["file"])
    stepper, state, (line,) = fitted(tmp_path)
    assert best["file"] in line
    assert state.losses == whole.losses
    assert equal(stepper, expected)


def test_all_of_where_a_training_stands_is_in_a_states_head():
    state = TrainState(epoch=2, step=1, losses=[0.5], scaling={"scale": 256.0, "good_steps": 3.0})
    assert TrainState.of(json.loads(json.dumps(state.head()))) == state
    state.scaling = {}
    assert TrainState.of(json.loads(json.dumps(state.head()))) == state, "an older one has none"


def test_where_no_state_is_whole_the_training_begins_anew(form, tmp_path):
    expected, whole, _ = fitted(None)
    fitted(tmp_path, until=(2, 2))
    for file in files(tmp_path):
        (tmp_path / file).write_bytes(b"")
    stepper, state, lost = fitted(tmp_path)
    assert lost
    assert all(line.endswith("; trained from the beginning") for line in lost)
    assert state.losses == whole.losses
    assert equal(stepper, expected)


def test_another_cells_state_is_not_taken(monkeypatch, tmp_path):
    monkeypatch.setattr(shards, "WHOLE", 0)
    fitted(tmp_path, until=(2, 2), key="other")
    *_, lost = fitted(tmp_path)
    assert all("is of another run (cell other; expected cell); trained from the beginning" in line for line in lost)
    assert lost


def test_a_manifest_leads_to_no_file_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr(shards, "WHOLE", 0)
    fitted(tmp_path / "a", until=(2, 2))
    for manifest in (tmp_path / "a" / "state").glob("*.json"):
        found = json.loads(manifest.read_text())
        found["parts"][0]["file"] = "../../elsewhere.safetensors"
        manifest.write_text(json.dumps(found))
    *_, lost = fitted(tmp_path / "a")
    assert "trained from the beginning" in lost[0]


def test_an_old_state_of_what_is_large_is_gone_on_from_in_parts(monkeypatch, tmp_path):
    """One file of an earlier version, with its best values; numbers of steps were one for all then."""
    expected, whole, _ = fitted(None, (1, 3, 2, 2))
    fitted(tmp_path, (1, 3, 2, 2), until=(3, 2))
    old = torch.load(tmp_path / "state.pt", weights_only=True)
    del old["optimizer"]["steps"]
    torch.save(old, tmp_path / "state.pt")
    monkeypatch.setattr(shards, "WHOLE", 0)
    fitted(tmp_path, (1, 3, 2, 2), until=(4, 2))
    assert list((tmp_path / "state").glob("*.json"))
    stepper, state, lost = fitted(tmp_path, (1, 3, 2, 2))
    assert (lost, state.losses, state.best_epoch) == ([], whole.losses, 2)
    assert equal(stepper, expected)


@pytest.mark.parametrize("place", ["checked", "write"])
def test_a_part_that_cannot_be_written_ends_the_training_with_one_line(monkeypatch, tmp_path, place):
    """Whether its bytes find no room, or do not reach the disk."""
    monkeypatch.setattr(shards, "WHOLE", 0)
    fitted(tmp_path, until=(2, 2))

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shards, place, full)
        with pytest.raises(
            UserError, match=r"^state: .*\.safetensors can't be written: No space left on device; "
        ) as told:
            fitted(tmp_path)
    assert "\n" not in str(told.value)
    assert not list(tmp_path.rglob("*.partial.*"))
    assert fitted(tmp_path)[2] == []


def test_one_file_that_cannot_be_written_is_one_line_and_the_last_stays(monkeypatch, tmp_path):
    fitted(tmp_path, until=(2, 2))
    before = (tmp_path / "state.pt").read_bytes()

    def full(stored: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(states_module.torch, "save", full)
    with pytest.raises(UserError, match=r"^state: .*state.pt can't be written: No space left on device; "):
        fitted(tmp_path)
    assert files(tmp_path) == ["state.previous.pt", "state.pt"]
    assert (tmp_path / "state.pt").read_bytes() == before


def test_training_goes_on_while_a_part_comes_to_disk(monkeypatch, tmp_path):
    """The next steps are made while it waits, and it counts only then."""
    monkeypatch.setattr(shards, "WHOLE", 0)
    cell = cases.cell("full", tiny.backbone("bert"))
    settings = cases.SETTINGS.model_copy(update={"batch_size": 5, "epochs": 30, "save_every": 19, "select": "last"})
    stepper, stepped, steps, counted = TorchStepper(cell.learner, settings), threading.Event(), [], []
    step, checked, conclude = stepper.step, shards.checked, States.conclude

    def counting(lr: float) -> bool | torch.Tensor:
        steps.append(lr)
        if len(steps) == 25:
            stepped.set()
        return step(lr)

    def waiting(file: Path, checksum: int) -> str:
        assert stepped.wait(60), "the training waits for the disk"
        return checked(file, checksum)

    def concluding(self: States, head: dict[str, Any], *more: Any) -> None:
        counted.append((len(steps), head["epoch"]))
        conclude(self, head, *more)

    monkeypatch.setattr(stepper, "step", counting)
    monkeypatch.setattr(shards, "checked", waiting)
    monkeypatch.setattr(States, "conclude", concluding)
    fit(stepper, dataset(cell), None, settings, 0, cell.score, states=states_in(tmp_path))
    ((step_of_counting, epoch),) = counted
    assert step_of_counting >= 25
    assert epoch == 18, "it is the state of the step at which it was begun"


def test_a_writer_knows_what_its_state_costs(tmp_path):
    cell = cases.cell("full", tiny.backbone("bert"))
    stepper = TorchStepper(cell.learner, cases.SETTINGS)
    writer = StateWriter(stepper, cases.SETTINGS, states_in(tmp_path))
    assert writer.cost == 12 * sum(p.numel() for p in cell.learner.trainable().values()) / 200e6
    writer.write(TrainState())
    assert files(tmp_path) == ["state.pt"]


def test_the_newest_of_several_states_in_parts_comes_first(tmp_path):
    states = states_in(tmp_path)
    states.folder.mkdir()
    for number in (2, 10, 9):
        (states.folder / f"{number}.json").write_text("{}")
    assert states._found() == (10, ["state/10.json", "state/9.json", "state/2.json"])


def test_at_an_epochs_end_a_state_that_has_come_to_disk_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(shards, "WHOLE", 0)
    cell = cases.cell("soft_prompt", tiny.backbone("bert"))
    settings = cases.SETTINGS.model_copy(update={"save_every": 2})
    writer = StateWriter(TorchStepper(cell.learner, settings), settings, states_in(tmp_path))
    writer.after_step(TrainState(step=2), 2, False)
    assert not list((tmp_path / "state").glob("*.json")), "it may still be on its way"
    writer.after_epoch(TrainState(epoch=1), improved=False)
    (manifest,) = (tmp_path / "state").glob("*.json")
    assert json.loads(manifest.read_text())["step"] == 2


def test_what_a_state_holds_of_each_parameter_is_as_long_as_it(monkeypatch, tmp_path):
    """Moments, too, of what Adam has made steps with; of what it has not there are none."""
    whole = {f"{key}/{name}": (0, torch.zeros(3)) for key in (VALUE, *MOMENTS) for name in ("moved", "still")}
    shapes = {"moved": torch.Size([3]), "still": torch.Size([1, 3])}

    def read(**lengths: int) -> Any:
        changed = {piece.replace("__", "/"): (0, torch.zeros(length)) for piece, length in lengths.items()}
        kept = InMemory({piece: found for piece, found in (whole | changed).items() if len(found[1])})
        monkeypatch.setattr(states_module, "_read_whole", lambda path, key: (TrainState(), kept, {"moved": 4}))
        return states_in(tmp_path)._read(tmp_path / "state.pt", shapes)

    for none in ({}, {f"{key}__still": 0 for key in MOMENTS}, {f"{MOMENTS[0]}__still": 2}):
        assert read(**none)[2] == {"moved": 4}
    for piece in (f"{VALUE}/moved", f"{VALUE}/still", *(f"{key}/moved" for key in MOMENTS)):
        key, _, name = piece.partition("/")
        for length in (0, 2, 4):
            with pytest.raises(UserError, match=rf"does not fit: {key} of {name} should have 3 entries"):
                read(**{piece.replace("/", "__"): length})


def test_a_range_is_read_from_the_parts_that_hold_it(tmp_path):
    """Of one parameter three parts hold pieces, and one of them no piece of the other."""
    parts: list[dict[str, Any]] = []
    for number, (w, v) in enumerate([((0, 4), (0, 2)), ((4, 3), None), ((7, 2), (2, 5))]):
        path, pieces = tmp_path / f"{number}.safetensors", {f"{VALUE}/w": w} | ({f"{VALUE}/v": v} if v else {})
        tensors = {name: torch.arange(first, first + count).float() for name, (first, count) in pieces.items()}
        shards.save(path, {name: tensor.shape for name, tensor in tensors.items()}, tensors.items())
        digest = shards.sha256(path)
        parts.append({"file": path.name, "bytes": path.stat().st_size, "sha256": digest, "pieces": pieces})
    for start, end in itertools.combinations(range(8), 2):
        held = {name: Held(start, {VALUE: torch.zeros(end - start)}) for name in ("v", "w")}
        with OnDisk(tmp_path, parts).opened(held) as give:
            for name in held if end <= 7 else ("w",):
                assert give(VALUE, name, start, end).tolist() == list(range(start, end))


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


def test_no_code_in_a_state_is_run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    fitted(tmp_path, until=(2, 2))
    for path in tmp_path.glob("state*.pt"):
        torch.save({**torch.load(path, weights_only=True), "losses": Code()}, path)
    _, state, lost = fitted(tmp_path)
    assert len(lost) == 2
    assert all("can't be read" in line for line in lost)
    assert len(state.losses) == 12, "the training begins anew"
    assert not Path("ran").exists()


def test_before_a_node_goes_what_is_being_written_counts_and_what_is_newer_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(shards, "WHOLE", 0)
    monkeypatch.setattr(StateWriter, "_is_due", IS_DUE)
    cell = cases.cell("soft_prompt", tiny.backbone("bert"))
    writer = StateWriter(TorchStepper(cell.learner, cases.SETTINGS), cases.SETTINGS, states_in(tmp_path))

    def steps() -> list[int]:
        return [json.loads(path.read_text())["step"] for path in sorted((tmp_path / "state").glob("*.json"))]

    for step, leaving, written in ((1, False, []), (2, True, [1, 2]), (3, True, [2, 3])):
        writer.cost = 0.0
        writer.after_step(TrainState(step=step), step, leaving)
        assert steps() == written
    writer.cost = 1e9
    writer.after_step(TrainState(step=4), 4, True)
    assert steps() == [2, 3], "it costs more than the time there was"
    writer.cost, writer.last = 10.0, time.perf_counter() - 25
    writer.after_step(TrainState(step=4), 4, False)
    assert writer.pending is None, "while nothing goes away it may cost a tenth"
    writer.after_step(TrainState(step=5), 5, True)
    assert steps() == [3, 5], "else a half"


@pytest.mark.parametrize(("world", "count", "own"), [(2, 5, [(0, 3), (3, 2)]), (4, 2, [(0, 1), (1, 1), None, None])])
def test_of_what_all_hold_each_rank_writes_its_share(world, count, own):
    held = {"w": Held(0, {VALUE: torch.zeros(count)})}
    for rank, share in enumerate(own):
        stepper: Any = SimpleNamespace(replicated=True, world=world, rank=rank)
        expected = {} if share is None else {f"{VALUE}/w": share}
        assert states_module._own_pieces(stepper, held, [VALUE, "other"]) == expected
    alone: Any = SimpleNamespace(replicated=False, world=world, rank=1)
    parted = {"w": Held(7, {VALUE: torch.zeros(count)})}
    assert states_module._own_pieces(alone, parted, [VALUE]) == {f"{VALUE}/w": (7, count)}

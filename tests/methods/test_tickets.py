"""Tickets: what is cut against sorting everything, ties and zeros, what the artefact says, every refusal."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from raypft import shards
from raypft.contract.cases import save_ticket
from raypft.errors import UserError
from raypft.methods import _tickets as tickets
from raypft.methods._tickets import cut, find_ticket, open_ticket


def stored(tmp_path, differences: dict[str, torch.Tensor]):
    """An artefact with these differences."""
    path = tmp_path / tickets.FILE
    save_ticket(path, differences, "abc", "decoupled", {"seed": 3})
    return open_ticket(str(path))


def coarse(*shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Differences of few sizes and both signs, a fifth of them zero; names not in alphabetical order."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randint(-2, 3, shape, generator=generator) / 7 for name, shape in zip("cab", shapes, strict=False)
    }


def by_sorting(differences: dict[str, torch.Tensor], ratio: float) -> dict[str, list[int]]:
    """The definition: all entries in a stable order by size, largest first, the first round(ratio * n)."""
    entries = []
    for name, tensor in differences.items():
        entries += [(-abs(float(value)), name, i) for i, value in enumerate(tensor.flatten())]
    positions: dict[str, list[int]] = {}
    for _, name, i in sorted(entries, key=lambda entry: entry[0])[: round(ratio * len(entries))]:
        positions.setdefault(name, []).append(i)
    return {name: sorted(kept) for name, kept in positions.items()}


def as_lists(found: tickets.Cut) -> dict[str, list[int]]:
    return {name: own.tolist() for name, own in found.indices.items()}


@pytest.mark.parametrize("ratio", [0.01, 0.2, 1 / 3, 0.5, 0.75, 0.95, 1])
@pytest.mark.parametrize("chunk", [5, 1 << 24])
def test_global_cut_is_the_head_of_the_sorted_candidates(tmp_path, monkeypatch, ratio, chunk):
    """Ties go by the order of the parameters and of their entries, also across chunks; K is exact."""
    monkeypatch.setattr(tickets, "CHUNK", chunk)
    differences = coarse((6, 5), (17,), (4, 9))
    found = cut(stored(tmp_path, differences), ratio)
    assert as_lists(found) == by_sorting(differences, ratio)
    assert (found.size, found.pool) == (round(ratio * 83), 83)


@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.75])
def test_per_tensor_cut_is_a_cut_of_each(tmp_path, ratio):
    differences = coarse((6, 5), (17,), (4, 9))
    found = cut(stored(tmp_path, differences), ratio, "per_tensor")
    expected: dict[str, list[int]] = {}
    for name in differences:
        expected |= by_sorting({name: differences[name]}, ratio)
    assert as_lists(found) == expected
    assert [len(found.indices[name]) for name in differences] == [round(ratio * n) for n in (30, 17, 36)]
    assert found.pool == 83, "of all parameters"


def test_per_layer_cut_is_a_cut_of_each_layer(tmp_path):
    """Parameters of one layer compete, those of none among themselves."""
    differences = coarse((6, 5), (17,), (4, 9))
    found = cut(stored(tmp_path, differences), 0.4, "per_layer", layers={"c": 1, "a": None, "b": 1})
    first, rest = (by_sorting({name: differences[name] for name in names}, 0.4) for names in ("cb", "a"))
    assert as_lists(found) == {**first, **rest}


def test_sizes_are_told_apart_to_the_last_bit(tmp_path):
    """Values one float step apart, of either sign, subnormal ones too."""
    one = torch.tensor(1.0)
    up = torch.nextafter(one, one * 2)
    values = torch.stack([one, -up, torch.nextafter(up, one * 2), -one * 0, torch.tensor(1e-45), torch.tensor(-3e-45)])
    ticket = stored(tmp_path, {"w": values})
    for size, expected in enumerate([[2], [1, 2], [0, 1, 2], [0, 1, 2, 5], [0, 1, 2, 4, 5]], start=1):
        assert as_lists(cut(ticket, size / 6)) == {"w": expected}


def test_agrees_with_sorting_on_a_million_entries(tmp_path):
    values = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(1))
    found = cut(stored(tmp_path, {"w": values}), 0.2).indices["w"]
    assert torch.equal(found.long(), values.abs().flatten().topk(200_000).indices.sort().values)


def test_entries_that_did_not_move_are_counted(tmp_path):
    """Ten of a hundred moved: a ticket of thirty takes twenty others, the first of them."""
    values = torch.zeros(100)
    values[90:] = 1
    ticket = stored(tmp_path, {"w": values})
    found = cut(ticket, 0.3)
    assert found.zeros == 20
    assert as_lists(found) == {"w": [*range(20), *range(90, 100)]}
    assert cut(ticket, 0.1).zeros == 0
    assert cut(ticket, 0.3, "per_tensor").zeros == 20


def test_the_ratio_is_of_the_chosen_parameters(tmp_path):
    differences = coarse((6, 5), (17,), (4, 9))
    found = cut(stored(tmp_path, differences), 0.5, names=["a", "b"])
    assert found.pool == 53
    assert as_lists(found) == by_sorting({"a": differences["a"], "b": differences["b"]}, 0.5)


def test_a_ticket_is_cut_for_real_where_only_shapes_are_counted(tmp_path):
    """`raypft check` builds methods on the meta device."""
    ticket = stored(tmp_path, coarse((6, 5)))
    with torch.device("meta"):
        found = cut(ticket, 0.2)
    assert as_lists(found) == by_sorting(coarse((6, 5)), 0.2)


def test_what_the_artefact_says(tmp_path):
    ticket = stored(tmp_path, coarse((6, 5), (17,)))
    assert (ticket.names, ticket.revision, ticket.strategy, ticket.settings) == (
        ("c", "a"),
        "abc",
        "decoupled",
        {"seed": 3},
    )
    other = coarse((6, 5), (17,))
    other["a"][3] += 1
    assert stored(tmp_path, coarse((6, 5), (17,))).digest == ticket.digest != stored(tmp_path, other).digest


def test_a_new_search_at_the_old_place_is_cut_anew(tmp_path):
    first = cut(stored(tmp_path, {"w": torch.tensor([1.0, 2.0])}), 0.5)
    assert as_lists(first) == {"w": [1]}
    second = cut(stored(tmp_path, {"w": torch.tensor([2.0, 1.0])}), 0.5)
    assert as_lists(second) == {"w": [0]}
    with pytest.raises(UserError, match=r"^method.ticket: .* was written again since it was cut; start again$"):
        first.indices["w"]


def test_a_search_that_writes_while_its_ticket_is_read_is_told(tmp_path, monkeypatch):
    """Nothing is cut out of two searches."""
    ticket, chunks = stored(tmp_path, {"a": torch.tensor([1.0, 2, 3]), "b": torch.tensor([0.1, 0.2, 0.3])}), []

    def replaced(self: tickets.Ticket, name: str):
        if name == "b" and name not in chunks:
            stored(tmp_path, {"a": torch.tensor([0.1, 0.2, 0.3]), "b": torch.tensor([1.0, 2, 3])})
        chunks.append(name)
        return whole(self, name)

    whole = tickets.Ticket.chunks
    monkeypatch.setattr(tickets.Ticket, "chunks", replaced)
    with pytest.raises(UserError, match=r"was written anew while it was read; run again"):
        cut(ticket, 0.5)
    assert as_lists(cut(stored(tmp_path, {"a": torch.tensor([1.0, 2])}), 0.5)) == {"a": [1]}


def test_found_by_file_by_run_and_by_seed(tmp_path):
    path = tmp_path / "seed-4" / tickets.FILE
    save_ticket(path, coarse((3,)), "abc", "vanilla", {})
    assert find_ticket(str(path)) == find_ticket(str(path.parent)) == find_ticket(str(tmp_path)) == path


def refused(where) -> str:
    with pytest.raises(UserError) as caught:
        open_ticket(str(where))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_ticket_is_refused(tmp_path):
    assert (
        refused(tmp_path / "none") == f"method.ticket: no file or folder {tmp_path}/none; "
        "give a ticket.safetensors or the folder of a finished ticket_search run"
    )
    assert (
        refused(tmp_path)
        == f"method.ticket: {tmp_path} holds no ticket.safetensors; expected the folder of a finished ticket_search run"
    )
    (tmp_path / "text").write_text("not a ticket at all")
    assert refused(tmp_path / "text").startswith(f"method.ticket: {tmp_path}/text is no ticket; expected")
    save_file({"w": torch.zeros(2)}, tmp_path / "plain.safetensors")
    assert "is no ticket" in refused(tmp_path / "plain.safetensors")
    for seed in (1, 2):
        save_ticket(tmp_path / f"seed-{seed}" / tickets.FILE, coarse((3,)), "abc", "vanilla", {})
    assert (
        refused(tmp_path)
        == f"method.ticket: {tmp_path} holds 2 tickets; choose one, e.g. {tmp_path}/seed-1/ticket.safetensors"
    )


def test_a_ratio_that_leaves_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"method.ratio: 0.01 of 30 candidates \(global\) leaves not one active entry"):
        cut(stored(tmp_path, coarse((6, 5))), 0.01)


@pytest.mark.parametrize("chunk", [5, 1 << 24, 1 << 31])
def test_positions_are_small_numbers_unless_they_may_be_large(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(tickets, "CHUNK", chunk)
    found = cut(stored(tmp_path, coarse((6, 5), (17,))), 0.5)
    kinds = {positions.dtype for positions in found.indices.values()}
    assert kinds == {torch.int64 if chunk == 1 << 31 else torch.int32}


def test_a_digest_is_of_names_and_values(tmp_path):
    differences, expected = coarse((6, 5), (17,)), hashlib.sha256()
    for name, tensor in differences.items():
        expected.update(name.encode() + tensor.numpy().tobytes())
    ticket = stored(tmp_path, differences)
    assert ticket.digest == expected.hexdigest()[:16]
    assert [ticket.size(name) for name in differences] == [30, 17]


# tickets of large models: shards and an index


def in_shards(folder: Path, monkeypatch, differences: dict[str, torch.Tensor]) -> Path:
    """The index of an artefact with a parameter a file."""
    monkeypatch.setattr(shards, "WHOLE", 0)
    monkeypatch.setattr(shards, "SHARD", 1)
    facts, shapes = tickets.Facts("abc", "vanilla", {"seed": 3}), {name: t.shape for name, t in differences.items()}
    folder.mkdir(exist_ok=True)
    given = ((name, facts.seen(name, tensor)) for name, tensor in differences.items())
    shards.save(folder / tickets.FILE, shapes, given, facts.metadata)
    return folder / f"{tickets.FILE}.index.json"


def test_a_ticket_in_shards_is_cut_like_one_in_a_file(tmp_path, monkeypatch):
    differences = coarse((6, 5), (17,), (4, 9))
    index = in_shards(tmp_path / "run", monkeypatch, differences)
    assert len(list(index.parent.glob("*.safetensors"))) == 3
    assert find_ticket(str(index.parent)) == find_ticket(str(index.parent / tickets.FILE)) == index
    ticket, whole = open_ticket(str(index.parent)), stored(tmp_path, differences)
    assert (ticket.names, ticket.digest, ticket.settings) == (whole.names, whole.digest, {"seed": 3})
    assert (ticket.revision, ticket.strategy) == ("abc", "vanilla")
    assert as_lists(cut(ticket, 0.4)) == as_lists(cut(whole, 0.4)) == by_sorting(differences, 0.4)
    assert [ticket.size(name) for name in differences] == [30, 17, 36]


@pytest.mark.parametrize(
    ("damage", "line"),
    [("other", "its sha256 is not that of the index"), ("missing", "it is missing"), ("index", "is no ticket")],
)
def test_a_shard_that_is_not_the_one_that_was_written_is_refused(tmp_path, monkeypatch, damage, line):
    index = in_shards(tmp_path, monkeypatch, coarse((6, 5), (17,)))
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    if damage == "index":
        index.write_text(json.dumps({"metadata": json.loads(index.read_text())["metadata"]}))
    else:
        shard.unlink()
    if damage == "other":
        save_file({"a": torch.zeros(17)}, shard)
    with pytest.raises(UserError, match=line) as caught:
        cut(open_ticket(str(tmp_path)), 0.4)
    assert "\n" not in str(caught.value)


def test_differences_that_are_not_those_that_were_written_are_refused(tmp_path):
    ticket = stored(tmp_path, {"w": torch.tensor([1.0, 2.0])})
    content = ticket.path.read_bytes()
    ticket.path.write_bytes(content[:-4] + torch.tensor([3.0]).numpy().tobytes())
    with pytest.raises(UserError, match="its differences are not those it was written with; run the search again"):
        cut(ticket, 0.5)

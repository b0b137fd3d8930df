"""Tickets: shares add up to K, overlaps are of the entries themselves, the paper's numbers where they belong."""

from __future__ import annotations

import itertools
import shutil

import pytest
from safetensors import safe_open
from test_analyse import read

from raypft import shards
from raypft.methods._tickets import cut, open_ticket

EPOCH = {"epochs": 1, "lr": 1e-2, "batch_size": 8, "max_tokens": 32}
LAYERS = {"": 0, "0": 1, "1": 2, "2": 3}


@pytest.fixture(scope="session")
def searched(place, ran):
    """The folder of a ticket search by its strategy."""

    def make(strategy: str, seed: int = 0):
        more = {"task": f"{place}/text.yaml", "pattern": "vanilla", "readout": "mlm", "protocol": "ticket_search"}
        return ran(
            f"ticket_search-{strategy}-{seed}",
            {"name": "ticket_search", "strategy": strategy},
            "xlmr",
            train=EPOCH,
            seeds=[seed],
            **more,
        )

    return make


def layer_of(name: str) -> int:
    parts = name.split(".layer.")
    return LAYERS[parts[1].split(".")[0] if len(parts) > 1 else ""]


@pytest.mark.parametrize("scope", ["global", "per_layer"])
def test_shares_add_up_to_the_ticket(searched, finish, tmp_path, scope):
    """Entries counted one by one; K is the ratio of all candidates; the paper's number beside the embeddings."""
    runs = {strategy: searched(strategy) for strategy in ("vanilla", "decoupled", "freeze_embeddings")}
    assert finish("analyse", "ticket", *runs.values(), "ratio=0.3", f"scope={scope}", "--out", tmp_path)[0] == 0
    rows = read(tmp_path / "analysis-ticket" / "ticket.csv")
    for strategy, run in runs.items():
        own = {int(row["layer"]): row for row in rows if row["strategy"] == strategy}
        ticket = open_ticket(str(run))
        found = cut(ticket, 0.3, scope, layers={name: layer_of(name) or None for name in ticket.names})
        assert sum(int(row["active"]) for row in own.values()) == found.size
        assert found.size == pytest.approx(0.3 * found.pool, abs=2)
        assert sum(float(row["percent of the ticket"]) for row in own.values()) == pytest.approx(100)
        for layer, row in own.items():
            names = [name for name in ticket.names if layer_of(name) == layer]
            assert int(row["active"]) == sum(len(found.indices.get(name, ())) for name in names)
            if scope == "per_layer":
                assert float(row["percent of the layer"]) == pytest.approx(30, abs=0.1)
        assert sorted(own) == ([1, 2, 3] if strategy == "freeze_embeddings" else [0, 1, 2, 3])
        paper = {"vanilla": "69.0", "decoupled": "39.0"}.get(strategy, "") if scope == "global" else ""
        assert {row["percent in the paper"] for layer, row in own.items() if layer == 0} <= {paper}
        assert {row["percent in the paper"] for layer, row in own.items() if layer} == {""}


def test_overlap_is_of_the_entries(searched, finish, tmp_path):
    """Against sets of (parameter, position)."""
    runs = [searched("decoupled"), searched("decoupled", 1), searched("freeze_embeddings")]
    assert finish("analyse", "ticket", *runs, "--out", tmp_path)[0] == 0
    sets = []
    for run in runs:
        found = cut(open_ticket(str(run)), 0.2).indices
        sets.append({(name, place) for name, own in found.items() for place in own.tolist()})
    rows = read(tmp_path / "analysis-ticket" / "overlap.csv")
    for row, (one, other) in zip(rows, itertools.combinations(sets, 2)):
        assert int(row["shared"]) == len(one & other)
        assert float(row["jaccard"]) == pytest.approx(len(one & other) / len(one | other))
        assert float(row["percent of the smaller"]) == pytest.approx(100 * len(one & other) / min(len(one), len(other)))
    pool = sum(int(row["candidates"]) for row in read(tmp_path / "analysis-ticket" / "ticket.csv")) // 3
    assert float(rows[0]["shared by chance"]) == pytest.approx(0.04 * pool, rel=0.5)


def test_a_run_of_ltp_shows_the_ticket_it_trained(searched, ran, finish, tmp_path):
    ticket = searched("decoupled")
    method = {"name": "lottery", "ticket": str(ticket), "ratio": 0.5, "segment": "2-3", "length": 2}
    run = ran("ltp", method, "xlmr", pattern="soft", train=EPOCH)
    assert finish("analyse", "ticket", run, "--out", tmp_path)[0] == 0
    rows = read(tmp_path / "analysis-ticket" / "ticket.csv")
    assert [(row["layer"], row["ratio"], row["segment"]) for row in rows] == [("2", "0.5", "2-3"), ("3", "0.5", "2-3")]
    assert {row["percent in the paper"] for row in rows} == {""}
    assert not (tmp_path / "analysis-ticket" / "overlap.csv").exists()


def test_another_method_is_refused(ran, finish):
    code, out, err = finish("analyse", "ticket", ran("fpft", "full"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "is of the method full; expected a run of the recipe ticket_search or ltp" in err


def test_a_ticket_in_shards_is_counted_as_one_in_a_file(searched, finish, tmp_path, monkeypatch):
    whole = searched("vanilla")
    monkeypatch.setattr(shards, "WHOLE", 0)
    monkeypatch.setattr(shards, "SHARD", 4000)
    parts = tmp_path / "run"
    shutil.copytree(whole, parts)
    (file,) = parts.glob("seed-*/ticket.safetensors")
    with safe_open(file, "pt") as stream:
        values, told = {name: stream.get_tensor(name) for name in stream.keys()}, stream.metadata()  # noqa: SIM118
    file.unlink()
    shards.save(file, {name: value.shape for name, value in values.items()}, values.items(), lambda: told)
    assert len(list(file.parent.glob("ticket-*"))) > 2
    for run in (whole, parts):
        assert finish("analyse", "ticket", run, "ratio=0.3", "--out", tmp_path / f"out-{run.name}")[0] == 0
    first, second = (read(tmp_path / f"out-{run.name}" / "analysis-ticket" / "ticket.csv") for run in (whole, parts))
    assert first == second

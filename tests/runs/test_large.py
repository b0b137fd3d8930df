"""Runs of what counts as large: states in parts, results in shards, with the numbers and answers of one file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pa_parquet
import pytest
import torch
from safetensors.torch import load_file
from test_damaged import WORDS, finished, place, refused  # noqa: F401  (fixtures)
from test_ticket_search import search

from raypft import shards
from raypft.config.load import load_job
from raypft.methods import _tickets as tickets
from raypft.methods._tickets import cut, find_ticket, open_ticket
from raypft.runs.executor import LocalExecutor
from raypft.runs.export import export
from raypft.runs.predict import load_trained
from raypft.runs.prepare import prepare
from raypft.runs.results import states_kept
from raypft.scale.run import run_jobs


def make_large(monkeypatch) -> None:
    """Everything is large, and a shard holds 40 KB."""
    monkeypatch.setattr(shards, "WHOLE", 0)
    monkeypatch.setattr(shards, "SHARD", 40_000)


def ran(words: list[str], until: int = 0) -> list[dict[str, Any]]:
    """The results of a job; stopped when an epoch is told."""

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and event["epoch"] == until:
            raise KeyboardInterrupt

    (results,) = run_jobs([prepare(load_job("vanilla", words))], tell)
    return results


def test_a_large_training_is_stopped_goes_on_and_is_used(place, monkeypatch):  # noqa: F811
    """With the answers of the same job in whole files; nothing but the result is left behind."""
    words = [*WORDS, "seeds=1", "train.epochs=4", "train.lr=1e-3", "train.batch_size=2", "train.save_every=2"]
    (expected,) = ran([*words, "storage=whole"])
    make_large(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        ran([*words, "storage=large"], until=2)
    (cell,) = (place / "large").glob("*/seed-0")
    assert states_kept(cell)
    assert not (cell / "state.pt").exists()
    (result,) = ran([*words, "storage=large"])
    assert [result[key] for key in ("losses", "scores")] == [expected[key] for key in ("losses", "scores")]
    assert not (cell / "state").exists()
    (whole,) = (place / "whole").glob("*/seed-0")
    assert predictions(cell) == predictions(whole)
    values, read = load_file(whole / "trained.safetensors"), dict[str, torch.Tensor]()
    index = json.loads((cell / "trained.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    for name in set(index["weight_map"].values()):
        read |= load_file(cell / name)
    assert set(read) == set(values) == set(index["weight_map"])
    assert all(torch.equal(value, values[name]) for name, value in read.items())
    texts = ["a film", "another"]
    one, other = load_trained(whole.parent), load_trained(cell.parent)
    assert one.predict(texts) == other.predict(texts)
    export(other, place / "exported")
    export(one, place / "exported-whole")
    assert (place / "exported/model.safetensors").read_bytes() == (
        place / "exported-whole/model.safetensors"
    ).read_bytes()


def predictions(cell: Path) -> Any:
    return pa_parquet.read_table(cell / "predictions.parquet")


def test_a_damaged_shard_is_one_line(place, monkeypatch):  # noqa: F811
    make_large(monkeypatch)
    words = [*WORDS, "seeds=1", "storage=large"]
    ran(words)
    (run,) = (place / "large").glob("*")
    cell, index = run / "seed-0", run / "seed-0" / "trained.safetensors.index.json"
    shard = cell / json.loads(index.read_text())["weight_map"]["method.backbone.model.bert.embeddings.LayerNorm.bias"]
    content = shard.read_bytes()
    for damaged in (b"", content[:-10], content[:-1] + bytes([content[-1] ^ 1])):
        shard.write_bytes(damaged)
        assert f"{shard} can't be read: its sha256 is not the one it was written with; train" in refused(
            lambda: load_trained(run)
        )
    shard.unlink()
    assert refused(lambda: load_trained(run)).startswith(f"run: {shard} can't be read: ")
    shard.write_bytes(content)
    assert load_trained(run).seed == 0
    text = index.read_text()
    for damaged in ("", "{}", '{"metadata": {}, "weight_map": 1}', text.replace(shard.name, f"../seed-0/{shard.name}")):
        index.write_text(damaged)
        assert refused(lambda: load_trained(run)).startswith(f"run: {index} can't be read: ")


def test_a_search_without_its_test_is_tested_later(tmp_path, monkeypatch):
    """What was trained is put back from its shards."""
    make_large(monkeypatch)
    results = []
    for withheld in (False, True):
        prepared = prepare(search(tmp_path, f"storage={tmp_path}/{withheld}", "train.epochs=2", "train.lr=1e-2"))
        (cell,) = prepared.cells()
        executor = LocalExecutor()
        cell.folder.mkdir(parents=True)
        if withheld:
            executor.run(replace(cell, test=False), lambda event: None)
            assert (cell.folder / "trained.safetensors.index.json").is_file()
            assert (cell.folder / "searched.json").is_file()
        executor.run(cell, lambda event: None)
        results.append(json.loads((cell.folder / "result.json").read_text()))
        assert not (cell.folder / "searched.json").exists()
    assert [results[0][key] for key in ("losses", "scores")] == [results[1][key] for key in ("losses", "scores")]


def test_a_ticket_in_shards_is_cut_like_one_in_a_file(tmp_path, monkeypatch):
    found = []
    for storage in ("whole", "shards"):
        prepared = prepare(search(tmp_path, f"storage={tmp_path}/{storage}", "train.epochs=1", "train.lr=1e-2"))
        run_jobs([prepared], lambda event: None)
        ticket = open_ticket(str(prepared.folder))
        found.append((ticket, cut(ticket, 0.2), cut(ticket, 0.2, "per_tensor")))
        make_large(monkeypatch)
    (one, *cuts), (other, *same) = found
    assert (one.path.name, other.path.name) == ("ticket.safetensors", "ticket.safetensors.index.json")
    assert (one.digest, one.names, one.settings) == (other.digest, other.names, other.settings)
    for expected, again in zip(cuts, same, strict=True):
        assert list(expected.indices) == list(again.indices)
        assert all(torch.equal(again.indices[name], own) for name, own in expected.indices.items())
    assert find_ticket(str(other.path.with_name("ticket.safetensors"))) == other.path
    shard = next(other.path.parent.glob("ticket-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    tickets._verified.cache_clear()
    assert "its sha256 is not that of the index; run the search again" in refused(lambda: cut(other, 0.3))

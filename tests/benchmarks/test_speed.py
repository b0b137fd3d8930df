"""The benchmarks compare equal work: on tiny sizes the reference loops and the package have the same tokens, losses and
decisions, and what differs is told. Nothing is timed here."""

from __future__ import annotations

import json
import sys

import gpu
import layers
import pytest
from materials import few_shot, sentences
from pairs import Clock, Differs, GNNaviPair, ShownPair, Sizes, TextPair, ToProPair, expect_equal
from speed import BERT, LLAMA, MODEL_S, MT5
from transformers import BertConfig, GPT2Config, LlamaConfig, MT5Config

from raypft.contract import cases, tiny

SMALL = Sizes(
    times=1, train=3, dev=4, epochs=2, validations=2, test=3, reference_test=3, step=5, evaluated=2, prepared=6
)


@pytest.mark.parametrize("task", ["sst2", "trec"])
def test_the_reference_of_gnnavi_trains_as_the_package_does(task):
    config = GPT2Config(**{**MODEL_S, "n_layer": 3, "n_embd": 32, "n_head": 4, "vocab_size": 400})
    pair, clock = GNNaviPair(task, config, 2, SMALL), Clock()
    rows, ours = pair.ours(clock)
    reference = pair.reference(clock, rows)
    assert len(reference[0]) == 6
    assert ours[0] == pytest.approx(reference[0], rel=1e-5)
    assert ours[1:] == reference[1:]
    assert [*map(len, ours[1:])] == [4, 3]
    assert len({round(loss, 6) for loss in ours[0]}) == 6
    assert clock.row("made_up", 2, "fit").line().startswith("made_up ours/reference ")


@pytest.mark.parametrize(("task", "sizes"), [("sst2", (72, 114)), ("trec", (203, 226))])
def test_prompts_are_as_long_as_those_of_the_data_sets(task, sizes):
    shared, mean = sizes
    _, prompts = few_shot(task, GPT2Config(**{**MODEL_S, "n_layer": 1, "n_embd": 8, "n_head": 2}), {"dev": 14})
    lengths = [len(prompt.ids) for prompt in prompts["dev"]]
    assert {prompt.demo_tokens for prompt in prompts["dev"]} == {shared}
    assert sum(lengths) / len(lengths) == pytest.approx(mean, abs=1)
    assert len(set(lengths)) == 7


def test_the_reference_of_topro_trains_as_the_package_does():
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    pair = ToProPair(BertConfig(**{**BERT, **sizes, "vocab_size": 4000}), sentences(12), SMALL)
    pair.prepared(Clock())
    pair.trained(Clock())


def test_shortcuts_answer_alike():
    llama = LlamaConfig(
        **{**LLAMA, "hidden_size": 36, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 400}
    )
    mt5 = MT5Config(
        **{**MT5, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 4000}
    )
    ShownPair(llama, 4).compared(Clock(), "shown")
    TextPair(mt5, 4).compared(Clock(), "written")


@pytest.mark.parametrize(("ours", "reference"), [([1.0, 2.0], [1.0, 2.0001]), ([3], [4]), (["a"], ["b"])])
def test_what_differs_ends_the_benchmark(ours, reference):
    with pytest.raises(Differs, match=r"speed: it: number \d is .*, of the reference .*; expected the same"):
        expect_equal("it", ours, reference)


def test_no_two_prompts_of_a_gpus_step_are_alike():
    """Those would be run once."""
    way = gpu.WAYS["ltp"]
    prompts = gpu.lengthened(cases.cell(way.method, tiny.backbone("xlmr")).prompts, way, way.rows)
    assert len({tuple(prompt.ids) for prompt in prompts}) == way.rows
    assert {len(prompt.ids) for prompt in prompts} == {way.tokens}


def test_the_benchmark_of_a_gpu_runs_at_tiny_sizes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--steps", "1", "--out", str(tmp_path / "lines.json")])
    gpu.main()
    lines = json.loads((tmp_path / "lines.json").read_text())
    assert [line["name"] for line in lines] == [f"{model} {way}" for model, ways in gpu.LINES.items() for way in ways]
    assert all(line["milliseconds"] > 0 and 0 < line["share"] < 1 for line in lines)
    assert len(capsys.readouterr().out.splitlines()) == len(lines)


def test_layers_of_both_kinds_give_the_same_and_each_is_told(capsys):
    layers.main(sizes=((70, 48), (40, 256)), times=2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len([*layers.layers(8)])
    assert all(" answered " in line and " forward and backward " in line for line in lines)

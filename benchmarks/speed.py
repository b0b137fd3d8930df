"""How fast the package is beside the papers' own loops, in one process and run, in CPU-seconds.

    OMP_NUM_THREADS=1 python benchmarks/speed.py [--quick] [--out FILE.json] [--data FOLDER]

One line a row: NAME ours/reference RATIO goal GOAL, where RATIO is how many times the work of a CPU-second the package
does; rows of seconds say NAME SECONDS s goal GOAL s. Losses and decisions of both are compared, and the benchmark ends
with a message where they differ. Reference loops: reference_loops.py; of the last two ratios the package itself with
train.shortcuts=false. --quick repeats nothing, runs less of everything, counts one validation of the reference for each
epoch, leaves the two workers out, and takes 50 s on two idle cores. --data: a folder with UDPOS rows (train.parquet
with a column `tokens`); sentences are made up else.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from materials import real_sentences, sentences
from pairs import Clock, GNNaviPair, Row, ShownPair, Sizes, TextPair, ToProPair
from start_up import check_seconds, first_step_seconds
from transformers import BertConfig, GPT2Config, LlamaConfig, MT5Config

from raypft.heap import HEAP

QUICK = Sizes(
    times=1,
    train=6,
    dev=24,
    validations=1,
    reference_dev=8,
    reference_test=8,
    step=8,
    evaluated=2,
    prepared=200,
    blocks=4,
    shown=24,
    texts=6,
)
QUICK_TREC = replace(QUICK, train=3, dev=12, test=2, reference_test=2)
"""Whose prompts are twice as long, and whose test makes no row."""
MODEL_S = {
    "n_layer": 16,
    "n_embd": 384,
    "n_head": 6,
    "vocab_size": 4096,  # whose scores are a twentieth of a forward pass, as in GPT2-XL
    "n_positions": 512,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}


BERT = {
    "num_hidden_layers": 6,
    "hidden_size": 384,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "vocab_size": 30_000,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


LLAMA = {
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 8192,
    "tie_word_embeddings": True,
}
"""SmolLM2-135M's shape, but for the vocabulary."""
MT5 = {
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 8,
    "num_heads": 6,
    "vocab_size": 8192,
    "decoder_start_token_id": 1,
    "pad_token_id": 1,
    "eos_token_id": 3,
    "dropout_rate": 0.0,
    "tie_word_embeddings": False,
}
"""mT5-small's shape, but for the vocabulary."""


def gnnavi_rows(sizes: Sizes, of_trec: Sizes) -> Iterator[Row]:
    """Rows of both data sets."""
    for task, of_task, goals in (("sst2", sizes, (7, 27, 6.3)), ("trec", of_trec, (7, 34, 6.3))):
        pair, clock = GNNaviPair(task, GPT2Config(**MODEL_S), 14, of_task), Clock()
        for _ in range(sizes.times):
            pair.compared(clock, f"GNNavi {task}")
        for part, goal in zip(("step", "validation", "fit"), goals, strict=True):
            yield clock.row(f"gnnavi_{task}_{part}", goal, part)
        if task == "sst2":
            yield clock.row("gnnavi_sst2_test", 3, "test")


def topro_rows(sizes: Sizes, data: Path | None) -> Iterator[Row]:
    """Sentences a CPU-second: training, evaluation, preparation."""
    count = max(sizes.prepared, 8 * sizes.evaluated)
    words = sentences(count) if data is None else real_sentences(data, count)
    pair, clock = ToProPair(BertConfig(**BERT), words, sizes), Clock()
    for _ in range(sizes.times):
        pair.prepared(clock)
        pair.trained(clock)
    for part, goal in (("training", 5), ("evaluation", 8), ("preparation", 13)):
        yield clock.row(f"topro_{part}", goal, part)


def shortcut_rows(sizes: Sizes) -> Iterator[Row]:
    """What the package does itself without its shortcuts."""
    config = LlamaConfig(num_hidden_layers=sizes.blocks, **LLAMA)
    for name, pair, goal in (
        ("icl_shared_demonstrations", ShownPair(config, sizes.shown), 4),
        ("text_readout", TextPair(MT5Config(**MT5), sizes.texts), 3.5),
    ):
        clock = Clock()
        for _ in range(sizes.times):
            pair.compared(clock, name)
        yield clock.row(name, goal, "answers")


def start_rows(sizes: Sizes, quick: bool) -> Iterator[Row]:
    """CPU-seconds of all processes of a command."""
    yield Row("check_causal", 4, min(check_seconds() for _ in range(sizes.times)))
    if not quick:
        yield Row("two_workers_first_step", 45, min(first_step_seconds() for _ in range(sizes.times)))


def rows(quick: bool, data: Path | None) -> Iterator[Row]:
    """All rows, as they are measured."""
    sizes, of_trec = (QUICK, QUICK_TREC) if quick else (Sizes(), Sizes())
    for part in (gnnavi_rows(sizes, of_trec), topro_rows(sizes, data), shortcut_rows(sizes), start_rows(sizes, quick)):
        HEAP.keep(True)  # as each cell of a run begins
        yield from part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions of less work")
    parser.add_argument("--out", type=Path, help="where the rows are written as JSON")
    parser.add_argument("--data", type=Path, help="folder of UDPOS rows")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    measured = []
    for row in rows(chosen.quick, chosen.data):
        measured.append(row)
        print(row.line(), flush=True)
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(list(map(asdict, measured)), indent=1))


if __name__ == "__main__":
    main()

"""How work grows: each kind at a size and at several times that size, every one in a process of its own.

    OMP_NUM_THREADS=1 python benchmarks/growth.py

One line a kind: its sizes, the CPU-seconds of each (without what is imported and made before), and the memory by which
the process grew meanwhile. Linear work has seconds as many times as its size.
"""

from __future__ import annotations

import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from materials import few_shot, made, material, piece_tokenizer, sentences, tagged_rows
from speed import BERT, MODEL_S
from start_up import job
from transformers import BertConfig, GPT2Config

from raypft.config.job import Train
from raypft.config.load import load_job
from raypft.contract import cases, tiny
from raypft.contract.checks import trained
from raypft.runs.prepare import prepare
from raypft.training.loader import PromptDataset
from raypft.training.loop import evaluate
from raypft.training.rows import EncodedRows
from raypft.training.stepper import Learner, TorchStepper

SIZES = {
    "rows prepared": (2_000, 20_000, 200_000),
    "sentences encoded": (300, 3_000, 30_000),
    "languages evaluated": (2, 10),
    "tokens of a prompt evaluated": (100, 400),
    "trials": (10, 100),
}
SMALL = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
SENTENCES = 40
"""Evaluated in each language."""


def prepared(rows: int) -> Callable[[], object]:
    """A job with so many rows of training in a Parquet file, of which 8 are drawn."""
    files = job(rows=rows)
    name, *overrides = files.__enter__()  # stays open to the end of the process
    loaded = load_job(name, overrides)
    return lambda: (prepare(loaded), files)


def tagging(words: list[list[str]]):
    """ToPro's prompts on a small model."""
    tokenizer = piece_tokenizer([" ".join(sentence) for sentence in words[:300]], ["modification"])
    return material("udpos", "topro", made(BertConfig(**{**BERT, **SMALL, "vocab_size": 4000}), tokenizer))


def encoded(count: int) -> Callable[[], object]:
    """So many sentences, one prompt a word."""
    words = sentences(count)
    own = tagging(words)
    rows = tagged_rows(words, own.task.label.names)
    return lambda: EncodedRows.of(itertools.chain.from_iterable(map(own.encoder, rows)))


def languages(count: int) -> Callable[[], object]:
    """The same number of sentences in each of so many languages."""
    config = BertConfig(**{**BERT, **SMALL, "vocab_size": 4000})
    words = sentences(SENTENCES * count)
    whole = [*map(str, cases.task().label.names)]
    tokenizer = piece_tokenizer([" ".join(sentence) for sentence in words], whole)
    own = material("udpos", "vanilla", made(config, tokenizer), "head")
    rows = tagged_rows(words, own.task.label.names)
    for number, row in enumerate(rows):
        row["language"] = own.task.languages[number // SENTENCES]
    return answering(own.learner("full", "head"), own.encoded(rows))


def tokens(count: int) -> Callable[[], object]:
    """Prompts of so many tokens, nothing of them shared."""
    config = GPT2Config(**{**MODEL_S, "n_layer": 4, "n_positions": 1024})
    own, prompts = few_shot("sst2", config, {"test": 28}, (60, count))
    alone = [prompt.but(demo_tokens=0) for prompt in prompts["test"]]
    return answering(own.learner("frozen"), alone)


def trials(count: int) -> Callable[[], object]:
    """Trainings of a tiny model, one behind the other on the same backbone."""
    backbone = tiny.backbone("gpt2")
    return lambda: [trained(cases.cell("lora", backbone, seed))[1].losses for seed in range(count)]


def answering(learner: Learner, prompts: list) -> Callable[[], object]:
    """Evaluation of prompts."""
    settings = Train()
    rows = PromptDataset(prompts, learner.method, learner.method.backbone.pad)
    return lambda: evaluate(TorchStepper(learner, settings), rows, settings)


KINDS = dict(zip(SIZES, (prepared, encoded, languages, tokens, trials), strict=True))


def measure(kind: str, size: int) -> tuple[float, float]:
    """CPU-seconds, and MB by which the most memory grew."""
    torch.set_num_threads(1)
    work = KINDS[kind](size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    work()
    return time.process_time() - began, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
        return
    for kind, sizes in SIZES.items():
        found = []
        for size in sizes:
            words = [sys.executable, __file__, kind, str(size)]
            out = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
            seconds, memory = json.loads(out.splitlines()[-1])
            found.append(f"{size:,}: {seconds:.2f} s, {memory:.0f} MB")
        print(f"{kind}: " + "; ".join(found), flush=True)


if __name__ == "__main__":
    main()

"""What a GPU does with the package: training steps of the papers' methods on random models of the papers' sizes.

    python benchmarks/gpu.py [--tiny] [--only TEXT] [--out FILE.json]

One line for each model and method: milliseconds a step, tokens (without padding) a second, the share of this machine's
measured rate of matrix products that those of the step reach, and the most memory of the GPU. A line that does not fit
into the GPU's memory says so. --tiny: tiny models, also on a CPU. --only: the lines that hold a text, "gpt2-xl lora".
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from raypft.backbones.base import Backbone
from raypft.backbones.load import backbone_from_config, set_dropout
from raypft.config.job import Job, Train
from raypft.contract import cases, tiny
from raypft.encoded import Encoded
from raypft.runs.cell import device_here, loaders
from raypft.training.loader import PromptDataset
from raypft.training.loop import fit
from raypft.training.stepper import Learner, TorchStepper

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2-xl": ("gpt2", "fp32", {"n_embd": 1600, "n_layer": 48, "n_head": 25, "vocab_size": 50_257}),
    "llama2-7b": (
        "llama",
        "bf16",
        {
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "intermediate_size": 11_008,
            "vocab_size": 32_000,
            "tie_word_embeddings": False,
        },
    ),
    "xlmr-base": (
        "xlmr",
        "fp32",
        {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    ),
    "xlmr-large": (
        "xlmr",
        "fp32",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    ),
    "mt5-base": (
        "mt5",
        "fp32",
        {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_decoder_layers": 12, "num_heads": 12},
    ),
}
"""The papers' models: kind of tiny model with the same code, type of the weights, and what is larger."""
VOCABULARIES = {"xlmr": 250_002, "mt5": 250_112}


@dataclass(frozen=True)
class Way:
    """A method as it is trained: prompts a step, tokens of a prompt, and whether the prompts of a sentence's words are
    as unlike in length as ToPro's."""

    method: str
    rows: int
    tokens: int
    unlike: bool = False


WAYS = {
    "fpft": Way("full", 8, 128),
    "lora": Way("lora", 8, 128),
    "prefix": Way("prefix", 8, 128),
    "adapter": Way("adapter", 8, 128),
    "gnnavi": Way("gnnavi", 1, 114),
    "ltp": Way("lottery", 32, 128),
    "topro": Way("full", 32, 64, unlike=True),
}
LINES = {
    "gpt2-xl": ("fpft", "lora", "prefix", "adapter", "gnnavi"),
    "llama2-7b": ("fpft", "lora", "prefix", "adapter", "gnnavi"),
    "xlmr-base": ("fpft", "lora", "prefix", "adapter", "ltp", "topro"),
    "xlmr-large": ("fpft", "lora", "prefix", "adapter", "ltp", "topro"),
    "mt5-base": ("fpft", "lora", "prefix", "topro"),
}
"""Model to the papers' ways to train it."""


@dataclass(frozen=True)
class Line:
    """What was measured of a model and a method; share: of the rate of matrix products."""

    name: str
    milliseconds: float
    tokens: float
    share: float
    memory_mb: float

    def __str__(self) -> str:
        return (
            f"{self.name:20} {self.milliseconds:9.1f} ms a step {self.tokens:10,.0f} tokens/s "
            f"{100 * self.share:5.1f} % of the matrix product rate {self.memory_mb:9,.0f} MB"
        )


def synchronize(device: str) -> None:
    """Wait for what a GPU was asked to do."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds(work: Any, device: str) -> float:
    """Of some work, its end on the device included."""
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def product_rate(device: str, dtype: torch.dtype, size: int) -> float:
    """Floating-point operations a second of products of square matrices."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    torch.mm(left, right)
    times = [seconds(lambda: torch.mm(left, right), device) for _ in range(10)]
    return 2 * size**3 / min(times)


def random_backbone(model: str, is_tiny: bool, device: str) -> Backbone:
    """A model of the papers' size, or as small as the contract's, made where it will run."""
    kind, precision, sizes = MODELS[model]
    config, family = tiny.config(kind), tiny.MODELS[kind][0]
    if not is_tiny:
        config = type(config).from_dict({**config.to_dict(), **sizes, "max_position_embeddings": 514})
        config.vocab_size = VOCABULARIES.get(kind, config.vocab_size)
        set_dropout(config, 0.0)
    tokenizer = tiny.tokenizer(family == "masked", False, family == "seq2seq")
    with torch.device(device):
        backbone = backbone_from_config(config, tokenizer)
    return backbone if precision == "fp32" else in_half(backbone)


def in_half(backbone: Backbone) -> Backbone:
    """The backbone in bf16, which is then what it was loaded as."""
    backbone.to(torch.bfloat16)
    backbone._pristine = backbone.checksum()
    return backbone


def lengthened(prompts: Sequence[Encoded], way: Way, count: int) -> list[Encoded]:
    """So many prompts of the way's length, with a text put behind the first token: no two alike, since those would be
    run once, but for demonstrations, which are alike in all."""
    made = []
    for number in range(count):
        prompt = prompts[number % len(prompts)]
        share = (number % 7 + 1) / 4 if way.unlike else 1.0
        own = [] if prompt.demo_tokens else [6 + number % 30, 6 + number // 30 % 30]
        missing = max(0, round(way.tokens * share) - len(prompt.ids) - len(own))
        more = own + [6 + place % 30 for place in range(missing)]
        marks = {mark: [at + len(more) if at else 0 for at in places] for mark, places in prompt.marks.items()}
        if prompt.target:
            marks["slot"] = prompt.marks["slot"]  # in what the decoder reads
        ids, segments = prompt.ids[:1] + more + prompt.ids[1:], prompt.segments + [0] * len(more)
        shown = prompt.demo_tokens and prompt.demo_tokens + len(more)
        made.append(prompt.but(key=f"en/{number}", ids=ids, segments=segments, marks=marks, demo_tokens=shown))
    return made


def rows_of(way: Way, learner: Learner, prompts: Sequence[Encoded], steps: int, stepper: TorchStepper) -> PromptDataset:
    """So many steps of prompts, with the states below the method's cut where it has one."""
    chosen = lengthened(prompts, way, way.rows * steps)
    job = Job(task="tiny", pattern="x", backbone="x", method={"name": way.method}, train=stepper.settings)
    train, _ = loaders(job, learner, stepper, {"train": chosen}, None)
    assert isinstance(train, PromptDataset)
    return train


def measure(model: str, name: str, is_tiny: bool, steps: int, rate: float, device: str) -> Line:
    """Steps of a method on a model, behind two to warm up."""
    way = WAYS[name]
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    backbone = random_backbone(model, is_tiny, device)
    cell = cases.cell(way.method, backbone)
    learner = cell.learner.to(backbone.dtype)
    settings = Train(epochs=1, lr=1e-5, batch_size=way.rows)
    stepper = TorchStepper(learner, settings, device)

    def trained(rows: PromptDataset) -> None:
        fit(stepper, rows, None, settings, 0, cell.score)

    few, rows = (rows_of(way, learner, cell.prompts, count, stepper) for count in (2, steps))
    trained(few)
    with FlopCounterMode(display=False) as counter:
        trained(few)
    each = seconds(lambda: trained(rows), device) / steps
    tokens = sum(rows.lengths(range(len(rows)))) / steps
    memory = torch.cuda.max_memory_allocated(device) / 2**20 if device.startswith("cuda") else 0.0
    return Line(f"{model} {name}", 1e3 * each, tokens / each, counter.get_total_flops() / 2 / each / rate, memory)


def lines(is_tiny: bool, steps: int, only: str, device: str) -> Iterator[Line]:
    """All lines, as they are measured."""
    rates = {}
    for model, names in LINES.items():
        precision = MODELS[model][1]
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        for name in names:
            if only not in f"{model} {name}":
                continue
            if dtype not in rates:
                rates[dtype] = product_rate(device, dtype, 256 if is_tiny else 8192)
            try:
                yield measure(model, name, is_tiny, steps, rates[dtype], device)
            except torch.OutOfMemoryError:
                print(f"{model} {name}: does not fit into the memory of {torch.cuda.get_device_name()}")
            gc.collect()
            if device.startswith("cuda"):
                torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny models, also on a CPU")
    parser.add_argument("--only", default="", help="the lines that hold a text")
    parser.add_argument("--steps", type=int, default=20, help="steps that are measured")
    parser.add_argument("--out", type=Path, help="where the lines are written as JSON")
    chosen = parser.parse_args()
    device = device_here()
    if device == "cpu" and not chosen.tiny:
        raise SystemExit("gpu: torch finds no GPU here; expected one for models of the papers' sizes; use --tiny")
    transformers.logging.set_verbosity_error()
    measured = []
    for line in lines(chosen.tiny, chosen.steps, chosen.only, device):
        measured.append(line)
        print(line, flush=True)
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(list(map(asdict, measured)), indent=1))


if __name__ == "__main__":
    main()

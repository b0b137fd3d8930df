"""What of a block is faster here than in torch, on a CPU: frozen linear layers, which multiply by oneDNN instead of
BLAS, and GELU's tanh form, which is made of a sigmoid.

    OMP_NUM_THREADS=1 python benchmarks/layers.py

One line a layer: microseconds without gradients, and of a forward and a backward pass, by torch and by the package, in
turns, their medians.
"""

from __future__ import annotations

import copy
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from raypft.backbones.gelu import exchange_gelu
from raypft.backbones.products import exchange_linear

SIZES = ((114, 384), (1024, 768))
"""Tokens and width: a step of GNNavi with prompts of SST-2, a batch of a model of BERT's size."""


def layers(width: int) -> Iterator[tuple[str, nn.Module, int]]:
    """Name, layer, width of what it is given."""
    yield "Linear H to H", nn.Linear(width, width), width
    yield "Linear H to 4 H", nn.Linear(width, 4 * width), width
    yield "Conv1D H to 4 H", Conv1D(4 * width, width), width
    yield "Conv1D 4 H to H", Conv1D(width, 4 * width), 4 * width
    yield "GELU, tanh form", nn.GELU("tanh"), 4 * width
    yield "GELU, tanh form, as GPT-2 writes it out", NewGELUActivation(), 4 * width


def microseconds(works: Sequence[Callable[[], object]], times: int) -> list[float]:
    """Of each of several works, in turns, the median."""
    found = [list[float]() for _ in works]
    for _ in range(times):
        for seconds, work in zip(found, works, strict=True):
            began = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - began)
    return [1e6 * statistics.median(seconds) for seconds in found]


def compared(layer: nn.Module, given: Tensor, times: int) -> tuple[list[float], list[float]]:
    """Microseconds by torch and by the package: without gradients, and forward and backward."""
    own = nn.Sequential(copy.deepcopy(layer))
    exchange_linear(own, True)
    exchange_gelu(own, True)
    asked = given.clone().requires_grad_()
    gradient = torch.ones_like(layer(given))

    def answer(one: nn.Module) -> Tensor:
        with torch.no_grad():
            return one(given)

    def train(one: nn.Module) -> Tensor:
        asked.grad = None
        one(asked).backward(gradient)
        assert asked.grad is not None
        return asked.grad

    for work in (answer, train):
        torch.testing.assert_close(work(layer), work(own), rtol=1e-4, atol=1e-4)
    both = (layer, own)
    answers, steps = ([functools.partial(work, one) for one in both] for work in (answer, train))
    return microseconds(answers, times), microseconds(steps, times)


def main(sizes: tuple[tuple[int, int], ...] = SIZES, times: int = 60) -> None:
    """Print a line a layer and size."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for tokens, width in sizes:
        for name, layer, given in layers(width):
            answers, steps = compared(layer.requires_grad_(False), torch.randn(1, tokens, given), times)
            told = [f"{torchs:.0f} {ours:.0f} {torchs / ours:.2f}" for torchs, ours in (answers, steps)]
            print(f"{name}, {tokens} tokens, H {width}: answered {told[0]}, forward and backward {told[1]}", flush=True)


if __name__ == "__main__":
    main()

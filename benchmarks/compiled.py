"""Whether torch.compile pays: a model's blocks as they are and compiled, seconds to a first step and of later ones.

    OMP_NUM_THREADS=1 python benchmarks/compiled.py

On a CPU compiled code needs a C++ compiler. One line a model: the seconds that compiling takes, those of a step without
and with it, and after how many steps of one length it has paid; each further length compiles anew, or more generally.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from speed import BERT, LLAMA
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, BertConfig, LlamaConfig

LENGTH, ROWS, TIMES = 96, 8, 8


def blocks_of(model: Any) -> Any:
    """The list of a model's blocks."""
    return model.bert.encoder.layer if hasattr(model, "bert") else model.model.layers


def step_of(model: Any) -> Callable[[int], Tensor]:
    """Forward and backward of a batch whose prompts have so many tokens."""

    def step(length: int) -> Tensor:
        ids = torch.arange(ROWS * length).view(ROWS, length) % 100
        mask = torch.ones_like(ids)
        states = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        loss = states.square().mean()
        loss.backward()
        model.zero_grad()
        return loss.detach()

    return step


def seconds(step: Callable[[int], Tensor], length: int, times: int) -> float:
    """Wall seconds a step, the least of so many."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        step(length)
        found.append(time.perf_counter() - began)
    return min(found)


def main() -> None:
    torch.set_num_threads(1)
    for name, auto, config in (
        ("bert", AutoModelForMaskedLM, BertConfig(**BERT)),
        ("llama", AutoModelForCausalLM, LlamaConfig(num_hidden_layers=6, **LLAMA)),
    ):
        torch.manual_seed(0)
        model = auto.from_config(config)
        step = step_of(model)
        plain, loss = seconds(step, LENGTH, TIMES), step(LENGTH)
        for block in blocks_of(model):
            block.compile()
        first = seconds(step, LENGTH, 1)
        compiled, other = seconds(step, LENGTH, TIMES), seconds(step, LENGTH + 7, 1)
        assert torch.allclose(step(LENGTH), loss, rtol=1e-4), "compiled blocks give another loss"
        saved = plain - compiled
        pays = f"{(first + other) / saved:.0f} steps" if saved > 0 else "never"
        print(
            f"{name} compiling {first:.1f} s, another length {other:.1f} s, a step {plain:.3f} s, compiled "
            f"{compiled:.3f} s, pays after {pays}",
            flush=True,
        )


if __name__ == "__main__":
    main()

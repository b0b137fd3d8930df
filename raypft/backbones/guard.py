"""The guard: our scores are the model's own.

Methods reach a model through its embeddings and blocks, readouts through its head. Whether that way computes what the
model computes is not said by its configuration; it is measured, on three short prompts of unequal length, alone and in
one batch, against the model's own forward pass.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from raypft.backbones.base import Backbone
from raypft.backbones.four_bit import layers
from raypft.batch import collate
from raypft.encoded import Encoded
from raypft.errors import UserError, first_line

LENGTHS = (9, 3, 6)
CLOSE = 1e-3
"""How far scores may be apart, as a share of the largest: above what rounding does to a deep model in fp32, far below
what any of the faults does that this is for."""
LARGEST = 3_000_000_000
"""Parameters of a model from which on the guard's passes cost more than they tell."""


def prompts(backbone: Backbone) -> list[Encoded]:
    """Three prompts of unequal length over the vocabulary; every token is a slot."""
    special = {backbone.pad, *(() if backbone.text is None else backbone.text.tokenizer.all_special_ids)}
    usable = [token for token in range(min(backbone.config.vocab_size, 4000)) if token not in special]
    start = getattr(backbone.config, "decoder_start_token_id", None)
    made = []
    for number, length in enumerate(LENGTHS):
        ids = [usable[(5 + 37 * number + 11 * place) % len(usable)] for place in range(length)]
        target = [] if backbone.family != "seq2seq" else [start or 0, *ids[: length // 3]]
        marks = {"slot": list(range(len(target) or length))}
        made.append(
            Encoded(f"en/{number}", "en", ids, [0] * length, marks, gold=[-1] * len(marks["slot"]), target=target)
        )
    return made


@torch.no_grad()
def differences(backbone: Backbone) -> dict[str, float]:
    """How far our scores are from the model's own, as a share of the largest: "alone" and "in a batch"; of a causal
    model how far those of "a beginning" are from those of the whole text.

    Raises:
        UserError: a score is not finite.
    """
    device = next(backbone.parameters()).device
    made = prompts(backbone)
    expected = [_own(backbone, prompt, device) for prompt in made]
    largest = max(float(scores.abs().max()) for scores in expected)
    if not torch.isfinite(torch.tensor(largest)):
        raise UserError(
            f"backbone: the scores of {backbone.source} are {largest} for a short text; its weights hold values that "
            "are not finite"
        )
    alone = torch.cat([_ours(backbone, [prompt], device) for prompt in made])
    batched = _ours(backbone, made, device)
    found = {
        "alone": _apart(alone, torch.cat(expected), largest),
        "in a batch": _apart(batched, torch.cat(expected), largest),
    }
    if backbone.family == "causal":
        size = LENGTHS[1]
        first = made[0].ids[:size]
        beginning = Encoded("en/0", "en", first, [0] * size, {"slot": list(range(size))}, gold=[-1] * size)
        found["a beginning"] = _apart(_own(backbone, beginning, device), expected[0][:size], largest)
    return found


@torch.no_grad()
def reads_context(backbone: Backbone) -> bool:
    """Whether the scores at a text's last slot change with its first word."""
    device = next(backbone.parameters()).device
    prompt = prompts(backbone)[1]
    other = replace(prompt, ids=[prompts(backbone)[0].ids[1], *prompt.ids[1:]])
    return not torch.equal(_ours(backbone, [prompt], device)[-1], _ours(backbone, [other], device)[-1])


def check_scores(backbone: Backbone) -> None:
    """Refuse a model whose scores are not its own when it is run through the seams.

    Raises:
        UserError: they differ; or what the model's own forward pass says where it can't run.
    """
    size = sum(p.numel() for p in backbone.parameters()) + sum(layer.shape.numel() for layer in layers(backbone))
    if backbone.on_meta or backbone.lacks or size > LARGEST:
        return
    kind = backbone.config.model_type
    try:
        found = differences(backbone)
        sees = reads_context(backbone)
    except UserError:
        raise
    except Exception as error:  # whatever a model's own code raises on a text that does not suit it
        raise UserError(
            f"backbone: {backbone.source} ({kind}) can't score three short texts: {first_line(error)}; models like "
            "this one are not supported"
        ) from None
    if not sees:
        raise UserError(
            f"backbone: {backbone.source} ({kind}): the scores of a token do not change with the words beside it; its "
            "attention does nothing (a kernel it needs may be missing); choose another backbone"
        )
    for how, apart in found.items():
        if apart <= CLOSE:
            continue
        if how == "a beginning":
            raise UserError(
                f"backbone: {backbone.source} ({kind}) is no causal model: the scores of a text's beginning change "
                f"with what comes after it, by {apart:.1g} of the largest; expected a decoder, or a masked model's "
                "class in config.json"
            )
        raise UserError(
            f"backbone: {backbone.source} ({kind}) scored {how} is off by {apart:.1g} of the largest score from the "
            f"model's own forward pass; expected {CLOSE:g} at most; models like this one are not supported"
        )


def _own(backbone: Backbone, prompt: Encoded, device: torch.device) -> Tensor:
    """[S, V] by the model's own forward pass."""
    return backbone.whole_model(collate([prompt], backbone.pad).to(device))[0]


def _ours(backbone: Backbone, prompts: list[Encoded], device: torch.device) -> Tensor:
    """[S, V] through the seams."""
    return backbone.vocabulary_scores(backbone(collate(prompts, backbone.pad).to(device)))


def _apart(scores: Tensor, expected: Tensor, largest: float) -> float:
    return float((scores - expected).abs().max()) / max(largest, 1.0)

"""Dropout whose masks belong to rows: a mask is a function of (seed, optimizer step, row, place) and of nothing else.

Not of which worker or device computes a row, what else is in its micro-batch, or how far it is padded: so any number of
workers and any micro-batch train on the same numbers. torch draws masks one after the other, for whatever is in the
tensor. Here every element is numbered and its number is hashed (a counter-based generator, as in Salmon et al. 2011);
the hash is the finaliser of MurmurHash3 over the elements of a Weyl sequence, as in SplitMix64 (Steele et al. 2014).

A place is the ordinal of an active dropout in the forward pass. Whose row an element is, the first axis of the input
says:

    S, slots            the prompt that owns the slot; the slot's ordinal in it is one more coordinate
    B, prompts          the prompt
    B T or B U, tokens  the prompt, where a model lays tokens end to end; the token is one more coordinate
    B A, heads          the prompt, of attention over its tokens (XGLM); the head is one more coordinate
    a table             made of parameters alone (DeBERTa's relative positions): one mask for all rows

A last block that runs for some tokens alone (backbones/last_block.py) drops what it would drop if it ran for all.

Any other input gets torch's own dropout, which `RowDropout.drew` tells, as it tells of all that draws at random.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig

from raypft.backbones.reading import AS_NOW, READING, Reading
from raypft.batch import Batch


def _signed(number: int) -> int:
    """The lowest 64 bits of a number as torch reads them."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


GENERATOR = 0xD1342543DE82EF95
"""Its powers are what coordinates count in: their lattices have no short vectors in up to 8 dimensions (Steele and
Vigna 2022; the multiplier of Java's LXM generators)."""
PLACE, PART, LANES, *AXES = (_signed(pow(GENERATOR, power)) for power in range(1, 9))
"""What is counted: places, the slots or tokens of a prompt, fours of neighbours on the last axis, other axes."""
FIRST, SECOND = map(_signed, (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53))
"""The factors of MurmurHash3's finaliser."""
LOW = (1 << 31) - 1
"""The bits that are left of 64 shifted by 33; torch's shift repeats the sign above them."""
LEVELS = 1 << 16
"""An element has 16 bits of a hash: rates are rounded to so many parts."""
MAKES_ROWS = (Tensor.expand, Tensor.expand_as, Tensor.repeat, Tensor.repeat_interleave, torch.repeat_interleave)
"""What may give every row of a batch its own copy of a table."""
KNOWN = ("raypft", "torch", "transformers")
"""Whose modules draw at random by their rates alone."""
RATE = re.compile(r"drop|jitter|noise|^p$")
"""In what a rate is called."""
TABLE = "is_made_of_parameters"
"""The attribute of a tensor that no row of a batch has a part in."""


class RowDropout(TorchFunctionMode):
    """While it is entered, dropout of this thread draws by row; for the training forward of one micro-batch.

    places: active dropouts so far; drew: after it was left, whether anything was drawn from torch's own generators.

    Args:
        step: the optimizer step, from 0.
    """

    def __init__(self, batch: Batch, seed: int, step: int) -> None:
        super().__init__()
        self.batch, self.places, self.drew = batch, 0, False
        device = batch.ids.device
        rows = [_hashed(f"{seed}/{step}/{name}") for name in batch.names]
        self.rows = torch.tensor(rows).to(device, non_blocking=True)
        self.shared = torch.tensor([_hashed(f"{seed}/{step}")]).to(device, non_blocking=True)

    def __enter__(self) -> Self:
        self._before = _generators(self.batch.ids.device)
        # a block that runs again meets the dropouts that it met
        self._token = AS_NOW.set(functools.partial(copy.copy, self))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        AS_NOW.reset(self._token)
        self.drew = any(map(_differ, self._before, _generators(self.batch.ids.device)))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords, own = kwargs or {}, OWN.get(func)
        result = func(*args, **keywords) if own is None else own(self, *args, **keywords)
        if isinstance(result, Tensor):
            is_table = func not in MAKES_ROWS and _are_tables([*args, *keywords.values()])
            if is_table or TABLE in vars(result):
                setattr(result, TABLE, is_table)
        return result

    def factors(self, input: Tensor, p: float, axes: int | None = None) -> Tensor | None:
        """What an active dropout multiplies its input by, 0 or 1 / (1 - p): of the input's shape, or of its first
        `axes` with the others 1 long; None where no one can say whose rows these are."""
        reading = READING.get()
        place = self._place(reading)
        tokens = None if reading is None else reading.positions
        keys = self._keys(input) if tokens is None else self._keys_of(input, tokens)
        if keys is None or input.ndim > 2 + len(AXES):
            return None
        shape = [*input.shape[:axes], *[1] * (input.ndim - (axes or input.ndim))]
        dropped = round(p * LEVELS)
        if dropped == LEVELS:
            return input.new_zeros(shape)
        if tokens is not None:
            tokens = tokens.repeat_interleave(len(keys) // len(tokens), 0) if input.ndim > 2 else None
        kept = _lanes(keys + _signed(place * PLACE), shape[1:], tokens) >= dropped - LEVELS // 2
        return kept.to(input.dtype).mul_(LEVELS / (LEVELS - dropped))

    def _place(self, reading: Reading | None) -> int:
        """The ordinal of the dropout that is met now; the first call of a last block meets what the second does."""
        if reading is not None and reading.positions is None:
            reading.skipped += 1
            return self.places + reading.skipped
        self.places += 1
        return self.places

    def _keys_of(self, input: Tensor, tokens: Tensor) -> Tensor | None:
        """`_keys` of a tensor that has the tokens [B, R] in place of [B, T]."""
        size, prompts = len(input), len(self.rows)
        if _are_tables([input]):
            return self.shared + _count(size, PART, input)
        if input.ndim > 2 and input.shape[-2] != tokens.shape[1]:
            return None
        if size == prompts and input.ndim > 2:
            return self.rows
        if input.ndim == 2 and size == tokens.numel():
            return (self.rows.unsqueeze(1) + tokens * PART).flatten()
        if input.ndim == 3 and size % prompts == 0:
            return (self.rows.unsqueeze(1) + _count(size // prompts, PART, input)).flatten()
        return None

    def _keys(self, input: Tensor) -> Tensor | None:
        """A number for each element of the first axis, [n]."""
        size, batch = len(input), self.batch
        prompts, widths = len(self.rows), {side.shape[1] for side in (batch.ids, batch.target) if side is not None}
        if _are_tables([input]):
            return self.shared + _count(size, PART, input)
        if size == len(batch.slots) and (input.ndim == 2 or size != prompts):
            return self.rows[batch.slots[:, 0]] + batch.number * PART
        if size == prompts:
            return self.rows
        laid_out = input.ndim == 2 and size in {prompts * width for width in widths}
        of_heads = input.ndim == 3 and size % prompts == 0 and {*input.shape[1:]} <= widths
        if laid_out or of_heads:
            return (self.rows.unsqueeze(1) + _count(size // prompts, PART, input)).flatten()
        return None


class NoDropout:
    """Stands in for `RowDropout` where nothing should drop: the mode looks at every function of a forward pass, this at
    torch's generators alone."""

    places, drew = 0, False

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> Self:
        self._before = _generators(self.device)
        return self

    def __exit__(self, *_error: Any) -> None:
        self.drew = any(map(_differ, self._before, _generators(self.device)))


def may_drop(learner: nn.Module) -> bool:
    """Whether a forward pass of a learner, in the mode that it is in, may draw at random: a module or its configuration
    has a rate above 0 for that, or a module is of others' code, of which no one knows."""
    for module in learner.modules():
        if not module.training:
            continue
        config = getattr(module, "config", None)
        known = type(module).__module__.partition(".")[0] in KNOWN
        if (
            not known
            or _has_rate(vars(module))
            or (isinstance(config, PreTrainedConfig) and _has_rate(config.to_dict()))
        ):
            return True
    return False


def _has_rate(values: Mapping[str, Any]) -> bool:
    for name, value in values.items():
        if isinstance(value, dict):
            if not name.startswith("_") and _has_rate(value):
                return True
        elif isinstance(value, int | float) and not isinstance(value, bool) and value > 0 and RATE.search(name):
            return True
    return False


def _hashed(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _count(size: int, by: int, like: Tensor) -> Tensor:
    """0, by, 2 by, ... modulo 2^64, [size]."""
    return torch.arange(size, device=like.device) * by


def _lanes(keys: Tensor, shape: list[int], tokens: Tensor | None = None) -> Tensor:
    """16 uniform bits for each element of [n, *shape], int16.

    Args:
        tokens: what the axis before the last counts instead of 0, 1, 2, ..., [n, its size].
    """
    *between, last = shape or [1]
    numbers = keys
    for axis, size in enumerate(between):
        if tokens is not None and axis == len(between) - 1:
            counted = tokens.view(len(tokens), *[1] * axis, size) * AXES[axis]
        else:
            counted = _count(size, AXES[axis], keys)
        numbers = numbers.unsqueeze(-1) + counted
    numbers = numbers.unsqueeze(-1) + _count(-(-last // 4), LANES, keys)
    for factor in (FIRST, SECOND):
        numbers.bitwise_xor_((numbers >> 33).bitwise_and_(LOW)).mul_(factor)
    numbers.bitwise_xor_((numbers >> 33).bitwise_and_(LOW))
    lanes = numbers.view(torch.int16)[..., :last]
    return lanes if shape else lanes.squeeze(-1)


def _are_tables(values: Sequence[Any]) -> bool:
    """Whether there are tensors in these arguments, and all are parameters or made of parameters alone while the mode
    was entered: so no row of a batch has a part in them. Where a trace is lost, a table is taken for none."""
    found = False
    for value in values:
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, Tensor):
                found = True
                is_parameter = type(one) is not Tensor and isinstance(one, nn.Parameter)  # the first is asked faster
                if not is_parameter and not vars(one).get(TABLE, False):
                    return False
    return found


def _generators(device: torch.device) -> list[Tensor]:
    """The states of the generators that a forward pass may draw from."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _differ(state: Tensor, other: Tensor) -> bool:
    return not torch.equal(state, other)


# what stands in for torch's functions, with their parameters


def _dropout(
    mode: RowDropout,
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    axes: int | None = None,
    instead: Callable[..., Tensor] = functional.dropout,
) -> Tensor:
    if not 0 < p <= 1 or not training or not input.ndim:
        return instead(input, p, training, inplace)
    factors = mode.factors(input, p, axes)
    if factors is None:
        return instead(input, p, training, inplace)
    return input.mul_(factors) if inplace else input * factors


def _plain(mode: RowDropout, input: Tensor, p: float, train: bool) -> Tensor:
    return _dropout(mode, input, p, train)


def _plain_in_place(mode: RowDropout, input: Tensor, p: float, train: bool) -> Tensor:
    return _dropout(mode, input, p, train, inplace=True)


def _of_channels(instead: Callable[..., Tensor], ndim: int) -> Callable[..., Tensor]:
    """Whole channels, [B, C, ...], are dropped; of fewer axes there would be no B."""

    def dropout(mode: RowDropout, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False):
        if input.ndim != ndim:
            return instead(input, p, training, inplace)
        return _dropout(mode, input, p, training, inplace, axes=2, instead=instead)

    return dropout


def _attention(
    mode: RowDropout,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(Q K^T scale + mask) V written out, with the probabilities dropped by row; torch's own where none is."""
    attend = functional.scaled_dot_product_attention
    if not dropout_p:
        return attend(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * scale) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        opened = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if opened else scores + attn_mask
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    probabilities = torch._safe_softmax(scores, -1).to(value.dtype)  # 0 where a token sees none, as torch has it
    return _dropout(mode, probabilities, dropout_p) @ value


OWN: dict[Any, Callable[..., Tensor]] = {
    functional.dropout: _dropout,
    torch.dropout: _plain,
    torch.dropout_: _plain_in_place,
    functional.dropout1d: _of_channels(functional.dropout1d, 3),
    functional.dropout2d: _of_channels(functional.dropout2d, 4),
    functional.dropout3d: _of_channels(functional.dropout3d, 5),
    functional.scaled_dot_product_attention: _attention,
}
"""torch's function to what is called in its stead."""

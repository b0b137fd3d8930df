"""Masks that belong to rows: what they depend on, how good they are, and that all dropout in a forward pass gets
them."""

from __future__ import annotations

import contextlib
import itertools

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional

from raypft.backbones.load import backbone_from_config
from raypft.backbones.reading import AS_NOW, Reading, reading
from raypft.batch import Batch, collate
from raypft.contract import cases, tiny
from raypft.contract.checks import trained
from raypft.encoded import Encoded
from raypft.training.dropout import RowDropout, may_drop


def batch_of(names, length: int = 5, slots=None, targets: int = 0) -> Batch:
    """A batch of prompts of one length; `slots` is how many each has."""
    prompts = []
    for name, count in zip(names, slots or [1] * len(names), strict=True):
        marks = {"slot": list(range(count))}
        target = [1] * targets
        prompts.append(Encoded(name, "en", [1] * length, [0] * length, marks, [0] * count, target=target))
    return collate(prompts, 0)


def mask(batch: Batch, shape, seed: int = 0, step: int = 0, place: int = 1, p: float = 0.5):
    """What is kept of ones at a place."""
    with RowDropout(batch, seed, step):
        out = [functional.dropout(torch.ones(shape), p) for _ in range(place)]
    return out[-1] > 0


# what a mask depends on


def test_a_row_has_its_mask_whoever_is_beside_it():
    together = mask(batch_of("abc"), (3, 5, 8))
    for number, name in enumerate("abc"):
        assert torch.equal(mask(batch_of(name), (1, 5, 8))[0], together[number])
    assert torch.equal(mask(batch_of("cab"), (3, 5, 8)), together[[2, 0, 1]])


@pytest.mark.parametrize("axes", [(), (1,), (2, 2, 2, 2, 2, 8)])
def test_as_many_axes_as_are_counted_are_drawn_by_row(axes):
    together = mask(batch_of("abcdefgh"), (8, *axes))
    assert together.shape == (8, *axes)
    assert together.any()
    assert not together.all()
    assert torch.equal(mask(batch_of("b"), (1, *axes))[0], together[1])


def test_what_drops_behind_it_has_no_part_in_it():
    with RowDropout(batch_of("ab"), 0, 0) as mode:
        functional.dropout(torch.ones(2, 8), 0.5)
        assert AS_NOW.get() is not contextlib.nullcontext
    functional.dropout(torch.ones(2, 8), 0.5)
    assert mode.places == 1
    assert AS_NOW.get() is contextlib.nullcontext, "what runs once more drops as it drops then"


@pytest.mark.parametrize("axes", list(itertools.product((3, 7), (2, 6), (4, 9))))
def test_padding_changes_no_mask(axes):
    large = mask(batch_of("ab", length=9), (2, 7, 6, 9))
    small = mask(batch_of("ab", length=4), (2, *axes))
    assert torch.equal(small, large[:, : axes[0], : axes[1], : axes[2]])


def test_seed_step_place_and_row_each_make_another_mask():
    batch, shape = batch_of("ab"), (2, 5, 64)
    masks = [
        mask(batch, shape),
        mask(batch, shape, seed=1),
        mask(batch, shape, step=1),
        mask(batch, shape, place=2),
        mask(batch_of("cd"), shape),
    ]
    for one, other in itertools.combinations(masks, 2):
        assert 0.4 < (one == other).float().mean() < 0.6
    assert torch.equal(mask(batch, shape), masks[0])


def test_slots_belong_to_their_prompts():
    """[S, H]: uneven numbers of slots, alone and together; where each prompt has one, [S, H] and [B, H] are alike."""
    together = mask(batch_of("abc", slots=[2, 1, 3]), (6, 8))
    first = 0
    for name, count in zip("abc", [2, 1, 3], strict=True):
        alone = mask(batch_of(name, slots=[count]), (count, 8))
        assert torch.equal(alone, together[first : first + count])
        first += count
    pooled = mask(batch_of("abc", slots=[2, 1, 3]), (3, 8))
    assert torch.equal(mask(batch_of("abc"), (3, 8)), pooled)


def test_slots_are_numbered_in_their_prompts():
    """The first slot of a prompt has the prompt's mask, the second another: that of the second of two tokens."""
    found = mask(batch_of("ab", length=2, slots=[2, 1]), (3, 8))
    assert torch.equal(found[[0, 2]], mask(batch_of("ab"), (2, 8)))
    assert torch.equal(found[:2], mask(batch_of("ab", length=2), (4, 8))[:2])
    several = mask(batch_of("ab", length=2, slots=[2, 1]), (3, 2, 8))
    assert torch.equal(several[[0, 2]], mask(batch_of("ab"), (2, 2, 8)))


def test_tokens_laid_end_to_end_belong_to_their_prompts():
    for length, targets in ((5, 0), (5, 3)):
        width = targets or length
        together = mask(batch_of("abc", length, targets=targets), (3 * width, 8)).view(3, width, 8)
        assert torch.equal(mask(batch_of("b", length, targets=targets), (width, 8)), together[1])
        assert torch.equal(mask(batch_of("bc", 9), (18, 8)).view(2, 9, 8)[0, :width], together[1])


def test_a_table_has_one_mask_for_all_rows():
    """Also where its length happens to be that of prompts, slots or tokens."""
    table, norm = nn.Parameter(torch.ones(15, 8)), nn.LayerNorm(8)
    nn.init.ones_(norm.bias)
    for made in (lambda: table, lambda: norm(table), lambda: norm(table)[:15]):
        masks = []
        for batch in (batch_of("abc"), batch_of("abcdefghijklmno"), batch_of("d", length=9)):
            with RowDropout(batch, 0, 0) as mode:
                masks.append(functional.dropout(made(), 0.5) > 0)
            assert not mode.drew
        assert torch.equal(masks[0], masks[1])
        assert torch.equal(masks[0], masks[2])


def test_a_table_into_which_rows_were_written_is_none():
    table, rows = nn.Parameter(torch.ones(3, 8)), torch.ones(3, 8)
    with RowDropout(batch_of("abc"), 0, 0) as mode:
        found = functional.dropout((table * 1).add_(rows), 0.5) > 0
    assert not mode.drew
    assert torch.equal(found, mask(batch_of("abc"), (3, 8)))


@pytest.mark.parametrize("shape", [(2, 5, 8), (2, 4, 5, 6), (10, 8), (6, 5, 5)])
def test_a_block_that_runs_for_some_tokens_drops_what_it_would_drop_of_all(shape):
    """States and attention of prompts, tokens laid end to end, heads; the block looks at all of them before."""
    positions, batch = torch.tensor([[4, 1, 1], [0, 3, 2]]), batch_of("ab", length=5)
    whole = mask(batch, shape, place=2)
    part = list(shape)
    if len(shape) == 2:
        whole, part[0] = whole.view(2, 5, 8), 6
    else:
        part[-2] = 3
    with RowDropout(batch, 0, 0) as mode:
        functional.dropout(torch.ones(2, 5, 8), 0.5)
        first = Reading(None)
        with reading(first):
            looked_at = functional.dropout(torch.ones(shape), 0.5) > 0
        with reading(Reading(positions)):
            found = functional.dropout(torch.ones(part), 0.5) > 0
    assert (mode.places, mode.drew, first.skipped) == (2, False, 1)
    assert torch.equal(looked_at.view(whole.shape), whole)
    found = found.view(2, -1, 3, found.shape[-1])
    expected = whole.view(2, -1, 5, whole.shape[-1])
    for prompt, tokens in enumerate(positions.tolist()):
        assert torch.equal(found[prompt], expected[prompt][:, tokens])


def test_of_one_token_alone_a_pooled_state_is_its_own():
    positions, batch = torch.tensor([[4], [0]]), batch_of("ab", length=5)
    with RowDropout(batch, 0, 0), reading(Reading(positions)):
        found = functional.dropout(torch.ones(2, 8), 0.5) > 0
    assert torch.equal(found, mask(batch, (10, 8)).view(2, 5, 8)[[0, 1], [4, 0]])


@pytest.mark.parametrize("shape", [(2, 7, 8), (4, 8), (4, 1, 3, 8)])
def test_what_is_of_none_of_the_tokens_that_a_block_runs_for_is_told(shape):
    with RowDropout(batch_of("ab"), 0, 0) as mode, reading(Reading(torch.tensor([[4, 1, 1], [0, 3, 2]]))):
        functional.dropout(torch.ones(shape), 0.5)
    assert mode.drew


def test_a_table_has_its_mask_whichever_tokens_a_block_runs_for():
    table, found = nn.Parameter(torch.ones(15, 8)), []
    for call in (None, Reading(torch.tensor([[4], [0]]))):
        with RowDropout(batch_of("ab"), 0, 0), reading(call):
            found.append(functional.dropout(table, 0.5))
    assert torch.equal(*found)


@pytest.mark.parametrize("copies", [lambda t, n: t.expand(n, -1, -1), lambda t, n: t.repeat(n, 1, 1)])
def test_a_table_that_each_row_has_a_copy_of_has_a_mask_for_each(copies):
    """As a prefix has, whose keys stand before those of every prompt."""
    table, masks = nn.Parameter(torch.ones(1, 5, 8)), {}
    for names in ("abc", "b"):
        with RowDropout(batch_of(names), 0, 0) as mode:
            masks[names] = functional.dropout(copies(table, len(names)), 0.5) > 0
        assert not mode.drew
    assert torch.equal(masks["abc"][1], masks["b"][0])
    assert not torch.equal(masks["abc"][0], masks["abc"][1])


def test_the_generators_of_torch_have_no_part_in_it():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = mask(batch_of("ab"), (2, 8))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(mask(batch_of("ab"), (2, 8)), first)


# how good it is


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_and_the_factor_of_what_is_kept(p):
    size = 1 << 18
    with RowDropout(batch_of("abcd"), 0, 0):
        out = functional.dropout(torch.ones(4, size // 256, 64), p)
    share = (out > 0).double().mean(dim=(1, 2))
    assert (share - (1 - p)).abs().max() < 5 * (p * (1 - p) / size * 4) ** 0.5
    assert out[out > 0].unique().tolist() == pytest.approx([1 / (1 - p)], rel=1e-4 / (1 - p))


def test_nothing_is_dropped_at_0_and_all_at_1():
    x = torch.randn(2, 3)
    with RowDropout(batch_of("ab"), 0, 0) as mode:
        assert functional.dropout(x, 0.0) is x or torch.equal(functional.dropout(x, 0.0), x)
        assert torch.equal(functional.dropout(x, 0.3, training=False), x)
        assert mode.places == 0, "only active dropout has a place: blocks that are cached have none"
        assert torch.equal(functional.dropout(x, 1.0), torch.zeros(2, 3))
    assert mask(batch_of("abcd"), (4, 1 << 16), p=1e-9).all(), "a rate of which 16 bits know nothing"
    with RowDropout(batch_of("ab"), 0, 0), pytest.raises(ValueError, match="between 0 and 1"):
        functional.dropout(x, 1.5)


def test_masks_are_uncorrelated_in_every_direction():
    """Rows, places and steps against each other, and every axis against itself a few elements on."""
    names = [f"en/{number}#0" for number in range(16)]
    bits = []
    for step in range(2):
        with RowDropout(batch_of(names), 3, step):
            for _ in range(2):
                bits.append(functional.dropout(torch.ones(16, 12, 32, 32), 0.5).sign() - 0.5)
    grid = torch.stack(bits).double()  # [step and place, row, A, T, T]
    count = grid.numel()
    for axis, size in enumerate(grid.shape):
        for lag in range(1, min(size, 9)):
            one, other = grid.narrow(axis, 0, size - lag), grid.narrow(axis, lag, size - lag)
            correlation = float((one * other).mean()) * 4
            assert abs(correlation) < 5 / (count * (size - lag) / size) ** 0.5, (axis, lag)
    flat = grid.flatten(2).flatten(0, 1)  # every row at every place, pairwise
    pairs = (flat @ flat.T / flat.shape[1] * 4).fill_diagonal_(0)
    assert pairs.abs().max() < 5.5 / flat.shape[1] ** 0.5


def test_two_elements_at_a_time_are_dropped_as_often_as_chance_has_it():
    """The mean of products is p squared for neighbours of four, whose bits are of one hash."""
    dropped = mask(batch_of("abcd"), (4, 4096, 8), p=0.1) == 0
    for first, second in itertools.combinations(range(8), 2):
        both = (dropped[..., first] & dropped[..., second]).double().mean()
        assert abs(float(both) - 0.01) < 5 * (0.01 / dropped[..., 0].numel()) ** 0.5


# that all of it is seen


@pytest.mark.parametrize(
    "drop",
    [
        nn.Dropout(0.5),
        nn.Dropout(0.5, inplace=True),
        lambda x: functional.dropout(x, 0.5),
        lambda x: torch.dropout(x, 0.5, True),
        lambda x: torch.dropout_(x, 0.5, True),
    ],
)
def test_every_way_to_drop_elements_gives_the_mask_of_the_row(drop):
    expected = mask(batch_of("ab"), (2, 5, 8))
    with RowDropout(batch_of("ab"), 0, 0) as mode:
        x = torch.ones(2, 5, 8)
        out = drop(x)
    assert torch.equal(out > 0, expected)
    assert not mode.drew
    assert getattr(drop, "inplace", False) == (out is x) or "lambda" in repr(drop)


@pytest.mark.parametrize(
    "drop", [lambda x: torch.dropout_(x, 0.5, True), lambda x: functional.dropout(x, 0.5, True, True)]
)
def test_what_is_dropped_in_place_is_changed(drop):
    with RowDropout(batch_of("ab"), 0, 0):
        x = torch.ones(2, 5, 8)
        out = drop(x)
    assert torch.equal(out, x)
    assert (x == 0).any()


@pytest.mark.parametrize(
    ("drop", "shape"), [(nn.Dropout1d, (7, 6, 5)), (nn.Dropout2d, (7, 6, 5, 4)), (nn.Dropout3d, (7, 6, 5, 4, 3))]
)
def test_channels_that_belong_to_no_row_are_dropped_as_torch_does(drop, shape):
    with RowDropout(batch_of("ab"), 0, 0) as mode:
        out = drop(0.5)(torch.ones(shape)).flatten(2)
    assert mode.drew
    assert torch.equal(out, out[..., :1].expand_as(out))
    assert set(out.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize(
    ("drop", "shape"), [(nn.Dropout1d, (2, 6, 5)), (nn.Dropout2d, (2, 6, 5, 4)), (nn.Dropout3d, (2, 6, 5, 4, 3))]
)
def test_whole_channels_are_dropped_by_row(drop, shape):
    with RowDropout(batch_of("ab"), 0, 0) as mode:
        out = drop(0.5)(torch.ones(shape)).flatten(2)
    assert not mode.drew
    assert torch.equal(out, out[..., :1].expand_as(out)), "a channel is kept or dropped as a whole"
    with RowDropout(batch_of("b"), 0, 0):
        assert torch.equal(drop(0.5)(torch.ones(1, *shape[1:])).flatten(2)[0], out[1])


def attention_inputs(heads: int = 4, key_heads: int = 4):
    generator = torch.Generator().manual_seed(0)
    sizes = [(2, heads, 3, 8), (2, key_heads, 5, 8), (2, key_heads, 5, 8)]
    return [torch.randn(size, generator=generator, requires_grad=True) for size in sizes]


MASKS = {
    "none": None,
    "bool": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool),
    "float": torch.linspace(-2, 2, 15).view(3, 5),
}


WAYS = [(which, keywords) for which in MASKS for keywords in ({}, {"scale": 0.3}, {"enable_gqa": True})]


@pytest.mark.parametrize(("which", "keywords"), [*WAYS, ("none", {"is_causal": True})], ids=str)
def test_attention_written_out_is_torchs(which, keywords):
    """A rate of which 16 bits drop nothing; a row of the bool mask sees no token."""
    inputs = attention_inputs(key_heads=2 if "enable_gqa" in keywords else 4)
    expected = functional.scaled_dot_product_attention(*inputs, attn_mask=MASKS[which], **keywords)
    with RowDropout(batch_of("ab"), 0, 0) as mode:
        found = functional.scaled_dot_product_attention(*inputs, attn_mask=MASKS[which], dropout_p=1e-9, **keywords)
    assert mode.places == 1
    assert (found - expected).abs().max() < 1e-6
    for one, other in zip(*(torch.autograd.grad(out.square().sum(), inputs) for out in (found, expected)), strict=True):
        assert (one - other).abs().max() < 1e-5


def test_attention_drops_probabilities_by_row():
    inputs = attention_inputs()
    with RowDropout(batch_of("ab", length=5), 0, 0) as mode:
        found = functional.scaled_dot_product_attention(*inputs, dropout_p=0.5)
    assert not mode.drew
    query, key, value = inputs
    probabilities = (query @ key.transpose(-2, -1) / 8**0.5).softmax(-1)
    kept = mask(batch_of("ab"), (2, 4, 3, 5))
    assert torch.allclose(found, (probabilities * kept * 2) @ value, atol=1e-6)
    with RowDropout(batch_of("b"), 0, 0):
        alone = functional.scaled_dot_product_attention(*(x[1:] for x in inputs), dropout_p=0.5)
    assert torch.allclose(alone[0], found[1], atol=1e-6)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.rand(2),
        lambda: torch.ones(2).bernoulli_(),
        lambda: functional.gumbel_softmax(torch.ones(2)),
        lambda: functional.alpha_dropout(torch.ones(2, 4), 0.5, True),
        lambda: functional.dropout(torch.ones(7, 8), 0.5),  # seven of what?
        lambda: functional.dropout(torch.ones(6, 7, 5), 0.5),  # three heads of two prompts, but seven tokens of five
        lambda: functional.dropout(torch.ones(6, 5, 7), 0.5),
        lambda: functional.dropout(torch.ones(2, *[1] * 6, 8), 0.5),  # more axes than are counted
        lambda: nn.LSTM(4, 4, 2, dropout=0.5)(torch.ones(3, 2, 4)),
    ],
)
def test_what_draws_otherwise_is_told(draw):
    with RowDropout(batch_of("ab"), 0, 0) as mode:
        draw()
    assert mode.drew


# models


def prompts_of(names, lengths, targets: int) -> Batch:
    """A micro-batch whose prompts are told by their names."""
    prompts = []
    for name, length in zip(names, lengths, strict=True):
        ids = [3 + (ord(name) + place) % 30 for place in range(length)]
        prompts.append(Encoded(name, "en", ids, [0] * length, {"slot": [0]}, [0], target=[1] * targets))
    return collate(prompts, 1)


def forward(backbone, batch: Batch):
    """States at the first token of prompts in one micro-batch, in training."""
    for parameter in backbone.parameters():
        parameter.requires_grad_(True)
    backbone.train()
    backbone.model.train()
    with RowDropout(batch, 0, 0) as mode:
        states = backbone(batch)
    assert not mode.drew
    assert mode.places
    return states.detach()


def models():
    """Tiny models by name, with dropout: of every kind (DeBERTa has it on a table, OPT on tokens laid end to end, XGLM
    on heads), and those of the contract with both kinds of attention."""
    for kind in tiny.MODELS:
        yield kind, kind, None
    for kind in ("bert", "xlmr", "gpt2", "llama", "t5", "mt5"):
        yield f"{kind}-eager", kind, "eager"


def made(kind: str, attention: str | None):
    config = tiny.config(kind, dropout=0.1)
    if attention is not None:
        config._attn_implementation = attention
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return backbone_from_config(config)


@pytest.mark.parametrize(("name", "kind", "attention"), list(models()), ids=lambda value: value)
def test_a_model_gives_a_row_the_same_states_in_any_micro_batch(name, kind, attention):
    backbone = made(kind, attention)
    targets = 3 if tiny.MODELS[kind][0] == "seq2seq" else 0
    together = forward(backbone, prompts_of("abcd", [4, 8, 5, 4], targets))
    first, others = prompts_of("a", [4], targets), prompts_of("bcd", [8, 5, 4], targets)
    apart = [forward(backbone, first), forward(backbone, others)]
    assert (torch.cat(apart) - together).abs().max() < 1e-5
    backbone.model.eval()
    assert (backbone(first) - apart[0]).abs().max() > 1e-3, "dropout was on"


def test_lora_beside_what_reads_a_frozen_table_draws_by_row():
    """DeBERTa asks its query and key layers about relative positions too, a table without a gradient."""
    losses = []
    for size in (None, 1, 3):
        cell = cases.cell("lora", tiny.backbone("mdeberta", dropout=0.1), dropout=0.3)
        settings = cases.SETTINGS.model_copy(update={"micro_batch": size})
        losses.append(trained(cell, settings)[1].losses)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)


def test_the_dropout_of_lora_is_seen():
    model = nn.Sequential(nn.Linear(8, 8))
    wrapped = get_peft_model(model, LoraConfig(r=2, lora_dropout=0.5, target_modules=["0"], init_lora_weights=False))
    with RowDropout(batch_of("ab"), 0, 0) as mode:
        together = wrapped(torch.ones(2, 5, 8))
    assert (mode.places, mode.drew) == (1, False)
    with RowDropout(batch_of("b"), 0, 0):
        assert torch.allclose(wrapped(torch.ones(1, 5, 8))[0], together[1], atol=1e-6)


@pytest.mark.parametrize(
    ("method", "kind", "rate", "expected"),
    [
        ("gnnavi", "gpt2", 0.1, False),  # the model is frozen, its dropout off
        ("full", "gpt2", 0.1, True),
        ("prefix", "bert", 0.0, False),
        ("lora", "llama", 0.1, False),
        ("full", "llama", 0.0, False),
        ("full", "mt5", 0.0, False),
        ("full", "mt5", 0.1, True),
    ],
)
def test_the_mode_is_left_out_only_where_nothing_drops(method, kind, rate, expected):
    learner = cases.cell(method, tiny.backbone(kind, dropout=rate)).learner.train()
    assert may_drop(learner) == expected
    own = type("Own", (nn.Module,), {"__module__": "mine"})
    learner.add_module("own", own())
    assert may_drop(learner)


@pytest.mark.parametrize("name", ["embd_pdrop", "attention_dropout", "layerdrop", "router_jitter_noise"])
def test_a_rate_of_the_configuration_is_seen(name):
    learner = cases.cell("full", tiny.backbone("gpt2")).learner.train()
    assert not may_drop(learner)
    setattr(learner.method.backbone.config, name, 0.1)
    assert may_drop(learner)
    assert not may_drop(learner.eval())


@pytest.mark.parametrize(("name", "seen"), [("vision_config", True), ("_kept_by_the_library", False)])
def test_a_rate_inside_of_a_configuration_is_seen(name, seen):
    learner = cases.cell("full", tiny.backbone("gpt2")).learner.train()
    setattr(learner.method.backbone.config, name, {"attention_dropout": 0.1})
    assert may_drop(learner) == seen


@pytest.mark.parametrize("method", ["prefix", "lora"])
def test_a_methods_own_dropout_is_seen(method):
    assert may_drop(cases.cell(method, tiny.backbone("llama"), dropout=0.2).learner.train())


def test_masks_are_those_of_earlier_versions():
    """A run that goes on meets the dropouts that it would have met."""
    kept = mask(batch_of("ab"), (2, 2, 3, 5), seed=7, step=3, place=2).flatten().int()
    assert "".join(map(str, kept.tolist())) == "111010011100101101101000010111101010010000100101011001001111"


def test_attention_without_dropout_is_torchs_own_with_its_scale():
    query, key, value = torch.randn(3, 2, 4, 5, 8, generator=torch.Generator().manual_seed(1))
    expected = functional.scaled_dot_product_attention(query, key, value, scale=0.7)
    with RowDropout(batch_of("ab"), 0, 0):
        found = functional.scaled_dot_product_attention(query, key, value, scale=0.7)
    assert torch.equal(found, expected)

"""The lottery ticket: only its entries move, bit for bit, under every engine; where they are; what is refused."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from typing import Any

import pytest
import torch

from raypft.backbones.load import load_skeleton
from raypft.backbones.parameters import parameter_infos, segment_layers
from raypft.backbones.sparse import Sparse
from raypft.batch import collate
from raypft.config.load import load_job
from raypft.contract import cases, tiny
from raypft.contract.group import Case, run_case, run_group
from raypft.encoded import Encoded
from raypft.errors import UserError
from raypft.methods._tickets import open_ticket
from raypft.methods.lottery import Config, LotteryTicket
from raypft.runs.prepare import prepare
from raypft.training.loader import PromptDataset
from raypft.training.loop import fit
from raypft.training.stepper import TorchStepper

EMBEDDING = {
    "bert": "bert.embeddings.word_embeddings.weight",
    "xlmr": "roberta.embeddings.word_embeddings.weight",
    "gpt2": "transformer.wte.weight",
    "llama": "model.embed_tokens.weight",
}
WEIGHT = {
    "bert": "bert.encoder.layer.1.attention.self.query.weight",
    "xlmr": "roberta.encoder.layer.1.output.LayerNorm.weight",
    "gpt2": "transformer.h.1.mlp.c_fc.bias",
    "llama": "model.layers.1.self_attn.q_proj.weight",
}


def batch():
    """Two prompts of unequal length with all kinds of tokens."""
    ids = [list(range(5, 15)), [9, 8, 30, 31]]
    return collate(
        [Encoded(f"k{i}", "en", own, [0] * len(own), {"slot": [len(own) - 1]}) for i, own in enumerate(ids)], 1
    )


def loss(backbone) -> torch.Tensor:
    """A number that depends on every state and on the output embedding."""
    return backbone.vocabulary_scores(backbone(batch())).log_softmax(-1)[:, [6, 9, 20]].sum()


def some(weight: torch.Tensor, share: int = 3) -> torch.Tensor:
    return torch.arange(0, weight.numel(), share)


# the seam


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("untied", [False, True])
def test_gradient_is_the_dense_gradient_at_the_entries(kind, untied):
    """A matrix, a vector, a norm; a tied embedding sums the gradients of both its uses, an untied one has its own."""
    for name in (EMBEDDING[kind], WEIGHT[kind]):
        dense, sparse = tiny.backbone(kind), tiny.backbone(kind)
        for own in (dense, sparse):
            if untied:
                own.untie()
        weight = dense.open(name)[0]
        index = some(weight)
        values = sparse.sparse(name, index)
        assert torch.equal(values, weight.view(-1)[index])
        first, second = loss(dense), loss(sparse)
        assert torch.equal(first, second)
        first.backward()
        second.backward()
        assert values.grad is not None
        assert weight.grad is not None
        assert torch.allclose(values.grad, weight.grad.view(-1)[index], atol=1e-6)
        assert values.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", tiny.KINDS)
@torch.no_grad()
def test_changed_values_act_as_changed_entries(kind):
    """In every use where tied; in the input only where untied."""
    for untied in (False, True):
        name = EMBEDDING[kind]
        dense, sparse = tiny.backbone(kind), tiny.backbone(kind)
        if untied:
            dense.untie()
            sparse.untie()
        weight = dict(dense.model.named_parameters(remove_duplicate=False))[name]
        values = sparse.sparse(name, some(weight))
        values.add_(0.5)
        weight.view(-1)[some(weight)] += 0.5
        assert torch.equal(loss(dense), loss(sparse))
        states = torch.randn(2, tiny.HIDDEN)
        assert torch.equal(sparse.vocabulary_scores(states), tiny.backbone(kind).vocabulary_scores(states)) == untied


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_reset_is_bit_exact_however_often(kind):
    """Every parameter sparse, trained, undone: names, order, ties and bits are the loaded ones."""
    backbone, fresh = tiny.backbone(kind), tiny.backbone(kind)
    for turn in range(3):
        if turn:
            backbone.untie()
        names = [name for name, _ in fresh.model.named_parameters()]
        values = [backbone.sparse(name, some(weight, 2)) for name, weight in fresh.model.named_parameters()]
        optimizer = torch.optim.AdamW(values, lr=0.1, weight_decay=0.5)
        loss(backbone).backward()
        optimizer.step()
        loss(backbone)
        backbone.reset()
        assert [name for name, _ in backbone.model.named_parameters()] == names
        assert all(
            torch.equal(p, q) for p, q in zip(backbone.model.parameters(), fresh.model.parameters(), strict=True)
        )
        assert not any(p.requires_grad for p in backbone.parameters())
        assert backbone.decoder.weight is backbone.model.get_input_embeddings().weight
        assert torch.equal(loss(backbone), loss(fresh))


def test_a_name_that_is_not_there_is_refused():
    backbone = tiny.backbone("bert")
    with pytest.raises(
        UserError, match=r'sparse\("bert.nothing"\): no parameter of the model has such a name; e.g. bert.embeddings'
    ):
        backbone.sparse("bert.nothing", torch.tensor([0]))


@pytest.mark.parametrize("positions", [[], [-1, 2], [0, 41 * 32], [3, 3], [4, 2]])
def test_positions_must_ascend_inside_the_parameter(positions):
    with pytest.raises(ValueError, match=r"expected ascending positions in 0..1311"):
        tiny.backbone("bert").sparse(EMBEDDING["bert"], torch.tensor(positions, dtype=torch.long))


# the method


def made(kind: str = "bert", strategy: str = "decoupled", **keys) -> LotteryTicket:
    """The method on a tiny model, with a ticket of a search of this strategy."""
    backbone = tiny.backbone(kind)
    return LotteryTicket(Config(**{"ticket": cases.ticket(backbone, strategy), **keys}), backbone)


def probe(cell: cases.Cell, stepper) -> dict[str, Any]:
    """How many frozen entries of the backbone changed, how many active ones, and the numbers Adam keeps."""
    model = cell.learner.method.backbone.model
    loaded = dict(tiny.backbone("bert" if hasattr(model, "bert") else "gpt2").model.named_parameters())
    frozen, active = 0, 0
    values = stepper.gather(stepper.values())[0]
    for name, module in model.named_modules():
        if isinstance(module, Sparse):
            before = loaded[name].detach().view(-1)
            with module.whole("base", "index") as (base, index):
                index = index.long()
                mask = torch.ones(base.numel(), dtype=torch.bool).index_fill_(0, index, False)
                frozen += int((base.view(-1) != before)[mask].sum())
            active += int((values[f"method.backbone.model.{name}.values"] != before[index]).sum())
    moments = {name: (own.start, own.tensors["exp_avg"]) for name, own in stepper.held().items()}
    whole = sum(value.numel() for _, value in stepper.gathered(moments) if value is not None)
    optimizer = stepper.optimizer if isinstance(stepper, TorchStepper) else stepper._inner()
    assert optimizer is not None
    here = sum(own["exp_avg"].numel() for own in optimizer.state.values())
    return {
        "frozen": frozen,
        "active": active,
        "adam": whole,
        "adam_of_ranks": stepper.gather(here),
        "trained": sum(v.numel() for v in values.values()),
    }


@pytest.fixture(scope="module")
def decayed():
    """Ten steps with strong weight decay, on two workers."""
    plans = [
        Case("lottery", kind, engine, weight_decay=0.5, probe=probe)
        for kind, engine in itertools.product(("bert", "gpt2"), ("torch", 0, 1, 2, 3))
    ]
    found = dict(zip([(plan.kind, plan.engine) for plan in plans], run_group(2, plans), strict=True))
    return found | {
        (kind, "alone"): run_case(Case("lottery", kind, "torch", weight_decay=0.5)) for kind in ("bert", "gpt2")
    }


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("engine", ["torch", 0, 1, 2, 3])
def test_frozen_entries_keep_their_bits_under_weight_decay(decayed, kind, engine):
    """And all active ones move: decay acts on them as on any weight."""
    found = decayed[kind, engine]
    ticket = made(kind).cut
    assert found["probe"]["frozen"] == 0
    zeros = sum(
        int((dict(tiny.backbone(kind).model.named_parameters())[name].view(-1)[index.long()] == 0).sum())
        for name, index in ticket.indices.items()
    )
    assert found["probe"]["active"] >= ticket.size - zeros
    assert found["losses"] == pytest.approx(decayed[kind, "alone"]["losses"], rel=1e-4)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("engine", ["torch", 0, 1, 2, 3])
def test_optimizer_memory_is_that_of_prompt_and_ticket(decayed, kind, engine):
    """K + prompt parameters, on every rank or, from ZeRO-1 on, over the ranks (plus padding to equal shares)."""
    found, method = decayed[kind, engine]["probe"], made(kind)
    expected = method.cut.size + sum(p.numel() for p in method.prompt.parameters())
    assert found["adam"] == found["trained"] == method.predicted_parameters() == expected
    if engine in ("torch", 0):
        assert found["adam_of_ranks"] == [expected] * 2
    else:
        assert expected <= sum(found["adam_of_ranks"]) <= expected + 2 * len(method.trainable())


@pytest.mark.parametrize("ratio", [0.2, 0.75, 1])
def test_ratio_is_of_the_candidates_and_exact(ratio):
    method = made(ratio=ratio, length=2)
    pool = sum(p.numel() for p in tiny.backbone("bert").model.get_submodule("bert").parameters())
    assert (method.cut.pool, method.cut.size) == (pool, round(ratio * pool))
    assert sum(p.numel() for p in method.backbone.parameters() if p.requires_grad) == method.cut.size
    whole = sum(p.numel() for p in tiny.backbone("bert").model.parameters())
    assert method.notes() == [
        f"ticket: {method.cut.size:,} of {pool:,} candidate entries train, {100 * method.cut.size / whole:.1f} % of "
        f"the model's {whole:,}"
    ]


def test_entries_that_did_not_move_are_told(tmp_path):
    backbone = tiny.backbone("bert")
    moved = {
        name: torch.zeros_like(p) for name, p in backbone.model.get_submodule("bert").named_parameters(prefix="bert")
    }
    next(iter(moved.values()))[0] = 1
    cases.save_ticket(tmp_path / "t", moved, backbone.revision, "vanilla", {})
    method = LotteryTicket(Config(ticket=str(tmp_path / "t")), backbone)
    assert (
        method.notes()[1] == f"ticket: {method.cut.size - tiny.HIDDEN:,} active entries did not move in the search; "
        "they were taken in the order of the parameters"
    )


@pytest.mark.parametrize(
    ("segment", "scope", "asks"), [("lower", "global", True), ("all", "per_layer", True), ("all", "global", False)]
)
def test_what_is_of_layers_asks_for_a_row_of_blocks(segment, scope, asks):
    backbone = tiny.backbone("bert")
    ticket = cases.ticket(backbone, "decoupled")
    backbone._blocks = None
    with pytest.raises(UserError, match="is no row of blocks") if asks else contextlib.nullcontext():
        LotteryTicket(Config(ticket=ticket, segment=segment, scope=scope), backbone)


@pytest.mark.parametrize(
    ("segment", "layers"), [("lower", {1}), ("middle", {2}), ("higher", {3}), ("2-3", {2, 3}), ("all", {1, 2, 3, None})]
)
@pytest.mark.parametrize("scope", ["global", "per_layer", "per_tensor"])
def test_segment_confines_the_entries(segment, layers, scope):
    method = made(segment=segment, scope=scope)
    infos = parameter_infos(tiny.backbone("bert"))
    assert {infos[name].layer for name in method.cut.indices} == layers
    sizes = {
        name: p.numel()
        for name, p in tiny.backbone("bert").model.named_parameters()
        if infos[name].layer in layers and infos[name].in_body
    }
    assert method.cut.pool == sum(sizes.values())
    if scope == "per_layer":
        chosen = Counter[int | None]()
        for name, own in method.cut.indices.items():
            chosen[infos[name].layer] += len(own)
        of_layer = Counter[int | None]()
        for name, size in sizes.items():
            of_layer[infos[name].layer] += size
        assert chosen == {layer: round(0.2 * size) for layer, size in of_layer.items()}
    if scope == "per_tensor":
        assert {name: len(own) for name, own in method.cut.indices.items()} == {
            name: round(0.2 * size) for name, size in sizes.items()
        }


@pytest.mark.parametrize(
    ("layers", "thirds"),
    [(12, [(1, 4), (5, 8), (9, 12)]), (24, [(1, 8), (9, 16), (17, 24)]), (4, [(1, 1), (2, 3), (4, 4)])],
)
def test_thirds_of_the_layers(layers, thirds):
    """Layers 1-4, 5-8, 9-12 of XLM-R base, as the paper has them."""
    segments = [segment_layers(name, layers) for name in ("lower", "middle", "higher")]
    assert [(segment[0], segment[-1]) for segment in segments] == thirds


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_parameter_infos_cover_the_model(kind):
    """Every block has as many parameters; head and norms are told apart."""
    infos = parameter_infos(tiny.backbone(kind))
    per_layer = Counter(info.layer for info in infos.values())
    assert per_layer[1] == per_layer[2] == per_layer[3] > 0
    assert infos[EMBEDDING[kind]].layer is None
    assert infos[EMBEDDING[kind]].in_body
    assert {name.split(".")[0] for name, info in infos.items() if not info.in_body} == {
        "bert": {"cls"},
        "xlmr": {"lm_head"},
    }.get(kind, set())
    norms = [name for name, own in infos.items() if own.is_norm]
    assert norms
    assert all("norm" in name.lower() or ".ln_" in name for name in norms)


@pytest.mark.parametrize(("strategy", "label_words_move"), [("decoupled", False), ("vanilla", True)])
def test_only_a_vanilla_ticket_moves_the_label_words(strategy, label_words_move):
    """Where the embeddings are tied a ticket entry is also in the output; a decoupled search's ticket is not."""
    method = made(strategy=strategy, segment="all", ratio=1)
    states = torch.randn(2, tiny.HIDDEN)
    before = method.backbone.vocabulary_scores(states)
    with torch.no_grad():
        for parameter in method.trainable().values():
            parameter.add_(0.1)
    assert torch.equal(before, method.backbone.vocabulary_scores(states)) != label_words_move


def test_training_moves_the_prompt_and_the_entries():
    cell = cases.cell("lottery", tiny.backbone("xlmr"))
    before = {name: p.detach().clone() for name, p in cell.learner.trainable().items()}
    rows = PromptDataset(cell.prompts, cell.learner.method, 1)
    found = fit(
        TorchStepper(cell.learner, cases.SETTINGS),
        rows,
        None,
        cases.SETTINGS.model_copy(update={"epochs": 60, "lr": 1e-2}),
        0,
        cell.score,
    )
    assert found.losses[-2] < 0.7 * found.losses[0]  # the frozen label words of a random model allow no large margin
    assert any(name.startswith("method.prompt.") for name in before)
    assert any("embeddings.word_embeddings.weight.values" in name for name in before)
    moved = [name for name, p in cell.learner.trainable().items() if not torch.equal(p, before[name])]
    assert any(name.endswith("query.weight.values") for name in moved)
    assert any(name.startswith("method.prompt.") for name in moved)


# refusals


def line_of(*overrides: str) -> str:
    """The one line of the error when a job is loaded."""
    with pytest.raises(UserError) as caught:
        load_job("ltp", ["task=xnli", "backbone=xlmr-base", *overrides])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("ratio", ["0", "1.1", "-0.2"])
def test_ratio_outside_its_range_is_refused_at_load(ratio):
    assert line_of(f"method.ratio={ratio}").startswith(f"ltp: method: ratio: found {ratio}; input should be ")


@pytest.mark.parametrize("segment", ["top", "3", "1-", "-2"])
def test_segment_that_is_none_is_refused_at_load(segment):
    found = line_of(f"method.segment='{segment}'")
    assert (
        found == f"ltp: method: segment: found '{segment}'; "
        "value error, expected all, lower, middle, higher or FIRST-LAST, e.g. 5-8"
    )


@pytest.mark.parametrize("segment", ["0-2", "2-4", "3-2"])
def test_segment_outside_the_model_is_refused(segment):
    with pytest.raises(
        UserError,
        match=rf"^method.segment: found {segment}; "
        rf"expected layers FIRST-LAST from 1 to 3, first not after last, e.g. 1-3$",
    ):
        made(segment=segment)


def test_ticket_of_another_model_is_refused():
    backbone = tiny.backbone("bert")
    path = cases.ticket(backbone, revision="0123")
    with pytest.raises(UserError) as caught:
        LotteryTicket(Config(ticket=path), backbone)
    assert (
        str(caught.value)
        == f"method.ticket: {path} is of model revision 0123; this backbone is in memory; search a ticket for it"
    )


def test_ticket_must_be_given_and_be_there(tmp_path):
    with pytest.raises(UserError, match=r"^method.ticket: none is given; run the recipe ticket_search"):
        LotteryTicket(Config(), tiny.backbone("bert"))
    with pytest.raises(UserError, match=r"^method.ticket: no file or folder .*/nothing; give"):
        made(ticket=str(tmp_path / "nothing"))


def test_a_model_in_4_bits_is_refused_whatever_the_ticket():
    backbone = tiny.backbone("bert")
    backbone.quantized = "nf4"
    with pytest.raises(UserError, match=r"^train.quantize: found nf4 with a method that trains weights of the model"):
        LotteryTicket(Config(), backbone)


def test_a_jobs_cells_are_those_of_its_ticket(tmp_path):
    """Another search at the same path makes other cells; checking a job leaves its model's skeleton as it was."""
    backbone = tiny.backbone("xlmr")
    for part in (backbone.model, backbone.text.tokenizer):
        part.save_pretrained(tmp_path / "model")
    overrides = [
        f"backbone={tmp_path}/model",
        f"method.ticket={tmp_path}/t",
        "pattern=sp",
        "shots=2",
        "seeds=[0]",
        "train.max_tokens=150",
        "protocol=fixed",
    ]
    job, keys = load_job("ltp", ["task=nli", "readout.mode=raw_piece", *overrides]), set()
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        moved = {
            name: torch.randn(p.shape, generator=generator)
            for name, p in backbone.model.get_submodule("roberta").named_parameters(prefix="roberta")
        }
        cases.save_ticket(tmp_path / "t", moved, load_skeleton(str(tmp_path / "model")).revision, "decoupled", {})
        prepared = prepare(job)
        keys.add(prepared.keys[0])
        assert not prepared.skeleton._sparse
    assert len(keys) == 2
    assert open_ticket(f"{tmp_path}/t").digest

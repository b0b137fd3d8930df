"""The search: masking by the rule and by its seed, the penalty by hand, what each strategy trains, and from search to
ticket to LTP."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from typing import Any, cast

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from raypft.backbones.parameters import parameter_infos
from raypft.batch import collate
from raypft.config.load import load_job
from raypft.contract import cases, tiny
from raypft.contract.group import Case, run_group
from raypft.data.sampling import PROTOCOLS, draw
from raypft.encoded import Encoded
from raypft.errors import UserError
from raypft.methods._tickets import FILE, open_ticket
from raypft.methods.base import Result
from raypft.methods.ticket_search import Config, TicketSearch
from raypft.readouts import mlm
from raypft.runs.prepare import prepare
from raypft.scale.run import run_jobs
from raypft.tasks.load import load_task
from raypft.training.loader import PromptDataset
from raypft.training.loop import fit
from raypft.training.stepper import Learner, TorchStepper

STRATEGIES = ["decoupled", "vanilla", "freeze_embeddings"]


def text(size: int, key: str = "en/0", seed: int = 0) -> Encoded:
    """A prompt of random words between <s> and </s>."""
    ids = torch.randint(6, 41, (size,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Encoded(key, "en", [0, *ids, 2], [0] * (size + 2), {"slot": [0]})


# masking


def test_masking_follows_the_rule():
    """15 % chosen; of these 80 % mask, 10 % random, 10 % kept; special tokens never; gold and slots name what stood
    there."""
    backbone, prompt = tiny.backbone("bert"), text(20_000)
    found = mlm.masked(prompt, "1/0", 0.15, backbone.text)
    slots = found.marks["slot"]
    assert len(slots) / 20_000 == pytest.approx(0.15, abs=0.01)
    assert found.gold == [prompt.ids[position] for position in slots]
    assert {position for position, (a, b) in enumerate(zip(prompt.ids, found.ids, strict=True)) if a != b} <= set(slots)
    assert {0, 20_001}.isdisjoint(slots)
    kinds = Counter(
        "mask" if (new := found.ids[p]) == 4 else "same" if new == old else "other"
        for p, old in zip(slots, found.gold, strict=True)
    )
    shares = {kind: count / len(slots) for kind, count in kinds.items()}
    # a random token is the mask or the old one now and then: 1 in 41 each
    assert shares == pytest.approx({"mask": 0.8 + 0.1 / 41, "same": 0.1 + 0.1 / 41, "other": 0.1 * 39 / 41}, abs=0.02)


def test_masking_is_a_function_of_seed_epoch_and_row():
    """A drawn prompt drawn again gives what the text itself gives: earlier masks leave no trace."""
    backbone = tiny.backbone("bert")
    first, again = (mlm.masked(text(50), draw_, 0.15, backbone.text) for draw_ in ("1/0", "1/0"))
    assert first == again
    assert mlm.masked(text(2000), "1/0", 0.15, backbone.text) == mlm.masked(text(2000), "1/0", 0.15, backbone.text)
    others = [
        mlm.masked(text(50), "1/1", 0.15, backbone.text),
        mlm.masked(text(50), "2/0", 0.15, backbone.text),
        mlm.masked(text(50, "en/1"), "1/0", 0.15, backbone.text),
    ]
    assert all(other.marks != first.marks for other in others)
    assert mlm.masked(first, "1/1", 0.15, backbone.text) == others[0]
    number = int.from_bytes(hashlib.sha256(b"1/0/en/0#0").digest()[:8], "big") // 2
    chances = torch.rand(50, generator=torch.Generator().manual_seed(number)).tolist()
    assert first.marks["slot"] == [place for place, chance in enumerate(chances, 1) if chance < 0.15]


def test_chances_below_the_share_are_chosen_and_fates_below_eight_and_nine_tenths_masked_and_random(monkeypatch):
    """By hand, of what is drawn: six tokens, of which four are chosen; then what becomes of these."""
    drawn = iter([[0.15, 0.1, 0.0, 0.9, 0.149, 0.14], [0.8, 0.79, 0.9, 0.89]])
    monkeypatch.setattr(
        mlm.torch, "rand", lambda size, generator: torch.tensor(next(drawn)[:size], dtype=torch.float64)
    )
    monkeypatch.setattr(mlm, "RANDOM", 0.9 - mlm.MASK)
    prompt, backbone = text(6), tiny.backbone("bert")
    found = mlm.masked(prompt, "1/0", 0.15, backbone.text)
    assert found.marks["slot"] == [2, 3, 5, 6]
    old = prompt.ids
    assert [found.ids[at] == old[at] for at in (0, 1, 4, 5, 7)] == [True] * 5, "not chosen, or left as it was"
    assert found.ids[3] == backbone.text.tokenizer.mask_token_id
    assert found.gold == [old[at] for at in (2, 3, 5, 6)]


def test_what_an_earlier_draw_masked_is_there_again_but_what_was_unknown():
    prompt, backbone = text(6), tiny.backbone("bert")
    asked = prompt.but(ids=[*prompt.ids[:2], 4, *prompt.ids[3:]], marks={"slot": [2, 3]}, gold=[0, -1])
    found = mlm.masked(asked, "1/0", 1e-9, backbone.text)
    (slot,) = found.marks["slot"]
    assert slot != 2, "a special token is not asked about"
    assert [found.ids[at] for at in (2, 3) if at != slot] == [0, prompt.ids[3]][: 2 - (slot == 3)]
    assert found.gold == [prompt.ids[slot]]


def test_a_short_text_has_one_slot_and_an_empty_one_is_refused():
    backbone = tiny.backbone("bert")
    assert all(len(mlm.masked(text(1), f"{i}/0", 0.15, backbone.text).marks["slot"]) == 1 for i in range(30))
    with pytest.raises(UserError, match=r"^data: row en/0 has no known token that could be masked; leave it out$"):
        mlm.masked(text(0), "1/0", 0.15, backbone.text)


# the readout


def learner(backbone, **config) -> Learner:
    """The search's method and readout on a tiny model."""
    task = load_task("mlmtext")
    backbone.reset()
    return Learner(
        TicketSearch(Config(**config), backbone),
        mlm.MaskedLanguageModel(mlm.Config(), task, task.pattern("vanilla"), backbone),
    )


def prompts(backbone) -> list[Encoded]:
    return [mlm.masked(text(size, f"en/{size}", size), "held out", 0.3, backbone.text) for size in (12, 5, 30, 9, 21)]


def test_loss_is_the_cross_entropy_of_what_stood_there_over_the_vocabulary():
    backbone = tiny.backbone("bert")
    made, own = learner(backbone), prompts(backbone)
    batch = collate(own, 1)
    loss, weight = made.readout.loss(made(batch), batch)
    with torch.no_grad():
        logits = backbone.model(input_ids=batch.ids, attention_mask=batch.mask).logits.log_softmax(-1)
    by_hand = torch.zeros(())
    for row, prompt in enumerate(own):
        by_hand = by_hand - sum(logits[row, p, g] for p, g in zip(prompt.marks["slot"], prompt.gold, strict=True))
    assert weight == sum(len(prompt.gold) for prompt in own)
    assert torch.allclose(loss, by_hand, rtol=1e-5)
    answers = made.answer(batch)
    assert answers[2].value == [int(logits[2, p].argmax()) for p in own[2].marks["slot"]]
    assert made.readout.gold(own[1:3]) == own[1].gold + own[2].gold
    assert made.readout.gather(own[1:3], answers[1:3]) == (
        answers[1].value + answers[2].value,
        answers[1].scores + answers[2].scores,
    )


def losses(epochs: int = 3, seed: int = 0, **train) -> list[float]:
    backbone = tiny.backbone("bert")
    made = learner(backbone)
    settings = cases.SETTINGS.model_copy(update={"epochs": epochs, "lr": 1e-2, **train})
    rows = PromptDataset(prompts(backbone), made.method, 1)
    return fit(TorchStepper(made, settings), rows, None, settings, seed, lambda answers: 0.0).losses


def test_each_epoch_masks_anew_and_micro_batches_change_nothing():
    """With a vanishing rate the model stands still: losses of equal masks would repeat."""
    still = losses(lr=1e-12, batch_size=5)
    assert max(still) - min(still) > 1e-3
    assert losses() == losses()
    assert losses(micro_batch=1) == pytest.approx(losses(), rel=1e-4)  # the penalty: test_loop.py, once a step
    assert losses(seed=1) != losses()


# the method


@pytest.mark.parametrize("kind", ["bert", "xlmr"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_each_strategy_trains(kind, strategy):
    """Never a normalisation; the embeddings unless frozen, with the output where tied; counts by hand."""
    backbone = tiny.backbone(kind)
    whole = sum(p.numel() for p in backbone.model.parameters())
    layer_norms = [module for module in backbone.model.modules() if isinstance(module, torch.nn.LayerNorm)]
    norms = sum(module.weight.numel() + module.bias.numel() for module in layer_norms)
    embedding = backbone.model.base_model.get_submodule("embeddings")
    embeddings = sum(p.numel() for name, p in embedding.named_parameters() if "LayerNorm" not in name)
    method = TicketSearch(Config(strategy=strategy), backbone)
    expected = whole - norms - {"decoupled": 0, "vanilla": 0, "freeze_embeddings": embeddings}[strategy]
    assert sum(p.numel() for p in method.trainable().values()) == method.predicted_parameters() == expected
    assert backbone.decoder.weight.requires_grad == (strategy == "vanilla")
    assert backbone.decoder.bias.requires_grad
    assert backbone.model.get_input_embeddings().weight.requires_grad == (strategy != "freeze_embeddings")
    infos = parameter_infos(tiny.backbone(kind))
    assert any(name.endswith("word_embeddings.weight") for name in method.candidates) == (
        strategy != "freeze_embeddings"
    )
    assert all(infos[name].in_body and not infos[name].is_norm for name in method.candidates)


def test_a_penalty_keeps_no_differences_of_all_parameters():
    method = TicketSearch(Config(), tiny.backbone("bert"))
    there = {value.data_ptr() for name, p in method.opened.items() for value in (p, method.start(name))}
    made: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        if value.data_ptr() not in there:
            made.append(value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        assert method.penalty() is not None
    assert sum(value.numel() for value in made) < len(there)


@pytest.mark.parametrize("kind", ["bert", "xlmr"])
def test_penalty_by_hand(kind):
    """0.1 / N times the distance; its gradient 0.1 / N in the direction of the move, none where nothing moved. N has
    the output embedding's copy in it, as LT-SFT counts."""
    backbone = tiny.backbone(kind)
    whole = sum(p.numel() for p in backbone.model.parameters()) + backbone.decoder.weight.numel()
    method = TicketSearch(Config(l1=0.1), backbone)
    penalty = method.penalty()
    assert penalty is not None
    assert float(penalty.detach()) == 0
    weight = cast(Any, backbone.model.get_input_embeddings()).weight
    with torch.no_grad():
        weight[3, 5] += 0.25
        weight[4, 1] -= 0.5
    penalty = method.penalty()
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(0.1 / whole * 0.75)
    penalty.backward()
    assert float(weight.grad[3, 5]) == pytest.approx(0.1 / whole)
    assert float(weight.grad[4, 1]) == pytest.approx(-0.1 / whole)
    assert weight.grad.count_nonzero() == 2
    with torch.no_grad():
        backbone.decoder.bias[7] += 0.5  # the head is pulled, too
    assert float(cast(torch.Tensor, method.penalty()).detach()) == pytest.approx(0.1 / whole * 1.25)
    assert TicketSearch(Config(l1=0), tiny.backbone(kind)).penalty() is None


def kept(learner, stepper) -> tuple[Result, dict[str, torch.Tensor]]:
    """What a search keeps, and its tensors."""
    result = learner.method.result(stepper.shapes)
    trained = {name: value for name, value in stepper.values().items() if name in result.names}
    return result, {result.names[name]: result.change(result.names[name], value) for name, value in trained.items()}


@pytest.mark.parametrize("kind", ["bert", "xlmr"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_result_is_what_moved(kind, strategy, tmp_path):
    """Trained minus pretrained of the body's parameters, in the model's order, head left out."""
    backbone, fresh = tiny.backbone(kind), tiny.backbone(kind)
    made = learner(backbone, strategy=strategy)
    own = prompts(backbone)
    stepper = TorchStepper(made, cases.SETTINGS)
    fit(stepper, PromptDataset(own, made.method, 1), None, cases.SETTINGS, 0, lambda answers: 0.0)
    result, tensors = kept(made, stepper)
    trained, pretrained = (dict(b.model.named_parameters(remove_duplicate=False)) for b in (backbone, fresh))
    assert result.file == FILE
    assert list(tensors) == made.method.candidates
    for name, difference in tensors.items():
        assert torch.equal(difference, trained[name].detach() - pretrained[name].detach())
    assert sum(int(d.count_nonzero()) for d in tensors.values()) > 0
    assert result.metadata is not None
    save_file(tensors, tmp_path / FILE, result.metadata())
    ticket = open_ticket(str(tmp_path))
    assert (ticket.names, ticket.strategy, ticket.revision) == (
        tuple(cast(TicketSearch, made.method).candidates),
        strategy,
        "in memory",
    )


def unmoved(cell, stepper) -> dict[str, int]:
    """How many differences a search has at positions that no prompt reaches, and elsewhere."""
    differences = kept(cell.learner, stepper)[1]
    far = differences["bert.embeddings.position_embeddings.weight"][100:]
    return {"far": int(far.count_nonzero()), "all": sum(int(d.count_nonzero()) for d in differences.values())}


def test_where_training_began_is_read_once_for_each_device_and_type():
    method: Any = learner(tiny.backbone("bert")).method
    name, parameter = next(iter(method.opened.items()))
    first = method.start(name)
    assert method.start(name) is first
    for kind in (torch.bfloat16, torch.device("meta")):
        parameter = method.opened[name] = torch.nn.Parameter(parameter.detach().to(kind))
        found = method.start(name)
        assert (found.dtype, found.device) == (parameter.dtype, parameter.device)
        assert found is not first
        assert method.start(name) is found


def test_a_decoupled_search_asks_whether_there_is_an_output_embedding(monkeypatch):
    """Before anything is taken apart."""
    backbone = tiny.backbone("bert")

    def refused(self):
        raise UserError("none")

    monkeypatch.setattr(type(backbone), "check_output_embedding", refused)
    learner(backbone, strategy="vanilla")
    with pytest.raises(UserError, match=r"^none$"):
        learner(backbone, strategy="decoupled")


def test_half_precision_leaves_no_difference_where_nothing_moved():
    """ZeRO's fp32 values start from the rounded weights: their rounding is no movement."""
    plans = [
        Case("ticket_search", "bert", stage, precision=precision, probe=unmoved)
        for stage, precision in ((0, "fp32"), (1, "bf16"), (2, "bf16"))
    ]
    for found in run_group(1, plans):
        assert found["probe"]["far"] == 0
        assert found["probe"]["all"] > 10_000


def test_stage_three_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^zero.stage: found 3; method ticket_search works up to stage 2$"):
        prepare(search(tmp_path, "zero.stage=3", "resources.workers=1"))


# from text to ticket to prompt-learning


def search(place, *overrides: str):
    """A search on ten short texts with a model saved at `place`."""
    backbone = tiny.backbone("xlmr")
    for part in (backbone.model, backbone.text.tokenizer):
        part.save_pretrained(place / "model")
    (place / "mlmtext").mkdir(exist_ok=True)
    words = itertools.product(("good", "bad", "fine", "great", "terrible"), ("one", "two", "three", "four"))
    rows = [{"text": f"the film was {a} and it is {b}", "language": "en"} for a, b in words]
    (place / "mlmtext" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = [
        "task=mlmtext",
        f"backbone={place}/model",
        f"data.root={place}",
        f"storage={place}/runs",
        "train.max_tokens=32",
        "train.batch_size=4",
    ]
    return load_job("ticket_search", [*common, *overrides])


def test_a_search_run_gives_the_ticket_that_ltp_trains(tmp_path):
    """The whole way on disk: the run keeps the ticket only, LTP takes its folder, the ticket's entries are the ones
    that moved most."""
    job = search(tmp_path, "train.lr=1e-2", "train.epochs=6")
    prepared = prepare(job)
    ((result,),) = run_jobs([prepared], lambda event: None)
    folder = prepared.folder / "seed-0"
    assert {path.name for path in folder.iterdir()} == {"events.jsonl", "result.json", "predictions.parquet", FILE}
    assert result["metric"].startswith("token_accuracy")
    assert result["rows"] == {"en": 2}
    assert result["dev"] == max(record["dev"] for record in result["history"])
    assert any("held out of train" in note for note in result["notes"])
    assert (
        result["history"][-1]["loss"] < 0.95 * result["history"][0]["loss"]
    )  # the frozen output of a random model allows no large margin
    moved = load_file(folder / FILE)
    assert (moved["roberta.embeddings.word_embeddings.weight"][7:9].abs().sum(1) > 0).any()
    overrides = [
        "task=nli",
        f"backbone={tmp_path}/model",
        f"storage={tmp_path}/runs",
        f"method.ticket={prepared.folder}",
        "readout.mode=raw_piece",
    ]
    ltp = load_job(
        "ltp",
        [
            *overrides,
            "protocol=fixed",
            "shots=1",
            "seeds=[0]",
            "train.epochs=1",
            "train.max_tokens=150",
            "test.limit=2",
            "dev.limit=2",
        ],
    )
    events: list = []
    ((after,),) = run_jobs([prepare(ltp)], events.append)
    pool = sum(difference.numel() for difference in moved.values())
    prompt = 4 * 32 + 2 * (4 * 32 * 64 + 8 * 32) + (2 * 32 * 32 + 32) + (32 * 32 + 32)
    assert after["trainable"] == after["predicted_method"] == round(0.2 * pool) + prompt
    notes = itertools.chain.from_iterable(event.get("notes", []) for event in events)
    assert any(f"of {pool:,} candidate entries train" in note for note in notes)


def test_what_is_held_out_is_what_is_tested():
    """A tenth of the text; it cannot be left out."""
    table = pa.table(
        {"id": [str(i) for i in range(40)], "language": ["en"] * 40, "label": [""] * 40, "text": ["x"] * 40}
    )
    found = draw(table, None, None, labels=[], rule=PROTOCOLS["ticket_search"], shots=None, demos=0, seed=0)
    assert found.dev is not None
    assert (len(found.train), len(found.dev), found.test is found.dev) == (36, 4, True)
    with pytest.raises(UserError, match=r"^dev.rows: found none; this protocol tests what it holds out"):
        draw(table, None, None, labels=[], rule=PROTOCOLS["ticket_search"], shots=None, demos=0, seed=0, dev="none")

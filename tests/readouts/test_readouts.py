"""Readouts: from label words to vocabulary columns, from states to scores, loss and answers."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig

from raypft.backbones.load import backbone_from_config
from raypft.batch import collate
from raypft.contract import tiny
from raypft.encoded import Encoded
from raypft.errors import UserError
from raypft.methods import METHODS
from raypft.readouts import READOUTS
from raypft.readouts.base import slots_of
from raypft.readouts.verbalizer import Config, Verbalizer
from raypft.tasks.kinds import KINDS
from raypft.tasks.task import Label, Mode, Pattern, Task
from raypft.training.stepper import Learner

SPECIAL = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
    "sep_token": "</s>",
    "cls_token": "<s>",
}


def pieces(*names: str) -> dict[str, int]:
    return {name: i for i, name in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *names])}


def wordpiece():
    """A BERT with whole words and words that split: ter ##ri ##ble, great ##ly."""
    inner = Tokenizer(
        models.WordPiece(
            pieces("good", "bad", "great", "ter", "##ri", "##ble", "##ly", "##good", "a", "b", "ja", "nein"),
            unk_token="<unk>",
        )
    )
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = tiny.tokenizer(special=True).backend_tokenizer.post_processor
    return backbone_from_config(tiny.config("bert"), PreTrainedTokenizerFast(tokenizer_object=inner, **SPECIAL))


def byte_level():
    """A GPT-2 where "good" and " good" are two pieces, and "bad" splits."""
    vocabulary = pieces("Ġ", "g", "o", "d", "b", "a", "go", "od", "good", "Ġgood", "Ġb", "ad")
    inner = Tokenizer(
        models.BPE(vocabulary, [("g", "o"), ("o", "d"), ("go", "od"), ("Ġ", "good"), ("Ġ", "b"), ("a", "d")])
    )
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return backbone_from_config(tiny.config("gpt2"), PreTrainedTokenizerFast(tokenizer_object=inner, **SPECIAL))


def readout(
    backbone,
    verbalizer: dict,
    mode: Mode = "word_initial",
    text: str = "{text} <slot>",
    by_language: dict | None = None,
    config: Mode | None = None,
) -> Verbalizer:
    """A verbalizer over the labels of `verbalizer`."""
    pattern = Pattern(text=text, verbalizer=verbalizer, mode=mode, by_language=by_language or {}, source="test")
    task = Task(
        name="t",
        about="",
        kind=KINDS["choice"],
        fields={"text": "text"},
        label=Label(names=list(verbalizer)),
        languages=["en", "de"],
        metric="accuracy",
        sources={},
        patterns={"p": pattern},
    )
    return Verbalizer(Config(mode=config), task, pattern, backbone)


def columns(made: Verbalizer, backbone) -> list[list[str]]:
    """The pieces of each label, of the base wording."""
    return [backbone.text.tokenizer.convert_ids_to_tokens(own) for own in made.wordings[0]]


def batch(size: int, gold: list[int] | None = None, wording: list[int] | None = None, weight: float = 1.0):
    """`size` prompts with one slot each."""
    rows = [
        Encoded(
            f"k{i}",
            "en",
            [5, 6],
            [0, 0],
            {"slot": [1]},
            gold=[gold[i] if gold else -1],
            wording=wording[i] if wording else 0,
        )
        for i in range(size)
    ]
    return collate(rows, 1, weights=[weight] * size)


# which columns a word has


@pytest.mark.parametrize(
    ("mode", "word", "expected"),
    [
        ("word_initial", "great", ["great"]),
        ("raw_piece", "##good", ["##good"]),
        ("first_piece", "terrible", ["ter"]),
        ("last_piece", "terrible", ["##ble"]),
        ("mean", ["great", "bad"], ["great", "bad"]),
    ],
)
def test_modes_choose_columns(mode, word, expected):
    """The pattern's mode, or the readout's in its place."""
    backbone = wordpiece()
    assert columns(readout(backbone, {"yes": word, "no": "good"}, mode), backbone) == [expected, ["good"]]
    assert columns(readout(backbone, {"yes": word, "no": "good"}, "word_initial", config=mode), backbone) == [
        expected,
        ["good"],
    ]


@pytest.mark.parametrize(("text", "expected"), [("{text} : <slot>", "Ġgood"), ("{text} :<slot>", "good")])
def test_blank_before_the_slot_belongs_to_the_word(text, expected):
    """A causal model answers with " good" after a blank, with "good" without; raw_piece ignores it."""
    backbone = byte_level()
    assert columns(readout(backbone, {"yes": "good", "no": "go"}, "first_piece", text), backbone)[0] == [expected]
    assert columns(readout(backbone, {"yes": "good", "no": "go"}, "raw_piece", text), backbone) == [["good"], ["go"]]


@pytest.mark.parametrize(
    ("made", "verbalizer", "mode", "message"),
    [
        (
            wordpiece,
            {"yes": "terrible", "no": "good"},
            "word_initial",
            r"verbalizer.yes: \"terrible\" is 3 tokens .*'ter', '##ri', '##ble'.*mode: first_piece",
        ),
        (byte_level, {"yes": "good", "no": "bad"}, "word_initial", r"verbalizer.no: \"bad\" is 2 tokens .*'Ġb', 'ad'"),
        (wordpiece, {"yes": "terrible", "no": "good"}, "raw_piece", r"\"terrible\" is no piece of the vocabulary"),
        (wordpiece, {"yes": "xyz", "no": "good"}, "first_piece", r"verbalizer.yes: \"xyz\" holds a piece unknown"),
        (wordpiece, {"yes": "greatly", "no": "great"}, "first_piece", r"yes and no have the same token"),
        (wordpiece, {"yes": " ", "no": "good"}, "last_piece", r"verbalizer.yes: \".*\" is no token"),
        (wordpiece, {"yes": ["great", "bad"], "no": ["bad", "great"]}, "mean", r"yes and no have the same token"),
        (wordpiece, {"yes": ["great", "terrible"], "no": "good"}, "mean", r"verbalizer.yes: \"terrible\" is 3 tokens"),
        (
            wordpiece,
            {"yes": ["great", "bad"], "no": "good"},
            "first_piece",
            r"verbalizer.yes: found 2 words; expected one, or mode: mean",
        ),
    ],
)
def test_words_that_cannot_stand_for_a_label_are_refused(made, verbalizer, mode, message):
    """With the label, the word and its pieces."""
    with pytest.raises(UserError, match=message):
        readout(made(), verbalizer, mode)


def test_an_error_in_a_language_names_it():
    """Every language's words are looked up at once, not when its first row comes."""
    with pytest.raises(UserError, match=r"verbalizer \(de\).no: \"terrible\" is 3 tokens"):
        readout(
            wordpiece(),
            {"yes": "good", "no": "bad"},
            by_language={"de": {"verbalizer": {"yes": "ja", "no": "terrible"}}},
        )


# scores


@torch.no_grad()
def test_scores_are_means_over_words_of_each_rows_language():
    """One batch of two languages against the full vocabulary scores."""
    backbone = wordpiece()
    made = readout(
        backbone,
        {"yes": ["good", "great"], "no": "bad"},
        "mean",
        by_language={"de": {"verbalizer": {"yes": "ja", "no": ["nein", "bad", "a"]}}},
    )
    states = torch.randn(3, tiny.HIDDEN, generator=torch.Generator().manual_seed(1))
    full, of = backbone.vocabulary_scores(states), backbone.text.tokenizer.convert_tokens_to_ids
    english = [(full[:, of("good")] + full[:, of("great")]) / 2, full[:, of("bad")]]
    german = [full[:, of("ja")], (full[:, of("nein")] + full[:, of("bad")] + full[:, of("a")]) / 3]
    scores = made.scores(states, batch(3, wording=[0, 1, 0]))
    assert torch.allclose(
        scores,
        torch.stack([torch.stack([own[0][row], own[1][row]]) for row, own in enumerate([english, german, english])]),
        atol=1e-6,
    )
    assert not list(made.parameters())
    assert not made.state_dict(), "its columns follow from the task; a trained file has none"


# loss and answers


def test_loss_is_cross_entropy_over_labels_summed():
    """(sum, weight), from which any split over workers makes the same mean; rows of weight 0 count for nothing."""
    made = readout(wordpiece(), {"yes": "good", "maybe": "great", "no": "bad"})
    scores, gold = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), requires_grad=True), [0, 2, 1, 0]
    total, weight = made.loss(scores, batch(4, gold))
    each = [-torch.log(scores[row, own].exp() / scores[row].exp().sum()) for row, own in enumerate(gold)]
    assert torch.allclose(total, torch.stack(each).sum())
    assert torch.allclose(total, functional.cross_entropy(scores, torch.tensor(gold), reduction="sum"))
    assert weight == 4
    filler, nothing = made.loss(scores, batch(4, gold, weight=0.0))
    filler.backward()
    assert filler == nothing == 0
    assert scores.grad is not None
    assert not scores.grad.any()


def test_each_prompt_counts_in_the_loss_by_its_weight():
    made = readout(wordpiece(), {"yes": "good", "maybe": "great", "no": "bad"})
    scores, weights = torch.randn(3, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([1.0, 0.0, 2.5])
    asked = batch(3, [0, 2, 1])
    asked = dataclasses.replace(asked, weight=weights)
    total, weight = made.loss(scores, asked)
    each = functional.cross_entropy(scores, asked.gold, reduction="none")
    assert torch.allclose(total, (each * weights).sum())
    assert weight == 3.5


def test_decide_answers_by_key():
    """The best label and the probabilities over the labels."""
    made = readout(wordpiece(), {"yes": "good", "maybe": "great", "no": "bad"})
    probabilities = torch.tensor([[0.2, 0.5, 0.3], [0.7, 0.1, 0.2]])
    answers = made.decide(probabilities.log() + 3, batch(2))
    assert [answer[:2] for answer in answers] == [("k0#0", [1]), ("k1#0", [0])]
    assert torch.allclose(torch.tensor([answer[2] for answer in answers]), probabilities)


def head(kind: str, names: str = "abc", backbone: Any = None, **config):
    """The head of a task with a label a letter, whose pattern has no <slot>."""
    task = Task(
        name="t",
        about="",
        kind=KINDS["choice"],
        fields={"text": "text"},
        label=Label(names=list(names)),
        languages=["en"],
        metric="accuracy",
        sources={},
        patterns={},
    )
    reads = READOUTS.load("head")
    config = reads.Config(**config)
    return reads(config, task, Pattern(text="{text}", source="test"), backbone or tiny.backbone(kind))


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_head_scores_every_label_and_trains(kind):
    """One score per label name, and a pattern without <slot> will do."""
    made = head(kind)
    assert not made.needs_slot
    assert made.scores(torch.randn(2, tiny.HIDDEN), batch(2)).shape == (2, 3)
    assert all(p.requires_grad for p in made.parameters())


@pytest.mark.parametrize(
    ("kind", "last"),
    [
        ("bert", "head.classifier"),
        ("xlmr", "head.classifier.out_proj"),
        ("gpt2", "head"),
        ("llama", "head"),
    ],
)
def test_of_a_head_only_the_last_layer_trains_if_asked(kind, last):
    made = head(kind, trained="last")
    assert {name.rpartition(".")[0] for name, p in made.named_parameters() if p.requires_grad} == {last}


@pytest.mark.parametrize(("names", "length", "expected"), [("abc", 32, 1_575_939), ("ab", 16, 788_482)])
def test_tu_et_al_train_as_many_parameters_as_their_code(names, length, expected):
    """XNLI and PAWS-X on XLM-R large: keys and values of 24 layers and a linear layer, 0.28 and 0.14 % of the model."""
    shape: dict[str, Any] = {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "vocab_size": 250_002,
    }
    shape |= {"intermediate_size": 4096, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
    with torch.device("meta"):
        backbone = backbone_from_config(XLMRobertaConfig(**shape, architectures=["XLMRobertaForMaskedLM"]))
        prefix = METHODS.load("prefix")
        method = prefix(prefix.Config(length=length), backbone)
        made = head("xlmr", names, backbone, trained="last")
    assert sum(p.numel() for p in Learner(method, made).trainable().values()) == expected
    share = expected / sum(p.numel() for p in backbone.model.parameters())
    assert 0.001 < share < 0.003


def test_a_family_without_a_head_says_what_else_reads():
    with pytest.raises(
        UserError, match=r"^readout: seq2seq models have no classification head; use readout=verbalizer"
    ):
        head("t5")


def test_a_prompt_without_slots_has_none_wherever_it_stands():
    for owners, expected in (
        ([0, 0, 2], [slice(0, 2), slice(2, 2), slice(2, 3)]),
        ([0, 1], [slice(0, 1), slice(1, 2), slice(2, 2)]),
    ):
        slots = torch.tensor([[owner, 5] for owner in owners])
        several: Any = SimpleNamespace(slots=slots, names=["a", "b", "c"])
        assert slots_of(several) == expected

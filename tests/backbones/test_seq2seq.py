"""Text-to-text models: scores as transformers gives them, the sentinel, written answers and how they become labels and
tags."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from test_encode import WORDS, encoder, row, tags, task
from torch import nn
from transformers import AutoModelForSeq2SeqLM

from raypft.backbones.base import Backbone
from raypft.backbones.load import backbone_from_config, load_backbone
from raypft.backbones.text_seq2seq import Seq2SeqTokenizer
from raypft.batch import collate
from raypft.config.job import Train
from raypft.contract import tiny
from raypft.errors import UserError
from raypft.methods import METHODS
from raypft.readouts import READOUTS
from raypft.readouts.base import Answer
from raypft.readouts.text import Config, TextReadout
from raypft.runs.scores import by_row
from raypft.tasks.query import Piece, Query
from raypft.tasks.task import Wording
from raypft.training.loader import PromptDataset
from raypft.training.loop import evaluate, fit
from raypft.training.stepper import Learner, TorchStepper

KINDS = tiny.FAMILIES["seq2seq"]


def frozen(backbone):
    made = METHODS.load("frozen")
    return made(made.Config(), backbone)


def lm_head(backbone: Backbone) -> nn.Linear:
    return cast(nn.Linear, backbone.model.get_submodule("lm_head"))


def text_of(backbone: Backbone) -> Seq2SeqTokenizer:
    assert isinstance(backbone.text, Seq2SeqTokenizer)
    return backbone.text


def written(
    backbone, asks: str = "{text} .", rows=(("a good film", "THING"), ("bad", "DOING")), kind: str = "choice", **options
) -> tuple[TextReadout, list]:
    """A text readout, and the prompts of some rows."""
    make = encoder(task(kind, asks, text="text"), backbone, "text", **options)
    prompts = []
    for i, (text, label) in enumerate(rows):
        prompts += make({"id": str(i), "language": "en", "text": text, "label": label})
    return TextReadout(Config(**options), make.task, make.pattern, backbone), prompts


def tokens(backbone, ids) -> list[str]:
    return backbone.text.tokenizer.convert_ids_to_tokens(ids)


# the same numbers as transformers


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_states_and_scores_equal_transformers(kind, tmp_path):
    """Of prompts and targets of unequal length in one batch, each against its own unpadded pass: T5 ties and scales,
    mT5's files have a head of their own."""
    made = tiny.backbone(kind)
    if kind == "mt5":
        head, generator = lm_head(made), torch.Generator().manual_seed(0)
        head.weight = torch.nn.Parameter(torch.randn(head.weight.shape, generator=generator))
    made.model.save_pretrained(tmp_path)
    made.text.tokenizer.save_pretrained(tmp_path)
    backbone, plain = load_backbone(str(tmp_path)), AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert (lm_head(backbone).weight is backbone.model.get_parameter("shared.weight")) == (kind == "t5")
    _, prompts = written(backbone, rows=[("a good film", "one two three"), ("bad", "four")], kind="text")
    states = backbone(collate(prompts, 1))
    scores, columns = backbone.vocabulary_scores(states), torch.tensor([7, 3, 30])
    torch.testing.assert_close(backbone.vocabulary_scores(states, columns), scores[:, columns], rtol=0, atol=1e-5)
    begin = 0
    for prompt in prompts:
        out = plain(
            input_ids=torch.tensor([prompt.ids]),
            decoder_input_ids=torch.tensor([prompt.target]),
            output_hidden_states=True,
        )
        own = slice(begin, begin + len(prompt.target))
        torch.testing.assert_close(states[own], out.decoder_hidden_states[-1][0], rtol=0, atol=1e-5)
        # a score is a sum over H whose order differs in a batch: sizes of 5 carry 2e-6 of themselves
        torch.testing.assert_close(scores[own], out.logits[0], rtol=1e-6, atol=1e-5)
        begin = own.stop
    assert begin == len(states)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("longest", "beams"), [(1, 1), (6, 1), (6, 2)])
@torch.no_grad()
def test_answers_are_those_of_generation(kind, longest, beams):
    """Random models, in which some answers end early and some do not."""
    lengths = set()
    for seed in range(10):
        backbone = tiny.backbone(kind, seed)
        # the head of another model: one that is tied repeats what it reads
        head = lm_head(backbone)
        head.weight = torch.nn.Parameter(torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed)))
        head.weight[2] *= 2
        readout, prompts = written(
            backbone,
            longest=longest,
            beams=beams,
            rows=[("a good film", "THING"), ("bad", "DOING"), ("it is fine ?", "DOING")],
        )
        batch = collate(prompts, 1)
        answers = readout.answer(frozen(backbone), batch)
        out = cast(Any, backbone.model).generate(
            input_ids=batch.ids, attention_mask=batch.mask, num_beams=beams, do_sample=False, max_new_tokens=longest
        )
        texts = [text.strip() for text in backbone.text.tokenizer.batch_decode(out, skip_special_tokens=True)]
        assert [answer.value for answer in answers] == texts
        assert all(0 < answer.scores[0] <= 1 for answer in answers)
        lengths |= {[*said, 2].index(2) for said in out[:, 1:].tolist()}
    assert longest == 1 or (len(lengths) > 2 and longest in lengths), lengths


@torch.no_grad()
def test_the_score_of_an_answer_is_its_probability_up_to_its_end():
    backbone = tiny.backbone("t5", 3)
    readout, prompts = written(backbone, longest=3)
    batch = collate(prompts, 1)
    for i, answer in enumerate(readout.answer(frozen(backbone), batch)):
        said, chance = [1], 1.0
        while len(said) < 4 and said[-1] != 2:
            out = backbone.model(input_ids=torch.tensor([prompts[i].ids]), decoder_input_ids=torch.tensor([said]))
            best, token = out.logits[0, -1].softmax(-1).max(-1)
            chance, said = chance * float(best), [*said, int(token)]
        assert answer.scores == [pytest.approx(chance, rel=1e-4)]


# the sentinel


def test_a_slot_is_the_first_sentinel_in_prompt_and_target():
    backbone = tiny.backbone("t5")
    (made,) = encoder(task("choice", "{text} <sep> it was <slot> .", text="text"), backbone, "verbalizer")(
        {"id": "1", "language": "en", "text": "a film", "label": "DOING"}
    )
    assert tokens(backbone, made.ids) == ["a", "film", "</s>", "it", "was", "<extra_id_0>", ".", "</s>"]
    assert tokens(backbone, made.target) == ["<pad>", "<extra_id_0>"]
    assert made.marks["slot"] == [1]
    assert made.gold == [1]
    assert made.segments == [0] * 8


@torch.no_grad()
def test_a_label_word_is_scored_after_the_sentinel():
    backbone = tiny.backbone("mt5")
    make = encoder(task("choice", "{text} <slot> .", text="text"), backbone, "verbalizer")
    prompts = make({"id": "1", "language": "en", "text": "a film", "label": "DOING"})
    batch, reads = collate(prompts, 1), READOUTS.load("verbalizer")
    readout = reads(reads.Config(), make.task, make.pattern, backbone)
    out = backbone.model(
        input_ids=batch.ids,
        decoder_input_ids=torch.tensor([backbone.text.tokenizer.convert_tokens_to_ids(["<pad>", "<extra_id_0>"])]),
    )
    expected = out.logits[0, 1, backbone.text.tokenizer.convert_tokens_to_ids(list(WORDS.values()))]
    torch.testing.assert_close(readout.scores(backbone(batch), batch)[0], expected, rtol=0, atol=1e-5)


def test_prompts_are_cut_with_their_end_token_counted():
    backbone = tiny.backbone("t5")
    (made,) = tags("{tokens} <sep> {token} is", backbone, 8, "text")(row("one:two:three"))
    assert len(made.ids) == 8
    assert tokens(backbone, made.ids)[-2:] == ["is", "</s>"]


def test_demonstrations_are_refused():
    backbone = tiny.backbone("t5")
    with pytest.raises(UserError, match="takes no demonstrations"):
        backbone.text.encode(Query((Piece("text", "a"),), (Piece("text", "b"),)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_reaches_encoder_and_decoder_and_trains(kind):
    """Shapes stay, scores change, every layer's keys and values get a gradient."""
    backbone = tiny.backbone(kind)
    readout, prompts = written(backbone)
    batch = collate(prompts, 1)
    plain = backbone(batch)
    made = METHODS.load("prefix")
    method = made(made.Config(length=3), backbone)
    states = method(batch)
    assert states.shape == plain.shape
    assert not torch.allclose(states, plain)
    assert len(method.layers) == 2 * tiny.LAYERS
    readout.loss(readout.scores(states, batch), batch)[0].backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in method.layers.parameters())
    assert all(p.grad is None for p in backbone.model.parameters())
    answers = readout.answer(method, batch)
    assert [answer.prompt for answer in answers] == ["en/0#0", "en/1#0"]
    backbone.reset()
    torch.testing.assert_close(backbone(batch), plain, rtol=0, atol=0)


# targets


@pytest.mark.parametrize(
    ("label", "pad_to", "gold", "target"),
    [
        ("one two", None, "one two </s>", "<pad> one two"),
        ("one", 4, "one </s> <pad> <pad>", "<pad> one </s> <pad>"),
        ("one two three four five", 3, "one two </s>", "<pad> one two"),
    ],
)
@pytest.mark.parametrize("asks", ["{text} .", "{text} <slot> ."])
def test_a_target_is_the_answer_moved_by_one(asks, label, pad_to, gold, target):
    """Behind the decoder's start alone, also where a pattern has a place for the answer."""
    backbone = tiny.backbone("t5")
    _, (made,) = written(backbone, asks, rows=[("a film", label)], kind="text", pad_to=pad_to)
    assert tokens(backbone, made.gold) == gold.split()
    assert tokens(backbone, made.target) == target.split()
    assert made.marks["slot"] == list(range(len(made.gold)))


def test_a_loss_counts_target_tokens_and_batches_do_not_change_it():
    """Padding of the decoder's targets changes no score; padding that pad_to asks for is trained on."""
    backbone = tiny.backbone("mt5")
    readout, prompts = written(backbone, rows=[("a film", "one two three"), ("it is bad", "four")], kind="text")
    alone = [collate([prompt], 1) for prompt in prompts]
    apart = [readout.loss(readout.scores(backbone(batch), batch), batch) for batch in alone]
    batch = collate(prompts, 1)
    assert batch.target is not None
    assert batch.target.shape == (2, 4)
    loss, weight = readout.loss(readout.scores(backbone(batch), batch), batch)
    assert torch.allclose(loss, apart[0][0] + apart[1][0], atol=1e-4)
    assert weight == sum(readout.weight(prompt) for prompt in prompts) == 4 + 2
    out = backbone.model(input_ids=torch.tensor([prompts[0].ids]), labels=torch.tensor([prompts[0].gold]))
    assert torch.allclose(apart[0][0] / 4, out.loss, atol=1e-4)
    padded, (one, _) = written(
        backbone, rows=[("a film", "one two three"), ("it is bad", "four")], kind="text", pad_to=6
    )
    assert padded.weight(one) == 6
    filler = collate(prompts[:1], 1, weights=[0.0])
    assert float(readout.loss(readout.scores(backbone(filler), filler), filler)[0]) == 0


# from texts to labels and tags


def said(prompts, *texts: str) -> list[Answer]:
    return [Answer(prompt.name, text, [0.5]) for prompt, text in zip(prompts, texts, strict=True)]


def test_label_words_stand_for_labels():
    backbone = tiny.backbone("t5")
    readout, prompts = written(backbone, asks="{text} <slot> .")
    assert [text_of(backbone).answer_texts([prompt.gold])[0] for prompt in prompts] == ["good", "bad"]
    assert [readout.gold([prompt]) for prompt in prompts] == ["THING", "DOING"]
    assert readout.gather(prompts[:1], said(prompts[:1], "bad")) == ("DOING", [0.5])
    assert readout.gather(prompts[:1], said(prompts[:1], "nonsense")) == ("nonsense", [0.5])
    plain, prompts = written(backbone, rows=[("a film", "one")], kind="text")
    assert plain.gold(prompts) == "one"
    assert plain.gather(prompts, said(prompts, "one two")) == ("one two", [0.5])


def test_a_word_stands_for_its_label_in_its_own_language():
    """What is THING in one language is DOING in another."""
    backbone = tiny.backbone("t5")
    own = task("choice", "{text} <slot>", text="text")
    pattern = own.patterns["p"].model_copy(
        update={"by_language": {"de": Wording(verbalizer={"THING": "bad", "DOING": "no"})}}
    )
    own = own.model_copy(update={"patterns": {"p": pattern}, "languages": ["en", "de"]})
    make = encoder(own, backbone, "text")
    readout = TextReadout(Config(), own, pattern, backbone)
    for language, label, word in (
        ("en", "DOING", "bad"),
        ("de", "THING", "bad"),
        ("en", "THING", "good"),
        ("de", "DOING", "no"),
    ):
        prompts = make({"id": "1", "language": language, "text": "a film", "label": label})
        assert text_of(backbone).answer_texts([prompts[0].gold]) == [word]
        assert readout.gold(prompts) == readout.gather(prompts, said(prompts, word))[0] == label


def test_a_word_asked_alone_is_answered_by_its_tag():
    backbone = tiny.backbone("t5")
    make = tags("{tokens} <sep> {token} is", backbone, readout="text")
    prompts = make(row("the film was", ["THING", "DOING", "THING"]))
    readout = TextReadout(Config(), make.task, make.pattern, backbone)
    assert readout.gold(prompts) == ["THING", "DOING", "THING"]
    assert readout.gather(prompts, said(prompts, "DOING", "x", "")) == (["DOING", "x", ""], [0.5] * 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("THING: the $$ DOING: film $$ THING: $$", ["THING", "DOING", "THING"]),
        ("DOING : the $$ DOING : film $$ DOING : was", ["DOING"] * 3),
        ("THING: the $$ DOING: film", ["THING", "DOING", ""]),
        ("THING: the $$ DOING: film $$ THING: was $$ DOING: it", ["THING", "DOING", "THING"]),
        ("", ["", "", ""]),
        ("THING", ["THING", "", ""]),
    ],
)
def test_a_sentence_is_answered_as_tags_beside_words(text, expected):
    """As many tags as words, whatever was said; a word of the sentence may be the separator itself."""
    backbone = tiny.backbone("t5")
    make = tags("tag : {tokens}", backbone, readout="text")
    prompts = make(row(["the", "film", "$$"], ["THING", "DOING", "THING"]))
    readout = TextReadout(Config(), make.task, make.pattern, backbone)
    assert len(prompts) == 1
    assert prompts[0].gold == text_of(backbone).answer_ids("THING: the $$ DOING: film $$ THING: $$")
    assert readout.gold(prompts) == ["THING", "DOING", "THING"]
    answers = said(prompts, text)
    assert readout.gather(prompts, answers) == (expected, [0.5])
    assert readout.written(prompts, answers) == (text_of(backbone).answer_texts([prompts[0].gold])[0], text)


def test_parts_of_a_long_sentence_are_answered_one_after_the_other():
    backbone = tiny.backbone("t5")
    make = tags("{tokens}", backbone, 4, "text")
    prompts = make(row("the film was good", ["THING", "DOING", "THING", "DOING"]))
    assert [len(prompt.answers) for prompt in prompts] == [3, 1]
    readout = TextReadout(Config(), make.task, make.pattern, backbone)
    assert readout.gold(prompts) == ["THING", "DOING", "THING", "DOING"]
    assert readout.gather(prompts, said(prompts, "A: the", "B: good")) == (["A", "", "", "B"], [0.5, 0.5])


def test_what_was_cut_is_right_as_far_as_the_target_holds_it():
    """The released code decodes its gold from the cut target."""
    backbone = tiny.backbone("t5")
    make = tags("{tokens}", backbone, readout="text", pad_to=4)
    prompts = make(row("the film was good", ["THING", "DOING", "THING", "DOING"]))
    readout = TextReadout(Config(pad_to=4), make.task, make.pattern, backbone)
    assert len(prompts[0].gold) == 4
    expected = (text_of(backbone).answer_texts([prompts[0].gold[:3]])[0], "THING: the")
    assert readout.written(prompts, said(prompts, "THING: the")) == expected
    own = task("choice", "{text} .", text="text")
    verbalizer = {"THING": "one two three", "DOING": "one"}
    own = own.model_copy(update={"patterns": {"p": own.patterns["p"].model_copy(update={"verbalizer": verbalizer})}})
    for pad_to, expected in ((3, "THING"), (4, "one two")):
        readout = TextReadout(Config(pad_to=pad_to), own, own.pattern("p"), backbone)
        assert readout.gather(prompts, said(prompts, "one two"))[0] == expected
        assert readout.gather(prompts, said(prompts, "one"))[0] == "DOING"


# the whole chain


@pytest.mark.parametrize(("kind", "pad_to"), [("t5", 3), ("mt5", None)])
def test_answers_of_several_words_are_learned(kind, pad_to):
    """Through fit, with padding that is trained on and without; the answers are written, not chosen."""
    backbone = tiny.backbone(kind)
    rows = [("a good film", "one two"), ("it is bad", "three"), ("fine", "one five")]
    readout, prompts = written(backbone, rows=rows, kind="text", pad_to=pad_to, longest=4)
    full = METHODS.load("full")
    learner = Learner(full(full.Config(), backbone), readout)
    settings = Train(epochs=40, lr=1e-2, batch_size=4, select="last")
    stepper, data = TorchStepper(learner, settings), PromptDataset(prompts, learner.method, 1)
    fit(stepper, data, None, settings, 0, lambda answers: 0.0)
    found = by_row(readout, prompts, evaluate(stepper, data, Train(eval_batch=2)))
    assert [row.answer for row in found] == [row.gold for row in found] == ["one two", "three", "one five"]


def test_a_model_of_another_padding_starts_where_its_configuration_says():
    config = tiny.config("t5")
    config.decoder_start_token_id = 0
    _, prompts = written(backbone_from_config(config, tiny.tokenizer(False, sentinel=True)))
    assert all(prompt.target[0] == 0 for prompt in prompts)

"""The text side of a backbone: loaded alone, it makes the prompts that the whole backbone makes."""

from __future__ import annotations

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from raypft.backbones.load import backbone_from_config, load_backbone
from raypft.backbones.text_load import load_text
from raypft.backbones.text_masked import MaskedTokenizer
from raypft.batch import collate
from raypft.contract import cases, tiny
from raypft.errors import UserError
from raypft.readouts import READOUTS
from raypft.tasks.load import load_task
from raypft.tasks.prompts import readable, render
from raypft.tasks.query import Demonstration, Piece, Query
from raypft.training.encode import Encoder

QUERY = Query(
    (), (Piece("text", "the film was good", field=True), Piece("text", " it was"), Piece("slot", mark="slot"))
)


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_the_text_side_alone_encodes_as_with_the_model(tmp_path, kind):
    made = tiny.backbone(kind)
    for part in (made.model, made.text.tokenizer):
        part.save_pretrained(tmp_path)
    alone, beside = load_text(str(tmp_path)), load_backbone(str(tmp_path)).text
    assert alone.encode(QUERY, "en/1", "en", 9) == beside.encode(QUERY, "en/1", "en", 9)
    facts = [
        (text.family, text.takes_demos, text.pad, text.vocab_size, text.source, text.revision)
        for text in (alone, beside)
    ]
    assert facts[0] == facts[1]
    assert facts[0][:4] == (made.family, kind == "llama", 1, made.config.vocab_size)


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_a_model_runs_without_a_text_side(kind):
    prompts = [tiny.backbone(kind).text.encode(QUERY)]
    model = backbone_from_config(tiny.config(kind))
    assert model(collate(prompts, model.pad)).shape == (1, tiny.HIDDEN)
    assert (model.source, model.revision) == (None, "in memory")


PAIRS = {"bert": "<s> $A </s> $B:1 </s>:1", "xlmr": "<s> $A </s> </s> $B </s>"}
"""How the tokenizers of BERT and of XLM-R lay a pair out, with the first type of BERT's second segment."""


@pytest.mark.parametrize("name", ["amazon profit0", "amazon profit1", "xnli profit0", "pawsx profit0", "pawsx profit2"])
@pytest.mark.parametrize("kind", PAIRS)
def test_one_segment_of_profit_is_a_pair_with_nothing_behind(kind, name):
    """<sep> at a pattern's end: one end token more for BERT, of the second type, two more for XLM-R."""
    tokenizer = tiny.tokenizer(special=True, segments=kind == "bert")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair=PAIRS[kind], special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    text = MaskedTokenizer(tokenizer, tiny.config(kind))
    task = load_task(name.split()[0])
    row = {"review_body": "a good film", "premise": "the film was good", "hypothesis": "it is bad"}
    query = render(task, task.pattern(name.split()[1]), row, "en")
    shown = readable(query).replace("<slot>", "<mask>").removesuffix(" <sep>")
    made, expected = (
        text.encode(query),
        tokenizer.backend_tokenizer.encode(shown, ""),
    )  # transformers drops an empty text
    assert made.ids == expected.ids
    assert made.segments == expected.type_ids
    ends = [2] * {"bert": 2, "xlmr": 3}[kind]
    shorter = text.encode(query, max_tokens=len(made.ids) - 1).ids
    assert made.ids[-len(ends) :] == shorter[-len(ends) :] == ends  # they count when a prompt is cut
    assert len(shorter) == len(made.ids) - 1


@pytest.mark.parametrize(
    ("kind", "text", "max_tokens", "message"),
    [
        (
            "bert",
            "{text} it was <slot>",
            5,
            "train.max_tokens: the pattern (row en/0) needs 4 tokens for its fixed parts",
        ),
        ("gpt2", "{text} <slot> .", 128, "pattern: a causal model reads the answer at the end"),
        ("bert", "<demos>{text} <slot>", 128, "demos: a masked model takes no demonstrations"),
        ("t5", "<demos>{text} <slot>", 128, "demos: a text-to-text model takes no demonstrations"),
    ],
)
def test_an_error_of_a_prompt_names_the_key_to_set(kind, text, max_tokens, message):
    task, reads = cases.task(), READOUTS.load("verbalizer")
    pattern = task.pattern("causal").model_copy(update={"text": text})
    demos = (Demonstration({"text": "a bad film"}, "negative", "en"),) if "<demos>" in text else ()
    encoder = Encoder(task, pattern, tiny.backbone(kind).text, 0, max_tokens, reads, reads.Config(), demos)
    with pytest.raises(UserError) as raised:
        encoder({"id": 0, "language": "en", "text": "the film was good", "label": "positive"})
    assert str(raised.value).startswith(message)


def folding(*pieces: str) -> PreTrainedTokenizerFast:
    """A tokenizer that puts a blank before every text and takes line breaks for blanks, as XGLM's does."""
    inner = Tokenizer(models.Unigram([("<unk>", -9.0), *((piece, -1.0) for piece in pieces)], unk_id=0))
    inner.normalizer = normalizers.Sequence(
        [normalizers.Replace("\n", " "), normalizers.Strip(left=False), normalizers.Replace(Regex(" +"), " ")]
    )
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    inner.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


PIECES = (":", "(", ")", "▁", "▁:", "▁(", "▁hello", "hello", "▁world", "world", "▁Message", "Message", "▁Mood", "▁good")


@pytest.fixture
def folds():
    """The text side of a causal model with such a tokenizer."""
    return backbone_from_config(tiny.config("llama"), folding(*PIECES)).text


def read(text, ids) -> list[str]:
    return text.tokenizer.convert_ids_to_tokens(ids)


def test_the_first_piece_is_kept_where_a_tokenizer_takes_line_breaks_for_blanks(folds):
    assert read(folds, folds.tokenize("Message: hello world")) == ["Message", ":", "▁hello", "▁world"]
    assert read(folds, folds.tokenize(" hello world")) == ["▁hello", "▁world"]
    assert read(folds, folds.tokenize("hello")) == ["hello"]
    assert read(folds, folds.word_ids("good", " ")) == ["▁good"]
    assert folds.tokenize("") == []
    ids, starts, ends = folds.offsets("hello world")
    assert read(folds, ids) == ["hello", "▁world"]
    assert (starts, ends) == ([0, 6], [5, 11])


def test_a_line_break_that_makes_no_token_is_a_blank_before_what_follows(folds):
    """In a pattern, as <sep>, and between demonstrations; nothing is lost and no words grow together."""
    demos = (
        Piece("text", "Message:"),
        Piece("text", " hello", field=True),
        Piece("text", "\nMood:"),
        Piece("text", " good", mark="demo_label"),
        Piece("text", "\n"),
    )
    asked = (Piece("text", "Message:"), Piece("text", " world", field=True), Piece("sep"), Piece("text", "Mood:"))
    made = folds.encode(Query(demos, (*asked, Piece("slot", mark="slot"))))
    shown = ["▁Message", ":", "▁hello", "▁Mood", ":", "▁good"]
    assert read(folds, made.ids) == [*shown, "▁Message", ":", "▁world", "▁Mood", ":"]
    assert made.marks == {"demo_label": [5], "slot": [10]}
    assert made.demo_tokens == 6


def test_what_a_tokenizer_lacks_is_named():
    """No mask token, no sentinel, no end token, no places; soft tokens need none of them."""
    plain = tiny.tokenizer(special=True)
    plain.mask_token = None
    masked = backbone_from_config(tiny.config("bert"), plain).text
    slot, soft = Piece("slot", mark="slot"), Piece("soft", mark="soft", count=2)
    with pytest.raises(UserError, match="has no mask token, which <slot> stands for"):
        masked.encode(Query((), (Piece("text", "the film"), slot)))
    assert len(masked.encode(Query((), (Piece("text", "the film"), soft))).marks["soft"]) == 2
    without = backbone_from_config(tiny.config("t5"), tiny.tokenizer(special=False)).text
    with pytest.raises(UserError, match="has no <extra_id_0>"):
        without.encode(Query((), (Piece("text", "the film"), slot)))
    bare = tiny.tokenizer(special=False)
    bare.eos_token = bare.unk_token = None
    causal = backbone_from_config(tiny.config("llama"), bare).text
    assert len(causal.encode(Query((), (Piece("text", "the film"), soft, slot))).marks["soft"]) == 2
    with pytest.raises(UserError, match="has no end token"):
        backbone_from_config(tiny.config("t5"), bare)

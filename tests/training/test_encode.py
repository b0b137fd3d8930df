"""Rows become prompts: one, one a word, parts of a sentence, or windows of a passage; each slot with its gold."""

from __future__ import annotations

import gc
import re
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from raypft.backbones.load import backbone_from_config
from raypft.backbones.text import PromptError
from raypft.batch import collate
from raypft.contract import tiny
from raypft.data.sampling import Sample
from raypft.encoded import Encoded, Passage, shared_tokens
from raypft.errors import UserError
from raypft.readouts import READOUTS
from raypft.records import sealed
from raypft.tasks.kinds import KINDS
from raypft.tasks.task import Label, Pattern, Source, Task, Wording
from raypft.training import encode
from raypft.training.encode import Encoder
from raypft.training.rows import EncodedRows, columns_of, packed, write
from raypft.training.rows import asked as asked_of

SPECIAL = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
WORDS: dict[str, str | list[str]] = {"THING": "good", "DOING": "bad"}


def task(kind: str, asks: str, **fields) -> Task:
    """A task with one pattern "p"."""
    names = {"tags": list(WORDS), "choice": list(WORDS)}.get(kind, [])
    pattern = Pattern(text=asks, verbalizer=WORDS if "<slot>" in asks else None, source="test")
    return Task(
        name="tiny",
        about="test",
        kind=KINDS[kind],
        fields=fields,
        label=Label(names=names),
        languages=["en"],
        metric="accuracy",
        sources={"files": Source(files={"train": "x"})},
        patterns={"p": pattern},
    )


def encoder(task: Task, backbone, readout: str, max_tokens: int = 64, **options) -> Encoder:
    reads = READOUTS.load(readout)
    return Encoder(task, task.pattern("p"), backbone.text, 0, max_tokens, reads, reads.Config(**options))


def tags(text: str, backbone, max_tokens: int = 64, readout: str = "head", **options) -> Encoder:
    return encoder(task("tags", text, tokens="tokens"), backbone, readout, max_tokens, **options)


def spans(backbone, max_tokens: int = 64, text: str = "{question} <sep> {context}", **options) -> Encoder:
    return encoder(task("span", text, question="question", context="context"), backbone, "span", max_tokens, **options)


def row(words: str | list[str], label: list[str] | None = None) -> dict:
    return {"id": "7", "language": "en", "tokens": words.split() if isinstance(words, str) else words, "label": label}


def asked(question: str, context: str, *answers: str) -> dict:
    return {
        "id": "7",
        "language": "en",
        "question": question,
        "context": context,
        "label": list(answers) or None,
        "starts": [context.index(a) for a in answers],
    }


def read(backbone, prompt) -> list[str]:
    return backbone.text.tokenizer.convert_ids_to_tokens(prompt.ids)


# one prompt a word

ASKS = "{tokens} <sep> {token} is <slot> ."


PATTERNS = {
    "before the slot": "{tokens} <sep> {token} is <slot>",
    "first": "{token} <sep> {tokens} is <slot>",
    "between marks": "({token}) in {tokens}: <slot>",
    "twice": "{tokens} <sep> {token}, {token} is <slot>",
}


def outcome(make):
    """What is made, or the line that refuses it."""
    try:
        return make()
    except PromptError as error:
        return str(error)


@pytest.mark.parametrize("text", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("kind", ["bert", "xlmr", "gpt2", "llama", "t5", "mt5"])
def test_prompts_of_a_sentence_are_those_of_each_word_encoded_alone(kind, text):
    """Longer, shorter and empty words after others, where the sentence is cut for some of them and where it is not."""
    words = ["was", "unbelievable", "", "a", "films,", "unbelievably good", "a"]
    encoder = tags(text, tiny.backbone(kind), readout="verbalizer")
    query, own = encoder.render({**row("was unbelievable a films"), "token": ""}), encoder.text
    whole = len(own.encode(query.about("unbelievable")).ids)
    for size in range(1, whole + 3):
        alone = outcome(lambda size=size: [own.encode(query.about(word), "en/7", "en", size) for word in words])
        assert outcome(lambda size=size: own.encode_words(query, words, "en/7", "en", size)) == alone, f"{size} tokens"


def test_a_prompt_a_word_with_its_gold_and_number():
    backbone = tiny.backbone("xlmr")
    made = tags(ASKS, backbone, readout="verbalizer")(row("the film was", ["THING", "DOING", "THING"]))
    assert [read(backbone, prompt)[6:8] for prompt in made] == [["the", "is"], ["film", "is"], ["was", "is"]]
    assert [prompt.gold for prompt in made] == [[0], [1], [0]]
    assert [prompt.part for prompt in made] == [0, 1, 2]
    assert [prompt.name for prompt in made] == ["en/7#0", "en/7#1", "en/7#2"]
    assert [prompt.answers for prompt in made] == [["good"], ["bad"], ["good"]]
    assert all([read(backbone, prompt)[i] for i in prompt.marks["slot"]] == ["<mask>"] for prompt in made)
    assert all(prompt.marks["word"] == [6] for prompt in made)


def test_the_queried_word_is_cut_last():
    """Down to one token the sentence pays; only then the word does."""
    backbone = tiny.backbone("xlmr")
    sentence = row(["one:two:three", "four"])
    whole = read(backbone, tags(ASKS, backbone, 64, "verbalizer")(sentence)[0])
    assert whole == [
        "<s>",
        "one",
        ":",
        "two",
        ":",
        "three",
        "four",
        "</s>",
        "</s>",
        "one",
        ":",
        "two",
        ":",
        "three",
        "is",
        "<mask>",
        ".",
        "</s>",
    ]
    for size, sentence_tokens, word_tokens in ((18, 6, 5), (14, 2, 5), (13, 1, 5), (12, 1, 4), (9, 1, 1)):
        made = tags(ASKS, backbone, size, "verbalizer")(sentence)[0]
        found = read(backbone, made)
        first = found.index("</s>")
        assert (first - 1, found.index("is") - first - 2) == (sentence_tokens, word_tokens), size
        assert len(found) == size


# one slot a word


def test_each_word_has_a_slot_at_its_first_token():
    backbone = tiny.backbone("xlmr")
    (made,) = tags("Review : {tokens}", backbone)(row(["the", "one:two", "film"], ["THING", "DOING", "THING"]))
    assert read(backbone, made) == ["<s>", "Review", ":", "the", "one", ":", "two", "film", "</s>"]
    assert made.marks["slot"] == [3, 4, 7]
    assert made.gold == [0, 1, 0]


@pytest.mark.parametrize("kind", ["xlmr", "llama"])
def test_words_that_the_tokenizer_drops_or_that_are_empty_have_a_slot(kind):
    backbone = tiny.backbone(kind)
    for words in (["", "film", " "], ["", ""], ["the", "", "film"]):
        (made,) = tags("{tokens}", backbone)(row(words, ["THING"] * len(words)))
        assert len(made.marks["slot"]) == len(set(made.marks["slot"])) == len(made.gold) == len(words)
        assert [read(backbone, made)[i] for i in made.marks["slot"]] == [word.strip() or "<unk>" for word in words]
        assert collate([made], 1).slots.shape == (len(words), 2)
    (_, empty) = tags("{tokens} <sep> {token} is", backbone)(row(["the", ""], ["THING"] * 2))
    assert read(backbone, empty)[empty.marks["word"][0]] == "<unk>"


def test_a_long_sentence_is_cut_between_words_into_parts_that_fit():
    backbone = tiny.backbone("xlmr")
    words = ["one", "two:three", "four", "five:six:seven", "eight", "a", "film"]
    (whole,) = tags("{tokens} .", backbone)(row(words, ["THING", "DOING"] * 3 + ["THING"]))
    made = tags("{tokens} .", backbone, 8)(row(words, ["THING", "DOING"] * 3 + ["THING"]))
    texts = [read(backbone, part)[1:-2] for part in made]
    assert texts == [["one", "two", ":", "three", "four"], ["five", ":", "six", ":", "seven"], ["eight", "a", "film"]]
    assert [token for text in texts for token in text] == read(backbone, whole)[1:-2]
    assert [gold for part in made for gold in part.gold] == whole.gold
    assert [part.part for part in made] == [0, 1, 2]
    assert [len(part.marks["slot"]) for part in made] == [3, 1, 3]
    assert [part.answers for part in made][1] == ["DOING: five:six:seven"]


def test_one_word_that_fits_nowhere_is_cut():
    backbone = tiny.backbone("xlmr")
    made = tags("{tokens} .", backbone, 6)(row(["a", "one:two:three:four", "film"]))
    assert [read(backbone, part)[1:-2] for part in made] == [["a"], ["one", ":", "two"], ["film"]]
    assert [part.gold for part in made] == [[-1]] * 3
    first, second = tags("{tokens} .", backbone, 6)(row(["one:two:three:four", "film"]))
    assert [read(backbone, part)[1:-2] for part in (first, second)] == [["one", ":", "two"], ["film"]]
    assert (first.part, second.part) == (0, 1)


def byte_level():
    """A causal model whose " a" is one token and "a" as many as it has bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *letters, "Ġa", "ab", "Ġab"])}
    inner = Tokenizer(models.BPE(vocabulary, [("Ġ", "a"), ("a", "b"), ("Ġ", "ab")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.post_processor = processors.ByteLevel(trim_offsets=False)
    inner.decoder = decoders.ByteLevel()
    special = {name: value for name, value in SPECIAL.items() if name in ("pad_token", "eos_token", "unk_token")}
    return backbone_from_config(tiny.config("gpt2"), PreTrainedTokenizerFast(tokenizer_object=inner, **special))


def test_parts_are_full_where_a_word_is_longer_without_its_blank():
    """Without a blank "xab" is two tokens, with one three: a part's first word has none; no token is lost or wasted."""
    backbone = byte_level()
    assert [len(backbone.text.tokenize(text)) for text in ("xab", " xab")] == [2, 3]
    made = tags("{tokens}", backbone, 8)(row(["xab"] * 5))
    assert [len(part.ids) for part in made] == [8, 5]
    assert "".join(backbone.text.tokenizer.decode(part.ids) + " " for part in made).split() == ["xab"] * 5


# windows of a passage


def real(kind: str, texts: list[str]):
    """A model with a tokenizer trained on the texts: WordPiece as BERT's, Unigram as XLM-R's and Llama-2's,
    byte-level BPE as GPT-2's."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    if kind == "bert":
        inner = Tokenizer(models.WordPiece(unk_token="<unk>"))
        inner.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
        inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=400, min_frequency=2, special_tokens=special)
    elif kind in ("xlmr", "llama"):
        inner = Tokenizer(models.Unigram())
        inner.normalizer = normalizers.Sequence(
            [
                normalizers.NFKC(),
                *([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")] if kind == "llama" else []),
            ]
        )
        inner.pre_tokenizer = (
            pre_tokenizers.Metaspace() if kind == "xlmr" else pre_tokenizers.Split("▁", "merged_with_next")
        )
        trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>")
    else:
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.post_processor = processors.ByteLevel(trim_offsets=False)
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
    inner.train_from_iterator([*texts, "a b"], trainer)
    if kind in ("bert", "xlmr"):
        inner.post_processor = tiny.tokenizer(special=True).backend_tokenizer.post_processor
    return backbone_from_config(tiny.config(kind), PreTrainedTokenizerFast(tokenizer_object=inner, **SPECIAL))


PASSAGES = [
    ("Who sleeps in the yard?", "In the old yard, the two dogs sleep; a cat watches.", "the two dogs"),
    ("Wo schläft er?", "Er schläft im Haus am großen Fluß.", "im Haus am großen Fluß"),
    ("谁住在北京?", "王先生一九八〇年出生于上海,现在住在北京。", "王先生"),
    ("แมวอยู่ที่ไหน", "แมวตัวเล็กอยู่ที่บ้านหลังใหญ่ริมแม่น้ำ", "บ้านหลังใหญ่"),
    ("कौन?", "राजा दशरथ के चार पुत्र थे, राम सबसे बड़े थे।", "चार पुत्र"),
    ("Qui?", "Le cafe\u0301 de Zoe\u0308 est ferme\u0301 le lundi.", "cafe\u0301 de Zoe\u0308"),
    ("من؟", "ذهب أحمدُ إلى المدرسةِ صباحًا.", "أحمدُ"),
    ("Who?", "  Two blanks  before  Anna Smith .", "Anna Smith"),
]


def marked(window) -> str | None:
    """The characters from the slot flagged as start to the one flagged as end; None where no answer is in the
    window."""
    first, last = (next(i for i, gold in enumerate(window.gold) if gold & flag) for flag in (1, 2))
    return window.passage.text[window.passage.starts[first] : window.passage.ends[last]] if first else None


@pytest.mark.parametrize("kind", ["bert", "xlmr", "gpt2", "llama"])
@pytest.mark.parametrize(
    "text", ["{question} <sep> {context}", "{context} <sep> {question}", "{context|strip} ? {question}"]
)
def test_gold_slots_stand_for_exactly_the_answer_in_any_script(kind, text):
    backbone = real(kind, [part for passage in PASSAGES for part in passage])
    for question, context, answer in PASSAGES:
        (window,) = spans(backbone, 150, text)(asked(question, context, answer))
        assert marked(window) == answer
        assert window.passage is not None
        assert window.passage.text == context
        assert len(window.passage.starts) == len(window.passage.ends) == len(window.gold) == len(window.marks["slot"])


@pytest.mark.parametrize("kind", ["bert", "xlmr", "gpt2", "llama"])
def test_offsets_belong_to_the_tokens_of_the_same_text(kind):
    """With or without a blank in front, and where a tokenizer begins every text with a blank."""
    backbone = real(kind, [part for passage in PASSAGES for part in passage])
    for _, context, _ in PASSAGES:
        for text in (context, f" {context}"):
            ids, starts, ends = backbone.text.offsets(text)
            assert ids == backbone.text.tokenize(text)
            assert all(not text[start:end][:1].isspace() for start, end in zip(starts, ends))
            covered = {i for start, end in zip(starts, ends) for i in range(start, end)}
            assert covered >= {i for i, character in enumerate(text) if not character.isspace()}


def test_windows_move_by_the_stride_and_flag_the_answer():
    backbone = tiny.backbone("xlmr")
    made = spans(backbone, 10, window_stride=3)(asked("Yes", "one two three four five six seven eight", "five six"))
    # <s> Yes </s> </s> ... </s>: five passage tokens a window
    texts = [[read(backbone, part)[i] for i in part.marks["slot"]] for part in made]
    assert texts == [["<s>", *words.split()] for words in ("one two three four five", "four five six seven eight")]
    assert [part.gold for part in made] == [[3, 0, 0, 0, 0, 0], [0, 0, 1, 2, 0, 0]], "half an answer is none"
    assert [part.part for part in made] == [0, 1]
    assert all(len(part.ids) == 10 for part in made)
    assert [marked(part) for part in made] == [None, "five six"]
    assert all(part.answers == ["five six"] for part in made)
    single = spans(backbone, 10, window_stride=3)(asked("Yes", "one two three four five six", "four"))
    assert [part.gold for part in single] == [[0, 0, 0, 0, 3, 0], [0, 3, 0, 0]]


@pytest.mark.parametrize("kind", ["bert", "xlmr"])
@pytest.mark.parametrize("overlap", [0, 1, 4])
def test_windows_that_share_tokens_are_those_of_the_tokenizer(kind, overlap):
    """Tu et al. let transformers cut the passage; its stride is what two windows share."""
    backbone = tiny.backbone(kind)
    context = " ".join(tiny.WORDS[:30])
    made = spans(backbone, 16, window_overlap=overlap)(asked("was it fine ?", context, "one"))
    plain = backbone.text.tokenizer(
        "was it fine ?",
        context,
        truncation="only_second",
        max_length=16,
        stride=overlap,
        return_overflowing_tokens=True,
    )
    assert len(made) > 3
    assert [prompt.ids for prompt in made] == plain["input_ids"]


@pytest.mark.parametrize("tokens", range(1, 12))
@pytest.mark.parametrize("stride", [1, 3, 4, 128])
def test_every_passage_token_is_in_a_window_and_no_window_is_needless(tokens, stride):
    words = "one two three four five six seven eight the a film"
    context = " ".join(words.split()[:tokens])
    made = spans(tiny.backbone("xlmr"), 10, window_stride=stride)(asked("Yes", context, "one"))
    covered = [{*part.passage.starts[1:]} for part in made if part.passage]
    assert set().union(*covered) == {context.index(word) for word in context.split()}
    assert all(len(part.ids) <= 10 for part in made)
    assert len(made) == (1 if tokens <= 5 else 1 + -(-(tokens - 5) // min(stride, 5)))


def test_a_question_takes_half_a_window_at_most_and_is_the_same_in_all():
    backbone = tiny.backbone("xlmr")
    question = "the film was good it is bad one two three four"
    made = spans(backbone, 14, window_stride=128)(asked(question, "one two three four five six seven eight", "eight"))
    shown = [read(backbone, part) for part in made]
    assert [part[: part.index("</s>")] for part in shown] == [["<s>", "the", "film", "was"]] * 2, (
        "7 tokens with the special ones"
    )
    assert [len(part.marks["slot"]) for part in made] == [8, 2]


def test_of_several_answers_the_first_is_trained_on_and_all_are_kept():
    (made,) = spans(tiny.backbone("xlmr"))(asked("Yes ?", "one two three four", "three", "two three"))
    assert marked(made) == "three"
    assert made.answers == ["three", "two three"]


def test_the_passage_may_be_called_otherwise_in_the_rows():
    own = task("span", "{question} <sep> {context}", question="ask", context="document")
    (made,) = encoder(own, tiny.backbone("xlmr"), "span")(
        {"id": "1", "language": "en", "ask": "Yes ?", "document": "one two", "label": ["two"], "starts": [4]}
    )
    assert marked(made) == "two"


def test_a_passage_of_characters_the_tokenizer_drops_has_a_slot():
    backbone = tiny.backbone("xlmr")
    (made,) = spans(backbone)(asked("Yes ?", "   "))
    assert [read(backbone, made)[i] for i in made.marks["slot"]] == ["<s>", "<unk>"]


# rows without gold, and records


def choice(backbone) -> Encoder:
    return encoder(task("choice", "{text} <slot>", text="text"), backbone, "verbalizer")


def everything(labelled: bool) -> list:
    """Prompts of every kind of task and form of pattern."""
    backbone, decoder = tiny.backbone("xlmr"), tiny.backbone("t5")
    sentence = row("the film was", ["THING", "DOING", "THING"] if labelled else None)
    question = asked("Yes ?", "one two three four five six", *(["two three"] if labelled else []))
    classed = {"id": "1", "language": "en", "text": "a film", "label": "DOING" if labelled else None}
    makers = [
        (tags(ASKS, backbone, readout="verbalizer"), sentence),
        (tags("{tokens}", backbone, 6), sentence),
        (tags("{tokens}", tiny.backbone("gpt2"), 6), sentence),
        (tags(ASKS, decoder, readout="verbalizer"), sentence),
        (spans(backbone, 10, window_stride=2), question),
        (spans(tiny.backbone("llama"), 10, window_stride=2), question),
        (choice(backbone), classed),
        (choice(decoder), classed),
    ]
    return [prompt for make, asked_row in makers for prompt in make(asked_row)]


def test_gold_of_rows_without_labels_is_unknown_everywhere():
    for prompt in everything(labelled=False):
        assert prompt.gold == [-1] * len(prompt.marks["slot"])
    assert all(-1 not in prompt.gold for prompt in everything(labelled=True))


@pytest.mark.parametrize("labelled", [True, False])
def test_prompts_survive_arrow(labelled, tmp_path):
    """In memory, in mapped files, and as pieces of larger batches."""
    written = [
        tags("{tokens}", tiny.backbone("mt5"), readout="text")(row("the film"))[0],
        choice(tiny.backbone("mt5"))({**row(""), "text": "x"})[0],
    ]
    prompts = [*everything(labelled), *written]
    assert any(prompt.passage for prompt in prompts)
    files = [tmp_path / "1", tmp_path / "2", tmp_path / "3"]
    assert [write(prompts[:2], files[0]), write([], files[1]), write(prompts[2:], files[2])] == [2, 0, len(prompts) - 2]
    whole = columns_of(prompts)
    of_columns = (EncodedRows([whole.slice(0, 3), whole.slice(3)]), EncodedRows([packed(whole).slice(1)]))
    for rows, expected in zip(
        (EncodedRows.of(prompts), EncodedRows.read(files), *of_columns),
        (prompts, prompts, prompts, prompts[1:]),
        strict=True,
    ):
        assert list(rows) == rows[:] == [rows[number] for number in range(len(rows))] == expected
        assert rows[-1] == expected[-1]
        assert rows.lengths.tolist() == [len(prompt.ids) for prompt in expected]
        assert rows.numbers.tolist() == [prompt.part for prompt in expected]
        assert rows.demo_tokens.tolist() == [prompt.demo_tokens for prompt in expected]
        assert rows.languages.tolist() == [prompt.language for prompt in expected]
    with pytest.raises(IndexError):
        EncodedRows.of(prompts)[len(prompts)]
    assert list(EncodedRows.of([]) + EncodedRows.of(prompts) + EncodedRows.of(prompts[:1])) == [*prompts, prompts[0]]
    assert list(EncodedRows.of([])) == []


def test_many_prompts_take_few_bytes():
    """At most 8 bytes a token and 300 a prompt, also where token ids need four each."""
    prompt = choice(tiny.backbone("bert"))({**row(""), "text": "the film was a good one"})[0]
    many = [prompt.but(ids=[250_000 + n % 7 for n in prompt.ids], key=f"en/test-{number:06}") for number in range(1000)]
    batch = packed(columns_of(many))
    assert batch.nbytes <= 1000 * (8 * len(prompt.ids) + 300)
    assert list(EncodedRows([batch])) == many


@pytest.mark.parametrize(
    ("shown", "ids", "shared"),
    [
        ((2, 2), ([1, 2, 3], [1, 2, 4, 5]), 2),
        ((0, 0), ([1, 2, 3], [1, 2, 4]), 0),
        ((2, 1), ([1, 2, 3], [1, 2, 4]), 0),
        ((2, 2), ([1, 2, 3], [1, 3, 3]), 0),
        ((2, 2), ([1, 2, 3], [1, 2]), 0),  # nothing is behind them
    ],
)
def test_demonstrations_are_shared_where_all_prompts_begin_with_them(shown, ids, shared):
    prompt = choice(tiny.backbone("gpt2"))({**row(""), "text": "x"})[0]
    prompts = [prompt.but(ids=list(own), demo_tokens=size) for own, size in zip(ids, shown, strict=True)]
    assert shared_tokens(prompts) == shared


def test_numbers_take_the_least_type_that_holds_all_of_them():
    for low, high, kind in ((-1, 127, "int8"), (0, 255, "uint8"), (-1, 128, "int16"), (0, 65535, "uint16"),
                            (0, 65536, "int32"), (-1, 2**31 - 1, "int32"), (0, 2**31, "int64")):  # fmt: skip
        (column,) = packed(pa.record_batch({"number": [low, high]})).columns
        assert (str(column.type), column.to_pylist()) == (kind, [low, high])


@pytest.mark.parametrize(
    "change",
    [
        {"ids": [1, 2, 4]},
        {"segments": [0, 1, 1]},
        {"ids": [1, 2], "segments": [3, 0]},
        {"marks": {"slot": [2]}},
        {"marks": {"soft": [1]}},
        {"marks": {"slot": [1], "soft": []}},
        {"wording": 1},
        {"target": [0]},
        {"passage": Passage("x", [0], [1])},
    ],
)
def test_what_an_answer_depends_on_tells_prompts_apart(change):
    prompt = Encoded("en/1", "en", [1, 2, 3], [0, 0, 1], {"slot": [1]})
    alike = prompt.but(key="de/2", language="de", gold=[7], part=1, answers=["x"])
    assert asked_of(prompt) == asked_of(alike) != asked_of(prompt.but(**change))
    assert EncodedRows.of([prompt, alike]).asked[0] == EncodedRows.of([alike]).asked[0]


def test_rows_are_encoded_into_shards_in_order(monkeypatch, tmp_path):
    """The parts of a row together; a folder that says which shards it has is whole."""
    from raypft.scale import data, encoding

    make = tags(ASKS, tiny.backbone("xlmr"), readout="verbalizer")
    monkeypatch.setattr(encoding, "_encoder", lambda job, demos: make)
    monkeypatch.setattr(data, "SHARD", 2)
    sentences = [
        {**row(words, ["THING"] * len(words.split())), "id": str(i)}
        for i, words in enumerate(["the film was", "a", "it is", "a good film"])
    ]
    table = pa.Table.from_pylist(sentences)
    sample = Sample(table.slice(0, 3), None, table.slice(3), None)
    shards = list(data._shards(sample))
    assert [(name, len(rows)) for name, rows in shards] == [
        ("train-000000.arrow", 2),
        ("train-000001.arrow", 1),
        ("test-000000.arrow", 1),
    ]
    asked = []
    for name, rows in shards:
        with pa.ipc.new_file(str(tmp_path / f"rows-{name}"), rows.schema) as writer:
            writer.write_table(rows)
        asked.append({"rows": str(tmp_path / f"rows-{name}"), "to": str(tmp_path / name), "encoder": 0})
    counts = encoding.encode_shards(pa.Table.from_pylist(asked), [("", "")])
    assert counts["prompts"].to_pylist() == [4, 2, 3]
    (tmp_path / data.SHARDS).write_text(sealed({"shards": {name: data._digest(tmp_path / name) for name, _ in shards}}))
    prompts = data.read_encoded(tmp_path)
    assert {role: list(rows) for role, rows in prompts.items()} == {
        "train": [prompt for own in sentences[:3] for prompt in make(own)],
        "test": make(sentences[3]),
    }


DAMAGES = {
    "whole": lambda shard, manifest: None,
    "a bit": lambda shard, manifest: shard.write_bytes(shard.read_bytes()[:-200] + b"x" + shard.read_bytes()[-199:]),
    "cut": lambda shard, manifest: shard.write_bytes(shard.read_bytes()[:-9]),
    "empty": lambda shard, manifest: shard.write_bytes(b""),
    "gone": lambda shard, manifest: shard.unlink(),
    "no manifest": lambda shard, manifest: manifest.unlink(),
    "half a manifest": lambda shard, manifest: manifest.write_bytes(manifest.read_bytes()[:-9]),
    "an older one": lambda shard, manifest: manifest.write_text('["train-000000.arrow"]'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_encoded_rows_that_are_not_whole_are_encoded_anew(damage, monkeypatch, tmp_path):
    from raypft.scale import data, encoding

    make, made = tags(ASKS, tiny.backbone("xlmr"), readout="verbalizer"), list[str]()
    rows = pa.Table.from_pylist([{**row("a good film", ["THING"] * 3), "id": "1"}])
    sample = Sample(rows, None, rows, None)

    def encoder(job: str, demos: str) -> Encoder:
        made.append(job)
        return make

    monkeypatch.setattr(encoding, "_encoder", encoder)
    monkeypatch.setattr(data, "encoded_folder", lambda cell: tmp_path)
    cell: Any = SimpleNamespace(sample=sample, job=SimpleNamespace(model_dump=dict))
    data.encode_on_ray([cell])
    expected = {role: list(prompts) for role, prompts in data.read_encoded(tmp_path).items()}
    shard, manifest = tmp_path / "train-000000.arrow", tmp_path / data.SHARDS
    DAMAGES[damage](shard, manifest)
    data.encode_on_ray([cell])
    assert len(made) == (2 if damage == "whole" else 4), "two shards, once or twice"
    assert {role: list(prompts) for role, prompts in data.read_encoded(tmp_path).items()} == expected


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "no manifest", "half a manifest", "an older one"])
def test_encoded_rows_that_a_worker_can_not_read_are_one_line(damage, tmp_path):
    from raypft.scale import data

    shard, manifest = tmp_path / "train-000000.arrow", tmp_path / data.SHARDS
    made = tags(ASKS, tiny.backbone("xlmr"), readout="verbalizer")(row("a film", ["THING"] * 2))
    write(made, shard)
    manifest.write_text(sealed({"shards": {shard.name: data._digest(shard)}}))
    assert list(data.read_encoded(tmp_path)["train"]) == made
    DAMAGES[damage](shard, manifest)
    with pytest.raises(UserError, match=re.escape(str(tmp_path))) as refused:
        data.read_encoded(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("searches", [True, False])
def test_garbage_is_not_searched_for_while_rows_are_encoded(searches, monkeypatch):
    """And is again behind it, if it was before, also where a row can't be encoded."""
    seen = list[bool]()
    sample: Any = SimpleNamespace(train=pa.table({"id": ["a"]}), dev=None, test=None, demos=None)

    def failing(row):
        seen.append(gc.isenabled())
        raise KeyError(row["id"])

    monkeypatch.setattr(encode, "Encoder", SimpleNamespace(of=lambda *_: failing))
    before = gc.isenabled()
    (gc.enable if searches else gc.disable)()
    try:
        with pytest.raises(KeyError):
            encode.encode_sample(None, None, sample)  # type: ignore[arg-type]
        after = gc.isenabled()
    finally:
        (gc.enable if before else gc.disable)()
    assert (seen, after) == ([False], searches)


def test_demonstrations_come_in_rounds_of_one_a_class():
    """In the order of the labels, whatever order they were drawn in; a class that has fewer is left out then."""
    rows = [{"id": f"{label}{i}", "label": label, "language": "en"} for label in "ab" for i in range(3)]
    table = pa.Table.from_pylist([row for row in rows if row["id"] != "a2"])
    task = SimpleNamespace(label=SimpleNamespace(names=["b", "a"]))
    resolved: Any = SimpleNamespace(
        task=task,
        pattern=None,
        method_config=SimpleNamespace(soft_tokens=0),
        job=SimpleNamespace(train=SimpleNamespace(max_tokens=8)),
        readout=None,
        readout_config=None,
    )
    encoder = Encoder.of(resolved, None, table)  # type: ignore[arg-type]
    assert [one.row["id"] for one in encoder.demos] == ["b0", "a0", "b1", "a1", "b2"]


@pytest.mark.parametrize("ids", [[], ["a0"], ["a0", "a1"]])
def test_demonstrations_of_no_class_or_of_one(ids):
    rows = [{"id": one, "label": one[0]} for one in [*ids, "c0"]]
    assert encode._by_class(rows, ["b", "a"]) == rows[:-1]
    assert encode._by_class(rows, []) == []


def test_a_prompt_says_which_wording_its_language_has_and_its_number_in_its_row():
    backbone = tiny.backbone("bert")
    own = task("tags", "{tokens} . {token} is <slot>", tokens="tokens")
    words = {"de": Wording(verbalizer={"THING": "one", "DOING": "two"}), "fr": Wording(verbalizer=WORDS)}
    own = own.model_copy(update={"patterns": {"p": own.patterns["p"].model_copy(update={"by_language": words})}})
    make = encoder(own, backbone, "verbalizer")
    for language, number, word in (("en", 0, "good"), ("de", 1, "one"), ("fr", 2, "good"), ("sw", 0, "good")):
        prompts = make({**row("the film"), "language": language})
        assert [(prompt.wording, prompt.part) for prompt in prompts] == [(number, 0), (number, 1)]
        assert make.word({"language": language}, "THING") == make.word({"language": language}, "THING") == word
        assert make.word({"language": language}, "no label") == "no label"
    assert tags("{tokens} . {token} is", backbone).asks_words
    assert not tags("{tokens}", backbone).asks_words


def test_labels_are_counted_by_language():
    own = task("tags", "{tokens}", tokens="tokens")
    rows = [{**row("a b", labels), "language": name} for name, labels in (("en", ["x", "y"]), ("en", ["y", "y"]))]
    rows.append({**row("a", ["x"]), "language": "de"})
    assert encode.label_distribution(own, rows) == {"en": {"x": 1, "y": 3}, "de": {"x": 1}}
    assert encode.label_distribution(task("text", "{text}", text="text"), rows) == {}


def test_prompts_and_tokens_are_estimated_from_the_first_rows_and_an_epoch_of_a_stream_has_its_rows():
    """Of ten training rows the first two have three prompts and one, of 5 tokens each."""
    train, test = pa.table({"parts": [3, 1, *[9] * 8]}), pa.table({"parts": [0, 0]})
    sample: Any = SimpleNamespace(train=train, dev=None, test=test, stream=None)
    made: Any = lambda row: [SimpleNamespace(ids=[0] * 5)] * row["parts"]  # noqa: E731
    some, whole = encode.expected(sample, made, 2), encode.expected(sample, made, 100)
    assert (encode.prompts_an_epoch(sample, some), some["train"].tokens) == (10 * 4 / 2, 5 * 20)
    assert encode.prompts_an_epoch(sample, whole) == 3 + 1 + 72
    assert (set(some), some["test"].prompts, some["test"].tokens) == ({"train", "test"}, 0, 0)
    sample.stream = SimpleNamespace(rows=77)
    assert encode.prompts_an_epoch(sample, some) == 77

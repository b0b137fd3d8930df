"""Rows become pieces, and pieces become tokens: what is cut where, and that marks point at what they mark."""

from __future__ import annotations

import pytest

from raypft.contract import tiny
from raypft.errors import UserError
from raypft.tasks.kinds import KINDS
from raypft.tasks.load import load_task
from raypft.tasks.prompts import first_word, readable, render, strip_final_punctuation
from raypft.tasks.query import Demonstration, Piece, Query
from raypft.tasks.task import Label, Pattern, Source, Task, Wording

ROW = {"premise": "it was good .", "hypothesis": "it was bad"}
WORDS = {"entailment": "Yes", "contradiction": ["No", "Wrong"]}


def task(text: str, **pattern) -> Task:
    """A task of sentence pairs with one pattern, `p`."""
    return Task(
        name="pairs",
        about="",
        kind=KINDS["choice"],
        fields={"a": "premise", "b": "hypothesis"},
        label=Label(names=list(WORDS)),
        languages=["en", "de"],
        metric="accuracy",
        sources={"files": Source(files={"train": "train"})},
        patterns={"p": Pattern(text=text, verbalizer=WORDS, source="", **pattern)},
    )


def cut(text: str, soft_length: int = 0, demos=(), language: str = "en", row=ROW, **pattern) -> Query:
    """The query of ROW under a pattern's text."""
    made = task(text, **pattern)
    return render(made, made.pattern("p"), row, language, soft_length, demos)


def text(value: str, field: bool = False, mark: str | None = None) -> Piece:
    """A piece of text."""
    return Piece("text", value, mark=mark, field=field)


def slot(blank: str) -> Piece:
    """The piece where the answer is read."""
    return Piece("slot", blank, mark="slot")


def test_the_passage_of_a_question_is_marked_where_its_answer_may_be():
    asked = task("{a} {b} <slot>").model_copy(update={"kind": KINDS["span"], "fields": {"a": "q", "context": "c"}})
    pattern = Pattern(text="{a} {context}", source="")
    pieces = render(asked, pattern, {"q": "who ?", "c": "she did"}, "en", 0, ()).pieces
    assert pieces == (text("who ?", field=True), text(" she did", field=True, mark="passage"))


def test_text_is_cut_at_its_markup_and_a_blank_goes_to_the_piece_after_it():
    assert cut("{a} ? <sep> <slot> , {b}").pieces == (
        text("it was good .", field=True),
        text(" ?"),
        Piece("sep"),
        slot(" "),
        text(" ,"),
        text(" it was bad", field=True),
    )


def test_a_literal_keeps_its_own_leading_blank_and_a_line_break_is_no_blank():
    assert cut("Q: {a}\n<slot> .").pieces == (
        text("Q:"),
        text(" it was good .", field=True),
        text("\n"),
        slot(""),
        text(" ."),
    )


def test_strip_takes_final_punctuation_off_that_field_only():
    assert cut("{a|strip} . {b}").pieces == (
        text("it was good ", field=True),
        text(" ."),
        text(" it was bad", field=True),
    )


def test_soft_stands_for_as_many_tokens_as_asked_for():
    assert cut("{a} <soft> <slot>", soft_length=4).pieces[1:] == (Piece("soft", " ", mark="soft", count=4), slot(" "))


def test_markup_inside_a_row_is_text():
    row = {"premise": "<slot> {b} <demos>", "hypothesis": "x"}
    assert cut("{a} <slot>", row=row).pieces == (text("<slot> {b} <demos>", field=True), slot(" "))


def test_demonstrations_show_the_first_label_word_marked_and_leave_the_query_as_it_is():
    pattern = "<demos>{a} : <slot>"
    demos = [
        Demonstration({"premise": "one"}, "contradiction", "en"),
        Demonstration({"premise": "two"}, "entailment", "en"),
    ]
    query = cut(pattern, demos=demos, demo_separator=" | ")
    assert query.demos == (
        text("one", field=True),
        text(" :"),
        text(" No", mark="demo_label"),
        text(" | "),
        text("two", field=True),
        text(" :"),
        text(" Yes", mark="demo_label"),
        text(" | "),
    )
    assert query.pieces == cut(pattern).pieces == (text("it was good .", field=True), text(" :"), slot(" "))
    assert first_word(WORDS["contradiction"]) == "No"
    soft = cut("<demos>{a} <soft> <slot>", demos=demos[:1], soft_length=4, demo_separator=" | ")
    counts = [sum(piece.count for piece in pieces if piece.kind == "soft") for pieces in (soft.demos, soft.pieces)]
    assert counts == [0, 4], "soft tokens stand in the query alone"


def test_demonstrations_stay_away_from_a_pattern_without_a_place_for_them():
    assert cut("{a} : <slot>", demos=[Demonstration({"premise": "one"}, "entailment", "en")]).demos == ()


def test_a_demonstration_speaks_its_own_language():
    german = {"de": Wording(text="<demos>{a} = <slot>", verbalizer={"entailment": "Ja", "contradiction": "Nein"})}
    query = cut(
        "<demos>{a} : <slot>", demos=[Demonstration({"premise": "eins"}, "entailment", "de")], by_language=german
    )
    assert readable(query) == "eins = Ja\nit was good . : <slot>"


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("It is good.", "It is good"),
        ("Really?!", "Really"),
        ("Really?! ", "Really?! "),  # a blank is no punctuation
        ("He paid 5$+<=>^`|~", "He paid 5"),
        ("3 + 4 = 7%", "3 + 4 = 7"),
        ("A (b) c", "A (b) c"),
        ("他说：“很好。”", "他说：“很好。”"),
        ("他来了吗?", "他来了吗"),
        ("هل هذا جيد؟", "هل هذا جيد؟"),
        ("هذا جيد.", "هذا جيد"),
        ("यह अच्छा है।", "यह अच्छा है।"),
        ("क्या यह अच्छा है?", "क्या यह अच्छा है"),
        ("یہ اچھا ہے۔", "یہ اچھا ہے۔"),
        ("یہ اچھا ہے!", "یہ اچھا ہے"),
        ("?!", "?!"),
        ("?!。", "?!。"),
        ("", ""),
    ],
)
def test_final_ascii_punctuation_is_stripped_but_never_the_whole_text(given, left):
    """As `string.punctuation` of Zhao & Schuetze's code has it: not of other scripts, and no blanks."""
    assert strip_final_punctuation(given) == left


@pytest.mark.parametrize("name", ["sp", "dp", "mp"])
@pytest.mark.parametrize(
    ("premise", "hypothesis", "shown"),
    [
        ("Is 5 > 4?", "I pay 5$", ("Is 5 > 4", "I pay 5")),
        ("यह अच्छा है।", "वह गया.", ("यह अच्छा है।", "वह गया")),
        ("他走了。", "他走了!", ("他走了。", "他走了")),
        ("وہ گیا۔", "کیا وہ گیا؟", ("وہ گیا۔", "کیا وہ گیا؟")),
        ("هل هذا جيد؟", "هذا جيد.", ("هل هذا جيد؟", "هذا جيد")),
    ],
)
def test_prompts_of_zhao_and_schuetze_strip_both_fields_alike(name, premise, hypothesis, shown):
    xnli = load_task("xnli")
    row = {"premise": premise, "hypothesis": hypothesis}
    made = render(xnli, xnli.pattern(name), row, "en", 4)
    assert tuple(piece.text.strip() for piece in made.pieces if piece.field) == shown


def test_readable_shows_slot_soft_tokens_and_separator():
    assert (
        readable(cut("{a} <soft> ? <sep> <slot> , {b}", soft_length=3))
        == "it was good . <soft:3> ? <sep> <slot> , it was bad"
    )


# truncation, in tokens


def words(backbone, ids) -> list[str]:
    """Tokens as text."""
    return backbone.text.tokenizer.convert_ids_to_tokens(ids)


LONG = Query(
    (),
    (
        text("one two three four five six", field=True),
        text(" ?"),
        Piece("sep"),
        slot(""),
        text(" ,"),
        text(" yes no yes", field=True),
        Piece("soft", "", mark="soft", count=2),
    ),
)
"""A first field of six tokens, a second of three; 14 tokens in all, 18 with the special tokens of a masked model."""


@pytest.mark.parametrize(
    ("max_tokens", "first", "second"),
    [
        (18, "one two three four five six", "yes no yes"),
        (15, "one two three", "yes no yes"),
        (14, "one two three", "yes no"),
        (13, "one two", "yes no"),
        (12, "one two", "yes"),
        (11, "one", "yes"),
    ],
)
def test_only_fields_are_shortened_the_longest_first_one_token_at_a_time(max_tokens, first, second):
    """Of two fields as long as each other the second, as the released codes of ProFiT and Zhao & Schuetze do."""
    backbone = tiny.backbone("bert")
    encoded = backbone.text.encode(LONG, max_tokens=max_tokens)
    expected = f"<s> {first} ? </s> </s> <mask> , {second} <mask> <mask> </s>".split()
    assert len(encoded.ids) <= max_tokens
    assert words(backbone, encoded.ids) == expected
    at = expected.index("<mask>")
    assert encoded.marks == {"slot": [at], "soft": [len(expected) - 3, len(expected) - 2]}


def test_a_prompt_that_fits_nowhere_is_an_error_that_names_the_row_and_the_need():
    with pytest.raises(
        UserError,
        match=r"^the pattern \(row en/7\) needs 9 tokens for its fixed parts; "
        r"only 8 are left; raise max_tokens$",
    ):
        tiny.backbone("bert").text.encode(LONG, key="en/7", max_tokens=10)


DEMOS = (
    text("one two three four five six seven eight", field=True),
    text(" :"),
    text(" Positive", mark="demo_label"),
    text("\n"),
    text("bad bad bad bad", field=True),
    text(" :"),
    text(" Negative", mark="demo_label"),
    text("\n"),
)


def query(review: str) -> Query:
    """A query after DEMOS."""
    return Query(DEMOS, (text(review, field=True), text(" :"), slot(" ")))


def test_demonstrations_are_cut_once_and_are_the_same_in_every_prompt():
    backbone = tiny.backbone("gpt2")
    short, long = (
        backbone.text.encode(query(review), max_tokens=16)
        for review in ("good", "the film was good . the film was fine .")
    )
    expected = [
        "one",
        "two",
        "three",
        ":",
        "Positive",
        "\n",
        "bad",
        "bad",
        "bad",
        ":",
        "Negative",
        "\n",
    ]  # three quarters of 16 tokens
    assert short.demo_tokens == long.demo_tokens == len(expected)
    assert words(backbone, short.ids) == [*expected, "good", ":"]
    assert words(backbone, long.ids) == [*expected, "the", "film", "was", ":"]


def test_marks_of_a_causal_prompt_point_at_the_label_words_and_the_last_token():
    backbone = tiny.backbone("gpt2")
    for review, max_tokens in (("good", 64), ("the film was good . the film was fine .", 16)):
        encoded = backbone.text.encode(query(review), max_tokens=max_tokens)
        assert words(backbone, [encoded.ids[i] for i in encoded.marks["demo_label"]]) == ["Positive", "Negative"]
        assert encoded.marks["slot"] == [len(encoded.ids) - 1]


def test_demonstrations_that_fit_nowhere_are_an_error():
    with pytest.raises(
        UserError,
        match=r"^the demonstrations needs? 8 tokens for (its|their) fixed parts; "
        r"only 7 are left; raise max_tokens$",
    ):
        tiny.backbone("gpt2").text.encode(query("good"), max_tokens=10)


def test_a_causal_pattern_ends_with_its_slot_and_a_masked_model_takes_no_demonstrations():
    with pytest.raises(UserError, match="<slot> must be the last part"):
        tiny.backbone("gpt2").text.encode(LONG)
    with pytest.raises(UserError, match="a masked model takes no demonstrations"):
        tiny.backbone("bert").text.encode(query("good"))

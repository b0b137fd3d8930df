"""Rows of tagging, question-answering and running-text tasks: the layouts of the field, a faulty file in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
import yaml

from raypft.data.columns import normalise, with_own_ids
from raypft.data.formats import Columns
from raypft.data.origin import Origin, choose
from raypft.data.sources import languages_of, read_split
from raypft.errors import UserError
from raypft.tasks.load import load_task

TAGS = {
    "kind": "tags",
    "fields": {"tokens": "tokens"},
    "label": {"column": "tags", "names": ["A", "B", "O"]},
    "metric": "token_accuracy",
}
SPAN = {
    "kind": "span",
    "fields": {"question": "question", "context": "context"},
    "label": {"column": "answers"},
    "metric": "f1",
}
MLM = {"kind": "mlm", "fields": {"text": "text"}, "metric": "token_accuracy"}
TEXT = {"kind": "text", "fields": {"text": "text"}, "metric": "accuracy"}
SENTENCES = [
    {"id": "s1", "language": "en", "tokens": ["2020-01-01", "is", "here"], "tags": ["A", "O", "B"]},
    {"id": "s2", "language": "de", "tokens": ["Ja"], "tags": ["O"]},
]
CONTEXT = "Der Zug 🚂 fährt um 9 Uhr nach Köln."
QUESTION = {
    "id": "q1",
    "language": "en",
    "question": "Wohin?",
    "context": CONTEXT,
    "answers": {"text": ["Köln", "nach Köln"], "answer_start": [30, 25]},
}


@pytest.fixture
def origin(tmp_path):
    """The origin of a task with one source below tmp_path."""

    def origin(values: dict, **source) -> Origin:
        text = {"tags": "{tokens}", "span": "{question} {context}"}.get(values["kind"], "{text}")
        whole = {
            "about": "mine",
            "languages": ["en", "de", "fr", "es"],
            **values,
            "sources": {"mine": {"files": {"train": "train"}, **source}},
            "patterns": {"p": {"text": text, "source": "mine"}},
        }
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(whole))
        return choose(load_task(str(tmp_path / "mine.yaml")), None, str(tmp_path))

    return origin


def read(origin: Origin, *languages: str, split: str = "train") -> list[dict]:
    """The rows of a split."""
    return table_of(origin, *languages, split=split).to_pylist()


def table_of(origin: Origin, *languages: str, split: str = "train") -> pa.Table:
    table = read_split(origin, split, list(languages or ("en",)))
    assert table is not None
    return table


def write(path: Path, rows: list[dict]) -> None:
    """Write rows as jsonl or parquet."""
    if path.suffix == ".parquet":
        pa_parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# lists


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_lists_of_words_and_tags_stay_lists(origin, tmp_path, ending):
    write(tmp_path / f"train.{ending}", SENTENCES)
    table = table_of(origin(TAGS), "en", "de")
    assert table.to_pylist() == [
        {"id": r["id"], "language": r["language"], "label": r["tags"], "tokens": r["tokens"]} for r in SENTENCES
    ]
    assert table.schema.field("tokens").type == table.schema.field("label").type == pa.list_(pa.string())


def test_tags_may_be_stored_as_numbers(origin, tmp_path):
    write(tmp_path / "train.parquet", [{"id": "1", "tokens": ["a", "b"], "ner_tags": [0, 2]}])
    made = origin(
        {**TAGS, "label": {"column": "tags", "names": ["A", "B", "O"]}},
        columns={"tags": "ner_tags"},
        labels={"0": "O", "1": "A", "2": "B"},
    )
    assert read(made) == [{"id": "1", "language": "en", "label": ["O", "B"], "tokens": ["a", "b"]}]


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_answers_keep_all_texts_and_starts(origin, tmp_path, ending):
    write(tmp_path / f"train.{ending}", [QUESTION])
    table = table_of(origin(SPAN))
    assert table.to_pylist() == [
        {
            "id": "q1",
            "language": "en",
            "label": ["Köln", "nach Köln"],
            "starts": [30, 25],
            "question": "Wohin?",
            "context": CONTEXT,
        }
    ]
    assert (table.schema.field("label").type, table.schema.field("starts").type) == (
        pa.list_(pa.string()),
        pa.list_(pa.int32()),
    )


def test_answers_may_be_a_list_of_records(origin, tmp_path):
    write(tmp_path / "train.jsonl", [{**QUESTION, "answers": [{"text": "Köln", "answer_start": 30}]}])
    assert [(row["label"], row["starts"]) for row in read(origin(SPAN))] == [(["Köln"], [30])]


def test_an_answer_may_be_one_record(origin, tmp_path):
    write(tmp_path / "train.jsonl", [{**QUESTION, "answers": {"text": "Köln", "answer_start": 30}}])
    assert [(row["label"], row["starts"]) for row in read(origin(SPAN))] == [(["Köln"], [30])]


def test_running_text_has_an_empty_label_and_free_text_its_own(origin, tmp_path):
    write(tmp_path / "train.jsonl", [{"id": "1", "language": "en", "text": "A line.", "label": "an answer"}])
    assert read(origin(MLM)) == [{"id": "1", "language": "en", "label": "", "text": "A line."}]
    assert read(origin(TEXT)) == [{"id": "1", "language": "en", "label": "an answer", "text": "A line."}]


def test_ids_that_repeat_within_a_language_are_told_apart_by_content_whatever_the_order(origin, tmp_path):
    rows = [
        {**QUESTION, "id": i, "question": q, "language": lang}
        for i, q, lang in [("0", "a?", "en"), ("0", "b?", "en"), ("1", "a?", "en"), ("0", "a?", "de")]
    ]
    write(tmp_path / "train.jsonl", rows)
    first = {(row["language"], row["question"], row["id"]) for row in read(origin(SPAN), "en", "de")}
    write(tmp_path / "train.jsonl", rows[::-1])
    assert first == {(row["language"], row["question"], row["id"]) for row in read(origin(SPAN), "en", "de")}
    assert len({(language, name) for language, _, name in first}) == 4
    assert ("en", "a?", "1") in first  # an id of its own is kept
    assert ("de", "a?", "0") in first  # as is one that repeats in another language only


def test_the_same_row_twice_is_two_rows(origin, tmp_path):
    write(tmp_path / "train.jsonl", [{"text": "A line."}, {"text": "A line."}])
    ids = [row["id"] for row in read(origin(MLM))]
    assert ids[1] == f"{ids[0]}-2"


# CoNLL-U


def conllu(*lines: str) -> str:
    """Ten-column lines out of `id form tag head [deps]`."""
    made = []
    for line in lines:
        number, form, tag, head, *deps = line.split(" ")
        made.append("\t".join([number, form.replace("~", " "), "_", tag, "_", "_", head, "_", *(deps or ["_"]), "_"]))
    return "\n".join(made) + "\n\n"


UD = {
    **TAGS,
    "label": {"column": "tags", "names": ["ADJ", "ADP", "ADV", "AUX", "DET", "NOUN", "PRON", "PUNCT", "VERB"]},
}


def tagged(origin, tmp_path, text: str, language: str = "en") -> list[list[tuple[str, str]]]:
    """The (word, tag) pairs of each sentence of a CoNLL-U file."""
    (tmp_path / f"{language}.conllu").write_text(text, encoding="utf-8")
    rows = read(origin(UD, files={"train": "{language}"}), language)
    return [list(zip(row["tokens"], row["label"], strict=True)) for row in rows]


def test_conllu_sentences_keep_their_id_and_lose_comments_and_empty_nodes(origin, tmp_path):
    text = (
        "# sent_id = w-01\n# text = Sie geht\n"
        + conllu("1 Sie PRON 2", "2 geht VERB 0", "2.1 geht VERB _ 0:root")
        + conllu("1 Ja ADV 0")
    )
    assert tagged(origin, tmp_path, text) == [[("Sie", "PRON"), ("geht", "VERB")], [("Ja", "ADV")]]
    assert [row["id"] for row in read(origin(UD, files={"train": "{language}"}))] == ["w-01", "1"]


def test_a_contraction_is_one_word_with_the_tag_of_its_highest_part(origin, tmp_path):
    # vámonos: the verb is above its pronoun; nos stands alone nowhere
    text = conllu(
        "1-2 vámonos _ _", "1 vamos VERB 0", "2 nos PRON 1", "3-4 al _ _", "3 a ADP 5", "4 el DET 5", "5 mar NOUN 1"
    )
    assert tagged(origin, tmp_path, text, "es") == [[("vámonos", "VERB"), ("al", "ADP"), ("mar", "NOUN")]]
    # the second part may be the higher one
    text = conllu("1-2 dele _ _", "1 de ADP 2", "2 ele PRON 3", "3 veio VERB 0")
    assert tagged(origin, tmp_path, text) == [[("dele", "PRON"), ("veio", "VERB")]]


def test_parts_equally_high_are_ranked_by_the_languages_list_of_tags(origin, tmp_path):
    text = conllu("1-2 xy _ _", "1 x AUX 3", "2 y PRON 3", "3 z VERB 0")
    assert [tagged(origin, tmp_path, text, language)[0][0] for language in ("en", "fr", "es")] == [
        ("xy", "PRON"),
        ("xy", "AUX"),
        ("xy", "AUX"),
    ]
    # a tag that the list of Spanish lacks comes after those it has
    text = conllu("1-2 xy _ _", "1 x NOUN 3", "2 y DET 3", "3 z VERB 0")
    assert tagged(origin, tmp_path, text, "es")[0][0] == ("xy", "DET")


def test_the_enhanced_graph_counts_for_how_high_a_part_stands(origin, tmp_path):
    text = conllu("1-2 xy _ _", "1 x ADP 3 3:case|4:case", "2 y DET 3", "3 z NOUN 0", "4 w NOUN 3")
    assert tagged(origin, tmp_path, text)[0][0] == ("xy", "DET")


def test_a_part_is_not_above_itself_where_the_enhanced_graph_goes_round(origin, tmp_path):
    # above x: y, z and the root; above y: the root and, round the cycle, z
    text = conllu("1-2 xy _ _", "1 x ADP 2", "2 y DET 0 0:root|3:dep", "3 z NOUN 2")
    assert tagged(origin, tmp_path, text)[0][0] == ("xy", "DET")


def test_blanks_and_joiners_inside_a_word_go_and_sentences_of_withheld_words_too(origin, tmp_path):
    text = (
        conllu("1 10~000 NOUN 0", "2 می\u200cخواهم VERB 1")
        + conllu("1 _ NOUN 0", "2 _ VERB 1", "3 . PUNCT 1")
        + conllu("1 a DET 2", "2 _ NOUN 0", "3 b NOUN 2")
    )
    assert tagged(origin, tmp_path, text) == [
        [("10000", "NOUN"), ("میخواهم", "VERB")],
        [("a", "DET"), ("_", "NOUN"), ("b", "NOUN")],
    ]


def test_all_files_that_a_path_with_a_star_stands_for_are_joined(origin, tmp_path):
    for folder, form in (("UD_B", "b"), ("UD_A", "a"), ("UD_C", "c")):
        (tmp_path / "ud" / folder).mkdir(parents=True)
        name = "de_x-ud-train" if folder == "UD_C" else f"en_{form}-ud-train"
        (tmp_path / "ud" / folder / f"{name}.conllu").write_text(conllu(f"1 {form} NOUN 0"))
        (tmp_path / "ud" / folder / f"{name}.txt").write_text("no rows")
    made = origin(UD, files={"train": "ud/*/{language}_*-ud-train*"})
    assert [row["tokens"] for row in read(made)] == [["a"], ["b"]]
    assert languages_of(made, "train") == ["en", "de", "fr", "es"]
    with pytest.raises(UserError, match=r"^data: no file .*/ud/\*/fr_\*-ud-train\* .*for the train split of mine$"):
        read(made, "fr")


def test_the_sources_of_udpos_find_a_release_as_it_is_unpacked(tmp_path):
    folder = tmp_path / "ud-treebanks-v2.5" / "UD_English-EWT"
    folder.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        (folder / f"en_ewt-ud-{split}.conllu").write_text(conllu("1 Go VERB 0"))
    made = choose(load_task("udpos"), "ud", str(tmp_path))
    assert [read(made, split=split)[0]["label"] for split in ("train", "validation", "test")] == [["VERB"]] * 3


# a word a line


def test_panx_words_lose_their_language_and_keep_their_colons(origin, tmp_path):
    (tmp_path / "en-train").write_text("en:Ann\tA\nen:10:30\tO\n\n\nen::\tO\r\n", encoding="utf-8")
    rows = read(origin(TAGS, files={"train": "{language}-train"}, format="panx"))
    assert rows == [
        {"id": "0", "language": "en", "label": ["A", "O"], "tokens": ["Ann", "10:30"]},
        {"id": "1", "language": "en", "label": ["O"], "tokens": [":"]},
    ]


def test_words_without_a_language_keep_their_colons(origin, tmp_path):
    (tmp_path / "train-en.tsv").write_text("10:30\tA\n#\tO\n\n\u2028x\tB\n", encoding="utf-8")
    rows = read(origin(TAGS, files={"train": "train-{language}.tsv"}, format="words"))
    assert [(row["tokens"], row["label"]) for row in rows] == [(["10:30", "#"], ["A", "O"]), (["x"], ["B"])]


def test_a_test_file_without_tags_is_refused(origin, tmp_path):
    (tmp_path / "train-en.tsv").write_text("Ann\nslept\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read(origin(TAGS, files={"train": "train-{language}.tsv"}, format="words"))
    assert (
        str(caught.value)
        == f'data: {tmp_path}/train-en.tsv row 0 word 0 "Ann" has tag "", a hidden label; expected one of A, B, O'
    )


# SQuAD


def squad(*paragraphs: dict) -> str:
    """A SQuAD file of one article."""
    return json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": list(paragraphs)}]})


def test_squad_files_give_a_row_a_question_with_all_its_answers(origin, tmp_path):
    asked = [
        {
            "id": f"q{i}",
            "question": f"{i}?",
            "answers": [{"text": "Zug", "answer_start": 4}, {"text": "Köln", "answer_start": 30}][: i + 1],
        }
        for i in range(2)
    ]
    (tmp_path / "xquad.de.json").write_text(
        squad({"context": CONTEXT, "qas": asked}, {"context": "-", "qas": []}), encoding="utf-8"
    )
    rows = read(origin(SPAN, files={"train": "xquad.{language}.json"}), "de")
    assert rows == [
        {
            "id": f"q{i}",
            "language": "de",
            "label": ["Zug", "Köln"][: i + 1],
            "starts": [4, 30][: i + 1],
            "question": f"{i}?",
            "context": CONTEXT,
        }
        for i in range(2)
    ]


def test_the_sources_of_the_answering_tasks_find_what_xtreme_downloads(tmp_path):
    text = squad(
        {"context": CONTEXT, "qas": [{"id": "q", "question": "?", "answers": [{"text": "Zug", "answer_start": 4}]}]}
    )
    paths = [
        "squad/train-v1.1.json",
        "squad/dev-v1.1.json",
        "xquad/xquad.de.json",
        "mlqa/MLQA_V1/test/test-context-de-question-de.json",
        "tydiqa/tydiqa-goldp-v1.1-train/tydiqa.goldp.en.train.json",
        "tydiqa/tydiqa-goldp-v1.1-dev/tydiqa.goldp.ko.dev.json",
    ]
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    for name, language in (("xquad", "de"), ("mlqa", "de"), ("tydiqa", "ko")):
        made = choose(load_task(name), "xtreme", str(tmp_path))
        assert [row["language"] for row in read(made)] == ["en"]
        assert [row["language"] for row in read(made, language, split="test")] == [language]


# languages


def test_a_language_may_be_the_beginning_of_another_column(origin, tmp_path):
    write(tmp_path / "train.jsonl", [{**QUESTION, "id": f"{name}-17-0"} for name in ("english", "german")])
    made = origin(SPAN, columns={"language": "id"}, language_before="-", languages={"en": "english", "de": "german"})
    assert languages_of(made, "train") == ["en", "de"]
    assert [(row["id"], row["language"]) for row in read(made, "de")] == [("german-17-0", "de")]


def test_a_file_of_two_splits_is_shared_by_language(origin, tmp_path):
    write(tmp_path / "train.jsonl", [{**QUESTION, "language": language} for language in ("en", "de", "fr")])
    made = origin(
        SPAN, files={"train": "train", "test": "train"}, split_languages={"train": ["en"], "test": ["de", "es"]}
    )
    assert (languages_of(made, "train"), languages_of(made, "test")) == (["en"], ["de"])
    assert [row["language"] for row in read(made, "de", split="test")] == ["de"]
    with pytest.raises(UserError) as caught:
        read(made, "en", split="test")
    assert str(caught.value) == 'languages: source mine of mine has no test rows for "en"; it has: de, es'


def test_the_first_language_is_that_of_rows_that_do_not_say(origin, tmp_path):
    write(tmp_path / "train.jsonl", [{"text": "A line."}])
    assert languages_of(origin(MLM), "train") == ["en"]


# what is wrong


def changed(row: dict, **changes) -> dict:
    return {key: value for key, value in {**row, **changes}.items() if value is not None}


SENTENCE = SENTENCES[0]
UNANSWERED = (
    "has no answer; if it is hidden, drop the row; if questions may have none (SQuAD 2.0), write "
    "unanswerable: true in the task's label, and its answers as an empty list"
)
ERRORS = {
    "a tag outside the set": (
        TAGS,
        changed(SENTENCE, tags=["A", "Q", "B"]),
        'row 1 word 1 "is" has tag "Q", outside the tag set; expected one of A, B, O',
    ),
    "a hidden tag": (
        TAGS,
        changed(SENTENCE, tags=["A", "_", "B"]),
        'row 1 word 1 "is" has tag "_", a hidden label; expected one of A, B, O',
    ),
    "fewer tags than words": (
        TAGS,
        changed(SENTENCE, tags=["A", "O"]),
        "row 1 has 3 words and 2 tags; expected one tag a word",
    ),
    "no tags": (TAGS, changed(SENTENCE, tags=[]), "row 1 has no tags (hidden labels?); scores need labels"),
    "no words": (TAGS, changed(SENTENCE, tokens=[], tags=[]), "row 1 has no words; drop it from the file"),
    "no answer": (
        SPAN,
        changed(QUESTION, answers={"text": [], "answer_start": []}),
        'row "q1" ' + UNANSWERED,
    ),
    "an empty answer": (
        SPAN,
        changed(QUESTION, answers={"text": [""], "answer_start": [0]}),
        'row "q1" ' + UNANSWERED,
    ),
    "an answer elsewhere": (
        SPAN,
        changed(QUESTION, answers={"text": ["Köln"], "answer_start": [29]}),
        'row "q1" has the answer "Köln" at character 29; its context holds " Köl" there',
    ),
    "an answer before the beginning": (
        SPAN,
        changed(QUESTION, answers={"text": ["Köln"], "answer_start": [-5]}),
        'row "q1" has the answer "Köln" at character -5; its context holds "" there',
    ),
    "a start too few": (
        SPAN,
        changed(QUESTION, answers={"text": ["Köln", "Zug"], "answer_start": [30]}),
        'row "q1" has 2 answers and 1 starts; expected one start an answer',
    ),
    "no free text": (
        TEXT,
        {"id": "1", "text": "a", "label": ""},
        'row 1 has label "", a hidden label; expected a text',
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_rows_that_cannot_be_used_are_one_line_with_file_and_row(origin, tmp_path, what):
    values, row, line = ERRORS[what]
    good = {"tags": SENTENCE, "span": {**QUESTION, "id": "q0"}, "text": {"id": "0", "text": "a", "label": "b"}}[
        values["kind"]
    ]
    write(tmp_path / "train.jsonl", [good, row])
    with pytest.raises(UserError) as caught:
        read(origin(values))
    assert str(caught.value) == f"data: {tmp_path}/train.jsonl {line}"


ADVICE = "; add it, or name theirs in the source's columns"
COLUMNS = {
    "words": (TAGS, changed(SENTENCE, tokens=None), 'has no column "tokens"; found: id, language, tags' + ADVICE),
    "tags": (TAGS, changed(SENTENCE, tags=None), 'has no column "tags"; found: id, language, tokens' + ADVICE),
    "answers": (
        SPAN,
        changed(QUESTION, answers=None),
        'has no column "answers"; found: id, language, question, context' + ADVICE,
    ),
    "words that are a number": (
        TAGS,
        changed(SENTENCE, tokens=7),
        'row 0: column "tokens" holds 7; expected a list of words',
    ),
}


@pytest.mark.parametrize("what", COLUMNS)
def test_columns_that_are_missing_or_of_another_kind_are_one_line(origin, tmp_path, what):
    values, row, line = COLUMNS[what]
    write(tmp_path / "train.jsonl", [row])
    with pytest.raises(UserError) as caught:
        read(origin(values))
    assert str(caught.value) == f"data: {tmp_path}/train.jsonl {line}"


@pytest.mark.parametrize(
    ("ending", "content", "line"),
    [
        ("conllu", "1\tword\tNOUN\n\n", "sentence 0: found 3 columns; expected 10"),
        ("json", '{"data": [{"paragraphs": [{"qas": []}, 3]}]}', "not laid out as SQuAD is (data, paragraphs, qas): "),
        ("json", "{", "Expecting property name"),
        ("json", "3", "found a int; expected rows"),
        ("jsonl", '{"tokens": ["a"]}\n["a"]\n', "row 1 is a list; expected an object, column to value"),
        ("jsonl", '{"tokens": ["a"]}\n{"tokens": ["a"\n', "row 1: Expecting ',' delimiter"),
        ("jsonl", '{"tags": []}\n{"tags": [], "tags": 3}\n', 'row 1: key "tags" stands twice in one object'),
    ],
)
def test_a_damaged_file_is_one_line(origin, tmp_path, ending, content, line):
    (tmp_path / f"train.{ending}").write_text(content)
    with pytest.raises(UserError) as caught:
        read(origin(SPAN if ending == "json" else TAGS))
    assert str(caught.value).startswith(f"data: {tmp_path}/train.{ending} can't be read: {line}")
    assert "\n" not in str(caught.value)


CHOICE = {"kind": "choice", "fields": {"text": "text"}, "label": {"names": ["no", "yes"]}, "metric": "accuracy"}
TWO = {"text": ["a", "b"], "label": ["no", "yes"]}


@pytest.mark.parametrize(
    ("values", "columns", "types"),
    [
        (CHOICE, TWO, {}),
        (CHOICE, TWO, {"text": pa.large_string(), "label": pa.large_string()}),
        (CHOICE, TWO, {"label": pa.dictionary(pa.int8(), pa.string())}),
        (CHOICE, {**TWO, "id": [None, "x"], "text": [None, "é"]}, {}),
        (CHOICE, {**TWO, "id": [7, None]}, {"id": pa.int64()}),
        (CHOICE, {**TWO, "id": ["x", "x"], "language": ["de", "de"]}, {}),
        (CHOICE, {**TWO, "id": ["x", "x"], "text": ["a", "a"]}, {}),
        (CHOICE, {**TWO, "label": [1, 0]}, {"label": pa.uint8()}),
        (CHOICE, {**TWO, "label": [True, False]}, {}),
        (CHOICE, {**TWO, "label": ["yes", "maybe"]}, {}),
        (CHOICE, {**TWO, "label": [None, "yes"]}, {}),
        (CHOICE, {**TWO, "language": ["en", ""]}, {}),
        (TEXT, {"text": ["a", "b"], "label": ["b c", "ü"]}, {}),
        (TEXT, {"text": ["a", "b"], "label": ["b c", ""]}, {}),
        (TEXT, {"text": [1, 2], "label": [3, 4]}, {}),
        (MLM, {"text": ["a", "a"]}, {}),
        (TAGS, {"tokens": [["a", ""], ["b"]], "tags": [["A", "O"], ["B"]]}, {}),
        (TAGS, {"tokens": [["a", "b"], ["b"]], "tags": [[0, 2], [1]]}, {"tags": pa.list_(pa.int8())}),
        (TAGS, {"tokens": [[1, 2], [3]], "tags": [["A", "O"], ["B"]]}, {}),
        (TAGS, {"tokens": [["a", "b"], ["b"]], "tags": [["A", "O"], ["X"]]}, {}),
        (TAGS, {"tokens": [["a", "b"], ["b"]], "tags": [["A", "O"], []]}, {}),
        (TAGS, {"tokens": [["a", "b"], []], "tags": [["A", "O"], []]}, {}),
        (TAGS, {"tokens": [["a", None], ["b"]], "tags": [["A", "O"], ["B"]]}, {}),
        (TAGS, {"tokens": [["a", "b"], ["b"]], "tags": [["A"], ["B", "O"]]}, {}),
        (TAGS, {"tokens": [["a", "b"], ["b"]], "tags": ["A O", "B"]}, {}),
        (TAGS, {"tokens": [["a", "b"], ["b"]], "tags": [["A", None], ["B"]]}, {}),
    ],
)
@pytest.mark.parametrize("split_at", [0, 1])
def test_columns_of_arrow_become_what_the_same_values_of_python_become(origin, values, columns, types, split_at):
    """Or are refused in the same words; also where a column is in several pieces, or a piece of another."""
    task, theirs = origin(values).task, {"labels": {"0": "no", "1": "yes"}} if values is CHOICE else {}
    source = origin(values, **({"labels": {"0": "A", "1": "B", "2": "O"}} if values is TAGS else theirs)).source
    whole = pa.table({name: pa.array(column, types.get(name)) for name, column in columns.items()})
    pieces = pa.concat_tables([whole, whole]).slice(split_at, 2)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    rows = [*rows, *rows][split_at : split_at + 2]

    def found(columns: Columns) -> object:
        try:
            return with_own_ids(task, normalise(task, source, columns, "file", None)).to_pydict()
        except UserError as error:
            return str(error)

    assert found(Columns.of_arrow(pieces)) == found(Columns.of_records(rows))

"""Files as people have them: byte-order marks, arrays of rows, missing values, shards that differ, long rows; each is
read right, or refused in one line that names file and row."""

from __future__ import annotations

import codecs
import json
import re

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from test_columns import MLM, SPAN, TAGS, TEXT

from raypft.data.origin import Origin
from raypft.data.sources import languages_of, read_rows, read_split
from raypft.data.streaming import index
from raypft.errors import UserError

CHOICE = {"kind": "choice", "fields": {"text": "text"}, "label": {"names": ["no", "yes"]}, "metric": "accuracy"}
ROWS = [{"text": "Zug fährt", "label": "no"}, {"text": "2020", "label": "yes"}]
ASKED = {"question": "Who?", "context": "A cat sat."}


def read(origin: Origin, *languages: str, split: str = "train") -> list[dict]:
    table = read_split(origin, split, list(languages or ("en",)))
    assert table is not None
    return table.to_pylist()


def refused(origin: Origin, *languages: str) -> str:
    with pytest.raises(UserError) as caught:
        read(origin, *languages)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def lines(rows: list) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def told(rows: list[dict], *names: str) -> list[tuple]:
    return [tuple(row[name] for name in names) for row in rows]


WHOLE = {
    "csv": "text,label\nZug fährt,no\n2020,yes\n",
    "tsv": "text\tlabel\nZug fährt\tno\n2020\tyes\n",
    "jsonl": lines(ROWS),
    "json": json.dumps(ROWS),
}
LAYOUTS = {
    **WHOLE,
    "rows in lines of a .json": lines(ROWS),
    "an array in a .jsonl": json.dumps(ROWS),
    "an array over lines in a .jsonl": json.dumps(ROWS, indent=1),
    "rows under data": json.dumps({"version": 1, "data": ROWS}, indent=1),
}


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8], ids=["plain", "byte-order mark"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_text_files_are_read_whatever_their_layout(origin, tmp_path, layout, mark):
    ending = layout if layout in WHOLE else "jsonl" if ".jsonl" in layout else "json"
    (tmp_path / f"train.{ending}").write_bytes(mark + LAYOUTS[layout].encode())
    assert told(read(origin(CHOICE)), "text", "label") == [("Zug fährt", "no"), ("2020", "yes")]


def test_one_row_alone_is_a_file(origin, tmp_path):
    (tmp_path / "train.jsonl").write_text(lines(ROWS[:1]), encoding="utf-8")
    assert told(read(origin(CHOICE)), "text") == [("Zug fährt",)]


CONLLU = "1\tDie\t_\tA\t_\t_\t0\troot\t_\t_\n2\tUhr\t_\tB\t_\t_\t1\tdep\t_\t_\n\n"


@pytest.mark.parametrize("before", ["", "# sent_id = s1\n"])
def test_a_byte_order_mark_is_no_part_of_a_sentence(origin, tmp_path, before):
    # also where files that begin with one were joined
    (tmp_path / "train.conllu").write_text(f"\ufeff{before}{CONLLU}" * 2, encoding="utf-8")
    assert told(read(origin(TAGS)), "tokens", "label") == [(["Die", "Uhr"], ["A", "B"])] * 2


def test_a_byte_order_mark_is_no_part_of_a_word_a_line(origin, tmp_path):
    (tmp_path / "train.tsv").write_text("\ufeffen:Die\tA\nen:Uhr\tB\n", encoding="utf-8")
    assert told(read(origin(TAGS, files={"train": "train.tsv"}, format="panx")), "tokens") == [(["Die", "Uhr"],)]


def test_squad_with_a_byte_order_mark_is_read(origin, tmp_path):
    asked = {"id": "q1", "question": "Who?", "answers": [{"text": "cat", "answer_start": 2}]}
    data = {"data": [{"title": "t", "paragraphs": [{"context": "A cat sat.", "qas": [asked]}]}]}
    (tmp_path / "train.json").write_bytes(codecs.BOM_UTF8 + json.dumps(data).encode())
    assert told(read(origin(SPAN)), "id", "question", "label", "starts") == [("q1", "Who?", ["cat"], [2])]


@pytest.mark.parametrize("number", ["2", "x", "1.a"])
def test_words_that_would_get_lost_in_a_sentence_are_refused(origin, tmp_path, number):
    """Two sentences without a blank line between them have a number twice."""
    (tmp_path / "train.conllu").write_text(CONLLU.strip() + f"\n{number}\tist\t_\tB\t_\t_\t1\tdep\t_\t_\n")
    assert f'sentence 0: found "{number}" as a word\'s number, or twice; expected 1, 2, …' in refused(origin(TAGS))


def test_shards_may_differ_in_columns_that_no_one_asks_for(origin, tmp_path):
    (tmp_path / "train-0.jsonl").write_text(lines([{"text": "a", "label": "no", "note": [1, "x"]}]))
    (tmp_path / "train-1.jsonl").write_text(
        lines([{"text": "b", "label": "yes", "note": {"by": 3}}, {**ROWS[1], "note": 1}])
    )
    (tmp_path / "train-2.csv").write_text("label,text,text2,note,note\nno,c,,1,2\n")
    pa_parquet.write_table(pa.table({"text": ["d"], "label": ["no"], "extra": [1.5]}), tmp_path / "train-3.parquet")
    rows = read(origin(CHOICE, files={"train": "train-*"}))
    assert told(rows, "text", "label") == [("a", "no"), ("b", "yes"), ("2020", "yes"), ("c", "no"), ("d", "no")]


def test_a_fault_in_a_shard_names_the_shard_and_its_row(origin, tmp_path):
    (tmp_path / "train-0.jsonl").write_text(lines(ROWS))
    (tmp_path / "train-1.jsonl").write_text(lines([ROWS[0], {**ROWS[1], "label": "perhaps"}]))
    assert refused(origin(CHOICE, files={"train": "train-*"})).startswith(
        f'data: {tmp_path}/train-1.jsonl row 1 has label "perhaps"'
    )


@pytest.mark.parametrize("folder", ["data [v2]", "what?", "a{b}", "[ab]", "50%"])
def test_only_a_star_stands_for_other_files(origin, tmp_path, folder):
    (tmp_path / folder / "deep").mkdir(parents=True)
    (tmp_path / folder / "deep" / "train-0.jsonl").write_text(lines(ROWS))
    made = origin(CHOICE, tmp_path / folder, files={"train": "*/train-*"})
    assert len(read(made)) == 2


def test_a_root_may_begin_with_the_home_folder(origin, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(lines(ROWS))
    assert len(read(origin(CHOICE, "~/data"))) == 2


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_a_row_longer_than_a_block_is_read(origin, tmp_path, ending):
    long = "word " * 600_000
    sep = "," if ending == "csv" else "\t"
    rows = [{"text": "short", "label": "no"}, {"text": long, "label": "yes"}, {"text": "end", "label": "no"}]
    separated = "\n".join(sep.join(values) for values in (("text", "label"), *told(rows, "text", "label"))) + "\n"
    (tmp_path / f"train.{ending}").write_text(lines(rows) if ending == "jsonl" else separated)
    assert told(read(origin(CHOICE)), "text", "label") == told(rows, "text", "label")


def test_columns_of_one_name_are_refused_where_they_are_asked_for(origin, tmp_path):
    (tmp_path / "train.csv").write_text("text,label,label\na,no,yes\n")
    assert refused(origin(CHOICE)) == f'data: {tmp_path}/train.csv has 2 columns called "label"; expected one'
    table = pa.table([pa.array(["a"]), pa.array(["b"]), pa.array(["no"])], names=["text", "text", "label"])
    (tmp_path / "train.csv").unlink()
    pa_parquet.write_table(table, tmp_path / "train.parquet")
    assert "train.parquet" in refused(origin(CHOICE))


def test_blanks_around_a_column_are_seen_in_the_message(origin, tmp_path):
    (tmp_path / "train.csv").write_text("text, label\na,no\n")
    assert 'no column "label"; found: text, " label"; ' in refused(origin(CHOICE))


@pytest.mark.parametrize("content", ["", "\n\n", "[]", '{"data": []}'])
def test_a_file_without_rows_is_told(origin, tmp_path, content):
    (tmp_path / "train.jsonl").write_text(content)
    assert refused(origin(CHOICE)) == f"data: {tmp_path}/train.jsonl has no rows for the train split of mine; give some"
    (tmp_path / "train-1.jsonl").write_text(lines(ROWS))  # an empty shard among others is none's fault
    assert len(read(origin(CHOICE, files={"train": "train*"}))) == 2


# values


@pytest.mark.parametrize("value", [["a", "b"], {"en": "a"}, [], [1]])
@pytest.mark.parametrize("values", [CHOICE, TEXT, MLM], ids=lambda values: values["kind"])
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_text_that_is_none_is_refused_with_its_row(origin, tmp_path, values, value, ending):
    row = {"text": value, "label": "no"}
    if ending == "parquet":
        pa_parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "train.parquet")
    else:
        (tmp_path / "train.jsonl").write_text(lines([row]))
    line = f'data: {tmp_path}/train.{ending} row 0: column "text" holds {value!r}; expected a text'
    assert refused(origin(values)) == line


def test_a_label_or_question_that_is_a_list_is_refused(origin, tmp_path):
    (tmp_path / "train.jsonl").write_text(lines([{"text": "a", "label": ["b"]}]))
    assert "row 0: column \"label\" holds ['b']; expected a text" in refused(origin(TEXT))
    answers = {"text": ["cat"], "answer_start": [2]}
    (tmp_path / "train.jsonl").write_text(lines([{**ASKED, "question": ["Who?"], "answers": answers}]))
    assert "row 0: column \"question\" holds ['Who?']; expected a text" in refused(origin(SPAN))


def test_nothing_is_an_empty_text_and_no_word(origin, tmp_path):
    """Null and NaN; and text that is stored as bytes is text."""
    table = pa.table({"text": pa.array([b"caf\xc3\xa9", None], pa.binary()), "label": ["no", "yes"]})
    pa_parquet.write_table(table, tmp_path / "train.parquet")
    assert told(read(origin(CHOICE)), "text") == [("café",), ("",)]
    pa_parquet.write_table(pa.table({"text": [0.5, float("nan")], "label": ["no", "yes"]}), tmp_path / "train.parquet")
    assert told(read(origin(CHOICE)), "text") == [("0.5",), ("",)]
    pa_parquet.write_table(pa.table({"text": [b"\xff"], "label": ["no"]}), tmp_path / "train.parquet")
    assert 'row 0: column "text" holds bytes that are no UTF-8' in refused(origin(CHOICE))


def test_half_a_character_is_no_text(origin, tmp_path):
    (tmp_path / "train.jsonl").write_text(
        '{"text": "\\ud83d\\ude00", "label": "no"}\n{"text": "\\ud83d", "label": "no"}\n'
    )
    assert "row 1: column \"text\" holds '\\ud83d', of which a character is no Unicode" in refused(origin(CHOICE))
    (tmp_path / "train.jsonl").write_text('{"tokens": ["a", "\\udc9f"], "tags": ["O", "O"]}\n')
    assert "of which a character is no Unicode" in refused(origin(TAGS))


@pytest.mark.parametrize("value", [None, float("nan")])
@pytest.mark.parametrize("values", [CHOICE, TEXT], ids=lambda values: values["kind"])
def test_a_label_that_is_missing_is_refused(origin, tmp_path, values, value):
    (tmp_path / "train.jsonl").write_text(lines([ROWS[0], {"text": "b", "label": value}]))
    assert 'train.jsonl row 1 has label "", a hidden label; expected ' in refused(origin(values))


@pytest.mark.parametrize("word", [None, float("nan"), ["a"], {"a": 1}])
def test_a_word_that_is_none_is_refused_with_row_and_word(origin, tmp_path, word):
    (tmp_path / "train.jsonl").write_text(
        lines([{"tokens": ["a"], "tags": ["O"]}, {"tokens": ["b", word], "tags": ["O", "O"]}])
    )
    line = f'row 1: column "tokens" holds {word!r} as word 1; expected a text'
    assert refused(origin(TAGS)) == f"data: {tmp_path}/train.jsonl {line}"


def test_words_of_several_types_are_read_as_they_are_written(origin, tmp_path):
    rows = [{"tokens": ["in", 1984, 1.5, True, "None"], "tags": ["A", "O", "O", "O", "B"]}]
    rows.append({"tokens": [7, 8], "tags": ["O", "O"]})
    (tmp_path / "train.jsonl").write_text(lines(rows))
    assert told(read(origin(TAGS)), "tokens") == [(["in", "1984", "1.5", "True", "None"],), (["7", "8"],)]


@pytest.mark.parametrize(
    ("tags", "line"),
    [
        ([None], 'word 0 "a" has tag "", a hidden label'),
        (7, "has 7 for tags; expected a list, one tag a word"),
        (None, "has no tags"),
    ],
)
def test_tags_that_are_none_are_refused_with_row_and_word(origin, tmp_path, tags, line):
    (tmp_path / "train.jsonl").write_text(lines([{"tokens": ["a"], "tags": tags}]))
    assert line in refused(origin({**TAGS, "label": {"column": "tags", "names": ["None", "O"]}}))


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["cat"], "answer_start": [2]},
        {"text": ["cat"], "answer_start": [2.0]},
        {"text": "cat", "answer_start": 2},
        {"text": ["cat"], "answer_start": 2},
        [{"text": "cat", "answer_start": 2}],
        {"text": "cat", "answer_start": 2.0, "id": 3},
    ],
)
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_answers_are_read_as_people_lay_them_out(origin, tmp_path, answers, ending):
    if ending == "parquet":
        pa_parquet.write_table(pa.Table.from_pylist([{**ASKED, "answers": answers}]), tmp_path / "train.parquet")
    else:
        (tmp_path / "train.jsonl").write_text(lines([{**ASKED, "answers": answers}]))
    assert told(read(origin(SPAN)), "label", "starts") == [(["cat"], [2])]


@pytest.mark.parametrize(
    ("answers", "line"),
    [
        (["cat"], "has the answers ['cat']; expected {text: […], answer_start: […]}"),
        ("cat", "has the answers 'cat'; expected {text: […], answer_start: […]}"),
        (
            {"text": ["cat"], "answer_start": ["2"]},
            "has the answer \"cat\" at answer_start '2'; expected a character's",
        ),
        ({"text": ["cat"], "answer_start": [2.5]}, 'has the answer "cat" at answer_start 2.5; expected a character\'s'),
        ({"text": ["cat"]}, 'has the answer "cat" at answer_start None; expected a character\'s'),
        ({"text": [3], "answer_start": [0]}, "has the answer 3; expected a text"),
        (None, "has no answer; if it is hidden, drop the row; if questions may have none (SQuAD 2.0), write "),
        ([], "has no answer; if it is hidden, drop the row; "),
        ({"text": [], "answer_start": []}, "has no answer; if it is hidden, drop the row; "),
        ({"text": None, "answer_start": None}, "has no answer; if it is hidden, drop the row; "),
    ],
)
def test_answers_that_cannot_be_read_are_one_line(origin, tmp_path, answers, line):
    right = {"text": ["cat"], "answer_start": [2]}
    (tmp_path / "train.jsonl").write_text(
        lines([{**ASKED, "answers": right}, {"id": "q7", **ASKED, "answers": answers}])
    )
    assert refused(origin(SPAN)).startswith(f'data: {tmp_path}/train.jsonl row "q7" {line}')


# ids and languages


def test_ids_that_are_missing_are_those_of_the_content(origin, tmp_path):
    (tmp_path / "train.jsonl").write_text(lines([{"id": None, **ROWS[0]}, {"id": "7", **ROWS[1]}]))
    (tmp_path / "test.jsonl").write_text(lines(ROWS))
    ids, own = (told(read(origin(CHOICE), split=split), "id") for split in ("train", "test"))
    assert ids == [own[0], ("7",)]


def test_ids_that_repeat_in_a_language_are_told_apart_by_content(origin, tmp_path):
    """Translations keep theirs, as does the same row twice."""
    rows = [("t", "en", "a"), ("t", "en", "b"), ("u", "en", "c"), ("u", "en", "c"), ("u", "de", "d"), ("v", "en", "e")]
    written = [{"id": name, "language": language, "text": text, "label": "no"} for name, language, text in rows]
    (tmp_path / "train.jsonl").write_text(lines(written))
    ids = [row["id"] for row in read(origin(CHOICE), "en", "de")]
    assert len({ids[0], ids[1], "t"}) == 3
    assert ids[0].startswith("t-")
    assert ids[2:] == ["u", "u", "u", "v"]


def test_who_asks_for_answers_gets_the_ids_back_that_came(origin, tmp_path):
    (tmp_path / "new.jsonl").write_text(lines([{"id": "t", "text": "a"}, {"id": "t", "text": "b"}]))
    rows = read_rows(origin(CHOICE), str(tmp_path / "new.jsonl"), None, "en")
    assert rows["id"].to_pylist() == ["t", "t"]


@pytest.mark.parametrize("value", [None, "", float("nan")])
def test_a_row_does_not_vanish_for_want_of_a_language(origin, tmp_path, value):
    (tmp_path / "train.jsonl").write_text(lines([{"language": "en", **ROWS[0]}, {"language": value, **ROWS[1]}]))
    assert "train.jsonl row 1 has no language; expected one in each row" in refused(origin(CHOICE))


def test_languages_of_which_the_task_has_none_are_told(origin, tmp_path):
    (tmp_path / "test.jsonl").write_text(lines([{"language": "EN", **ROWS[0]}]))
    with pytest.raises(UserError, match=r"test rows of mine .mine. hold none of en, de; found: EN"):
        languages_of(origin(CHOICE), "test")


def test_rows_whose_language_is_written_in_another_case_are_not_left_out(origin, tmp_path):
    rows = [{**row, "language": code} for row, code in zip(ROWS, ("en", "EN "), strict=True)]
    (tmp_path / "train.jsonl").write_text(lines(rows), encoding="utf-8")
    message = 'languages: train rows of mine (mine) have the language "EN ", the task "en"; write en, or name theirs'
    assert refused(origin(CHOICE)).startswith(message)
    pa_parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(UserError, match=re.escape(message)):
        index(origin(CHOICE, files={"train": "train.parquet"}), ["en"])


def test_languages_that_a_task_does_not_have_are_left_out(origin, tmp_path):
    rows = [{**row, "language": code} for row, code in zip(ROWS, ("en", "fr"), strict=True)]
    (tmp_path / "train.jsonl").write_text(lines(rows), encoding="utf-8")
    assert told(read(origin(CHOICE)), "text") == [("Zug fährt",)]


def test_files_of_two_endings_for_one_split_are_refused(origin, tmp_path):
    (tmp_path / "train.csv").write_text("text,label\nalt,no\n", encoding="utf-8")
    (tmp_path / "train.jsonl").write_text(lines(ROWS), encoding="utf-8")
    assert refused(origin(CHOICE)).startswith(f"data: found {tmp_path}/train.csv and {tmp_path}/train.jsonl; ")
    assert len(read(origin(CHOICE, files={"train": "train.csv"}))) == 1


def test_words_without_a_language_are_no_panx(origin, tmp_path):
    (tmp_path / "train.tsv").write_text("Um\tO\n10:30\tA\n", encoding="utf-8")
    source = {"files": {"train": "train.tsv"}}
    assert 'sentence 0: found "Um"; expected language:word' in refused(origin(TAGS, format="panx", **source))
    assert told(read(origin(TAGS, format="words", **source)), "tokens") == [(["Um", "10:30"],)]


def test_comments_alone_are_no_sentence(origin, tmp_path):
    (tmp_path / "train.conllu").write_text(f"# newdoc\n\n{CONLLU}# end\n", encoding="utf-8")
    assert told(read(origin(TAGS)), "tokens") == [(["Die", "Uhr"],)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "conllu"])
def test_utf_16_is_told(origin, tmp_path, ending, encoding):
    text = {"csv": "text,label\na,no\n", "jsonl": lines(ROWS), "conllu": CONLLU}[ending]
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    (tmp_path / f"train.{ending}").write_bytes(mark + text.encode(encoding))
    assert "can't be read: it is UTF-16; expected UTF-8" in refused(origin(TAGS if ending == "conllu" else CHOICE))

"""Kinds of files beyond plain rows: packed ones, Arrow's, separators and quotes, columns in JSON, a word a line; each
is read right, or refused in one line that names what was found."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pa_parquet
import pytest
from test_columns import SPAN, TAGS, TEXT
from test_odd_files import ASKED, CHOICE, CONLLU, ROWS, WHOLE, lines, read, refused, told

from raypft.data.columns import notes_of
from raypft.data.origin import Origin
from raypft.data.sources import read_rows, read_split
from raypft.data.streaming import index
from raypft.errors import UserError

BOTH = [("Zug fährt", "no"), ("2020", "yes")]


def notes(origin: Origin, folder: Path) -> list[str]:
    """What a reader of the train rows should know, without the folder."""
    table = read_split(origin, "train", ["en"])
    assert table is not None
    return [note.replace(f"{folder}/", "") for note in notes_of(table)]


# packed


def zstd(data: bytes) -> bytes:
    return pa.compress(data, "zstd", asbytes=True)


PACKED = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("inner", [*WHOLE, "JSONL", "Csv"])
def test_packed_files_are_read_and_endings_count_in_any_case(origin, tmp_path, inner, ending):
    data = PACKED[ending](WHOLE[inner.lower()].encode())
    (tmp_path / f"train.{inner}.{ending.upper()}").write_bytes(data)
    assert told(read(origin(CHOICE)), "text", "label") == BOTH
    assert len(read(origin(CHOICE, files={"train": "tr*"}))) == 2
    assert len(read_rows(origin(CHOICE), f"{tmp_path}/train.{inner}.{ending.upper()}", None, "en")) == 2


def test_packed_parquet_and_any_codec_within(origin, tmp_path):
    table = pa.table({"text": ["a"], "label": ["no"]})
    for codec in ("snappy", "gzip", "brotli", "zstd", "lz4", "none"):
        pa_parquet.write_table(table, tmp_path / "train.Parquet", compression=codec)
        assert told(read(origin(CHOICE)), "text") == [("a",)]
    (tmp_path / "train.parquet.gz").write_bytes(gzip.compress((tmp_path / "train.Parquet").read_bytes()))
    assert told(read(origin(CHOICE, files={"train": "train.parquet.gz"})), "text") == [("a",)]
    with pytest.raises(UserError, match="gz: expected Parquet files"):
        index(origin(CHOICE, files={"train": "train.parquet.gz"}), ["en"])
    assert index(origin(CHOICE, files={"train": "train.Parquet"}), ["en"]).rows == 1


@pytest.mark.parametrize("ending", PACKED)
def test_a_packed_file_that_is_cut_off_is_not_half_read(origin, tmp_path, ending):
    whole = PACKED[ending]("".join(f'{{"text": "{i}", "label": "no"}}\n' for i in range(3000)).encode())
    for cut in (len(whole) // 2, len(whole) - 2):
        (tmp_path / f"train.jsonl.{ending}").write_bytes(whole[:cut])
        assert f"train.jsonl.{ending} can't be read: it can't be unpacked as .{ending}: " in refused(origin(CHOICE))
    (tmp_path / f"train.jsonl.{ending}").write_bytes(lines(ROWS).encode())
    assert f"it can't be unpacked as .{ending}: " in refused(origin(CHOICE))


@pytest.mark.parametrize(
    ("name", "data", "line"),
    [
        ("csv", b"PK\x03\x04\x14", "it is a zip archive (an Excel file is one); unpack it, or save it as CSV UTF-8"),
        ("csv", gzip.compress(b"text,label\n", mtime=0), "it is packed with gzip; let its name end in .gz"),
        ("jsonl", b"PAR1\x00", "it is a Parquet file; call it .parquet"),
        ("tsv", codecs.BOM_UTF32_LE + "a".encode("utf-32-le"), "it is UTF-32; expected UTF-8; convert it: iconv"),
        ("csv", "text,label\na,no\n".encode("utf-16-le"), "it holds zero bytes, as UTF-16 does; expected UTF-8"),
        ("csv", "text,label\na,no\nfährt,no\n".encode("cp1252"), "line 3 holds the byte 0xe4, which is no UTF-8; if"),
        ("csv", "täxt,label\na,no\n".encode("cp1252"), "line 1 holds the byte 0xe4"),
        ("jsonl", '{"text": "ä"}'.encode("latin-1"), "line 1 holds the byte 0xe4"),
        ("parquet", b"PAR1PAR1", "Parquet file size is 8 bytes, smaller than"),
        ("parquet", b"", "Parquet file size is 0 bytes"),
        ("arrow", b"ARROW1\x00\x00", "File is too small: 8"),
        ("arrow", b"", "Tried reading schema message"),
    ],
)
def test_bytes_that_are_no_such_file_are_called_by_their_name(origin, tmp_path, name, data, line):
    (tmp_path / f"train.{name}").write_bytes(data)
    assert refused(origin(CHOICE)).startswith(f"data: {tmp_path}/train.{name} can't be read: {line}")


# Arrow


def write_arrow(path: Path, table: pa.Table, as_file: bool) -> None:
    make = pa.ipc.new_file if as_file else pa.ipc.new_stream
    with make(str(path), table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize("as_file", [True, False])
def test_arrow_files_and_streams_are_read(origin, tmp_path, as_file):
    write_arrow(tmp_path / "train.arrow", pa.Table.from_pylist(ROWS), as_file)
    assert told(read(origin(CHOICE)), "text", "label") == BOTH


def test_feather_is_read_and_its_first_version_told(origin, tmp_path):
    feather.write_feather(pa.Table.from_pylist(ROWS), str(tmp_path / "train.feather"))
    assert told(read(origin(CHOICE)), "text", "label") == BOTH
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        feather.write_feather(pa.Table.from_pylist(ROWS), str(tmp_path / "train.feather"), version=1)
    assert "it is of Feather's first version; write it anew" in refused(origin(CHOICE))


def test_what_datasets_saved_is_read_split_by_split_and_part_by_part(origin, tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_list([{"text": str(i), "label": i % 2} for i in range(5)])
    saved = datasets.DatasetDict({"train": rows, "test": rows.select([1])})
    saved.save_to_disk(tmp_path / "saved", num_shards={"train": 2, "test": 1})
    mine = origin(CHOICE, tmp_path / "saved", labels={"0": "no", "1": "yes"})
    assert told(read(mine), "text", "label") == [(str(i), ("no", "yes")[i % 2]) for i in range(5)]
    assert told(read(mine, split="test"), "text") == [("1",)]
    assert len(read_rows(mine, f"{tmp_path}/saved/train", None, "en")) == 5
    (tmp_path / "saved/train/data-00001-of-00002.arrow").unlink()
    assert "data-00001-of-00002.arrow can't be read: " in refused(mine)
    (tmp_path / "saved/train/state.json").write_text("{}")
    assert refused(mine).endswith("state.json can't be read; expected that of datasets.save_to_disk")


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_classes_that_a_file_names_are_those_of_the_task(origin, tmp_path, ending):
    datasets = pytest.importorskip("datasets")
    classes = datasets.ClassLabel(names=["yes", "no", "PERHAPS"])
    features = datasets.Features({"text": datasets.Value("string"), "label": classes})
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 2]}, features=features)
    table = rows.with_format("arrow")[:].replace_schema_metadata(rows.data.table.schema.metadata)
    if ending == "parquet":
        pa_parquet.write_table(table, tmp_path / "train.parquet")
    else:
        write_arrow(tmp_path / "train.arrow", table, True)
    names = {**CHOICE, "label": {"names": ["no", "yes", "maybe"]}}
    right = [("yes",), ("no",), ("maybe",)]
    assert told(read(origin(names, labels={"PERHAPS": "maybe"})), "label") == right
    assert told(read(origin(names, labels={"0": "no", "1": "yes", "2": "maybe"})), "label")[:2] == [("no",), ("yes",)]
    assert 'row 2 has label "2", outside the label set' in refused(origin(names))
    numbered = {**CHOICE, "label": {"names": ["0", "1", "2", "yes"]}}
    assert told(read(origin(numbered)), "label") == [("0",), ("1",), ("2",)]


def test_classes_of_words_are_named_too(origin, tmp_path):
    datasets = pytest.importorskip("datasets")
    tags = datasets.Sequence(datasets.ClassLabel(names=["O", "B", "A"]))
    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("string")), "tags": tags})
    rows = datasets.Dataset.from_dict({"tokens": [["a", "b", "c"]], "tags": [[2, 0, 1]]}, features=features)
    pa_parquet.write_table(rows.data.table, tmp_path / "train.parquet")
    assert told(read(origin(TAGS)), "label") == [(["A", "O", "B"],)]
    for metadata in (b"[]", b"{", b'{"info": {"features": [1]}}', b'{"info": {"features": {"tags": 3}}}'):
        table = rows.data.table.replace_schema_metadata({b"huggingface": metadata})
        pa_parquet.write_table(table, tmp_path / "train.parquet")
        assert 'has tag "2", outside the tag set' in refused(origin(TAGS))


COLUMNS = {
    "dictionary": pa.array(["0", "1"]).dictionary_encode(),
    "large text": pa.array(["0", "1"], pa.large_string()),
    "view": pa.array(["0", "1"], pa.string_view()),
    "bytes": pa.array([b"0", b"1"]),
    "whole": pa.array([0, 1], pa.int8()),
    "double": pa.array([0.0, 1.0]),
    "decimal": pa.array([0, 1]).cast(pa.decimal128(22, 2)),
    "truth": pa.array([False, True]),
}


@pytest.mark.parametrize("column", COLUMNS)
def test_labels_of_any_type_are_those_of_the_task(origin, tmp_path, column):
    table = pa.table({"text": ["a", "b"], "label": COLUMNS[column]})
    pa_parquet.write_table(table, tmp_path / "train.parquet")
    assert told(read(origin(CHOICE, labels={"0": "no", "1": "yes"})), "label") == [("no",), ("yes",)]
    named = {**CHOICE, "label": {"names": ["0", "1"]}}
    assert told(read(origin(named)), "label") == [("0",), ("1",)]


def test_labels_keep_their_own_spelling_where_the_task_knows_it(origin, tmp_path):
    (tmp_path / "train.jsonl").write_text(lines([{"text": "a", "label": 1.0}, {"text": "b", "label": True}]))
    named = {**CHOICE, "label": {"names": ["1.0", "1", "true", "True"]}}
    assert told(read(origin(named)), "label") == [("1.0",), ("True",)]
    named = {**CHOICE, "label": {"names": ["1", "true"]}}
    assert told(read(origin(named)), "label") == [("1",), ("true",)]
    assert told(read(origin(TEXT)), "label") == [("1.0",), ("True",)]
    (tmp_path / "train.jsonl").write_text(lines([{"text": "a", "label": 1.5}]))
    assert 'label "1.5", outside the label set' in refused(origin(named))


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("Yes", 'did you mean "yes"? write it so, or labels: {"Yes": yes} in the source'),
        (" yes", 'did you mean "yes"? write it so, or labels: {" yes": yes} in the source'),
        (1, 'say in the source which number is which, as labels: {"0": NAME, "1": NAME}'),
        ("maybe", "expected one of no, yes"),
    ],
)
def test_labels_that_are_not_those_of_the_task_are_told_with_what_to_write(origin, tmp_path, value, line):
    (tmp_path / "train.jsonl").write_text(lines([{"text": "a", "label": value}, {"text": "b", "label": 0}]))
    assert refused(origin(CHOICE)).startswith(f'data: {tmp_path}/train.jsonl row 0 has label "{value}", ')
    assert refused(origin(CHOICE)).endswith(line)


LISTS = {
    "list": pa.list_(pa.string()),
    "large list": pa.large_list(pa.string()),
    "of fixed size": pa.list_(pa.string(), 2),
    "view": pa.list_view(pa.string()),
    "large text": pa.list_(pa.large_string()),
}


@pytest.mark.parametrize("kind", [*LISTS, "dictionary"])
def test_lists_of_any_type_are_words(origin, tmp_path, kind):
    words = pa.array([["Um", "10"], ["Ja", "7"]], LISTS.get(kind))
    if kind == "dictionary":
        words = pa.ListArray.from_arrays([0, 2, 4], pa.array(["Um", "10", "Ja", "7"]).dictionary_encode())
    write_arrow(tmp_path / "train.arrow", pa.table({"tokens": words, "tags": [["A", "O"], ["O", "B"]]}), True)
    rows = read(origin(TAGS))
    assert told(rows, "tokens", "label") == [(["Um", "10"], ["A", "O"]), (["Ja", "7"], ["O", "B"])]


def test_tags_that_are_numbers_of_any_type_are_those_of_the_task(origin, tmp_path):
    (tmp_path / "train.jsonl").write_text(lines([{"tokens": ["a", "b"], "tags": [0.0, 2]}]))
    assert told(read(origin(TAGS, labels={"0": "O", "2": "B"})), "label") == [(["O", "B"],)]
    assert refused(origin(TAGS)).endswith(
        'row 0 word 0 "a" has tag "0.0", outside the tag set; expected one of A, B, O'
    )


def test_points_in_time_are_text_and_what_is_no_text_is_refused(origin, tmp_path):
    def written(array: pa.Array) -> Origin:
        write_arrow(tmp_path / "train.arrow", pa.table({"text": array, "label": ["no", "yes"]}), True)
        return origin(CHOICE)

    hour = pa.array([0, 3600], pa.timestamp("s"))
    assert told(read(written(hour)), "text") == [("1970-01-01 00:00:00",), ("1970-01-01 01:00:00",)]
    assert told(read(written(pa.array([0, 1], pa.date32()))), "text") == [("1970-01-01",), ("1970-01-02",)]
    far = pa.array([0, 2**61], pa.timestamp("s"))  # Python has no such year
    assert read(written(far))[0]["text"] == "1970-01-01 00:00:00"
    no_utf8 = pa.StringArray.from_buffers(2, pa.array([0, 1, 2], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff"))
    assert "train.arrow can't be read: In column 0: Invalid: Invalid UTF8" in refused(written(no_utf8))
    (tmp_path / "train.arrow").unlink()
    pa_parquet.write_table(pa.table({"text": no_utf8, "label": ["no", "yes"]}), tmp_path / "train.parquet")
    assert "train.parquet: column \"text\" can't be read: 'utf-8' codec" in refused(origin(CHOICE))
    (tmp_path / "train.parquet").unlink()
    maps = pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64()))
    assert "row 0: column \"text\" holds [('a', 1)]; expected a text" in refused(written(maps))
    assert told(read(written(pa.nulls(2))), "text") == [("",), ("",)]


def test_a_column_of_nulls_is_no_label(origin, tmp_path):
    pa_parquet.write_table(pa.table({"text": ["a"], "label": pa.nulls(1)}), tmp_path / "train.parquet")
    assert 'row 0 has label "", a hidden label' in refused(origin(CHOICE))


def test_types_may_differ_between_shards(origin, tmp_path):
    for number, label in enumerate((pa.array([1]), pa.array([1.0]), pa.array(["1"]), pa.array([True]))):
        table = pa.table({"text": [f"{number}"], "label": label, "id": [number] if number else ["a"]})
        pa_parquet.write_table(table, tmp_path / f"train-{number}.parquet")
    rows = read(origin(CHOICE, files={"train": "train-*"}, labels={"1": "yes"}))
    assert told(rows, "id", "label") == [("a", "yes"), ("1", "yes"), ("2", "yes"), ("3", "yes")]


# JSON


@pytest.mark.parametrize(
    "layout",
    [
        {"text": ["Zug fährt", "2020"], "label": ["no", "yes"]},
        {"text": {"0": "Zug fährt", "1": "2020"}, "label": {"0": "no", "1": "yes"}},
        {"0": ROWS[0], "1": ROWS[1]},
        {"columns": ["text", "label"], "index": [0, 1], "data": [["Zug fährt", "no"], ["2020", "yes"]]},
        {"schema": {"fields": []}, "data": ROWS},
    ],
    ids=["list", "columns", "index", "split", "table"],
)
def test_tables_as_pandas_and_datasets_write_them(origin, tmp_path, layout):
    (tmp_path / "train.json").write_text(json.dumps(layout))
    assert told(read(origin(CHOICE)), "text", "label") == BOTH


def test_rows_and_columns_that_cannot_be_told_apart_are_what_the_ending_says(origin, tmp_path):
    """One sentence a line; a table of columns in a whole document."""
    row = {"tokens": ["a", "b"], "tags": ["A", "O"]}
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    assert told(read(origin(TAGS)), "tokens", "label") == [(["a", "b"], ["A", "O"])]
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": ["a"], "label": ["no"]}))
    assert "row 0: column \"text\" holds ['a']; expected a text" in refused(origin(CHOICE))
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "train.json").write_text(json.dumps({"text": ["a"], "label": ["no", "no"]}))
    assert "can't be read: columns are of unequal length: text 1, label 2" in refused(origin(CHOICE))


def test_rows_that_are_null_are_left_out_and_told(origin, tmp_path):
    (tmp_path / "train.jsonl").write_text(f"null\n{lines(ROWS)}\n\nnull\n")
    assert told(read(origin(CHOICE)), "text", "label") == BOTH
    assert notes(origin(CHOICE), tmp_path) == ["train.jsonl: 2 rows that are null are left out"]
    (tmp_path / "train.jsonl").write_text(json.dumps([None, *ROWS]))
    assert notes(origin(CHOICE), tmp_path) == ["train.jsonl: 1 rows that are null are left out"]


def test_rows_need_not_have_the_same_keys(origin, tmp_path):
    rows = [ROWS[0], {"id": "7", **ROWS[1], "more": 1}, {"label": "no"}]
    (tmp_path / "train.jsonl").write_text(lines(rows))
    assert told(read(origin(CHOICE)), "text")[1:] == [("2020",), ("",)]
    (tmp_path / "train.jsonl").write_text(lines([*rows, {"text": "b"}]))
    assert 'row 3 has label "", a hidden label' in refused(origin(CHOICE))


def test_json_that_goes_too_deep_is_one_line(origin, tmp_path):
    (tmp_path / "train.jsonl").write_text("[" * 100_000 + "\n" + "[" * 100_000)
    assert "can't be read: maximum recursion depth" in refused(origin(CHOICE))


def test_a_long_row_is_read_in_any_layout(origin, tmp_path):
    long = "word " * 3_000_000
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": long, "label": "no"}))
    pa_parquet.write_table(pa.table({"text": [long], "label": ["no"]}), tmp_path / "long.parquet")
    (tmp_path / "long.csv.gz").write_bytes(gzip.compress(f'text,label\n"{long}",no\n'.encode(), 1))
    assert read(origin(CHOICE))[0]["text"] == long
    for file in ("long.parquet", "long.csv.gz"):
        assert read(origin(CHOICE, files={"train": file}))[0]["text"] == long


# separators and quotes

SEPARATED = {
    "semicolons": ("csv", 'text;label\n"Zug fährt";no\n2020;yes\n'),
    "told by Excel": ("csv", "\ufeffsep=;\r\ntext;label\r\nZug fährt;no\r\n2020;yes\r\n"),
    "told and a comma": ("csv", "sep=,\ntext,label\nZug fährt,no\n2020,yes\n"),
    "tabs in a csv": ("csv", 'text\tlabel\n"Zug fährt"\tno\n2020\tyes\n'),
    "commas in a tsv": ("tsv", 'text,label\n"Zug fährt",no\n2020,yes\n'),
    "a quoted tsv": ("tsv", '"text"\t"label"\n"Zug fährt"\t"no"\n"2020"\t"yes"\n'),
    "returns alone": ("csv", "text,label\rZug fährt,no\r2020,yes\r"),
    "no last line end": ("csv", "text,label\r\nZug fährt,no\r\n\r\n2020,yes"),
}


@pytest.mark.parametrize("layout", SEPARATED)
def test_separators_as_programs_write_them(origin, tmp_path, layout):
    ending, text = SEPARATED[layout]
    (tmp_path / f"train.{ending}").write_bytes(text.encode())
    assert told(read(origin(CHOICE)), "text", "label") == BOTH
    assert notes(origin(CHOICE), tmp_path) == []


def test_other_separators_within_values_are_theirs(origin, tmp_path):
    (tmp_path / "train.csv").write_text('text,label\na;b\tc,no\n"d,""e""",yes\n5" wide,no\n')
    assert told(read(origin(CHOICE)), "text") == [("a;b\tc",), ('d,"e"',), ('5" wide',)]
    (tmp_path / "train.csv").write_text('text;label\na,b;no\n"c;\nd";yes\n')
    assert told(read(origin(CHOICE)), "text") == [("a,b",), ("c;\nd",)]


@pytest.mark.parametrize(
    "text",
    [
        'label,text\nno,"not closed\nyes,b\nno,c\n',
        'label,text\nno,"not closed\nyes,b\nno,c',
        'text,label\n"a,no\nb,yes\n"c,no\nd,yes\n',
    ],
)
def test_a_quote_that_is_not_closed_is_refused(origin, tmp_path, text):
    """It would swallow the rows that follow."""
    (tmp_path / "train.csv").write_text(text)
    assert "a value that begins in line 2 has a quote that does not end where the value does (line 4)" in refused(
        origin(CHOICE)
    )


def test_quotes_that_are_not_doubled_are_refused(origin, tmp_path):
    """They would move within the text."""
    (tmp_path / "train.csv").write_text('text,label\na,no\n"he said \\"b\\".",no\n')
    assert "a value that begins in line 3 has a quote that does not end where the value does (line 3)" in refused(
        origin(CHOICE)
    )
    (tmp_path / "train.csv").write_text('text,label\n"C:\\",no\n')
    assert told(read(origin(CHOICE)), "text") == [("C:\\",)]


def test_rows_that_two_odd_quotes_may_have_swallowed_are_told(origin, tmp_path):
    (tmp_path / "train.csv").write_text('label,text\nno,"odd\nyes,b\nno,c"\nyes,d\n')
    assert notes(origin(CHOICE), tmp_path) == [
        "train.csv: values that hold lines which look like rows of their own: 1; is a quote left open?"
    ]
    (tmp_path / "train.csv").write_text('label,text\nno,"two lines\n\nthe second, too"\nyes,d\n')
    assert notes(origin(CHOICE), tmp_path) == []


def test_rows_of_unequal_length_are_refused(origin, tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,b,no\n")
    assert refused(origin(CHOICE)).endswith('Expected 2 columns, got 3: a,b,no; put quotes around values that hold ","')
    (tmp_path / "train.csv").unlink()
    (tmp_path / "train.tsv").write_text("text\tlabel\na\tb\tno\n")
    assert refused(origin(CHOICE)).endswith("Expected 2 columns, got 3: a\tb\tno")


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff", "text,label\n", "text,label", "sep=;\n"])
def test_a_table_without_rows_is_told(origin, tmp_path, text):
    (tmp_path / "train-0.csv").write_text(text)
    mine = origin(CHOICE, files={"train": "train-*"})
    assert refused(mine) == f"data: {tmp_path}/train-0.csv has no rows for the train split of mine; give some"
    (tmp_path / "train-1.csv").write_text(WHOLE["csv"])
    assert len(read(mine)) == 2
    assert notes(mine, tmp_path) == ["train-0.csv: the file has no rows"]


# a word a line

NER = [(["EU", "rejects", "#"], ["A", "O", "O"]), (["Ann"], ["B"])]
WORDS = {
    "tabs": "EU\tA\nrejects\tO\n#\tO\n\nAnn\tB\n",
    "blanks": "EU A\nrejects  O\n# O\n\n\nAnn B\n",
    "four columns": "-DOCSTART- -X- -X- O\n\nEU NNP B-NP A\nrejects VBZ B-VP O\n# NN B-NP O\n\nAnn NNP I-NP B\n",
    "comments": "# id = 7\nEU A\nrejects O\n# O\n\n# a remark of several words\nAnn B\n",
    "comments over tabs": "# id = 7\nEU\tA\nrejects\tO\n#\tO\n\nAnn\tB\n",
    "comments as long as words": "# id 7\tlang=en\nEU _ _ A\nrejects _ _ O\n# _ _ O\n\n# id 8\tlang=en\nAnn _ _ B\n",
    "marks and returns": "\ufeffEU\tA\r\nrejects\tO\r\n#\tO\r\n\r\n\ufeffAnn\tB\t\r\n",
}


@pytest.mark.parametrize("layout", WORDS)
@pytest.mark.parametrize("ending", ["conll", "bio", "txt"])
def test_the_word_comes_first_and_its_tag_last(origin, tmp_path, layout, ending):
    (tmp_path / f"train.{ending}").write_bytes(WORDS[layout].encode())
    source = {"files": {"train": "train.txt"}, "format": "words"} if ending == "txt" else {}
    assert told(read(origin(TAGS, **source)), "tokens", "label") == NER


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("EU NNP A\nx O\ny NN O\n", "sentence 0: found 2 columns (x O); expected 3, as elsewhere, the word first"),
        ("1\tEU\tA\n2\tx\tO\n\n1\ty\tO\n", "the first column counts the words; expected the word first"),
    ],
)
def test_words_that_would_be_mistaken_are_refused(origin, tmp_path, text, line):
    (tmp_path / "train.conll").write_text(text)
    assert f"train.conll can't be read: {line}" in refused(origin(TAGS))


def test_a_word_without_a_tag_is_hidden(origin, tmp_path):
    (tmp_path / "train.conll").write_text("EU A\n#love\n")
    assert 'row 0 word 1 "#love" has tag "", a hidden label' in refused(origin(TAGS))
    rows = read_rows(origin(TAGS), f"{tmp_path}/train.conll", None, "en")
    assert rows["tokens"].to_pylist() == [["EU", "#love"]]


def test_sentences_whose_words_are_withheld_are_told(origin, tmp_path):
    hidden = CONLLU.replace("Die", "_").replace("Uhr", "_")
    (tmp_path / "train.conllu").write_text(hidden + CONLLU + hidden)
    assert notes(origin(TAGS), tmp_path) == ["train.conllu: 2 sentences whose words are withheld (_) are left out"]


@pytest.mark.parametrize("number", ["3-4", "2-1", "1-3"])
def test_a_contraction_of_words_that_are_not_there_is_refused(origin, tmp_path, number):
    """Its word would be lost, or that of its parts."""
    (tmp_path / "train.conllu").write_text(f"{number}\tx{CONLLU[5:23]}\n{CONLLU}".replace("\n\n", "\n"))
    assert f'sentence 0: found the contraction "{number}"; expected the words' in refused(origin(TAGS))


def test_conllu_that_is_none_is_told_what_it_may_be(origin, tmp_path):
    (tmp_path / "train.conllu").write_text("EU A\n")
    assert refused(origin(TAGS)).endswith(
        "found 1 columns; expected 10, divided by tabs (of word and tag: format: words)"
    )


@pytest.mark.parametrize(
    ("words", "tags"),
    [("Um 10:30", "O A"), ("['Um', '10:30']", "['O', 'A']"), ('["Um", "10:30"]', '["O", "A"]')],
)
@pytest.mark.parametrize("ending", ["tsv", "jsonl"])
def test_words_and_tags_may_be_texts(origin, tmp_path, words, tags, ending):
    text = f"tokens\ttags\n{words}\t{tags}\n" if ending == "tsv" else lines([{"tokens": words, "tags": tags}])
    (tmp_path / f"train.{ending}").write_text(text)
    assert told(read(origin(TAGS)), "tokens", "label") == [(["Um", "10:30"], ["O", "A"])]


def test_lists_as_numpy_writes_them_are_no_words(origin, tmp_path):
    """To Python ['a' 'b'] is one word, to a split at blanks two with quotes."""
    (tmp_path / "train.tsv").write_text("tokens\ttags\n['Um' '10']\t['O' 'A']\n")
    line = "row 0: column \"tokens\" holds \"['Um' '10']\"; expected a list of words"
    assert line in refused(origin(TAGS))
    with pytest.raises(UserError, match="expected a list of words"):
        read_rows(origin(TAGS), f"{tmp_path}/train.tsv", None, "en")
    (tmp_path / "train.tsv").write_text("tokens\ttags\n[ he laughs ]\tO O O O\n[ 12 ]\tO A O\n[12]\tA\n[7]\t[0]\n")
    assert told(read(origin(TAGS, labels={"0": "O"})), "tokens", "label") == [
        (["[", "he", "laughs", "]"], ["O"] * 4),
        (["[", "12", "]"], ["O", "A", "O"]),
        (["[12]"], ["A"]),
        (["[7]"], ["O"]),
    ]


# questions


MAYBE = {**SPAN, "label": {"column": "answers", "unanswerable": True}}
SQUAD = {
    "context": ASKED["context"],
    "qas": [
        {"id": "a", "question": "Who?", "answers": [{"text": "cat", "answer_start": 2}], "is_impossible": False},
        {"id": "b", "question": "Why?", "answers": [], "is_impossible": True},
        {
            "id": "c",
            "question": "Where?",
            "plausible_answers": [{"text": "sat", "answer_start": 6}],
            "answers": [{"text": "sat", "answer_start": 6}],
            "is_impossible": True,
        },
    ],
}


def test_questions_without_an_answer_are_read_where_the_task_has_such(origin, tmp_path):
    (tmp_path / "train.json").write_text(json.dumps({"version": "v2.0", "data": [{"paragraphs": [SQUAD]}]}))
    assert told(read(origin(MAYBE)), "id", "label", "starts") == [("a", ["cat"], [2]), ("b", [], []), ("c", [], [])]
    assert 'row "b" has no answer; if it is hidden, drop the row; if questions may have none' in refused(origin(SPAN))


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_answers_that_datasets_has_flattened_are_put_together(origin, tmp_path, ending):
    row = {**ASKED, "answers.text": ["cat"], "answers.answer_start": [2]}
    if ending == "parquet":
        pa_parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "train.parquet")
    else:
        (tmp_path / "train.jsonl").write_text(lines([row]))
    assert told(read(origin(SPAN)), "label", "starts") == [(["cat"], [2])]
    assert told(read(origin(SPAN, columns={"answers": ["gold", "answers"]})), "label") == [(["cat"],)]


@pytest.mark.parametrize("answers", [[], {"text": [], "answer_start": []}, {"text": [""], "answer_start": [-1]}])
def test_an_empty_list_of_answers_is_none(origin, tmp_path, answers):
    (tmp_path / "train.jsonl").write_text(lines([{**ASKED, "answers": answers}]))
    assert told(read(origin(MAYBE)), "label", "starts") == [([], [])]


def test_answers_that_are_missing_are_not_taken_for_none(origin, tmp_path):
    (tmp_path / "train.jsonl").write_text(lines([{**ASKED, "answers": None}]))
    assert 'row "' in refused(origin(MAYBE))
    assert "has no answer; if it is hidden, drop the row" in refused(origin(MAYBE))

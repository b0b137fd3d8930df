"""What a reader of a result should know of its rows: those left out of a file, test rows that were trained on, classes
without train rows, repeated rows, empty texts, texts that the model's tokenizer does not know. Told, not refused: some
may be meant.

Two rows are the same where language, label and all fields are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pa_compute

from raypft.backbones.text import PromptTokenizer
from raypft.data.columns import notes_of
from raypft.data.content import CHUNK
from raypft.data.sampling import Sample
from raypft.tasks.task import Task

compute: Any = pa_compute  # its functions are made at import

SHARED = (("train", "test"), ("dev", "test"), ("demos", "test"), ("train", "dev"))
"""Roles that should share no row."""
MISSING = ["nan", "NaN", "null", "NULL", "None", "NA", "N/A", "<NA>", "#N/A"]
"""What programs write where a value is missing."""
QUOTED = r'(?s)^"(?:[^"]|"")*""(?:[^"]|"")*"$'
"""A text as pandas writes it into a separated file: quoted, its own quotes doubled."""
TOKENIZED = 20
"""Rows a language and role whose tokens are looked at."""


def notes_on(task: Task, sample: Sample, tests_dev: bool, text: PromptTokenizer) -> list[str]:
    """A line for each thing that is odd in the rows of a cell, with a count.

    Args:
        tests_dev: dev rows are the test rows by the protocol.
    """
    tables = {role: getattr(sample, role) for role in ("train", "dev", "test", "demos")}
    if sample.stream is not None:
        del tables["train"]  # there are only the first rows of it
    tables = {role: table for role, table in tables.items() if table is not None and len(table)}
    marks = {role: _marks(task, table) for role, table in tables.items()}
    lines = list(dict.fromkeys(itertools.chain.from_iterable(map(notes_of, tables.values()))))
    for role, other in SHARED:
        if role in marks and other in marks and not (tests_dev and role == "dev"):
            mine = _among(marks[role], marks[other])
            theirs = _among(marks[other], marks[role][mine])
            one, two = (_contents(task, tables[name].take(some)) for name, some in ((role, mine), (other, theirs)))
            lines += _counted(compute.is_in(one, two), role, f"are also {other} rows", len(tables[role]))
    if task.kind.one_label and "train" in tables:
        trained = set(tables["train"]["label"].unique().to_pylist())
        lines += [f'no train row has the label "{name}"' for name in task.label.names if name not in trained]
    for role, table in tables.items():
        lines += _repeated(task, table, marks[role], role)
        for column in task.fields.values():
            lines += _odd_texts(table[column], role, column)
        lines += _unknown(task, table, role, text)
    return lines


def _contents(task: Task, table: pa.Table) -> pa.ChunkedArray:
    """Language, label and fields of each row as one text, [rows]."""
    columns = [_flat(table[name]) for name in dict.fromkeys(["language", "label", *task.fields.values()])]
    return compute.binary_join_element_wise(*columns, pa.scalar("\x1f", pa.large_string()))


def _flat(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_list(column.type):
        return column.cast(pa.large_string())
    return compute.binary_join(column.cast(pa.list_(pa.large_string())), pa.scalar("\x1e", pa.large_string()))


def _marks(task: Task, table: pa.Table) -> np.ndarray:
    """A number for each row that rows of the same content share, and few others, [rows]: contents of all rows at once
    would take as much memory as the rows."""
    marks = [np.zeros(0, np.int64)]
    for batch in table.to_batches(max_chunksize=CHUNK):
        contents = _contents(task, pa.Table.from_batches([batch])).to_pylist()
        marks.append(np.fromiter(map(hash, contents), np.int64, len(contents)))
    return np.concatenate(marks)


def _among(marks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The numbers of the rows whose mark is among others; numpy's own takes a second for a million of these."""
    return np.flatnonzero(compute.is_in(pa.array(marks), pa.array(others)))


def _counted(flags: pa.ChunkedArray, role: str, what: str, rows: int | None = None) -> list[str]:
    """`3 of 40 train rows …`; nothing where no flag is true."""
    count = compute.sum(flags).as_py()
    return [f"{count} of {rows or len(flags)} {role} rows {what}"] if count else []


def _repeated(task: Task, table: pa.Table, marks: np.ndarray, role: str) -> list[str]:
    _, place, often = np.unique(marks, return_inverse=True, return_counts=True)
    alike = _contents(task, table.take(np.flatnonzero(often[place] > 1)))
    again = len(alike) - len(alike.unique())
    return [f"{again} of {len(table)} {role} rows repeat another {role} row"] if again else []


def _odd_texts(column: pa.ChunkedArray, role: str, name: str) -> Iterator[str]:
    if pa.types.is_list(column.type):  # words: what is odd in a text may be a word
        words = compute.list_flatten(column)
        if len(column) == len(words) > 1 and role != "demos":
            yield f"all {role} rows are of one word; a sentence is a row, of a word a line the format is words"
        count = compute.sum(_is_blank(words)).as_py()
        if count:
            yield f"{count} of {len(words)} words of {role} rows are empty"
        return
    yield from _counted(_is_blank(column), role, f"have an empty {name}")
    missing = compute.is_in(column, pa.array(MISSING))
    yield from _counted(missing, role, f"have nan, null or the like for {name}; is a value missing there?")
    quoted = compute.match_substring_regex(column, QUOTED)
    told = f"have doubled quotes in {name}, as pandas writes them; tsv is read without quoting: write csv instead"
    yield from _counted(quoted, role, told)


def _is_blank(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    return compute.equal(compute.utf8_trim_whitespace(texts), "")


def _unknown(task: Task, table: pa.Table, role: str, text: PromptTokenizer) -> Iterator[str]:
    """A line for each language of which most tokens are the unknown one."""
    unknown = text.tokenizer.unk_token_id
    if unknown is None:
        return
    for language in table["language"].unique().to_pylist():
        of_language = table.take(np.flatnonzero(compute.equal(table["language"], language))[:TOKENIZED])
        ids: list[int] = []
        for column in task.fields.values():
            for value in of_language[column].to_pylist():
                ids += text.tokenize(" ".join(value) if isinstance(value, list) else value)
        if 2 * ids.count(unknown) > len(ids):
            share = 100 * ids.count(unknown) / len(ids)
            yield (
                f"{share:.0f}% of the tokens of {role} rows in {language} are {text.tokenizer.unk_token}, unknown to "
                "the tokenizer; is it this model's, and made for the language?"
            )

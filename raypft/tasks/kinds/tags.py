"""tags: a row is a list of words, each has one of the label names.

A pattern asks about one word at a time ({token}), or shows the sentence, whose every word is then a slot.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pa_compute

from raypft.encoded import Encoded
from raypft.errors import UserError
from raypft.tasks.kinds import base

compute: Any = pa_compute  # its functions are made at import
WORDS = "tokens"
"""The field that holds the words."""
UNLIMITED = 1 << 30


class Tags(base.Kind):
    """A tag a word."""

    name = "tags"
    metrics = ("entity_f1", "token_accuracy", "token_f1", "topro_official", "topro_mt5_official", "span_f1")
    fields = (WORDS,)
    only_fields = True
    has_labels = True
    answers_words = True
    field_type = base.TEXTS

    @property
    def answered_at(self) -> str:
        return WORDS

    def usual_metric(self, names: Sequence[str]) -> str:
        return "entity_f1" if any(name.startswith("B-") for name in names) else "token_accuracy"

    def read_field(self, values: base.Values, column: str, where: str) -> pa.ChunkedArray:
        if isinstance(values, pa.ChunkedArray) and _all_words(values):
            return cast(pa.ChunkedArray, values).cast(base.TEXTS)
        lists = [as_list(value, numbers=False) for value in base.listed(values)]
        for row, value in enumerate(lists):
            told = f'data: {where} row {row}: column "{column}" holds'
            if base.is_missing(value) or value == []:
                raise UserError(f"data: {where} row {row} has no words; drop it from the file")
            if not isinstance(value, list):
                raise UserError(f"{told} {base.shown(value)}; expected a list of words")
            for number, word in enumerate(value):
                if base.is_missing(word) or isinstance(word, list | dict):
                    raise UserError(f"{told} {base.shown(word)} as word {number}; expected a text")
        words = [base.as_text(value, column, f"{where} row {row} words") for row, value in enumerate(lists)]
        return base.column_of(words, base.TEXTS)

    def read_labels(self, values: base.Values, rows: base.ReadRows) -> dict[str, pa.ChunkedArray]:
        found = _all_tags(values, rows)
        if found is not None:
            return {"label": found}
        known = set(rows.names)
        sentences: list[list[str]] = []
        ours: dict[str, str] = {}
        for number, (words, value) in enumerate(zip(rows.fields[WORDS].to_pylist(), base.listed(values), strict=True)):
            where = f"data: {rows.where} row {number}"
            value = as_list(value, numbers=True)
            if not (base.is_missing(value) or isinstance(value, list)):
                raise UserError(f"{where} has {base.shown(value)} for tags; expected a list, one tag a word")
            given = base.as_text([] if base.is_missing(value) else value, "tags", f"{rows.where} row {number} tags")
            fresh = [tag for tag in given if tag not in ours]
            ours.update(zip(fresh, base.named(fresh, rows), strict=True))
            tags = [ours[tag] for tag in given]
            if not tags:
                raise UserError(f"{where} has no tags (hidden labels?); scores need labels")
            if len(words) != len(tags):
                raise UserError(f"{where} has {len(words)} words and {len(tags)} tags; expected one tag a word")
            if not known.issuperset(tags):
                i = next(i for i, tag in enumerate(tags) if tag not in known)
                what = "a hidden label" if given[i] in base.HIDDEN else "outside the tag set"
                expected = f"expected {base.wanted(given[i], given, rows)}"
                raise UserError(f'{where} word {i} "{words[i]}" has tag "{given[i]}", {what}; {expected}')
            sentences.append(tags)
        return {"label": base.column_of(sentences, base.TEXTS)}

    def labels_of(self, row: Mapping[str, Any]) -> list[str]:
        return row["label"]

    def prompts(self, encoder: base.RowEncoder, row: Mapping[str, Any]) -> list[Encoded]:
        words = encoder.value(row, WORDS)
        tags = row.get("label") or [None] * len(words)
        gold = [-1 if tag is None else encoder.names.index(tag) for tag in tags]
        if encoder.asks_words:
            return [
                prompt.but(gold=[index], answers=[encoder.word(row, tag or "")])
                for prompt, index, tag in zip(encoder.asked(row), gold, tags, strict=True)
            ]
        made = []
        for start, end in _chunks(encoder, row, words):
            query = encoder.render(encoder.with_value(row, WORDS, words[start:end]))
            told = zip(tags[start:end], words[start:end], strict=True)
            answers = [f"{tag or ''}: {word}" for tag, word in told]
            made.append(encoder.encode(query, row).but(gold=gold[start:end], answers=answers))
        return made


def _all_words(values: pa.ChunkedArray) -> bool:
    """Whether every row is a list of at least one word, and none is missing."""
    if not pa.types.is_list(values.type) or values.null_count:
        return False
    sizes = compute.min(compute.list_value_length(values)).as_py()
    return sizes != 0 and not compute.list_flatten(values).null_count


def _all_tags(values: base.Values, rows: base.ReadRows) -> pa.ChunkedArray | None:
    """The tags of a column of lists by our names; None where any does not fit, which `read_labels` then tells."""
    if not isinstance(values, pa.ChunkedArray) or not _all_words(values):
        return None
    words = rows.fields[WORDS]
    if not compute.all(compute.equal(compute.list_value_length(values), compute.list_value_length(words))).as_py():
        return None
    tags = base.texts(compute.list_flatten(values), "tags", rows.where)
    ours = base.renamed(tags, functools.partial(base.named, rows=rows)).combine_chunks()
    ends = compute.cumulative_sum(compute.list_value_length(values).combine_chunks().cast(pa.int64()))
    offsets = pa.concat_arrays([pa.array([0], pa.int64()), ends])
    if not compute.all(compute.is_in(ours, pa.array(rows.names))).as_py():
        return None
    return pa.chunked_array([pa.LargeListArray.from_arrays(offsets, ours)]).cast(base.TEXTS)


def as_list(value: Any, numbers: bool) -> Any:
    """Words or tags that are written as one text: with blanks between, or as Python or JSON writes a list of texts; a
    list that is written otherwise stays a text.

    Args:
        numbers: a list may be one of numbers. As words, [ 12 ] are three and [12] is one.
    """
    if not isinstance(value, str):
        return value
    if value.startswith("[") and value.endswith("]"):
        for read, write in ((json.loads, None), (ast.literal_eval, repr)):
            try:
                found = read(value)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            fits = isinstance(found, list) and (numbers or all(isinstance(word, str) for word in found))
            # to Python ['a' 'b'], as NumPy writes it, is one word
            if fits and (write is None or write(found) == value):
                return found
    return value if re.match("\\[['\"]", value) else value.split()


def _chunks(encoder: base.RowEncoder, row: Mapping[str, Any], words: Sequence[str]) -> list[tuple[int, int]]:
    """Sentences too long for one prompt are cut between words, as XTREME's preprocessing does."""

    def size(word: str, blank: str) -> int:
        return max(1, len(encoder.tokenize(blank + word)))

    query = encoder.render(encoder.with_value(row, WORDS, words[:1]))
    # a part's first word stands after the pattern's own blank, if it has one
    blank = next(piece.text for piece in query.pieces if piece.mark == "slot").removesuffix(words[0])
    room = encoder.max_tokens - (len(encoder.encode(query, row, UNLIMITED).ids) - size(words[0], blank))
    chunks, start, used = [], 0, 0
    for i, word in enumerate(words):
        if i > start and used + size(word, " ") > room:
            chunks.append((start, i))
            start, used = i, 0
        used += size(word, " " if i > start else blank)
    return [*chunks, (start, len(words))]

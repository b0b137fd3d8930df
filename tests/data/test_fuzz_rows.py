"""Small valid files with bytes changed, cut, doubled or swapped: each is read, or refused in one line; nothing else
happens, and nothing is left beside them."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from hypothesis import given, settings, strategies
from test_columns import SPAN, TAGS
from test_odd_files import ASKED, CHOICE, CONLLU, WHOLE, lines

from raypft.data.sources import read_split
from raypft.errors import UserError

ROUNDS = 150
BITS = [bytes([byte]) for byte in b"\"'\t\n,;:[]{}\\#- \0\xff"]
BITS += [b"\r\n", b"\xef\xbb\xbf", b"null", b"1e999", b"\xed\xa0\x80", b"data", b"\xe2\x80\xa8"]
ASKS = lines([{**ASKED, "answers": {"text": ["cat"], "answer_start": [2]}}] * 2)
SQUAD = json.dumps(
    {"data": [{"paragraphs": [{"context": "A cat sat.", "qas": [{**json.loads(ASKS.split("\n")[0]), "id": "q"}]}]}]}
)


def stored(write: Callable[[pa.Table, pa.NativeFile], None]) -> bytes:
    """The bytes of a table."""
    sink = pa.BufferOutputStream()
    write(pa.table({"text": ["a", "b"], "label": ["no", "yes"]}), sink)
    return sink.getvalue().to_pybytes()


def arrow(make: Callable, table: pa.Table, sink: pa.NativeFile) -> None:
    with make(sink, table.schema) as writer:
        writer.write_table(table)


FILES: dict[str, tuple[dict, bytes]] = {
    **{ending: (CHOICE, text.encode()) for ending, text in WHOLE.items()},
    "csv.gz": (CHOICE, gzip.compress(WHOLE["csv"].encode())),
    "jsonl.bz2": (CHOICE, bz2.compress(WHOLE["jsonl"].encode())),
    "tsv.xz": (CHOICE, lzma.compress(WHOLE["tsv"].encode())),
    "parquet": (CHOICE, stored(lambda table, sink: pa_parquet.write_table(table, sink, compression="none"))),
    "arrow": (CHOICE, stored(lambda table, sink: arrow(pa.ipc.new_file, table, sink))),
    "feather": (CHOICE, stored(lambda table, sink: arrow(pa.ipc.new_stream, table, sink))),
    "conllu": (TAGS, ("# sent_id = s\n" + CONLLU * 2).encode()),
    "conll": (TAGS, b"EU NNP A\nsays VB O\n\nAnn NNP B\n"),
    "ndjson": (TAGS, lines([{"tokens": ["a", "b"], "tags": ["A", "O"]}, {"tokens": "a b", "tags": "O O"}]).encode()),
    "jsonl.gz": (SPAN, gzip.compress(ASKS.encode())),
    "json.gz": (SPAN, gzip.compress(SQUAD.encode())),
}


def mutated(data: bytes, draw: random.Random) -> bytes:
    """The bytes with one to three changes."""
    for _ in range(draw.randint(1, 3)):
        place, end = sorted(draw.randrange(len(data) + 1) for _ in range(2))
        data = draw.choice(
            [
                data[:place],
                data[:place] + draw.choice(BITS) + data[place:],
                data[:place] + draw.choice(BITS) + data[place + 1 :],
                data[:place] + bytes([draw.randrange(256)]) + data[place + 1 :],
                data[:place] + data[end:],
                data[:end] + data[place:],
                data[place:] + data[:place],
            ]
        )
    return data


@pytest.mark.parametrize("ending", FILES)
def test_a_damaged_file_is_read_or_refused_in_one_line(origin, tmp_path, ending):
    values, whole = FILES[ending]
    made = origin(values)
    path: Path = tmp_path / f"train.{ending}"
    path.write_bytes(whole)
    assert read_split(made, "train", ["en"]) is not None
    before = sorted(tmp_path.iterdir())
    refusals = []

    @settings(max_examples=ROUNDS, derandomize=True, deadline=None, database=None)
    @given(strategies.randoms(use_true_random=False))
    def holds(draw: random.Random) -> None:
        path.write_bytes(mutated(whole, draw))
        try:
            table = read_split(made, "train", ["en"])
        except UserError as error:
            refusals.append(str(error))
        else:
            assert table is not None
            table.validate(full=True)

    holds()
    assert refusals
    assert not [line for line in refusals if "\n" in line]
    assert sorted(tmp_path.iterdir()) == before

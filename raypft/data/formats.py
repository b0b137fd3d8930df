"""Files become columns: parquet, JSON, tsv, csv, and the layouts of the field (CoNLL-U, a word a line, SQuAD).

Values are as the format has them; those of tsv and csv are text, as they are written. Columns of the layouts: conllu,
words and panx give id, tokens and tags (a row a sentence); squad gives id, question, context and answers. A byte-order
mark before the text is none of it.
"""

from __future__ import annotations

import codecs
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
from pyarrow import fs

from raypft.data.json_rows import records
from raypft.errors import UserError, first_line

ENDINGS = {"parquet": "parquet", "jsonl": "jsonl", "tsv": "tsv", "csv": "csv", "conllu": "conllu", "json": "squad"}
"""What a file's ending says of its format."""
PRECEDENCE = {
    "": "VERB NOUN PROPN PRON ADJ NUM ADV INTJ AUX ADP DET PART CCONJ SCONJ X PUNCT SYM",
    "es": "VERB AUX PRON ADP DET",
    "fr": "VERB AUX PRON NOUN ADJ ADV ADP DET PART SCONJ",
    "it": "VERB AUX ADV PRON ADP DET INTJ",
}
"""Which tag a contraction takes where its words stand equally high in the tree; "" follows each language's list."""
NUMBER = re.compile(r"\d+(?:[-.]\d+)?")
"""A word's number in CoNLL-U; 3-4 stands for a contraction, 3.1 for an empty node."""


@dataclass(frozen=True)
class Columns:
    """What a file or data set holds, not yet looked at.

    names: of the columns, as they stand there; rows: how many there are; values: a column's, one a row.
    """

    names: list[str]
    rows: int
    values: Callable[[str], list[Any]]

    @classmethod
    def of_arrow(cls, table: pa.Table) -> Columns:
        """The columns of an Arrow table."""
        return cls(table.column_names, table.num_rows, lambda name: table[name].to_pylist())

    @classmethod
    def of_records(cls, rows: list[dict[str, Any]]) -> Columns:
        """The columns of rows that need not have the same; what a row lacks is None."""
        names = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
        return cls(names, len(rows), lambda name: [row.get(name) for row in rows])


def read_file(system: fs.FileSystem, path: str, format: str | None = None, language: str | None = None) -> Columns:
    """The columns of a file, called as its format calls them.

    Args:
        path: in `system`; format: a key of READERS; None goes by the ending.
        language: whose contractions a CoNLL-U file holds.

    Raises:
        UserError: the file is damaged, or no UTF-8.
    """
    reader = READERS[format or ENDINGS[path.rsplit(".", 1)[-1]]]
    try:
        with system.open_input_file(path) as stream:
            if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise ValueError("it is UTF-16; expected UTF-8; save it as that")
            stream.seek(0)
            return reader(stream, language or "")
    except UserError:  # the hub's, when the file is opened
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"data: {path} can't be read: {first_line(error)}") from None


def _parquet(stream: pa.NativeFile, _: str) -> Columns:
    return Columns.of_arrow(pa_parquet.ParquetFile(stream).read())


def _json(stream: pa.NativeFile, _: str) -> Columns:
    # not Arrow's reader, which takes a text that looks like a date for one
    return Columns.of_records(records(stream.read()))


def _separated(delimiter: str) -> Callable[[pa.NativeFile, str], Columns]:
    def read(stream: pa.NativeFile, _: str) -> Columns:
        # tsv as the field writes it: no quoting
        parse = (
            pa_csv.ParseOptions(delimiter="\t", quote_char=False)
            if delimiter == "\t"
            else pa_csv.ParseOptions(newlines_in_values=True)
        )
        # every column is text: "007" is no number, "2020-01-01" no date
        convert = pa_csv.ConvertOptions(default_column_type=pa.string(), strings_can_be_null=False)
        # a row must lie in one block, however long it is
        whole = pa_csv.ReadOptions(block_size=min(max(stream.size() + 1, 1 << 20), (1 << 31) - 1))
        return Columns.of_arrow(pa_csv.read_csv(stream, whole, parse, convert))

    return read


def _blocks(stream: pa.NativeFile) -> Iterator[list[str]]:
    """The runs of lines between blank lines."""
    block: list[str] = []
    for written in stream.read().decode("utf-8").split("\n"):
        line = written.removeprefix("\ufeff")  # where files with a byte-order mark were joined, it stands within
        if line.strip():
            block.append(line.rstrip("\r"))
        elif block:
            yield block
            block = []
    if block:
        yield block


def _sentences(rows: list[tuple[str, list[str], list[str]]]) -> Columns:
    return Columns.of_records([{"id": name, "tokens": tokens, "tags": tags} for name, tokens, tags in rows])


def _words(prefix: bool) -> Callable[[pa.NativeFile, str], Columns]:
    """Reader of `word<TAB>tag` lines; with `prefix` the word stands after `language:`. A missing tag is empty."""

    def read(stream: pa.NativeFile, _: str) -> Columns:
        rows = []
        for number, block in enumerate(_blocks(stream)):
            pairs = [line.partition("\t") for line in block]
            bare = next((word for word, _, _ in pairs if ":" not in word), None)
            if prefix and bare is not None:  # of a file without prefixes, 10:30 would become 30
                raise ValueError(f'sentence {number}: found "{bare}"; expected language:word, or format: words')
            tokens = [(word.partition(":")[2] if prefix else word).strip() for word, _, _ in pairs]
            rows.append((str(number), tokens, [tag.strip() for _, _, tag in pairs]))
        return _sentences(rows)

    return read


def _conllu(stream: pa.NativeFile, language: str) -> Columns:
    """Sentences as XTREME prepares them.

    Empty nodes (8.1) go; a contraction (3-4) is one word with the tag of the part highest in the tree; blanks and
    zero-width non-joiners inside a word go; a sentence of which at most one word is shown (the text of others is
    withheld) goes.
    Source: google-research/xtreme, ud-conversion-tools and utils_preprocess.py.
    Differs: where that code stops at a tag its list for es, fr and it lacks, the general order goes on.
    """
    rows = []
    for number, block in enumerate(_blocks(stream)):
        name = next(
            (line.partition("=")[2].strip() for line in block if re.match(r"#\s*sent_id\s*=", line)), str(number)
        )
        lines = [line.split("\t") for line in block if not line.startswith("#")]
        if bad := next((line for line in lines if len(line) != 10), None):
            raise ValueError(f"sentence {name}: found {len(bad)} columns; expected 10")
        numbers = Counter(line[0] for line in lines)
        if odd := next((number for number in numbers if not NUMBER.fullmatch(number) or numbers[number] > 1), None):
            raise ValueError(
                f'sentence {name}: found "{odd}" as a word\'s number, or twice; '
                "expected 1, 2, … and a blank line between sentences"
            )
        tokens, tags = _fuse(lines, language)
        hidden = sum(word == "_" for word in tokens)
        if tokens and (not hidden or hidden < len(tokens) - 1):
            rows.append((name, [re.sub("[ \u200c]", "", word) for word in tokens], tags))
    return _sentences(rows)


def _fuse(lines: list[list[str]], language: str) -> tuple[list[str], list[str]]:
    """Words and tags, each contraction one word."""
    words = {int(line[0]): line for line in lines if line[0].isdigit()}
    ranges = {int(line[0].split("-")[0]): line for line in lines if "-" in line[0]}
    order = f"{PRECEDENCE.get(language, '')} {PRECEDENCE['']}".split()
    tokens, tags, last = [], [], 0
    for number, line in words.items():
        if number in ranges:
            last = int(ranges[number][0].split("-")[1])
            span = [part for part in range(number, last + 1) if part in words]
            depth = {part: len(_ancestors(part, words)) for part in span}
            ranked = {part: order.index(words[part][3]) if words[part][3] in order else len(order) for part in span}
            tokens.append(ranges[number][1])
            tags.append(words[min(span, key=lambda part: (depth[part], ranked[part]))][3])
        elif number > last:
            tokens.append(line[1])
            tags.append(line[3])
    return tokens, tags


def _ancestors(word: int, words: dict[int, list[str]]) -> set[int]:
    """What stands above a word, by its head and by the enhanced graph."""
    above: set[int] = set()
    waiting = [word]
    while waiting:
        line = words.get(waiting.pop())
        if line is None:
            continue
        enhanced = [edge.split(":")[0] for edge in line[8].split("|")]
        new = {int(head) for head in (line[6], *enhanced) if head.isdigit()} - above
        above |= new
        waiting += new
    return above - {word}


READERS: dict[str, Callable[[pa.NativeFile, str], Columns]] = {
    "parquet": _parquet,
    "jsonl": _json,
    "tsv": _separated("\t"),
    "csv": _separated(","),
    "conllu": _conllu,
    "squad": _json,
    "words": _words(prefix=False),
    "panx": _words(prefix=True),
}

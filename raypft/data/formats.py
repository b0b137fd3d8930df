"""Files become Arrow tables: parquet, jsonl, tsv, csv, and the layouts of the field (CoNLL-U, a word a line, SQuAD).

Lists stay lists; scalars of text formats are text, as they are written. Columns of the layouts: conllu, words and panx
give id, tokens and tags (a row a sentence); squad gives id, question, context and answers.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
from pyarrow import fs

from raypft.errors import UserError

ENDINGS = {"parquet": "parquet", "jsonl": "jsonl", "tsv": "tsv", "csv": "csv", "conllu": "conllu", "json": "squad"}
"""What a file's ending says of its format."""
PRECEDENCE = {
    "": "VERB NOUN PROPN PRON ADJ NUM ADV INTJ AUX ADP DET PART CCONJ SCONJ X PUNCT SYM",
    "es": "VERB AUX PRON ADP DET",
    "fr": "VERB AUX PRON NOUN ADJ ADV ADP DET PART SCONJ",
    "it": "VERB AUX ADV PRON ADP DET INTJ",
}
"""Which tag a contraction takes where its words stand equally high in the tree; "" follows each language's list."""


def read_file(system: fs.FileSystem, path: str, format: str | None = None, language: str | None = None) -> pa.Table:
    """An Arrow table out of a file, in the columns of its format.

    Args:
        path: in `system`; format: a key of READERS; None goes by the ending.
        language: whose contractions a CoNLL-U file holds.

    Raises:
        UserError: the file is damaged.
    """
    reader = READERS[format or ENDINGS[path.rsplit(".", 1)[-1]]]
    try:
        with system.open_input_file(path) as stream:
            return reader(stream, language or "")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"data: {path} can't be read: {str(error).splitlines()[0]}") from None


def _parquet(stream: pa.NativeFile, _: str) -> pa.Table:
    return pa_parquet.read_table(stream)


def _jsonl(stream: pa.NativeFile, _: str) -> pa.Table:
    # not Arrow's reader, which takes a text that looks like a date for one
    rows = [json.loads(line) for line in stream.read().splitlines() if line.strip()]
    return pa.table({name: _column(rows, name) for name in dict.fromkeys(itertools.chain.from_iterable(rows))})


def _column(rows: list[dict], name: str) -> pa.Array:
    values = [row.get(name) for row in rows]
    if any(isinstance(value, (list, dict)) for value in values):
        return pa.array(values)
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def _separated(delimiter: str) -> Callable[[pa.NativeFile, str], pa.Table]:
    def read(stream: pa.NativeFile, _: str) -> pa.Table:
        # tsv as the field writes it: no quoting
        parse = (
            pa_csv.ParseOptions(delimiter="\t", quote_char=False)
            if delimiter == "\t"
            else pa_csv.ParseOptions(newlines_in_values=True)
        )
        names = pa_csv.open_csv(stream, parse_options=parse).schema.names
        stream.seek(0)
        # every column is text: "007" is no number, "2020-01-01" no date
        convert = pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
        return pa_csv.read_csv(stream, parse_options=parse, convert_options=convert)

    return read


def _blocks(stream: pa.NativeFile) -> Iterator[list[str]]:
    """The runs of lines between blank lines."""
    block: list[str] = []
    for line in stream.read().decode("utf-8").split("\n"):
        if line.strip():
            block.append(line.rstrip("\r"))
        elif block:
            yield block
            block = []
    if block:
        yield block


def _sentences(rows: list[tuple[str, list[str], list[str]]]) -> pa.Table:
    ids, tokens, tags = zip(*rows, strict=True) if rows else ((), (), ())
    words = pa.list_(pa.string())
    return pa.table(
        {"id": pa.array(ids, pa.string()), "tokens": pa.array(tokens, words), "tags": pa.array(tags, words)}
    )


def _words(prefix: bool) -> Callable[[pa.NativeFile, str], pa.Table]:
    """Reader of `word<TAB>tag` lines; with `prefix` the word stands after `language:`. A missing tag is empty."""

    def read(stream: pa.NativeFile, _: str) -> pa.Table:
        rows = []
        for number, block in enumerate(_blocks(stream)):
            pairs = [line.partition("\t") for line in block]
            tokens = [(word.partition(":")[2] if prefix and ":" in word else word).strip() for word, _, _ in pairs]
            rows.append((str(number), tokens, [tag.strip() for _, _, tag in pairs]))
        return _sentences(rows)

    return read


def _conllu(stream: pa.NativeFile, language: str) -> pa.Table:
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
        tokens, tags = _fuse(lines, language)
        hidden = sum(word == "_" for word in tokens)
        if not hidden or hidden < len(tokens) - 1:
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


def _squad(stream: pa.NativeFile, _: str) -> pa.Table:
    rows = []
    try:
        for article in json.loads(stream.read())["data"]:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    given = asked.get("answers") or []
                    answers = {"text": [a["text"] for a in given], "answer_start": [a["answer_start"] for a in given]}
                    rows.append(
                        {
                            "id": str(asked["id"]),
                            "question": asked["question"],
                            "context": paragraph["context"],
                            "answers": answers,
                        }
                    )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not laid out as SQuAD is (data, paragraphs, qas): {type(error).__name__} {error}") from None
    answers = pa.struct([("text", pa.list_(pa.string())), ("answer_start", pa.list_(pa.int32()))])
    text = [(name, pa.string()) for name in ("id", "question", "context")]
    return pa.Table.from_pylist(rows, pa.schema([*text, ("answers", answers)]))


READERS: dict[str, Callable[[pa.NativeFile, str], pa.Table]] = {
    "parquet": _parquet,
    "jsonl": _jsonl,
    "tsv": _separated("\t"),
    "csv": _separated(","),
    "conllu": _conllu,
    "squad": _squad,
    "words": _words(prefix=False),
    "panx": _words(prefix=True),
}

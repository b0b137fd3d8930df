"""Sentences out of text with a word a line and a blank line between sentences: CoNLL-U, word and tag, PAN-X.

Rows have id, tokens and tags.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import chain, repeat
from typing import Any

PRECEDENCE = {
    "": "VERB NOUN PROPN PRON ADJ NUM ADV INTJ AUX ADP DET PART CCONJ SCONJ X PUNCT SYM",
    "es": "VERB AUX PRON ADP DET",
    "fr": "VERB AUX PRON NOUN ADJ ADV ADP DET PART SCONJ",
    "it": "VERB AUX ADV PRON ADP DET INTJ",
}
"""Which tag a contraction takes where its words stand equally high in the tree; "" follows each language's list."""
NUMBER = re.compile(r"\d+(?:[-.]\d+)?")
"""A word's number in CoNLL-U; 3-4 stands for a contraction, 3.1 for an empty node."""
DOCUMENT = "-DOCSTART-"
"""The word of a line that begins a document in CoNLL-2003."""

Rows = list[dict[str, Any]]


def _blocks(text: str) -> Iterator[list[str]]:
    """The runs of lines between blank lines."""
    block: list[str] = []
    for written in text.split("\n"):
        line = written.removeprefix("\ufeff")  # where files with a byte-order mark were joined, it stands within
        if line.strip():
            block.append(line.rstrip("\r"))
        elif block:
            yield block
            block = []
    if block:
        yield block


def words(text: str, prefix: bool) -> Rows:
    """Sentences whose lines have the word first and its tag last, with tabs between or, where no line has one, blanks.

    What stands between the two (CoNLL-2003's part of speech and chunk) is not looked at; lines of comments and of
    CoNLL-2003's -DOCSTART- are no words. A missing tag is empty.

    Args:
        prefix: the word stands after `language:`, as in PAN-X.

    Raises:
        ValueError: lines of unequal length, words counted in the first column, or no language before a word.
    """
    blocks = list(_blocks(text))
    tabbed = any("\t" in line for line in chain.from_iterable(blocks) if not line.startswith("# "))
    cells = [list(map(_cells, block, repeat(tabbed))) for block in blocks]
    every = list(chain.from_iterable(cells))
    plain = [line for line in every if not line[0].startswith("#")] or every
    usual = Counter(map(len, plain)).most_common(1)[0][0] if plain else 0
    tags = {line[-1] for line in plain if len(line) == usual}
    is_word = partial(_is_word, usual=usual, tags=tags)
    rows: Rows = []
    for number, block in enumerate(cells):
        lines = [line for line in block if line[0] != DOCUMENT and (line[0][:1] != "#" or is_word(line))]
        odd = next((line for line in lines if len(line) not in (1, usual)), None)
        if odd is not None:
            raise ValueError(
                f"sentence {number}: found {len(odd)} columns ({' '.join(odd)[:60]}); expected {usual}, as elsewhere, "
                "the word first and its tag last"
            )
        tokens = [line[0] for line in lines]
        bare = next((word for word in tokens if ":" not in word), None)
        if prefix and bare is not None:  # of a file without prefixes, 10:30 would become 30
            raise ValueError(f'sentence {number}: found "{bare}"; expected language:word, or format: words')
        tokens = [word.partition(":")[2].strip() for word in tokens] if prefix else tokens
        said = [line[-1] if len(line) > 1 else "" for line in lines]
        if lines:
            rows.append({"id": str(number), "tokens": tokens, "tags": said})
    if len(plain) > len(rows) and all(_counts(row["tokens"]) for row in rows):
        raise ValueError("the first column counts the words; expected the word first and its tag last, or conllu")
    return rows


def _counts(words: list[str]) -> bool:
    return words == list(map(str, range(1, len(words) + 1)))


def _cells(line: str, tabbed: bool) -> list[str]:
    if tabbed:
        return list(map(str.strip, line.rstrip("\t").split("\t")))
    return re.split("[ \t]+", line.strip(" \t"))


def _is_word(line: list[str], usual: int, tags: set[str]) -> bool:
    """Whether a line that begins with # is no comment: it does not begin with "# ", or has as many columns as those of
    words and ends in a tag of theirs."""
    begins = line[0].startswith("# ") or (line[0] == "#" and len(line) > 2)
    return not begins or (len(line) == usual and line[-1] in tags)


def conllu(text: str, language: str) -> tuple[Rows, list[str]]:
    """Sentences as XTREME prepares them, and a line on those left out.

    Empty nodes (8.1) go; a contraction (3-4) is one word with the tag of the part highest in the tree; blanks and
    zero-width non-joiners inside a word go; a sentence of which at most one word is shown (the text of others is
    withheld) goes.
    Source: google-research/xtreme, ud-conversion-tools and utils_preprocess.py.
    Differs: where that code stops at a tag its list for es, fr and it lacks, the general order goes on.

    Raises:
        ValueError: a line without ten columns, or numbers of words that are none, stand twice or are not there.
    """
    rows: Rows = []
    withheld = 0
    for number, block in enumerate(_blocks(text)):
        name = next(
            (line.partition("=")[2].strip() for line in block if re.match(r"#\s*sent_id\s*=", line)), str(number)
        )
        lines = [line.split("\t") for line in block if not line.startswith("#")]
        if bad := next((line for line in lines if len(line) != 10), None):
            raise ValueError(
                f"sentence {name}: found {len(bad)} columns; expected 10, divided by tabs (of word and tag: "
                "format: words)"
            )
        _check_numbers(lines, name)
        tokens, tags = _fuse(lines, language)
        hidden = sum(word == "_" for word in tokens)
        if tokens and (not hidden or hidden < len(tokens) - 1):
            rows.append({"id": name, "tokens": [re.sub("[ \u200c]", "", word) for word in tokens], "tags": tags})
        else:
            withheld += bool(tokens)
    return rows, [f"{withheld} sentences whose words are withheld (_) are left out"] if withheld else []


def _check_numbers(lines: list[list[str]], name: str) -> None:
    """Whether every word would be found by its number."""
    numbers = Counter(line[0] for line in lines)
    if odd := next((number for number in numbers if not NUMBER.fullmatch(number) or numbers[number] > 1), None):
        raise ValueError(
            f'sentence {name}: found "{odd}" as a word\'s number, or twice; '
            "expected 1, 2, … and a blank line between sentences"
        )
    for number in numbers:
        first, dash, last = number.partition("-")
        if dash and not (int(first) <= int(last) and {first, last} <= set(numbers)):
            raise ValueError(f'sentence {name}: found the contraction "{number}"; expected the words {first} to {last}')


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

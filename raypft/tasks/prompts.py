"""A row becomes a query: pieces of text with marks. No tokenizer and no tensor here.

A pattern's text is cut at its markup into pieces. Each piece is tokenized on its own later (backbones), a leading blank
belonging to the piece after it. Marks say what a piece is for: "slot" (where the answer is read), "soft" (soft tokens),
"demo_label" (the label word of a demonstration), "word" (the word that is asked about), "passage" (where a span is
read); the backbone records at which token each marked piece begins.
Only fields may be shortened: those of the row in each prompt, those of the demonstrations once per run.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

from raypft.tasks.kinds.tags import WORDS
from raypft.tasks.query import Demonstration, Piece, Query, Row
from raypft.tasks.task import MARKUP, Pattern, Task


def first_word(words: str | Sequence[str]) -> str:
    """The word that stands for a label where one must be written out, as in a demonstration."""
    return words if isinstance(words, str) else words[0]


def render(
    task: Task, pattern: Pattern, row: Row, language: str, soft_length: int = 0, demos: Sequence[Demonstration] = ()
) -> Query:
    """The query of one row.

    Args:
        row: values by field name of the task; language: whose wording of the pattern is taken.
        soft_length: number of soft tokens that <soft> stands for, P.
        demos: shown in this order where the text has <demos>, joined by the pattern's separator.
    """
    shown: list[Piece] = []
    if "<demos>" in pattern.text:
        for demo in demos:
            # soft tokens stand in the query only: there is one prompt, not one per demonstration
            shown += _cut(task, pattern, demo.row, demo.language, 0, answer=demo.label)
            shown.append(Piece("text", pattern.demo_separator))
    return Query(tuple(shown), tuple(_cut(task, pattern, row, language, soft_length)))


def about_words(
    task: Task, pattern: Pattern, row: Row, language: str, soft_length: int = 0, demos: Sequence[Demonstration] = ()
) -> tuple[Query, Sequence[str]]:
    """The query that is the same for all words of a row (see `Query.about`), and these. Arguments as of `render`."""
    column = task.fields[WORDS]
    words: Sequence[str] = row[column]  # type: ignore[assignment]
    return render(task, pattern, {**row, column: " ".join(words), "token": ""}, language, soft_length, demos), words


def queries(
    task: Task, pattern: Pattern, row: Row, language: str, soft_length: int = 0, demos: Sequence[Demonstration] = ()
) -> list[Query]:
    """All the queries of a row: one, or one a word where the pattern asks about {token}. Arguments as of `render`."""
    if "{token}" not in pattern.text:
        return [render(task, pattern, row, language, soft_length, demos)]
    query, words = about_words(task, pattern, row, language, soft_length, demos)
    return [query.about(word) for word in words]


def _cut(
    task: Task, pattern: Pattern, row: Row, language: str, soft_length: int, answer: str | None = None
) -> list[Piece]:
    wording = pattern.wording(language)
    text = (wording.text or "").removeprefix("<demos>")
    pieces: list[Piece] = []
    position = 0
    for match in MARKUP.finditer(text):
        literal = text[position : match.start()]
        # the blanks before markup belong to the piece that the markup stands for
        kept = literal.rstrip(" ")
        blank = literal[len(kept) :]
        if kept:
            pieces.append(Piece("text", kept))
        pieces += _marked(task, wording.verbalizer or {}, match, blank, row, soft_length, answer)
        position = match.end()
    if text[position:]:
        pieces.append(Piece("text", text[position:]))
    return [piece for piece in pieces if _shown(piece)]


def _shown(piece: Piece) -> bool:
    if piece.kind == "soft":
        return bool(piece.text or piece.count)
    # a marked text stays even when empty: an empty word has a slot, too
    return bool(piece.text or piece.mark) or piece.kind != "text"


def _marked(
    task: Task, verbalizer: Mapping[str, object], match, blank: str, row: Row, soft_length: int, answer: str | None
) -> list[Piece]:
    if match[1] == "token":
        return [Piece("text", blank + str(row["token"]), mark="word", field=True)]
    if match[1]:
        return _field(task, match[1], blank, row[task.fields[match[1]]], strip=bool(match[2]))
    if match[3] == "slot" and answer is not None:
        return [Piece("text", blank + first_word(verbalizer[answer]), mark="demo_label")]  # type: ignore[arg-type]
    if match[3] == "slot":
        return [Piece("slot", blank, mark="slot")]
    if match[3] == "soft":
        return [Piece("soft", blank, mark="soft", count=soft_length)]
    return [Piece("sep")]


def _field(task: Task, name: str, blank: str, value: object, strip: bool) -> list[Piece]:
    if isinstance(value, (list, tuple)):  # words, each with its slot
        return [
            Piece("text", (blank if i == 0 else " ") + str(word), mark="slot", field=True)
            for i, word in enumerate(value)
        ]
    text = strip_final_punctuation(str(value)) if strip else str(value)
    return [Piece("text", blank + text, mark="passage" if name == task.kind.passage else None, field=True)]


def strip_final_punctuation(text: str) -> str:
    """The text without ASCII punctuation at its end; a text of nothing else is kept.

    Source: the released code of Zhao & Schuetze 2021 (SP, DP), whose rule is Python's `string.punctuation`: symbols
    such as $ and + go, blanks and the marks of other scripts (। 。 ۔ ؟) stay.
    """
    return text.rstrip(string.punctuation) or text


def readable(query: Query) -> str:
    """The prompt as a person reads it, with <slot>, <soft:n> and <sep> shown."""
    shown = {"slot": "<slot>", "sep": " <sep>"}
    parts = []
    for piece in (*query.demos, *query.pieces):
        if piece.kind == "soft":
            parts.append(f"{piece.text}<soft:{piece.count}>")
        elif piece.kind == "slot":
            parts.append(piece.text + shown["slot"])
        elif piece.mark == "slot":
            parts.append(f"{piece.text}<slot>")
        else:
            parts.append(shown.get(piece.kind, piece.text))
    return "".join(parts)

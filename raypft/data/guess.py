"""What the columns of someone's file are for, guessed from their names and values: text, label, language, id, words and
their tags.

A guess is one the user sees and can overrule; where two columns would do, it is asked or given and never taken.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raypft.data.formats import Columns
from raypft.data.profile import (
    MOST_LABELS,
    Column,
    called,
    check_columns,
    column_of,
    is_nothing,
    is_scalar,
    labels_in,
    repeated,
    slug,
)
from raypft.errors import UserError, nearest
from raypft.tasks.kinds.base import listed, shown
from raypft.tasks.kinds.tags import as_list

TEXT_NAMES = (
    *("text", "sentence", "message", "content", "body", "review", "comment", "utterance", "tweet", "post", "document"),
    *("question", "query", "headline", "title", "abstract", "description", "input"),
)
LABEL_NAMES = (
    *("label", "labels", "class", "category", "topic", "sentiment", "intent", "target", "gold", "tag", "type"),
    *("polarity", "stance", "emotion", "rating", "stars", "score", "y"),
)
LANGUAGE_NAMES = ("language", "lang", "language_code", "lang_code", "locale")
ID_NAMES = ("id", "idx", "index", "uid", "uuid", "guid", "nr", "number", "key")
WORD_NAMES, TAG_NAMES = ("tokens", "words"), ("tags", "ner_tags", "pos_tags", "upos", "labels", "ner", "pos")
PAIRS = (
    *(("premise", "hypothesis"), ("sentence1", "sentence2"), ("text1", "text2"), ("question1", "question2")),
    *(("sentence_1", "sentence_2"), ("text_1", "text_2"), ("text_a", "text_b"), ("sentence_a", "sentence_b")),
    *(("question", "sentence"), ("question", "passage"), ("query", "document"), ("query", "passage")),
)
SPAN = ("question", "context", "answers")
"""The columns of questions whose answers are pieces of a passage."""
ROLES = ("text", "label", "language", "id")
LONG = 3
"""Words of a text on average, from which a column is one of texts whatever it is called."""

Choose = Callable[[str, Sequence[str]], str]
"""Chooses a column: what it is to be, and those that would do; raises a UserError where no one can be asked."""


@dataclass(frozen=True)
class Guess:
    """What the columns of a file are for.

    kind: of task; texts: the columns that are read; label: that of labels; labels: name to rows (of tags to words), as
    the task calls them; numbers: label in the file to the task's name, where they differ; language, id: columns, None
    where there is none; languages: to rows, the most frequent first; unused: the other columns; repeated: rows whose
    texts an earlier one has; unanswerable: some questions have no answer.
    """

    kind: str
    texts: list[str]
    label: str
    labels: dict[str, int]
    language: str | None
    languages: dict[str, int]
    id: str | None
    unused: list[str]
    repeated: int = 0
    unanswerable: bool = False
    numbers: dict[str, str] = field(default_factory=dict)


def guess(table: Columns, where: str, given: Mapping[str, str], choose: Choose, has_header: bool) -> Guess:
    """What the columns of a table are for.

    Args:
        where: the file, for messages; given: what the user said: text (columns, divided by commas), label, language,
        id, kind, names (of the labels, in their order, divided by commas), languages (of rows that don't say theirs);
        has_header: its first line names the columns.

    Raises:
        UserError: no column would do for text or label, or several and `choose` can't ask; labels that are missing, all
            the same, numbers without end, or too many.
    """
    said = {role: _said(role, given[role], table.names, where) for role in ROLES if role in given}
    if {"language", "languages"} <= given.keys():
        raise UserError(
            f"init: found languages={given['languages']} beside language={given['language']}; give one: the language "
            "of all rows, or the column that says each row's"
        )
    check_columns(table, where, set(itertools.chain.from_iterable(said.values())), has_header)
    kind = given.get("kind") or _kind(table)
    if kind not in GUESSES:
        raise UserError(
            f"init: found kind={kind}; expected {', '.join(GUESSES)}; tasks of other kinds are written by hand"
        )
    return GUESSES[kind](table, where, said, given, choose)


def _choice(
    table: Columns, where: str, said: Mapping[str, list[str]], given: Mapping[str, str], choose: Choose
) -> Guess:
    columns = {name: column_of(table, name, where) for name in table.names}
    language, row_id = _language(columns, said, given), _id(columns, said)
    rest = [column for name, column in columns.items() if name not in (language, row_id, *said.get("text", []))]
    label = said["label"][0] if "label" in said else _label(rest, columns, where, choose)
    language = None if label == language else language  # to tell languages apart is the task
    read = [column for column in rest if column.name not in (label, language)]
    chosen = said.get("text") or _texts(read, where, choose)
    if label in chosen:
        raise UserError(f'init: {where}: column "{label}" can\'t be both text and label; name another: text=… label=…')
    for name in chosen:
        if columns[name].texts is None:
            raise UserError(f'init: {where}: column "{name}" holds lists or objects; expected texts')
    labels, numbers = labels_in(columns[label], table, where, given.get("names"))
    rest_of = [name for name in columns if name not in (*chosen, label, language, row_id)]
    languages = _spoken(columns, language, table, given)
    doubled = repeated(columns[name] for name in chosen)
    return Guess("choice", chosen, label, labels, language, languages, row_id, rest_of, doubled, numbers=numbers)


def _tags(table: Columns, where: str, said: Mapping[str, list[str]], given: Mapping[str, str], _: Choose) -> Guess:
    if len(said.get("text", [])) > 1:
        raise UserError(f"init: text={given['text']}: kind=tags reads one column of words; name that alone")
    words = said["text"][0] if "text" in said else _named(table.names, WORD_NAMES)
    label = said["label"][0] if "label" in said else _named(table.names, TAG_NAMES)
    if words is None or label is None or words == label:
        found = ", ".join(table.names)
        raise UserError(f"init: {where}: found {found}; say which column holds words and which tags: text=… label=…")
    lists: list[list[str]] = []
    for row, value in enumerate(listed(table.values(label))):
        tags: Any = as_list(value, numbers=True)
        if not isinstance(tags, list) or not tags or any(is_nothing(str(tag)) for tag in tags):
            raise UserError(f'init: {where} row {row}: column "{label}" holds {shown(value)}; expected a tag a word')
        lists.append(list(map(str, tags)))
    counts = Counter(itertools.chain.from_iterable(lists))
    if len(counts) < 2 or len(counts) > MOST_LABELS:
        raise UserError(f'init: {where}: column "{label}" has {len(counts)} tags; expected 2 to {MOST_LABELS}')
    columns = {name: column_of(table, name, where) for name in table.names if is_scalar(table, name)}
    columns = {name: column for name, column in columns.items() if name not in (words, label)}
    language, row_id = _language(columns, said, given), _id(columns, said)
    unused = [name for name in table.names if name not in (words, label, language, row_id)]
    labels, numbers = called(counts, table, label, given.get("names"))
    languages = _spoken(columns, language, table, given)
    return Guess("tags", [words], label, labels, language, languages, row_id, unused, numbers=numbers)


def _span(table: Columns, where: str, said: Mapping[str, list[str]], given: Mapping[str, str], _: Choose) -> Guess:
    lacking = [name for name in SPAN if name not in table.names]
    if lacking:
        raise UserError(f"init: {where} has no column {' and '.join(lacking)}; kind=span needs {', '.join(SPAN)}")
    if "names" in given:
        raise UserError(f"init: names={given['names']}: kind=span has no labels; leave it out")
    for role, names in (("text", SPAN[:2]), ("label", SPAN[2:])):
        if said.get(role, [*names]) != [*names]:
            raise UserError(f"init: {role}={given[role]}: kind=span reads {', '.join(SPAN)}; call your columns so")
    columns = {name: column_of(table, name, where) for name in table.names if name not in SPAN}
    language, row_id = _language(columns, said, given), _id(columns, said)
    unused = [name for name in columns if name not in (language, row_id)]
    question, context, label = SPAN
    answers: Sequence[Any] = listed(table.values(label))
    none = any(not (value.get("text") if isinstance(value, Mapping) else value) for value in answers)
    languages = _spoken(columns, language, table, given)
    return Guess("span", [question, context], label, {}, language, languages, row_id, unused, unanswerable=none)


GUESSES = {"choice": _choice, "tags": _tags, "span": _span}
"""By the kind of task."""


def _said(role: str, text: str, known: Sequence[str], where: str) -> list[str]:
    """The columns that the user names for a role."""
    several = role == "text" and text not in known
    chosen = [part.strip() for part in text.split(",")] if several else [text]
    for name in chosen:
        if name not in known:
            raise UserError(f'init: {where} has no column "{name}" ({role}={text}); {nearest(name, known)}')
    if len(set(chosen)) < len(chosen):
        raise UserError(f"init: text={text}: a column stands there twice; name each once")
    return chosen


def _kind(table: Columns) -> str:
    """The kind of task that the names of the columns, and lists of words, stand for."""
    if set(SPAN) <= set(table.names):
        return "span"
    words, tags = (_named(table.names, names) for names in (WORD_NAMES, TAG_NAMES))
    lists = words is not None and tags is not None and not is_scalar(table, words) and not is_scalar(table, tags)
    return "tags" if lists else "choice"


def _named(columns: Iterable[str], names: Sequence[str]) -> str | None:
    """The column that has the first of some names."""
    by_slug = {slug(name): name for name in reversed(list(columns))}
    return next((by_slug[name] for name in names if name in by_slug), None)


def _language(columns: Mapping[str, Column], said: Mapping[str, list[str]], given: Mapping[str, str]) -> str | None:
    """The column that says each row's language: called so, with few short values; None where that of all is given."""
    if "language" in said:
        return said["language"][0]
    if "languages" in given:
        return None
    name = _named(columns, LANGUAGE_NAMES)
    if name is None or columns[name].texts is None or len(columns[name].counts) > MOST_LABELS:
        return None
    return name if all(0 < len(value.strip()) <= 16 for value in columns[name].counts) else None


def _id(columns: Mapping[str, Column], said: Mapping[str, list[str]]) -> str | None:
    """The column that names rows: called so, and another value in each row."""
    if "id" in said:
        return said["id"][0]
    for name, column in columns.items():
        called = slug(name) in ID_NAMES or slug(name).endswith("_id")
        if called and column.texts is not None and len(column.counts) == len(column.texts) and "" not in column.counts:
            return name
    return None


def _spoken(
    columns: Mapping[str, Column], language: str | None, table: Columns, given: Mapping[str, str]
) -> dict[str, int]:
    """The languages with their rows, the most frequent first."""
    if language is None:
        return {given.get("languages", "en"): table.rows}
    return dict(sorted(columns[language].counts.items(), key=lambda item: (-item[1], item[0])))


def _label(rest: Sequence[Column], columns: Mapping[str, Column], where: str, choose: Choose) -> str:
    """The column of labels among those that have no other role."""
    named = sorted(
        (column for column in rest if slug(column.name) in LABEL_NAMES),
        key=lambda column: LABEL_NAMES.index(slug(column.name)),
    )
    fitting = [column.name for column in named if column.is_labels]
    if named:  # where none fits, what is wrong with it is told
        return (fitting or [named[0].name])[0]
    fitting = [column.name for column in rest if column.is_labels]
    if fitting:
        return fitting[0] if len(fitting) == 1 else choose("label", fitting)
    language = _named(columns, LANGUAGE_NAMES)
    if language is not None and columns[language].is_labels:
        return language
    raise UserError(
        f"init: {where} has no column of labels (few values, each in several rows); columns: {', '.join(columns)}; add "
        "one, or name it: label=COLUMN"
    )


def _texts(rest: Sequence[Column], where: str, choose: Choose) -> list[str]:
    """The column, or the pair of columns, that is read, among those that have no other role."""
    fitting = [column.name for column in rest if column.is_text]
    by_slug = {slug(name): name for name in reversed(fitting)}
    for pair in PAIRS:
        if set(pair) <= set(by_slug):
            return [by_slug[name] for name in pair]
    if not fitting:
        there = ", ".join(column.name for column in rest) or "none"
        raise UserError(
            f"init: {where} has no column of texts beside the labels; others: {there}; name it: text=COLUMN"
        )
    named = [by_slug[name] for name in TEXT_NAMES if name in by_slug]
    long = [column.name for column in rest if column.name in fitting and column.words >= LONG]
    candidates = next(filter(None, ([name for name in named if name in long], long, named, fitting)))
    if len(candidates) == 1:
        return candidates
    return _said("text", choose("text", candidates), fitting, where)

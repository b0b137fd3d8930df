"""Rows become encoded prompts: the one place where task, pattern, demonstrations and tokenizer meet."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from raypft.backbones.text import PromptError, PromptTokenizer
from raypft.config.resolved import ResolvedJob
from raypft.data.content import CHUNK
from raypft.data.sampling import Sample
from raypft.encoded import Encoded
from raypft.errors import UserError
from raypft.progress import counted
from raypft.readouts.base import Config, Readout
from raypft.tasks.prompts import about_words, first_word, queries, render
from raypft.tasks.query import Demonstration, Query
from raypft.tasks.task import Pattern, Task
from raypft.training.rows import EncodedRows

ROLES = ("train", "dev", "test")
ENCODING = 2
"""Raised when a change alters prompts or their tokens; part of the cell key."""
KEY_OF = {"length": "train.max_tokens", "slot": "pattern", "demonstrations": "demos"}
"""What may be wrong with a prompt to the key that mends it."""


@dataclass(frozen=True)
class Encoder:
    """Encodes rows of one job; `demos` are those of one cell."""

    task: Task
    pattern: Pattern
    text: PromptTokenizer
    soft_tokens: int
    max_tokens: int
    readout: type[Readout]
    readout_config: Config
    demos: tuple[Demonstration, ...] = ()
    _words: dict[str, dict[str, str | list[str]]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, resolved: ResolvedJob, text: PromptTokenizer, demos: pa.Table | None = None) -> Encoder:
        """The encoder of a job, with a cell's demonstrations."""
        task = resolved.task
        shown = [] if demos is None else _by_class(demos.to_pylist(), task.label.names)
        return cls(
            task,
            resolved.pattern,
            text,
            resolved.method_config.soft_tokens,
            resolved.job.train.max_tokens,
            resolved.readout,
            resolved.readout_config,
            tuple(Demonstration(row, row["label"], row["language"]) for row in shown),
        )

    def __call__(self, row: Mapping[str, Any]) -> list[Encoded]:
        """The prompts of a row, its parts in order, and behind them those about texts without content, if any."""
        wordings = ["", *self.pattern.by_language]
        language = str(row["language"])
        wording = wordings.index(language) if language in wordings else 0
        prompts = []
        for asked in (row, *self._without_content(row)):
            for prompt in self.task.kind.prompts(self, asked):
                placed = prompt.but(wording=wording, part=len(prompts))
                prompts.append(self.readout.prepare(self.readout_config, placed, self.text))
        return prompts

    def _without_content(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The row with texts without content in place of its fields, of no label."""
        columns = self.task.fields.values()
        return [{**row, "label": None, **dict.fromkeys(columns, text)} for text in self.readout_config.content_free]

    # what a kind asks of its encoder, see tasks.kinds.base.RowEncoder

    @property
    def names(self) -> list[str]:
        return self.task.label.names

    @property
    def asks_words(self) -> bool:
        return "{token}" in self.pattern.text

    def step(self, room: int) -> int:
        return self.readout_config.step(room)

    def render(self, row: Mapping[str, Any]) -> Query:
        """The query of a row, before it is cut to size."""
        return render(self.task, self.pattern, row, str(row["language"]), self.soft_tokens, self.demos)

    def queries(self, row: Mapping[str, Any]) -> list[Query]:
        """The rendered prompts of a row, before they are cut to size."""
        return queries(self.task, self.pattern, row, str(row["language"]), self.soft_tokens, self.demos)

    def asked(self, row: Mapping[str, Any]) -> list[Encoded]:
        """The prompts of a row, one a word, where the pattern asks about {token}."""
        key, language = _named(row)
        query, words = about_words(self.task, self.pattern, row, language, self.soft_tokens, self.demos)
        with self._refused():
            return self.text.encode_words(query, words, key, language, self.max_tokens)

    def encode(self, query: Query, row: Mapping[str, Any], max_tokens: int | None = None) -> Encoded:
        """The tokens of a query of this row."""
        with self._refused():
            return self.text.encode(query, *_named(row), max_tokens or self.max_tokens)

    @contextmanager
    def _refused(self) -> Iterator[None]:
        """A prompt that the model can't take is refused with the key that mends it."""
        try:
            yield
        except PromptError as error:
            raise UserError(f"{KEY_OF[error.about]}: {error}") from None

    def value(self, row: Mapping[str, Any], field: str) -> Any:
        return row[self.task.fields[field]]

    def with_value(self, row: Mapping[str, Any], field: str, value: Any) -> dict[str, Any]:
        return {**row, self.task.fields[field]: value}

    def word(self, row: Mapping[str, Any], label: str) -> str:
        language = str(row["language"])
        words = self._words.get(language)
        if words is None:  # a wording is validated each time it is made, and this is asked for each word
            words = self._words[language] = self.pattern.wording(language).verbalizer or {}
        return first_word(words.get(label, label))

    def tokenize(self, text: str) -> list[int]:
        return self.text.tokenize(text)

    def offsets(self, text: str) -> tuple[list[int], list[int], list[int]]:
        return self.text.offsets(text)


def _named(row: Mapping[str, Any]) -> tuple[str, str]:
    """Key and language of a row."""
    language = str(row["language"])
    return f"{language}/{row['id']}", language


def _by_class(rows: list[dict], names: Sequence[str]) -> list[dict]:
    """One demonstration of each class after the other, in label order, then the next round."""
    by_name: dict[str, list[dict]] = {name: [] for name in names}
    for row in rows:
        if row["label"] in by_name:
            by_name[row["label"]].append(row)
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*by_name.values()))
    return [row for row in rounds if row is not None]


def label_distribution(task: Task, rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Language to label or tag to count; empty where answers are texts."""
    counts: dict[str, dict[str, int]] = {}
    for row in rows if task.label.names else ():
        of_language = counts.setdefault(row["language"], {})
        for label in task.kind.labels_of(row):
            of_language[label] = of_language.get(label, 0) + 1
    return counts


@contextmanager
def uncollected() -> Iterator[None]:
    """While open, Python does not search for garbage that refers to itself: encoding makes none, and to look through
    all prompts that are there, again and again, is a third of its time."""
    searches = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searches:
            gc.enable()


@uncollected()
def encode_sample(resolved: ResolvedJob, text: PromptTokenizer, sample: Sample) -> dict[str, EncodedRows]:
    """Role to encoded prompts, in this process."""
    encoder = Encoder.of(resolved, text, sample.demos)
    roles = {role: table for role in ROLES if (table := getattr(sample, role)) is not None}
    return {role: EncodedRows.of(encoded(encoder, table)) for role, table in roles.items()}


def encoded(encoder: Encoder, table: pa.Table) -> Iterator[Encoded]:
    """The prompts of a table's rows, which become Python's some at a time."""
    rows = itertools.chain.from_iterable(map(pa.RecordBatch.to_pylist, table.to_batches(max_chunksize=CHUNK)))
    return itertools.chain.from_iterable(map(encoder, counted("encoding", rows, len(table))))


@dataclass(frozen=True)
class Expected:
    """What a role's rows come to, estimated from some of them: prompts, and the tokens of each that was made."""

    prompts: float
    lengths: Sequence[int]

    @property
    def tokens(self) -> float:
        """Of all prompts."""
        return self.prompts * sum(self.lengths) / max(1, len(self.lengths))


def expected(sample: Sample, encoder: Encoder, looked_at: int) -> dict[str, Expected]:
    """Of each role of a sample that is encoded.

    Args:
        looked_at: rows of which prompts are made, of each role.
    """
    found = {}
    for role in ROLES:
        if (table := getattr(sample, role)) is not None:
            some = table.slice(0, looked_at)
            lengths = [len(prompt.ids) for prompt in encoded(encoder, some)]
            found[role] = Expected(len(table) * len(lengths) / max(1, len(some)), lengths)
    return found


def prompts_an_epoch(sample: Sample, found: Mapping[str, Expected]) -> float:
    """Training prompts; of a stream the rows, which is what its steps count.

    Args:
        found: see `expected`.
    """
    return found["train"].prompts if sample.stream is None else sample.stream.rows

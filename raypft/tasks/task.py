"""What a task's YAML says: what the rows of a data set mean and how to ask about them.

A task names its fields, labels, languages and metric, where its rows come from, and its pattern-verbalizer pairs,
each with its source.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from raypft.errors import UserError, nearest
from raypft.schema import Strict, validation_root
from raypft.tasks.kinds import KINDS, Kind
from raypft.tasks.metrics import pivot_of

SPLITS = ("train", "validation", "test")
MARKUP = re.compile(r"\{(\w+)(\|strip)?\}|<(slot|soft|sep|demos)>")

Format = Literal["parquet", "arrow", "jsonl", "tsv", "csv", "conllu", "squad", "words", "panx"]
Mode = Literal["word_initial", "raw_piece", "first_piece", "last_piece", "mean"]


def _kind(value: Any) -> Kind:
    if isinstance(value, Kind):
        return value
    if not isinstance(value, str) or value not in KINDS:
        *first, last = (f"'{name}'" for name in KINDS)
        raise PydanticCustomError(
            "literal_error", "Input should be {names}", {"names": f"{', '.join(first)} or {last}"}
        )
    return KINDS[value]


KindByName = Annotated[
    Kind,
    PlainValidator(_kind),
    PlainSerializer(lambda kind: kind.name),
    WithJsonSchema({"enum": list(KINDS), "type": "string"}),
]
"""A kind, written as its name."""


class Label(Strict):
    """The column that holds the label and the label names, in the order of the score columns; only choice and tags
    have names."""

    column: str = "label"
    names: list[str] = []
    unanswerable: bool = False
    """Of span: a question may have no answer, as in SQuAD 2.0; its list of answers is then empty."""


class Source(Strict):
    """Where rows come from and how their columns and labels are called there.

    `hub` is the id of a data set, or one a split; `files` is a path per split, in which {language}, {shots} and * may
    stand, in that data set, or without `hub` below `data.root`. Which files a split of a data set has is looked up
    where `files` does not say it.
    """

    hub: str | dict[str, str] | None = None
    config: str | dict[str, str] | None = None
    """The hub configuration, or one a split; may hold {language}."""
    revision: str | None = None
    """The hub's revision; refs/convert/parquet is its converted copy of a data set that has a loading script."""
    files: dict[str, str] | None = None
    format: Format | None = None
    """How the files are laid out, where their ending doesn't say; the paths are then whole. None: by the ending.

    words: a word a line, its tag last, tabs or blanks between, a blank line between sentences (CoNLL-2003 is such);
    panx: the same with language: before the word; squad: JSON of any layout, SQuAD's among them."""
    splits: dict[str, str] = {}
    """Our split names to theirs (hub only); a split not named does not exist. Empty: all three, called as here."""
    parallel: bool = False
    """Whether the rows of a split are in each language the same in the same order: they are then known by their number,
    where no column is the id, so that translations are drawn together."""
    columns: dict[str, str | list[str]] = {}
    """Our column to theirs; several names where their files differ, the first that is there counts."""
    labels: dict[str, str] = {}
    """Their label value, as text, to our label name."""
    languages: dict[str, str] = {}
    """Our language code to theirs."""
    language_before: str | None = None
    """The text that ends the language code in its column, where the column holds more: "-" for arabic-123-0."""
    split_languages: dict[str, list[str]] = {}
    """The languages a split is used in, where one file serves two splits: what is trained on is not tested on."""
    gated: str | None = None
    """The page where access is asked for, if the data set is gated or withdrawn."""

    def hub_of(self, split: str) -> str | None:
        """The data set on the hub that a split is read from."""
        return self.hub.get(split) if isinstance(self.hub, dict) else self.hub

    def has(self, split: str) -> bool:
        """Whether there is such a split, as far as the source says."""
        if self.files is not None:
            return split in self.files
        return self.hub_of(split) is not None and split in (self.splits or SPLITS)


class Wording(Strict):
    """What a language changes in a pattern: its text, its label words, how they are looked up."""

    text: str | None = None
    verbalizer: dict[str, str | list[str]] | None = None
    mode: Mode | None = None


class Pattern(Strict):
    """How to ask: the prompt text and the words that stand for the labels."""

    text: str
    verbalizer: dict[str, str | list[str]] | None = None
    mode: Mode = "word_initial"
    by_language: dict[str, Wording] = {}
    demo_separator: str = "\n"
    source: str

    def wording(self, language: str) -> Wording:
        """The text, verbalizer and mode for a language, base values where the language changes nothing."""
        own = self.by_language.get(language, Wording())
        return Wording(
            text=own.text or self.text, verbalizer=own.verbalizer or self.verbalizer, mode=own.mode or self.mode
        )


@validation_root
class Task(Strict):
    """A task as its YAML states it; `name` is the file's stem."""

    name: str
    about: str
    kind: KindByName
    """choice: one of the label names; tags: one a word; span: a piece of the field context; text: free; mlm:
    nothing."""
    fields: dict[str, str]
    """Field name as patterns use it, to column."""
    label: Label = Label()
    languages: list[str]
    metric: str
    """The one that selects and that tables show first."""
    metrics: list[str] = []
    """All that papers print for this task, `metric` first; only `metric` unless given."""
    pivot: str | None = None
    """The language that means are also given without; English where the task has it, unless given."""
    sources: dict[str, Source]
    patterns: dict[str, Pattern]

    @model_validator(mode="before")
    @classmethod
    def _one_metric(cls, values: dict[str, Any]) -> dict[str, Any]:
        return values if "metrics" in values or "metric" not in values else {**values, "metrics": [values["metric"]]}

    @property
    def pivot_language(self) -> str | None:
        """The language that means are also given without, None where the task has none such."""
        return self.pivot or pivot_of(self.languages)

    def pattern(self, name: str) -> Pattern:
        """The pattern called `name`.

        Raises:
            UserError: the task has no such pattern; the nearest is named.
        """
        if name not in self.patterns:
            raise UserError(f'task {self.name}: no pattern "{name}"; {nearest(name, self.patterns)}')
        return self.patterns[name]

"""What a task's YAML says: what the rows of a data set mean and how to ask about them.

A task names its fields, labels, languages and metric, where its rows come from, and its pattern-verbalizer pairs,
each with its source.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from raypft.errors import UserError, nearest
from raypft.schema import Strict, validation_root
from raypft.tasks.kinds import KINDS, Kind
from raypft.tasks.metrics import pivot_of

SPLITS = ("train", "validation", "test")
MARKUP = re.compile(r"\{(\w+)(\|strip)?\}|<(slot|soft|sep|demos)>")

FIELDS_ALONE = "vanilla"
"""The pattern that every task has, whatever its file names."""
WITH_DEMOS = "+demos"

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


class Label(Strict, use_attribute_docstrings=True):
    """The column that holds the label and the label names, in the order of the score columns; only choice and tags
    have names."""

    column: str = "label"
    """The column, as the file calls it."""
    names: list[str] = []
    """In the order of the score columns."""
    unanswerable: bool = False
    """Of span: a question may have no answer, as in SQuAD 2.0; its list of answers is then empty."""


class Source(Strict, use_attribute_docstrings=True):
    """Where rows come from and how their columns and labels are called there.

    `hub` is the id of a data set, or one a split; `files` is a path per split, in which {language}, {shots} and * may
    stand, or one path, whose rows `data.split` divides; in that data set, or without `hub` below `data.root`. Which
    files a split of a data set has is looked up where `files` does not say it.
    """

    hub: str | dict[str, str] | None = None
    """The id of a data set on the hub, or one a split."""
    config: str | dict[str, str] | None = None
    """The hub configuration, or one a split; may hold {language}."""
    revision: str | None = None
    """The hub's revision; refs/convert/parquet is its converted copy of a data set that has a loading script."""
    files: dict[str, str] | str | None = None
    """A path per split, or one path, whose rows are divided by a hash of their content."""
    root: str | None = None
    """Where files lie if `data.root` is not given, seen from the task's YAML."""
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

    @property
    def is_split(self) -> bool:
        """Whether one file holds the rows of all splits."""
        return isinstance(self.files, str)

    @property
    def paths(self) -> dict[str, str]:
        """Split to path; none where they are looked up on the hub."""
        return dict.fromkeys(SPLITS, self.files) if isinstance(self.files, str) else self.files or {}

    def hub_of(self, split: str) -> str | None:
        """The data set on the hub that a split is read from."""
        return self.hub.get(split) if isinstance(self.hub, dict) else self.hub

    def has(self, split: str) -> bool:
        """Whether there is such a split, as far as the source says."""
        if self.files is not None:
            return split in self.paths
        return self.hub_of(split) is not None and split in (self.splits or SPLITS)


class Wording(Strict, use_attribute_docstrings=True):
    """What a language changes in a pattern: its text, its label words, how they are looked up."""

    text: str | None = None
    """Instead of the pattern's."""
    verbalizer: dict[str, str | list[str]] | None = None
    """Instead of the pattern's."""
    mode: Mode | None = None
    """Instead of the pattern's."""


class Pattern(Strict, use_attribute_docstrings=True):
    """How to ask: the prompt text and the words that stand for the labels."""

    text: str
    """Fields in braces ({text}, {text|strip} without its last punctuation), <slot> where the answer is read, <soft> for
    soft tokens, <demos> for demonstrations, <sep> between two segments."""
    verbalizer: dict[str, str | list[str]] | None = None
    """Label to the word that stands for it, with mode mean to several; without it the label names are the words."""
    mode: Mode = "word_initial"
    """How a label word is looked up: word_initial: as one piece that begins a word; raw_piece: as the bare word;
    first_piece, last_piece: where it is several, that one; mean: several words a label, each one piece."""
    by_language: dict[str, Wording] = {}
    """Language to what it changes."""
    demo_separator: str = "\n"
    """What stands between demonstrations."""
    source: str = ""
    """The paper or code it follows."""

    def wording(self, language: str) -> Wording:
        """The text, verbalizer and mode for a language, base values where the language changes nothing."""
        own = self.by_language.get(language)
        if own is None:
            return Wording.model_construct(text=self.text, verbalizer=self.verbalizer, mode=self.mode)
        return Wording.model_construct(
            text=own.text or self.text, verbalizer=own.verbalizer or self.verbalizer, mode=own.mode or self.mode
        )

    def with_demos(self) -> Pattern:
        """The same with <demos> before its text, in every language."""

        def shown(text: str | None) -> str | None:
            return None if text is None else f"<demos>{text}"

        by_language = {
            language: wording.model_copy(update={"text": shown(wording.text)})
            for language, wording in self.by_language.items()
        }
        return self.model_copy(update={"text": shown(self.text), "by_language": by_language})


@validation_root
class Task(Strict, use_attribute_docstrings=True):
    """A task as its YAML states it, short forms written out; `name` is the file's stem unless the file says another."""

    short_forms: ClassVar[tuple[str, ...]] = ("columns", "files", "format", "labels")
    """Keys that a file may have beside these, see `tasks.short_forms`."""

    name: str
    """The file's stem unless it is given."""
    about: str = ""
    """A line for lists."""
    kind: KindByName
    """choice: one of the label names; tags: one a word; span: a piece of the field context; text: free; mlm:
    nothing."""
    fields: dict[str, str]
    """Field name as patterns use it, to column."""
    label: Label = Label()
    """The column of the label, and the names."""
    languages: list[str] = ["en"]
    """All that the rows are in; their code stands in a column language where there are several."""
    metric: str
    """The one that selects and that tables show first."""
    metrics: list[str] = []
    """All that papers print for this task, `metric` first; only `metric` unless given."""
    pivot: str | None = None
    """The language that means are also given without; English where the task has it, unless given."""
    sources: dict[str, Source]
    """Name to where rows come from; data.source chooses one, the first is usual."""
    patterns: dict[str, Pattern] = {}
    """Name to how to ask; `vanilla` (the fields alone) and `NAME+demos` need not be written."""

    @model_validator(mode="before")
    @classmethod
    def _one_metric(cls, values: dict[str, Any]) -> dict[str, Any]:
        return values if "metrics" in values or "metric" not in values else {**values, "metrics": [values["metric"]]}

    @property
    def pivot_language(self) -> str | None:
        """The language that means are also given without, None where the task has none such."""
        return self.pivot or pivot_of(self.languages)

    def pattern(self, name: str) -> Pattern:
        """The pattern called `name`: of the file, or one that follows from the file: `vanilla`, the fields alone, and
        `NAME+demos`, the pattern NAME with demonstrations before it.

        Raises:
            UserError: the task has no such pattern; the nearest is named.
        """
        if name in self.patterns:
            return self.patterns[name]
        shown = self.patterns.get(name.removesuffix(WITH_DEMOS))
        if name == FIELDS_ALONE:
            return Pattern(text=" <sep> ".join(f"{{{field}}}" for field in self.fields))
        if name.endswith(WITH_DEMOS) and shown is not None:
            return shown.with_demos()
        raise UserError(f'task {self.name}: no pattern "{name}"; {nearest(name, self.patterns)}')

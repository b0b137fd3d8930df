"""The task catalogue: one YAML says what the rows of a data set mean and how to ask about them.

A task names its fields, labels, languages and metric, where its rows come from, and its pattern-verbalizer pairs,
each with its source. `load_task("xnli")` reads `raypft/tasks/xnli.yaml`; a path reads the user's own file.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from raypft.errors import UserError, nearest
from raypft.tasks.metrics import OF_KIND, metric

FOLDER = Path(__file__).parent
SPLITS = ("train", "validation", "test")
MARKUP = re.compile(r"\{(\w+)(\|strip)?\}|<(slot|soft|sep|demos)>")

Kind = Literal["choice", "tags", "span", "text", "mlm"]
Format = Literal["parquet", "jsonl", "tsv", "csv", "conllu", "squad", "words", "panx"]
Mode = Literal["word_initial", "raw_piece", "first_piece", "last_piece", "mean"]


class Strict(BaseModel):
    """Unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Label(Strict):
    """The column that holds the label and the label names, in the order of the score columns; only choice and tags have names."""

    column: str = "label"
    names: list[str] = []


class Source(Strict):
    """Where rows come from and how their columns and labels are called there.

    Exactly one of `hub` (a data set id with parquet files) and `files` (a path per split below `data.root`, in which
    {language}, {shots} and * may stand) is given.
    """

    hub: str | None = None
    config: str | dict[str, str] | None = None
    """The hub configuration, or one a split; may hold {language}."""
    revision: str | None = None
    """The hub's revision; refs/convert/parquet is its converted copy of a data set that has a loading script."""
    files: dict[str, str] | None = None
    format: Format | None = None
    """How the files are laid out, where their ending doesn't say; the paths are then whole. None: by the ending."""
    splits: dict[str, str] = {}
    """Our split names to theirs (hub only); a split not named does not exist. Empty: all three, called as here."""
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


class Task(Strict):
    """A task as its YAML states it; `name` is the file's stem."""

    name: str
    about: str
    kind: Kind
    """choice: one of the label names; tags: one a word; span: a piece of the field context; text: free; mlm: nothing."""
    fields: dict[str, str]
    """Field name as patterns use it, to column."""
    label: Label = Label()
    languages: list[str]
    metric: str
    """The one that selects and that tables show first."""
    metrics: list[str] = []
    """All that papers print for this task, `metric` first; only `metric` unless given."""
    sources: dict[str, Source]
    patterns: dict[str, Pattern]

    @model_validator(mode="before")
    @classmethod
    def _one_metric(cls, values: dict[str, Any]) -> dict[str, Any]:
        return values if "metrics" in values or "metric" not in values else {**values, "metrics": [values["metric"]]}

    @property
    def words(self) -> str:
        """The field that holds the words of a tags task; {token} asks about one of them."""
        return "tokens"

    def pattern(self, name: str) -> Pattern:
        """The pattern called `name`.

        Raises:
            UserError: the task has no such pattern; the nearest is named.
        """
        if name not in self.patterns:
            raise UserError(f'task {self.name}: no pattern "{name}"; {nearest(name, self.patterns)}')
        return self.patterns[name]


def task_names() -> list[str]:
    """The names of the tasks shipped with raypft."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_task(name: str) -> Task:
    """Read a task by name or from a path.

    Raises:
        UserError: no such task or file; a key, type, pattern or verbalizer that does not fit (file, key, found, expected).
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        if path.parent != FOLDER:
            raise UserError(f"task: no file {path}; give a task name or a path to a task YAML")
        raise UserError(f'task: "{name}" is unknown; {nearest(name, task_names())}')
    return _read(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _read(path: Path, changed: int) -> Task:
    """A campaign asks for the same few tasks thousands of times; `changed` makes an edited file another one."""
    where = f"tasks/{path.name}" if path.parent == FOLDER else str(path)
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{where}: expected a mapping of keys, found {type(loaded).__name__}")
    try:
        task = Task(name=path.stem, **loaded)
    except (ValidationError, TypeError) as error:
        raise UserError(validation_line(where, error, loaded)) from None
    _check(task, where)
    return task


def validation_line(where: str, error: Exception, loaded: object) -> str:
    """One line out of a pydantic error: where, key, found, expected; an unknown key names the nearest."""
    if not isinstance(error, ValidationError):
        return f"{where}: {error}"
    errors = error.errors()  # a key that is missing may be one that is misspelt
    first = next((found for found in errors if found["type"] == "extra_forbidden"), errors[0])
    # pydantic ends the place in a union with the type it tried
    place = (
        first["loc"][:-1]
        if first["loc"] and str(first["loc"][-1]) in ("str", "list[str]", "dict[str,str]")
        else first["loc"]
    )
    key = ".".join(str(part) for part in place)
    if first["type"] == "extra_forbidden":
        model = _model_at(error.title, first["loc"][:-1])
        return f'{where}: unknown key "{key}"; {nearest(str(first["loc"][-1]), model)}'
    if first["type"] == "missing":
        return f'{where}: key "{key}" is missing'
    return f"{where}: {key}: found {first['input']!r}; {first['msg'][0].lower()}{first['msg'][1:]}"


Model = TypeVar("Model", bound=BaseModel)
_ROOTS: dict[str, type[BaseModel]] = {}


def validation_root(model: type[Model]) -> type[Model]:
    """Class decorator: lets `validation_line` name the known keys at any depth below this model."""
    _ROOTS[model.__name__] = model
    return model


def _model_at(title: str, location: tuple[int | str, ...]) -> list[str]:
    model: object = _ROOTS.get(title)
    for part in location:
        fields = getattr(model, "model_fields", None)
        if fields and part in fields:
            model = fields[part].annotation
            # a map's own keys may be called as fields of its values are: sources.hub
            if getattr(model, "__origin__", None) is dict:
                continue
        parts = [getattr(a, "__origin__", a) for a in getattr(model, "__args__", ())]  # the model inside an Annotated
        arguments = [a for a in parts if isinstance(a, type) and issubclass(a, BaseModel)]
        if arguments:
            model = arguments[0]
    return list(getattr(model, "model_fields", {}))


validation_root(Task)


FIELDS = {"tags": {"tokens"}, "span": {"question", "context"}}
"""The fields that a kind's rows must have."""


def _check(task: Task, where: str) -> None:
    for name in task.metrics:
        try:
            metric(name, OF_KIND[task.kind])
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    if task.metrics[:1] != [task.metric]:
        raise UserError(f"{where}: metrics: found {task.metrics}; expected {task.metric}, the metric, first")
    if bool(task.label.names) != (task.kind in ("choice", "tags")):
        expected = "none, only choice and tags have a label set" if task.label.names else "the label set"
        raise UserError(f"{where}: label.names: found {task.label.names} for kind {task.kind}; expected {expected}")
    needed = FIELDS.get(task.kind, set())
    if not needed <= set(task.fields) or (task.kind == "tags" and len(task.fields) > 1):
        raise UserError(
            f"{where}: fields: found {sorted(task.fields)}; kind {task.kind} needs {' and '.join(sorted(needed))}"
        )
    for name, source in task.sources.items():
        _check_source(task, name, source, where)
    for name, pattern in task.patterns.items():
        for language in pattern.by_language:
            if language not in task.languages:
                raise UserError(f'{where}: patterns.{name}.by_language: "{language}" is no language of the task')
        for language in ["", *pattern.by_language]:
            _check_wording(
                task,
                pattern.wording(language),
                f"{where}: patterns.{name}" + (f".by_language.{language}" if language else ""),
            )


def _check_source(task: Task, name: str, source: Source, where: str) -> None:
    for split, file in (source.files or {}).items():
        for placeholder in re.findall(r"{(.*?)}", file):
            if placeholder not in ("language", "shots"):
                raise UserError(
                    f"{where}: sources.{name}.files.{split}: found {{{placeholder}}}; expected {{language}} or {{shots}}"
                )
    if (source.hub is None) == (source.files is None):
        raise UserError(f"{where}: sources.{name}: give exactly one of hub and files")
    configs = source.config if isinstance(source.config, dict) else {}
    for split in [*(source.files or {}), *source.splits, *configs, *source.split_languages]:
        if split not in SPLITS:
            raise UserError(f'{where}: sources.{name}: unknown split "{split}"; {nearest(split, SPLITS)}')
    for split, languages in source.split_languages.items():
        for language in languages:
            if language not in task.languages:
                raise UserError(
                    f'{where}: sources.{name}.split_languages.{split}: "{language}" is no language of the task'
                )
    for value, label in source.labels.items():
        if label not in task.label.names:
            raise UserError(
                f'{where}: sources.{name}.labels.{value}: "{label}" is no label; {nearest(label, task.label.names)}'
            )


def _check_wording(task: Task, wording: Wording, where: str) -> None:
    text = wording.text or ""
    for match in MARKUP.finditer(text):
        if match[1] == "token" and task.kind != "tags":
            raise UserError(f"{where}.text: found {{token}}; only tasks of kind tags ask about a word")
        if match[1] and match[1] not in {*task.fields, *(["token"] if task.kind == "tags" else [])}:
            raise UserError(f'{where}.text: no field "{match[1]}"; {nearest(match[1], task.fields)}')
    for kind, field in (("tags", "tokens"), ("span", "context")):
        if task.kind == kind and "{token}" not in text and f"{{{field}}}" not in text:
            raise UserError(f"{where}.text: kind {kind} reads its answers at {{{field}}}; the text has none")
    if task.kind == "tags" and "{token}" not in text and "<slot>" in text:
        raise UserError(f"{where}.text: found <slot> without {{token}}; every word of {{tokens}} is a slot already")
    left = MARKUP.sub("", text)
    if re.search(r"[{}]|<\w+>", left):
        raise UserError(
            f'{where}.text: markup not understood in "{text}"; known: {{field}} {{field|strip}} <slot> <soft> <sep> <demos>'
        )
    if text.count("<slot>") > 1:
        raise UserError(f"{where}.text: found {text.count('<slot>')} <slot>; expected at most one")
    if "<demos>" in text and not text.startswith("<demos>"):
        raise UserError(f"{where}.text: <demos> must come first")
    if "<demos>" in text and task.kind != "choice":
        raise UserError(f"{where}.text: found <demos>; only tasks of kind choice show demonstrations")
    if wording.verbalizer is not None and set(wording.verbalizer) != set(task.label.names):
        raise UserError(
            f"{where}.verbalizer: found {sorted(wording.verbalizer)}; expected one entry for each of {task.label.names}"
        )
    if "<slot>" in text and wording.verbalizer is None:
        raise UserError(f"{where}: a pattern with <slot> needs a verbalizer")

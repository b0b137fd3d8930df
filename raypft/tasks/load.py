"""The task catalogue: `load_task("xnli")` reads raypft/tasks/xnli.yaml, a path the user's own file; and what a task
must be."""

from __future__ import annotations

import copy
import functools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raypft.errors import Faults, UserError, closest, nearest
from raypft.schema import file_of, find_yaml, flat, keys_at, read_yaml, secrets, validation_lines, yaml_names
from raypft.tasks.metrics import OF_WRITTEN, check_chunks, metric
from raypft.tasks.short_forms import written_out
from raypft.tasks.task import MARKUP, SPLITS, Source, Task, Wording

FOLDER = Path(__file__).parent


def task_names() -> list[str]:
    """The names of the tasks shipped with raypft."""
    return yaml_names(FOLDER)


def load_task(name: str) -> Task:
    """Read a task by name or from a path.

    Raises:
        UserError: no such task or file; keys, types, patterns or verbalizers that do not fit, a line each (file, key,
        found, expected).
    """
    if not name.endswith((".yaml", ".yml")) and os.path.exists(name) and name not in task_names():
        raise UserError(f"task: {name} is no task, which is a YAML; raypft init {name} writes one from a file of data")
    path, where = find_yaml(name, FOLDER, "task", "task: no file {}; give a task name or a path to a task YAML")
    return _read(path.absolute(), where, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _read(path: Path, where: str, changed: int) -> Task:
    """A campaign asks for the same few tasks thousands of times; `changed` makes an edited file another one."""
    try:
        values = written_out(read_yaml(path, where))
    except UserError as error:
        line = str(error)
        raise UserError(line if line.startswith(where) else f"{where}: {line}") from None
    if (found := file_of(values)) not in ("task", None):
        raise UserError(f"task: {where} is a {found}; expected a task, with kind, fields and patterns")
    values = _beside(path, {"name": path.stem, **values})
    faults = Faults()
    try:
        task = Task(**values)
    except ValidationError as error:
        faults.add(validation_lines(where, error, values))
        task = _without(values, error)
    with faults.caught():
        faults.add(f"{where}: {line}" for line in secrets(flat({"sources": values.get("sources")})))
    if task is not None:
        faults.add(f"{where}: {line}" for line in _faults(task))
    faults.tell()
    assert task is not None
    return task


def _without(values: dict[str, Any], error: ValidationError) -> Task | None:
    """The task without its unknown keys and without sources and patterns that do not fit, so that what is wrong with
    the rest is told as well; None where other keys do not fit."""
    rest, unknown = copy.deepcopy(values), []
    for one in error.errors():
        location = one["loc"]
        if one["type"] == "extra_forbidden":
            unknown.append(location)
        elif len(location) > 2 and location[0] in ("sources", "patterns"):
            rest[location[0]].pop(location[1], None)
    for *groups, last in unknown:
        try:
            level = functools.reduce(lambda below, key: below[key], groups, rest)
        except KeyError:  # of a pattern or source that is left out
            continue
        meant = closest(str(last), keys_at(error.title, tuple(groups)))
        value = level.pop(last)
        if meant:  # what stands at a misspelt key is what was meant
            level.setdefault(meant, value)
    try:
        return Task(**written_out(rest))
    except (ValidationError, UserError):
        return None


def _beside(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The task's values, metrics and folders of files that lie beside it by their whole path."""

    def placed(name: Any) -> Any:
        is_beside = isinstance(name, str) and name.endswith(".py") and os.path.isfile(path.parent / name)
        return str((path.parent / name).resolve()) if is_beside else name

    def rooted(source: Any) -> Any:
        root = source.get("root") if isinstance(source, dict) else None
        if not isinstance(root, str) or "://" in root:
            return source
        return {**source, "root": str((path.parent / os.path.expanduser(root)).resolve())}

    placed_values = dict(values)
    if "metric" in values:
        placed_values["metric"] = placed(values["metric"])
    if isinstance(values.get("metrics"), list):
        placed_values["metrics"] = [placed(name) for name in values["metrics"]]
    if isinstance(values.get("sources"), dict):
        placed_values["sources"] = {name: rooted(source) for name, source in values["sources"].items()}
    return placed_values


def _faults(task: Task) -> Iterator[str]:
    """What is wrong with a task whose keys and types fit, a line each."""
    for name in task.metrics:
        try:
            metric(name, task.kind.metrics)
            if name == "entity_f1":
                check_chunks(task.label.names)
        except UserError as error:
            yield str(error)
    if task.metrics[:1] != [task.metric]:
        yield f"metrics: found {task.metrics}; expected {task.metric}, the metric, first"
    if task.metric in OF_WRITTEN:
        yield f"metric: found {task.metric}, which not every readout has; list it in metrics only"
    if bool(task.label.names) != task.kind.has_labels:
        expected = "none, only choice and tags have a label set" if task.label.names else "the label set"
        yield f"label.names: found {task.label.names} for kind {task.kind.name}; expected {expected}"
    if task.label.unanswerable and task.kind.passage is None:
        yield f"label.unanswerable: found true for kind {task.kind.name}; only span has such rows"
    needed = task.kind.fields
    fits = set(needed) <= set(task.fields) and (not task.kind.only_fields or set(task.fields) == set(needed))
    if not fits:
        yield f"fields: found {sorted(task.fields)}; kind {task.kind.name} needs {' and '.join(needed)}"
    if task.pivot is not None and task.pivot not in task.languages:
        yield f'pivot: "{task.pivot}" is no language of the task; {nearest(task.pivot, task.languages)}'
    for key, names in (("label.names", task.label.names), ("languages", task.languages)):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            yield f'{key}: "{twice}" stands there twice; keep one of them'
    if not task.sources:
        yield "sources: found none; say where rows come from, e.g. files: mine.csv"
    for name, source in task.sources.items():
        for line in _of_source(task, source):
            yield f"sources.{name}{line}"
    for name, pattern in task.patterns.items() if fits else ():
        everywhere = list(_of_wording(task, pattern.wording("")))
        for line in everywhere:
            yield f"patterns.{name}{line}"
        for language in pattern.by_language:
            if language not in task.languages:
                yield f'patterns.{name}.by_language: "{language}" is no language of the task'
            for line in _of_wording(task, pattern.wording(language)):
                if line not in everywhere:
                    yield f"patterns.{name}.by_language.{language}{line}"


def _of_source(task: Task, source: Source) -> Iterator[str]:
    for split, file in source.paths.items():
        for placeholder in re.findall(r"{(.*?)}", file):
            if placeholder not in ("language", "shots"):
                key = "files" if source.is_split else f"files.{split}"
                yield f".{key}: found {{{placeholder}}}; expected {{language}} or {{shots}}"
    if source.hub is None and source.files is None:
        yield ": found neither hub nor files; give one"
    if source.hub is not None and source.files is not None and (source.config or source.splits):
        yield ": found files beside config or splits; they say all, leave those out"
    configs, hubs = (value if isinstance(value, dict) else {} for value in (source.config, source.hub))
    for split in [*source.paths, *source.splits, *configs, *hubs, *source.split_languages]:
        if split not in SPLITS:
            yield f': unknown split "{split}"; {nearest(split, SPLITS)}'
    named = list((source.paths or configs or {"": source.config or ""}).values())
    if source.parallel and not all("{language}" in pattern for pattern in named):
        yield f".parallel: expected {{language}} in {named}: a file for each language"
    for split, languages in source.split_languages.items():
        for language in languages:
            if language not in task.languages:
                yield f'.split_languages.{split}: "{language}" is no language of the task'
    for value, label in source.labels.items():
        if label not in task.label.names:
            yield f'.labels.{value}: "{label}" is no label; {nearest(label, task.label.names)}'


def _of_wording(task: Task, wording: Wording) -> Iterator[str]:
    text, asks_words = wording.text or "", task.kind.answers_words
    for match in MARKUP.finditer(text):
        if match[1] == "token" and not asks_words:
            yield ".text: found {token}; only tasks of kind tags ask about a word"
        elif match[1] and match[1] not in {*task.fields, *(["token"] if asks_words else [])}:
            yield f'.text: no field "{match[1]}"; {nearest(match[1], task.fields)}'
    read_at = task.kind.answered_at
    if read_at is not None and "{token}" not in text and f"{{{read_at}}}" not in text:
        yield f".text: kind {task.kind.name} reads its answers at {{{read_at}}}; the text has none"
    if asks_words and "{token}" not in text and "<slot>" in text:
        yield ".text: found <slot> without {token}; every word of {tokens} is a slot already"
    if re.search(r"[{}]|<\w+>", MARKUP.sub("", text)):
        known = "{field} {field|strip} <slot> <soft> <sep> <demos>"
        yield f".text: markup not understood in {json.dumps(text, ensure_ascii=False)}; known: {known}"
    if text.count("<slot>") > 1:
        yield f".text: found {text.count('<slot>')} <slot>; expected at most one"
    if "<demos>" in text and not text.startswith("<demos>"):
        yield ".text: <demos> must come first"
    if "<demos>" in text and not task.kind.one_label:
        yield ".text: found <demos>; only tasks of kind choice show demonstrations"
    names, verbalizer = task.label.names, wording.verbalizer
    if names and verbalizer is not None and set(verbalizer) != set(names):
        yield f".verbalizer: found {sorted(verbalizer)}; expected one entry for each of {names}"
    for label, words in (verbalizer or {}).items():
        words = [words] if isinstance(words, str) else words
        if not words or not all(map(str.strip, words)):
            yield f".verbalizer.{label}: found {words}; expected a word that stands for the label"
    if "<slot>" in text and verbalizer is None:
        yield ": a pattern with <slot> needs a verbalizer"

"""The task catalogue: `load_task("xnli")` reads raypft/tasks/xnli.yaml, a path the user's own file; and what a task
must be."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raypft.errors import UserError, nearest
from raypft.schema import find_yaml, read_yaml, validation_line, yaml_names
from raypft.tasks.metrics import OF_WRITTEN, check_chunks, metric
from raypft.tasks.task import MARKUP, SPLITS, Source, Task, Wording

FOLDER = Path(__file__).parent


def task_names() -> list[str]:
    """The names of the tasks shipped with raypft."""
    return yaml_names(FOLDER)


def load_task(name: str) -> Task:
    """Read a task by name or from a path.

    Raises:
        UserError: no such task or file; a key, type, pattern or verbalizer that does not fit (file, key, found,
        expected).
    """
    path, where = find_yaml(name, FOLDER, "task", "task: no file {}; give a task name or a path to a task YAML")
    return _read(path.absolute(), where, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _read(path: Path, where: str, changed: int) -> Task:
    """A campaign asks for the same few tasks thousands of times; `changed` makes an edited file another one."""
    values = _beside(path, read_yaml(path, where))
    try:
        task = Task(name=path.stem, **values)
    except (ValidationError, TypeError) as error:
        raise UserError(validation_line(where, error, values)) from None
    _check(task, where)
    return task


def _beside(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The task's values, metrics that are files beside it by their whole path."""

    def placed(name: Any) -> Any:
        is_beside = isinstance(name, str) and name.endswith(".py") and (path.parent / name).is_file()
        return str((path.parent / name).resolve()) if is_beside else name

    placed_values = dict(values)
    if "metric" in values:
        placed_values["metric"] = placed(values["metric"])
    if isinstance(values.get("metrics"), list):
        placed_values["metrics"] = [placed(name) for name in values["metrics"]]
    return placed_values


def _check(task: Task, where: str) -> None:
    for name in task.metrics:
        try:
            metric(name, task.kind.metrics)
            if name == "entity_f1":
                check_chunks(task.label.names)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    if task.metrics[:1] != [task.metric]:
        raise UserError(f"{where}: metrics: found {task.metrics}; expected {task.metric}, the metric, first")
    if task.metric in OF_WRITTEN:
        raise UserError(f"{where}: metric: found {task.metric}, which not every readout has; list it in metrics only")
    if bool(task.label.names) != task.kind.has_labels:
        expected = "none, only choice and tags have a label set" if task.label.names else "the label set"
        raise UserError(
            f"{where}: label.names: found {task.label.names} for kind {task.kind.name}; expected {expected}"
        )
    if task.label.unanswerable and task.kind.passage is None:
        raise UserError(f"{where}: label.unanswerable: found true for kind {task.kind.name}; only span has such rows")
    needed = task.kind.fields
    if not set(needed) <= set(task.fields) or (task.kind.only_fields and set(task.fields) != set(needed)):
        raise UserError(
            f"{where}: fields: found {sorted(task.fields)}; kind {task.kind.name} needs {' and '.join(needed)}"
        )
    if task.pivot is not None and task.pivot not in task.languages:
        raise UserError(
            f'{where}: pivot: "{task.pivot}" is no language of the task; {nearest(task.pivot, task.languages)}'
        )
    for key, names in (("label.names", task.label.names), ("languages", task.languages)):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f'{where}: {key}: "{twice}" stands there twice; keep one of them')
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
                    f"{where}: sources.{name}.files.{split}: found {{{placeholder}}}; "
                    "expected {language} or {shots}"
                )
    if source.hub is None and source.files is None:
        raise UserError(f"{where}: sources.{name}: found neither hub nor files; give one")
    if source.hub is not None and source.files is not None and (source.config or source.splits):
        raise UserError(f"{where}: sources.{name}: found files beside config or splits; they say all, leave those out")
    configs, hubs = (value if isinstance(value, dict) else {} for value in (source.config, source.hub))
    for split in [*(source.files or {}), *source.splits, *configs, *hubs, *source.split_languages]:
        if split not in SPLITS:
            raise UserError(f'{where}: sources.{name}: unknown split "{split}"; {nearest(split, SPLITS)}')
    named = list((source.files or configs or {"": source.config or ""}).values())
    if source.parallel and not all("{language}" in pattern for pattern in named):
        raise UserError(f"{where}: sources.{name}.parallel: expected {{language}} in {named}: a file for each language")
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
        if match[1] == "token" and not task.kind.answers_words:
            raise UserError(f"{where}.text: found {{token}}; only tasks of kind tags ask about a word")
        if match[1] and match[1] not in {*task.fields, *(["token"] if task.kind.answers_words else [])}:
            raise UserError(f'{where}.text: no field "{match[1]}"; {nearest(match[1], task.fields)}')
    read_at = task.kind.answered_at
    if read_at is not None and "{token}" not in text and f"{{{read_at}}}" not in text:
        raise UserError(f"{where}.text: kind {task.kind.name} reads its answers at {{{read_at}}}; the text has none")
    if task.kind.answers_words and "{token}" not in text and "<slot>" in text:
        raise UserError(f"{where}.text: found <slot> without {{token}}; every word of {{tokens}} is a slot already")
    left = MARKUP.sub("", text)
    if re.search(r"[{}]|<\w+>", left):
        raise UserError(
            f'{where}.text: markup not understood in "{text}"; '
            "known: {field} {field|strip} <slot> <soft> <sep> <demos>"
        )
    if text.count("<slot>") > 1:
        raise UserError(f"{where}.text: found {text.count('<slot>')} <slot>; expected at most one")
    if "<demos>" in text and not text.startswith("<demos>"):
        raise UserError(f"{where}.text: <demos> must come first")
    if "<demos>" in text and not task.kind.one_label:
        raise UserError(f"{where}.text: found <demos>; only tasks of kind choice show demonstrations")
    if wording.verbalizer is not None and set(wording.verbalizer) != set(task.label.names):
        raise UserError(
            f"{where}.verbalizer: found {sorted(wording.verbalizer)}; expected one entry for each of {task.label.names}"
        )
    for label, words in (wording.verbalizer or {}).items():
        words = [words] if isinstance(words, str) else words
        if not words or not all(map(str.strip, words)):
            raise UserError(f"{where}.verbalizer.{label}: found {words}; expected a word that stands for the label")
    if "<slot>" in text and wording.verbalizer is None:
        raise UserError(f"{where}: a pattern with <slot> needs a verbalizer")

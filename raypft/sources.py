"""Where rows come from: a hub data set, local parquet/jsonl/tsv/csv (also s3:// and the like), the bundled samples.

`read_split` gives an Arrow table with the columns id, language, label (a label name) and the task's fields, all text.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
from pyarrow import fs

from raypft.errors import UserError, nearest
from raypft.tasks import Source, Task

SAMPLES = Path(__file__).parent / "samples"
FORMATS = ("parquet", "jsonl", "tsv", "csv")
HIDDEN = {"-1", "", "None", "NS", "?"}
"""Values that stand for a hidden label in published test sets."""


@dataclass(frozen=True)
class Origin:
    """Which source of a task is read, and from where."""

    task: Task
    name: str
    source: Source
    root: str | None
    shots: int | None = None


def choose(task: Task, name: str | None, root: str | None, shots: int | None = None) -> Origin:
    """The source to read: the named one; else local files if a root is given; else the task's first.

    Raises:
        UserError: the task has no such source, or a source of files needs `data.root`.
    """
    if name is None:
        local = [n for n, s in task.sources.items() if s.files is not None]
        name = local[0] if root is not None and local else next(iter(task.sources))
    if name not in task.sources:
        raise UserError(f'data.source: task {task.name} has no source "{name}"; {nearest(name, task.sources)}')
    source = task.sources[name]
    bundled = source.files is not None and all(f.startswith("samples:") for f in source.files.values())
    if source.files is not None and root is None and not bundled:
        raise UserError(f"data.root: source {name} of task {task.name} reads local files; say where, e.g. data.root=../data")
    return Origin(task, name, source, root, shots)


def read_split(origin: Origin, split: str, languages: list[str]) -> pa.Table | None:
    """The rows of a split in some languages, or None where the source has no such split.

    Raises:
        UserError: missing file or column, unreadable file, hidden label or one outside the set (file, row, found), no row
            in a language.
    """
    tables = [_normalise(origin, table, where, split, language) for table, where, language in _raw(origin, split, languages)]
    if not tables:
        return None
    table = pa.concat_tables(tables)
    found = set(table["language"].unique().to_pylist())
    for language in languages:
        if language not in found:
            raise UserError(
                f'languages: {split} rows of {origin.task.name} ({origin.name}) hold none in "{language}"; found: {", ".join(sorted(found)) or "none"}'
            )
    keep = pa.compute.is_in(table["language"], pa.array(languages))
    return table.filter(keep)


def languages_of(origin: Origin, split: str) -> list[str]:
    """The task's languages that a split holds; where each language is a file or configuration of its own, all of them."""
    task, source = origin.task, origin.source
    pattern = source.config if source.hub is not None else (source.files or {}).get(split)
    if pattern and "{language}" in pattern:
        return task.languages
    back = {theirs: ours for ours, theirs in source.languages.items()}
    found: set[Any] = set()
    for table, _, _ in _raw(origin, split, task.languages):
        column = next((c for c in their_columns(source, "language") if c in table.column_names), None)
        found |= {back.get(s, s) for s in table[column].unique().to_pylist()} if column else {task.languages[0]}
    return [language for language in task.languages if language in found]


def _raw(origin: Origin, split: str, languages: list[str]):
    source = origin.source
    if source.hub is not None:
        if source.splits and split not in source.splits:
            return
        configs = languages if source.config and "{language}" in source.config else [None]
        for language in configs:
            yield _hub_table(origin, split, language), f"{source.hub} {split}", language
        return
    files = source.files or {}
    if split not in files:
        return
    for language in languages if "{language}" in files[split] else [None]:
        table, where = _file_table(origin, files[split], language)
        if table is None:
            if split == "train" or split == "test":
                raise UserError(f"data: no file {where} (.parquet, .jsonl, .tsv or .csv) for the {split} split of {origin.task.name}")
            return
        yield table, where, language


def _hub_table(origin: Origin, split: str, language: str | None) -> pa.Table:
    from datasets import load_dataset  # noqa: PLC0415  (slow to import, rarely needed)

    source = origin.source
    assert source.hub is not None
    name = f"{origin.root}/{source.hub}" if origin.root else source.hub
    theirs = source.languages.get(language, language) if language else None
    config = source.config.format(language=theirs) if source.config else None
    try:
        dataset = load_dataset(name, config, split=source.splits.get(split, split))
    except Exception as error:  # the library raises many kinds; each is one line for the user
        gated = f"; see {source.gated}" if source.gated else ""
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"data: {name} ({split}) can't be read from the hub: {reason}{gated}; or give local files with data.root=FOLDER") from None
    return dataset.with_format("arrow")[:]


def _file_table(origin: Origin, pattern: str, language: str | None) -> tuple[pa.Table | None, str]:
    theirs = origin.source.languages.get(language, language) if language else None
    if "{shots}" in pattern and origin.shots is None:
        raise UserError(f"shots: source {origin.name} of {origin.task.name} has one file per number of shots; set shots=K")
    path = pattern.format(language=theirs, shots=origin.shots)
    if path.startswith("samples:"):
        path = str(SAMPLES / path.removeprefix("samples:"))
    elif origin.root is not None:
        path = f"{origin.root.rstrip('/')}/{path}"
    try:
        system, inner = (fs.FileSystem.from_uri(path)) if "://" in path else (fs.LocalFileSystem(), path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"data: {path} can't be reached: {str(error).splitlines()[0]}") from None
    endings = [""] if path.endswith(FORMATS) else [f".{ending}" for ending in FORMATS]
    for ending in endings:
        if system.get_file_info(inner + ending).type == fs.FileType.File:
            return read_file(system, inner + ending), path + ending
    return None, path


def read_file(system: fs.FileSystem, path: str) -> pa.Table:
    """An Arrow table out of a parquet, jsonl, tsv or csv file.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with system.open_input_file(path) as stream:
            if path.endswith("parquet"):
                return pa_parquet.read_table(stream)
            if path.endswith("jsonl"):
                # not Arrow's reader, which takes a text that looks like a date for one
                return _text_table([json.loads(line) for line in stream.read().splitlines() if line.strip()])
            # tsv as the field writes it: no quoting
            parse = pa_csv.ParseOptions(delimiter="\t", quote_char=False) if path.endswith("tsv") else pa_csv.ParseOptions(newlines_in_values=True)
            names = pa_csv.open_csv(stream, parse_options=parse).schema.names
            stream.seek(0)
            # every column is text: "007" is no number, "2020-01-01" no date
            convert = pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
            return pa_csv.read_csv(stream, parse_options=parse, convert_options=convert)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"data: {path} can't be read: {str(error).splitlines()[0]}") from None


def _text_table(rows: list[dict]) -> pa.Table:
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({n: pa.array([None if row.get(n) is None else str(row[n]) for row in rows], pa.string()) for n in names})


def their_columns(source: Source, ours: str) -> list[str]:
    """What a source may call one of our columns."""
    names = source.columns.get(ours, ours)
    return [names] if isinstance(names, str) else names


def _normalise(origin: Origin, table: pa.Table, where: str, split: str, language: str | None) -> pa.Table:
    task, source = origin.task, origin.source

    def column(ours: str) -> list[str] | None:
        for theirs in their_columns(source, ours):
            if theirs in table.column_names:
                return [str(v) if v is not None else "" for v in table[theirs].to_pylist()]
        return None

    fields = {}
    for ours in task.fields.values():
        values = column(ours)
        if values is None:
            theirs = " or ".join(their_columns(source, ours))
            raise UserError(f'data: {where} has no column "{theirs}"; found: {", ".join(table.column_names)}')
        fields[ours] = values
    size = table.num_rows
    back = {theirs: ours for ours, theirs in source.languages.items()}
    spoken = column("language") or [language or task.languages[0]] * size
    content = ["\x1f".join(values) for values in zip(*fields.values(), strict=True)]
    ids = column("id") or [hashlib.sha256(text.encode()).hexdigest()[:16] for text in content]
    return pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "language": pa.array([back.get(s, s) for s in spoken], pa.string()),
            "label": pa.array(_labels(origin, column(task.label.column), where, size), pa.string()),
            **{name: pa.array(values, pa.string()) for name, values in fields.items()},
        }
    )


def _labels(origin: Origin, values: list[str] | None, where: str, size: int) -> list[str]:
    task = origin.task
    if values is None:
        theirs = " or ".join(their_columns(origin.source, task.label.column))
        raise UserError(f'data: {where} has no label column "{theirs}" (hidden labels?); scores need labels')
    named = [origin.source.labels.get(value, value) for value in values]
    known = set(task.label.names)
    for row, name in enumerate(named):
        if name not in known:
            what = "a hidden label" if values[row] in HIDDEN else "outside the label set"
            raise UserError(f'data: {where} row {row} has label "{values[row]}", {what}; expected one of {", ".join(task.label.names)}')
    return named

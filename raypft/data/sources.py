"""Where rows come from: a hub data set, local files (also s3:// and the like), the bundled samples.

`read_split` gives an Arrow table with the columns id, language, label and the task's fields (types: columns.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pa_compute
from pyarrow import fs

from raypft.data.columns import normalise, spoken, their_columns, with_notes, with_own_ids
from raypft.data.files import Place, place_of, system_of
from raypft.data.formats import Columns, read_file
from raypft.errors import UserError, first_line, nearest
from raypft.tasks.task import Source, Task

SAMPLES = Path(__file__).parent / "samples"


@dataclass(frozen=True)
class Origin:
    """Which source of a task is read, and from where.

    root: folder or URI that its files lie below; shots: of sources that have a file for each number of shots.
    """

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
        local = [known for known, source in task.sources.items() if source.files is not None]
        name = local[0] if root is not None and local else next(iter(task.sources))
    if name not in task.sources:
        raise UserError(f'data.source: task {task.name} has no source "{name}"; {nearest(name, task.sources)}')
    source = task.sources[name]
    bundled = source.files is not None and all(file.startswith("samples:") for file in source.files.values())
    if source.files is not None and root is None and not bundled:
        raise UserError(
            f"data.root: source {name} of task {task.name} reads local files; say where, e.g. data.root=../data"
        )
    return Origin(task, name, source, root and os.path.expanduser(root), shots)


def read_split(origin: Origin, split: str, languages: list[str]) -> pa.Table | None:
    """The rows of a split in some languages, or None where the source has no such split.

    Raises:
        UserError: missing file or column, unreadable file, labels that do not fit the task (`columns.normalise`), no
            row in a language, or a language that the source keeps out of this split or writes in another case.
    """
    task, source = origin.task, origin.source
    _check_languages(origin, split, languages)
    parts = list(_raw(origin, split, languages))
    if not parts:
        return None
    tables = [normalise(task, source, table, where, language) for table, where, language in parts if table.rows]
    if not tables:
        raise UserError(f"data: {parts[0][1]} has no rows for the {split} split of {task.name}; give some")
    notes: list[str] = []
    for columns, where, _ in parts:
        notes += [f"{where}: {note}" for note in (columns.notes if columns.rows else ["the file has no rows"])]
    table = with_notes(with_own_ids(task, pa.concat_tables(tables)), notes)
    present = sorted(table["language"].unique().to_pylist())
    check_spelling(origin, split, present)
    for language in languages:
        if language not in present:
            raise UserError(
                f'languages: {split} rows of {task.name} ({origin.name}) hold none in "{language}"; '
                f"found: {', '.join(present) or 'none'}"
            )
    keep = pa_compute.is_in(table["language"], pa.array(languages))  # pyright: ignore[reportAttributeAccessIssue]  # made at import
    return table.filter(keep)


def check_spelling(origin: Origin, split: str, present: Iterable[str]) -> None:
    """Whether rows call the task's languages as the task does; those of "EN" would be left out without a word.

    Raises:
        UserError: a language of theirs is one of the task's but for case and blanks.
    """
    ours = {language.lower(): language for language in origin.task.languages}
    for found in present:
        meant = ours.get(found.strip().lower())
        if meant is not None and found not in origin.task.languages:
            raise UserError(
                f'languages: {split} rows of {origin.task.name} ({origin.name}) have the language "{found}", the task '
                f'"{meant}"; write {meant}, or name theirs in the source\'s languages'
            )


def _check_languages(origin: Origin, split: str, languages: list[str]) -> None:
    limit = origin.source.split_languages.get(split, languages)
    for language in languages:
        if language not in limit:
            raise UserError(
                f'languages: source {origin.name} of {origin.task.name} has no {split} rows for "{language}"; '
                f"it has: {', '.join(limit)}"
            )


def read_rows(origin: Origin, path: str, language: str | None, otherwise: str) -> pa.Table:
    """The rows of any one file, in the task's or the source's columns, see `rows_of_table`.

    Raises:
        UserError: no such file, unknown ending, damaged; see `rows_of_table`.
    """
    parts = read_columns(path, language)
    return pa.concat_tables([rows_of_table(origin, columns, where, language, otherwise) for columns, where in parts])


def read_columns(path: str, language: str | None = None) -> list[tuple[Columns, str]]:
    """What each file at a path holds, as it stands there, and how messages call it.

    Raises:
        UserError: no such file, unknown ending, damaged.
    """
    system, inner = system_of(os.path.expanduser(path))
    place = Place(system, inner, "")  # a * in it is a *
    found = place.find(None)
    if not found:
        raise place.missing(None)
    return [(read_file(system, file, None, language), file) for file in found]


def rows_of_table(origin: Origin, table: Columns, where: str, language: str | None, otherwise: str) -> pa.Table:
    """Rows in the task's columns, out of the task's or the source's; labels are not looked at.

    Args:
        where: what messages call the table; language: of all rows; None takes the column "language", and `otherwise`
        where there is none.

    Raises:
        UserError: a column is missing, no rows; a language that the task does not have, or one given although the table
            says it.
    """
    task, theirs = origin.task, origin.source
    columns: dict[str, str | list[str]] = {
        ours: list(dict.fromkeys([*their_columns(theirs, ours), ours]))
        for ours in ("id", "language", *task.fields.values())
    }
    source = theirs.model_copy(update={"columns": columns})
    if language is not None and spoken(source, table, where) is not None:
        raise UserError(f"data: {where} says each row's language itself; leave the language {language} out")
    if not table.rows:
        raise UserError(f"data: {where} has no rows")
    rows = normalise(task, source, table, where, language or otherwise, labelled=False)
    rows = rows if task.kind.one_label else with_own_ids(task, rows)  # who asks knows a row by the id it came with
    for number, spoken_in in enumerate(rows["language"].to_pylist()):
        if spoken_in not in task.languages:
            raise UserError(
                f'data: {where} row {number}: task {task.name} has no language "{spoken_in}"; '
                f"{nearest(spoken_in, task.languages)}"
            )
    return rows


def languages_of(origin: Origin, split: str) -> list[str]:
    """The task's languages that a split holds, in the task's order.

    All of them where each language is a file or configuration of its own; else the split is read.

    Raises:
        UserError: the split can't be read.
    """
    task, source = origin.task, origin.source
    limit = source.split_languages.get(split, task.languages)
    pattern = _config(source, split) if source.hub is not None else (source.files or {}).get(split)
    if pattern and "{language}" in pattern:
        return [language for language in task.languages if language in limit]
    present: set[str] = set()
    for table, where, _ in _raw(origin, split, task.languages):
        present.update((spoken(source, table, where) or task.languages[:1]) if table.rows else [])
    held = [language for language in task.languages if language in present and language in limit]
    if present and not held:
        raise UserError(
            f"languages: {split} rows of {task.name} ({origin.name}) hold none of {', '.join(limit)}; "
            f"found: {', '.join(sorted(present))}"
        )
    return held


def _config(source: Source, split: str) -> str | None:
    return source.config.get(split) if isinstance(source.config, dict) else source.config


def _raw(origin: Origin, split: str, languages: list[str]) -> Iterator[tuple[Columns, str, str | None]]:
    """What each file of a split holds, how messages call it, and the language that its name says."""
    source = origin.source
    if source.hub is not None:
        if source.splits and split not in source.splits:
            return
        config = _config(source, split)
        for language in languages if config and "{language}" in config else [None]:
            yield Columns.of_arrow(_hub_table(origin, split, language)), f"{source.hub} {split}", language
        return
    files = source.files or {}
    if split not in files:
        return
    for language in languages if "{language}" in files[split] else [None]:
        place = _place(origin, files[split], language)
        found = place.find(source.format)
        if not found and split in ("train", "test"):
            raise place.missing(source.format, f" for the {split} split of {origin.task.name}")
        for file in found:
            columns = read_file(place.system, file, source.format, _theirs(origin, language))
            yield columns, place.scheme + file, language


def _hub_table(origin: Origin, split: str, language: str | None) -> pa.Table:
    from datasets import load_dataset  # noqa: PLC0415  (slow to import, rarely needed)

    source = origin.source
    assert source.hub is not None
    name = f"{origin.root}/{source.hub}" if origin.root else source.hub
    theirs = source.languages.get(language, language) if language else None
    config = _config(source, split)
    revision = None if origin.root else source.revision  # a folder has no revisions
    try:
        dataset = load_dataset(
            name,
            config.format(language=theirs) if config else None,
            split=source.splits.get(split, split),
            revision=revision,
        )
    except Exception as error:  # the library raises many kinds; each is one line for the user
        gated = f"; see {source.gated}" if source.gated else ""
        reason = first_line(error)
        raise UserError(
            f"data: {name} ({split}) can't be read from the hub: {reason}{gated}; "
            "or give local files with data.root=FOLDER"
        ) from None
    return dataset.with_format("arrow")[:]


def files_of(origin: Origin, split: str, languages: list[str]) -> list[tuple[str, str | None]]:
    """The files of a split as paths in `system_for` it, each with the language that its name says.

    Raises:
        UserError: the source has no files for it, or keeps a language out of it.
    """
    pattern = (origin.source.files or {}).get(split)
    if pattern is None:
        raise UserError(
            f"data: source {origin.name} of {origin.task.name} has no files of a {split} split; "
            "choose another data.source"
        )
    _check_languages(origin, split, languages)
    named: list[tuple[str, str | None]] = []
    for language in languages if "{language}" in pattern else [None]:
        place = _place(origin, pattern, language)
        files = place.find(origin.source.format)
        if not files:
            raise place.missing(origin.source.format, f" for the {split} split of {origin.task.name}")
        named += [(file, language) for file in files]
    return named


def existing_files(origin: Origin) -> list[fs.FileInfo]:
    """The files of all splits and languages that a source of files has now, with size and time; in a fixed order."""
    infos: list[fs.FileInfo] = []
    for pattern in (origin.source.files or {}).values():
        for language in origin.task.languages if "{language}" in pattern else [None]:
            place = _place(origin, pattern, language)
            infos += place.system.get_file_info(place.find(origin.source.format))
    return infos


def system_for(origin: Origin, split: str) -> fs.FileSystem:
    """The file system that holds the files of a split.

    Raises:
        UserError: as `system_of`.
    """
    return _place(origin, (origin.source.files or {})[split], None).system


def _theirs(origin: Origin, language: str | None) -> str | None:
    return origin.source.languages.get(language, language) if language else None


def _place(origin: Origin, pattern: str, language: str | None) -> Place:
    """Where the files lie that a pattern stands for, which may hold *."""
    if "{shots}" in pattern and origin.shots is None:
        raise UserError(
            f"shots: source {origin.name} of {origin.task.name} has one file per number of shots; set shots=K"
        )
    path = pattern.format(language=_theirs(origin, language), shots=origin.shots)
    if path.startswith("samples:"):
        return place_of(str(SAMPLES), path.removeprefix("samples:"))
    return place_of(origin.root, path)

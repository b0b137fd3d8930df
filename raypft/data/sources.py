"""Rows are read from where they come from.

`read_split` gives an Arrow table with the columns id, language, label and the task's fields (types: columns.py).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pa_compute
from pyarrow import fs

from raypft.data import hub
from raypft.data.columns import normalise, spoken, their_columns, with_notes, with_own_ids
from raypft.data.files import Place, place_of, system_of
from raypft.data.formats import TOLD, Columns, ending_of, read_file
from raypft.data.origin import Origin, way_out
from raypft.data.split import divided
from raypft.data.spool import ROWS, spooled
from raypft.errors import UserError, nearest
from raypft.tasks.task import Source

SAMPLES = Path(__file__).parent / "samples"


def read_split(origin: Origin, split: str, languages: list[str]) -> pa.Table | None:
    """The rows of a split in some languages, or None where the source has no such split.

    Raises:
        UserError: missing file or column, unreadable file, labels that do not fit the task (`columns.normalise`), no
            row in a language, or a language that the source keeps out of this split or writes in another case.
    """
    task = origin.task
    _check_languages(origin, split, languages)
    table = _split_part(origin, split) if origin.source.is_split else _whole(origin, split, languages)
    if table is None:
        return None
    present = sorted(table["language"].unique().to_pylist())
    check_spelling(origin, split, present)
    for language in languages:
        if language not in present:
            raise UserError(
                f'languages: {split} rows of {task.name} ({origin.name}) hold none in "{language}"; '
                f"found: {', '.join(present) or 'none'}"
            )
    wanted = pa.array(languages)
    kept = (
        batch.filter(pa_compute.is_in(batch["language"], wanted))  # pyright: ignore[reportAttributeAccessIssue]  # made at import
        for batch in table.to_batches(max_chunksize=ROWS)
    )
    return pa.Table.from_batches(spooled(kept), table.schema)


def _whole(origin: Origin, split: str, languages: list[str]) -> pa.Table | None:
    """All rows of a split's files in our columns, None where there are no files."""
    task, source = origin.task, origin.source
    tables, files, notes = list[pa.Table](), list[str](), list[str]()
    read = Counter[str | None]()
    for columns, where, language in _raw(origin, split, languages):  # one file at a time as it stands there
        files.append(where)
        notes += [f"{where}: {note}" for note in (columns.notes if columns.rows else ["the file has no rows"])]
        if columns.rows:
            tables.append(normalise(task, source, columns, where, language, first=read[language]))
        read[language] += columns.rows
    if not files:
        return None
    if not tables:
        raise UserError(f"data: {files[0]} has no rows for the {split} split of {task.name}; give some")
    if source.parallel and len(set(read.values())) > 1:
        counts = ", ".join(f"{rows} in {language}" for language, rows in read.items())
        raise UserError(
            f"data: {split} rows of {task.name} ({origin.name}) are translations of each other; "
            f"found {counts}; expected as many in each language; leave the others out"
        )
    table = with_notes(with_own_ids(task, pa.concat_tables(tables)), notes)
    present = sorted(table["language"].unique().to_pylist())
    if "languages" not in task.model_fields_set and not set(present) <= set(task.languages):
        raise UserError(
            f"languages: {files[0]} has rows in {', '.join(present)}; the task names no languages, which means "
            f"{', '.join(task.languages)}; write languages: [{', '.join(present)}] into it"
        )
    return table


def split_parts(origin: Origin) -> dict[str, pa.Table]:
    """The rows of each split of a source that has one file for all of them.

    Raises:
        UserError: as `read_split`; or too few rows to train and to test.
    """
    table = _whole(origin, "train", origin.task.languages)
    assert table is not None  # no file is an error
    parts = divided(origin.task, table)
    for split in ("train", "test"):
        if not len(parts[split]):
            contents = zip(*(table[name].to_pylist() for name in origin.task.fields.values()), strict=True)
            others = len(set(map(repr, contents)))
            told = f", of which {others} differ" if others < len(table) else ""
            raise UserError(
                f"data: {origin.source.files} has {len(table)} rows, too few to hold a {split} split out of them{told}"
                "; give more rows, or files of their own: files: {train: …, test: …}"
            )
    return parts


def _split_part(origin: Origin, split: str) -> pa.Table | None:
    part = split_parts(origin)[split]
    return part if len(part) else None


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
    ours = pa_compute.is_in(rows["language"], pa.array(task.languages))  # pyright: ignore[reportAttributeAccessIssue]  # made at import
    number = pa_compute.index(ours, False).as_py()
    if number >= 0:
        found = rows["language"][number].as_py()
        raise UserError(
            f'data: {where} row {number}: task {task.name} has no language "{found}"; {nearest(found, task.languages)}'
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
    pattern = _pattern(source, split)
    if pattern and "{language}" in pattern:
        return [language for language in task.languages if language in limit]
    present: set[str] = set()
    if source.is_split:
        present.update(split_parts(origin)[split]["language"].unique().to_pylist())
    for table, where, _ in () if source.is_split else _raw(origin, split, task.languages):
        said = spoken(source, table, where) if table.rows else pa.array([])
        present.update(task.languages[:1] if said is None else said.unique().to_pylist())
    held = [language for language in task.languages if language in present and language in limit]
    if present and not held:
        raise UserError(
            f"languages: {split} rows of {task.name} ({origin.name}) hold none of {', '.join(limit)}; "
            f"found: {', '.join(sorted(present))}"
        )
    return held


def _pattern(source: Source, split: str) -> str | None:
    """What says where a split is, and may say it for each language: its path, or its configuration on the hub."""
    if source.files is not None:
        return source.paths.get(split)
    return source.config.get(split) if isinstance(source.config, dict) else source.config


def _raw(origin: Origin, split: str, languages: list[str]) -> Iterator[tuple[Columns, str, str | None]]:
    """What each file of a split holds, how messages call it, and the language that its name says."""
    files = list(_files(origin, split, languages, needed=split in ("train", "test")))
    with way_out(origin):
        hub.fetch(file for file, _ in files if file.startswith(hub.SCHEME))
    for file, language in files:
        with way_out(origin):
            table = read_file(*system_for(origin, split, file), origin.source.format, _theirs(origin, language))
        yield table, file, language


def _files(origin: Origin, split: str, languages: list[str], needed: bool) -> Iterator[tuple[str, str | None]]:
    """The files of a split, as paths or URIs, each with the language that its name says.

    Args:
        needed: whether a path that stands for no file is an error.

    Raises:
        UserError: there is no such file, or the hub can't say.
    """
    source, base = origin.source, origin.base(split)
    if not source.has(split):
        return
    pattern = _pattern(source, split)
    for language in languages if pattern and "{language}" in pattern else [None]:
        theirs = _theirs(origin, language)
        if source.files is None:
            assert base is not None
            with way_out(origin):
                found = hub.split_files(
                    base, pattern and pattern.format(language=theirs), source.splits.get(split, split)
                )
            odd = next((file for file in found if ending_of(file)[0] is None), None)
            if odd is not None:
                raise UserError(f"data: {odd}: expected a file that ends in {TOLD}")
        else:
            with way_out(origin):
                place = _place(origin, split, theirs)
                found = [place.scheme + file for file in place.find(source.format)]
            if not found and needed:
                raise place.missing(source.format, f" for the {split} split of {origin.task.name}")
        yield from ((file, language) for file in found)


def files_of(origin: Origin, split: str, languages: list[str]) -> list[tuple[str, str | None]]:
    """The files of a split, as paths or URIs, each with the language that its name says.

    Raises:
        UserError: the source has no files for it, or keeps a language out of it.
    """
    if origin.source.is_split:
        raise UserError(
            f"data.stream: {origin.source.files} holds the rows of all splits, which are divided in memory; "
            "give train rows a file of their own: files: {train: …, test: …}"
        )
    _check_languages(origin, split, languages)
    files = list(_files(origin, split, languages, needed=True))
    if not files:
        raise UserError(
            f"data: source {origin.name} of {origin.task.name} has no files of a {split} split; "
            "choose another data.source"
        )
    return files


def system_for(origin: Origin, split: str, file: str, whole: bool = True) -> tuple[fs.FileSystem, str]:
    """The file system of a file of a split (see `files_of`), and the path in it.

    Args:
        whole: of a file on the hub: it is kept in the cache, else read in parts; see hub.py.

    Raises:
        UserError: as `system_of`.
    """
    if file.startswith(hub.SCHEME):
        return hub.system_of(file, whole)
    scheme, _, path = file.rpartition("://")
    if not scheme:
        return fs.LocalFileSystem(), file
    # the URI of the folder says more than how it begins, and a file's name is no part of a URI
    return system_of(origin.base(split) or origin.source.paths[split])[0], path


def existing_files(origin: Origin) -> list[fs.FileInfo]:
    """The files of all splits and languages that a source of files has now, with size and time; in a fixed order."""
    infos: list[fs.FileInfo] = []
    by_pattern = {pattern: split for split, pattern in origin.source.paths.items()}
    for pattern, split in by_pattern.items():
        for language in origin.task.languages if "{language}" in pattern else [None]:
            place = _place(origin, split, _theirs(origin, language))
            infos += place.system.get_file_info(place.find(origin.source.format))
    return infos


def _theirs(origin: Origin, language: str | None) -> str | None:
    return origin.source.languages.get(language, language) if language else None


def _place(origin: Origin, split: str, language: str | None) -> Place:
    """Where the files of a split lie, whose path may hold *; `language` is theirs."""
    pattern = origin.source.paths[split]
    if "{shots}" in pattern and origin.shots is None:
        raise UserError(
            f"shots: source {origin.name} of {origin.task.name} has one file per number of shots; set shots=K"
        )
    path = pattern.format(language=language, shots=origin.shots)
    if path.startswith("samples:"):
        return place_of(str(SAMPLES), path.removeprefix("samples:"))
    return place_of(None if path.startswith("/") or "://" in path else origin.base(split), path)

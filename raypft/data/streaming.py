"""Train rows larger than memory: Parquet files of any number, read as they are needed, in an order all workers compute.

An epoch has as many rows as the files. The mix says how many each language gives; under `proportional` that is every
row once. Languages are woven so that any stretch of the epoch has the mix as closely as whole rows allow; a language's
row groups come in an order drawn for the epoch, the rows of a group in one drawn for it. Which row stands where is a
function of seed, epoch and position: it has no worker count in it, and a run that goes on in the middle of an epoch
begins to read there.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pa_compute
import pyarrow.parquet as pa_parquet
from pydantic import BeforeValidator

from raypft.data import sources
from raypft.data.columns import normalise, spoken, their_columns, with_own_ids
from raypft.data.formats import Columns, ending_of
from raypft.data.origin import Origin
from raypft.errors import UserError, first_line

ORDER = 1
"""Raised when a change alters which row stands where; part of the cell key."""
MOST = 1 << 16
"""Rows that are in memory of each language where rows are read: of a larger row group a piece of so many."""
BUFFER = 1 << 20
"""Bytes that are read at a time of a column's part of a row group."""
LIMIT = 1 << 31
"""Rows there may be: products of two numbers of rows must stay below 2^63."""


def _mixed(value: Any) -> Any:
    if value not in ("proportional", "uniform") and (isinstance(value, str | bool) or not 1 <= value < math.inf):
        raise ValueError("expected proportional, uniform or a temperature of at least 1")
    return value


Mix = Annotated[str | float, BeforeValidator(_mixed)]
"""How many rows each language gives to an epoch of a stream; a number is a temperature, see `shares`."""


@dataclass(frozen=True)
class Group:
    """The rows of one language in a row group of a file, or in a piece of one.

    file: its path or URI, as every process finds it; number: of the row group, from 0; rows: how many are of the
    language; alone: there is no other language; first: rows of the language that came before; start, size: the piece
    [start, start + size) of the row group's rows.
    """

    file: str
    number: int
    language: str
    rows: int
    alone: bool
    first: int = 0
    start: int = 0
    size: int = MOST


def _rows(groups: Iterable[Group]) -> int:
    return sum(group.rows for group in groups)


@dataclass(frozen=True)
class Index:
    """What there is to stream: each language's row groups in the order of the files, and a hash (see `_digest`)."""

    origin: Origin
    groups: tuple[Group, ...]
    fingerprint: str

    @cached_property
    def languages(self) -> dict[str, tuple[Group, ...]]:
        """Language to row groups."""
        by_language: dict[str, list[Group]] = {}
        for group in self.groups:
            by_language.setdefault(group.language, []).append(group)
        return {name: tuple(groups) for name, groups in by_language.items()}

    @property
    def rows(self) -> int:
        """Rows of all languages; so many has an epoch."""
        return _rows(self.groups)

    def head(self) -> pa.Table:
        """The first row of each language."""
        return pa.concat_tables([read_group(self.origin, groups[0]).slice(0, 1) for groups in self.languages.values()])

    def dump(self) -> str:
        """As JSON, all but the origin."""
        groups = [list(asdict(group).values()) for group in self.groups]
        return json.dumps({"fingerprint": self.fingerprint, "groups": groups})

    @classmethod
    def load(cls, origin: Origin, text: str) -> Index:
        """What `dump` wrote, read back; `origin` is where the files are found from here."""
        dumped = json.loads(text)
        return cls(origin, tuple(Group(*group) for group in dumped["groups"]), dumped["fingerprint"])


def index(origin: Origin, languages: list[str]) -> Index:
    """What there is to stream of a source's train split.

    Read are the files' footers and, where rows say their language, that column; of files on the hub these parts are
    fetched, here and wherever rows are read, unless a file is in the cache.

    Raises:
        UserError: no Parquet files, too many rows, or a language has no rows or is written
            in another case.
    """
    files = sources.files_of(origin, "train", languages)
    source_keys = origin.source.model_dump(include={"columns", "labels", "languages", "language_before"})
    groups, digest = list[Group](), hashlib.sha256(json.dumps(source_keys, sort_keys=True).encode())
    read = Counter[str]()
    for path, language in files:
        path = path if "://" in path else os.path.abspath(path)  # other processes read there
        if ending_of(path) != ("parquet", None):
            raise UserError(f"data.stream: {path}: expected Parquet files; write it as one, or leave data.stream out")
        try:
            with _opened(origin, path) as source:
                parquet = pa_parquet.ParquetFile(source)
                _digest(digest, source, parquet.metadata, origin)
                for number in range(parquet.num_row_groups):
                    for group in _groups(origin, parquet, path, number, language):
                        groups.append(replace(group, first=read[group.language]))
                        read[group.language] += group.rows
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"data: {path} can't be read: {first_line(error)}") from None
    sources.check_spelling(origin, "train", {group.language for group in groups})
    groups = [group for group in groups if group.language in languages]
    for language in languages:
        if not any(group.language == language for group in groups):
            raise UserError(f'languages: train rows of {origin.task.name} ({origin.name}) hold none in "{language}"')
    if _rows(groups) > LIMIT:
        raise UserError(
            f"data.stream: found more than {LIMIT:,} rows; expected fewer; "
            "name a part of the files in the task's source"
        )
    return Index(origin, tuple(groups), digest.hexdigest()[:16])


def _opened(origin: Origin, path: str) -> pa.NativeFile:
    """A file of which parts are read: one on the hub is not fetched whole."""
    system, inner = sources.system_for(origin, "train", path, whole=False)
    return system.open_input_file(inner)


def _digest(digest: Any, source: pa.NativeFile, metadata: pa_parquet.FileMetaData, origin: Origin) -> None:
    """Add what tells one file from another and takes little to read.

    That is the sizes of every column's parts, and the columns of ids, languages and labels as they are stored.
    """
    names: set[str] = set()
    for ours in ("id", "language", origin.task.label.column):
        names.update(their_columns(origin.source, ours))
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for place in range(group.num_columns):
            column = group.column(place)
            digest.update(f"{column.path_in_schema} {group.num_rows} {column.total_uncompressed_size}".encode())
            if column.path_in_schema.split(".")[0] in names:
                source.seek(column.dictionary_page_offset or column.data_page_offset)
                digest.update(source.read(column.total_compressed_size))


def _groups(
    origin: Origin, parquet: pa_parquet.ParquetFile, file: str, number: int, language: str | None
) -> list[Group]:
    rows = parquet.metadata.row_group(number).num_rows
    known = [name for name in their_columns(origin.source, "language") if name in parquet.schema_arrow.names]
    said = None
    if known:
        said = spoken(origin.source, Columns.of_arrow(parquet.read_row_group(number, columns=known)), file)
    groups = list[Group]()
    for start in range(0, rows, MOST):
        size = min(MOST, rows - start)
        counts = {language or origin.task.languages[0]: size}
        if said is not None:
            counted = said.slice(start, size).value_counts().to_pylist()
            counts = {found["values"]: found["counts"] for found in counted}
        for name, count in counts.items():
            groups.append(Group(file, number, name, count, len(counts) == 1, start=start, size=size))
    return groups


def read_group(origin: Origin, group: Group) -> pa.Table:
    """A row group's rows in one language, in our columns.

    Raises:
        UserError: the file can't be read, or a row does not fit the task (`columns.normalise`).
    """
    try:
        with _opened(origin, group.file) as source:
            raw = _piece(pa_parquet.ParquetFile(source, buffer_size=BUFFER), group)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"data: {group.file} can't be read: {first_line(error)}; every node that reads rows must see it"
        ) from None
    table = normalise(origin.task, origin.source, Columns.of_arrow(raw), group.file, group.language, first=group.first)
    table = with_own_ids(origin.task, table)
    if group.alone:
        return table
    return table.filter(pa_compute.equal(table["language"], group.language))  # pyright: ignore[reportAttributeAccessIssue]  # made at import


def _piece(parquet: pa_parquet.ParquetFile, group: Group) -> pa.Table:
    """The rows of a piece of a row group, which is read up to there, MOST rows at a time."""
    pieces, seen, stop = list[pa.RecordBatch](), 0, group.start + group.size
    for batch in parquet.iter_batches(MOST, row_groups=[group.number]):
        if wanted := range(max(0, group.start - seen), min(len(batch), stop - seen)):
            pieces.append(batch.slice(wanted.start, len(wanted)))
        seen += len(batch)
        if seen >= stop:
            break
    return pa.Table.from_batches(pieces)


def shares(rows: Mapping[str, int], mix: Mix) -> dict[str, int]:
    """How many rows each language gives to an epoch of as many as there are; the shares sum to all rows.

    Args:
        rows: language to rows there are.
        mix: "proportional" to its rows, "uniform", or a temperature T >= 1: proportional to rows ** (1 / T) (Conneau et
            al. 2020, XLM-R, section 3.1, where 1 / T = 0.3).
    """
    power = {"proportional": 1.0, "uniform": 0.0}[mix] if isinstance(mix, str) else 1 / mix
    weights = np.array([count**power for count in rows.values()])
    total = sum(rows.values())
    ideal = weights / weights.sum() * total
    whole = np.floor(ideal).astype(int)
    for place in np.argsort(whole - ideal, kind="stable")[: total - whole.sum()]:  # the largest remainders
        whole[place] += 1
    return dict(zip(rows, whole.tolist(), strict=True))


class Order:
    """Which row stands at a position of an epoch, counted from 0.

    sizes: language to rows there are; shares: language to rows an epoch takes; size: rows of the epoch.
    """

    def __init__(self, index: Index, mix: Mix, seed: int, epoch: int) -> None:
        self.languages, self.key = index.languages, (seed, epoch)
        self.sizes = {name: _rows(groups) for name, groups in self.languages.items()}
        self.shares = shares(self.sizes, mix)
        self.size = sum(self.shares.values())
        self._drawn: dict[str, tuple[int, np.ndarray, np.ndarray]] = {}

    def places(self, start: int, stop: int) -> list[tuple[str, int]]:
        """Language and number within the language of the rows at positions [start, stop).

        The k-th row of a language with s of the epoch's N rows is due at (k + 1/2) N / s; rows stand in the order they
        are due.
        """
        # a row stands at most half a row a language from where it is due, and these are all within a whole one
        slack, placed = len(self.shares), list[tuple[int, str, int]]()
        for turn, (name, share) in enumerate(self.shares.items()):
            first, end = (start - slack) * share // self.size, -(-(stop + slack) * share // self.size)
            numbers = np.arange(max(0, first), min(share, end), dtype=np.int64)
            rank = np.zeros_like(numbers)
            for other, size in enumerate(self.shares.values()):
                # the other's rows due earlier: (2 j + 1) share < (2 k + 1) size; of equals, those of the language
                # named earlier
                due = (2 * numbers + 1) * size - (other >= turn)
                rank += np.clip((due - share) // (2 * share) + 1, 0, size)
            placed += [
                (position, name, int(number))
                for position, number in zip(rank, numbers, strict=True)
                if start <= position < stop
            ]
        return [(name, number) for _, name, number in sorted(placed)]

    def locate(self, name: str, number: int) -> tuple[int, int, int]:
        """Where a language's row lies.

        Returns:
            how often the language came round before, the number of its row group, the row's number there.
        """
        turn, rest = divmod(number, self.sizes[name])  # a language may come round more than once
        if name not in self._drawn or self._drawn[name][0] != turn:
            drawn = self._generator(name, turn).permutation(len(self.languages[name]))
            ends = np.cumsum([self.languages[name][i].rows for i in drawn])
            self._drawn[name] = (turn, drawn, ends)
        _, drawn, ends = self._drawn[name]
        place = int(np.searchsorted(ends, rest, side="right"))
        group = int(drawn[place])
        return turn, group, rest - int(ends[place]) + self.languages[name][group].rows

    def within(self, name: str, turn: int, group: int) -> np.ndarray:
        """The order of a group's rows, [rows]."""
        return self._generator(name, turn, group).permutation(self.languages[name][group].rows)

    def _generator(self, *about: Any) -> np.random.Generator:
        return np.random.default_rng(list(hashlib.sha256(repr((*self.key, *about)).encode()).digest()))


class Reader:
    """Rows by position; of each language the row group that was read last is kept in memory."""

    def __init__(self, index: Index, mix: Mix) -> None:
        self.index, self.mix = index, mix
        self._order: tuple[tuple[int, int], Order] | None = None
        self._held: dict[str, tuple[tuple[int, int], pa.Table]] = {}

    def order(self, seed: int, epoch: int) -> Order:
        """The order of an epoch."""
        if self._order is None or self._order[0] != (seed, epoch):
            self._order = ((seed, epoch), Order(self.index, self.mix, seed, epoch))
            self._held.clear()
        return self._order[1]

    def rows(
        self, seed: int, epoch: int, start: int, stop: int, rank: int = 0, world: int = 1
    ) -> Iterator[dict[str, Any]]:
        """Of the rows at positions [start, stop) every world-th, from the rank-th on, in our columns."""
        order = self.order(seed, epoch)
        for name, number in order.places(start, stop)[rank::world]:
            turn, group, row = order.locate(name, number)
            if name not in self._held or self._held[name][0] != (turn, group):
                table = read_group(self.index.origin, order.languages[name][group])
                self._held[name] = ((turn, group), table.take(order.within(name, turn, group)))
            yield from self._held[name][1].slice(row, 1).to_pylist()

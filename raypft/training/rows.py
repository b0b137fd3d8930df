"""Encoded prompts as Arrow columns, in memory or in a mapped file; a prompt is a view, made when it is asked for.

A column of numbers has the smallest type that holds them, texts that repeat stand there once. A file is one part, a
record batch; what is never asked for of a mapped one is never read, and workers of a node share what is.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import marshal
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pa_compute

from raypft.data.spool import spooled
from raypft.encoded import Encoded, Passage

compute: Any = pa_compute  # its functions are made at import
PART = 1024
"""Prompts that become columns together, at least."""
FORMAT = 0
"""Of marshal, the one in which equal values are equal bytes."""
VIEWS = 4096
"""Prompts whose views are kept, those that were asked for last: few shots come again each epoch."""
INTS = pa.list_(pa.int32())
RECORD = pa.schema(
    [
        ("key", pa.string()),
        ("language", pa.string()),
        ("ids", INTS),
        ("segments", INTS),
        ("marks", pa.map_(pa.string(), INTS)),
        ("gold", INTS),
        ("wording", pa.int32()),
        ("part", pa.int32()),
        ("demo_tokens", pa.int32()),
        ("target", INTS),
        ("answers", pa.list_(pa.string())),
        ("passage", pa.struct([("text", pa.string()), ("starts", INTS), ("ends", INTS)])),
        ("asked", pa.binary(16)),
    ]
)
"""The Arrow schema of encoded prompts before `packed`; asked: see `asked`."""


def asked(prompt: Encoded) -> bytes:
    """A hash of what an answer depends on, 16 bytes; windows of a passage are taken for unlike."""
    own = None if prompt.passage is None else prompt.name
    parts = (prompt.ids, prompt.segments, list(prompt.marks.items()), prompt.wording, prompt.target, own)
    return hashlib.blake2b(marshal.dumps(parts, FORMAT), digest_size=16).digest()


def columns_of(prompts: Sequence[Encoded]) -> pa.RecordBatch:
    """Prompts as columns of RECORD."""
    values: dict[str, list[Any]] = {}
    for name in RECORD.names[:-1]:
        values[name] = [getattr(prompt, name) for prompt in prompts]
    values["marks"] = [list(marks.items()) for marks in values["marks"]]
    values["passage"] = [passage if passage is None else vars(passage) for passage in values["passage"]]
    values["asked"] = list(map(asked, prompts))
    arrays = [pa.array(values[field.name], field.type) for field in RECORD]
    return pa.RecordBatch.from_arrays(cast(Any, arrays), schema=RECORD)


def packed(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same columns in the types that take least."""
    return pa.RecordBatch.from_arrays([_packed(column) for column in batch.columns], names=batch.schema.names)


def _packed(column: Any) -> Any:
    kind = column.type
    if pa.types.is_integer(kind):
        least, most = (compute.min_max(column)[end].as_py() or 0 for end in ("min", "max"))
        types = (pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32())
        fits = (one for one in types if _holds(one, least) and _holds(one, most))
        return column.cast(next(fits, pa.int64()))
    if pa.types.is_string(kind):
        coded = column.dictionary_encode()
        if 2 * len(coded.dictionary) > len(column):
            return column
        return pa.DictionaryArray.from_arrays(_packed(coded.indices), coded.dictionary)
    if pa.types.is_map(kind):
        return pa.MapArray.from_arrays(column.offsets, _packed(column.keys), _packed(column.items))
    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays(column.offsets, _packed(column.values))
    if pa.types.is_struct(kind):
        fields = [_packed(column.field(place)) for place in range(kind.num_fields)]
        return pa.StructArray.from_arrays(fields, [field.name for field in kind], mask=column.is_null())
    return column


def _holds(kind: pa.DataType, number: int) -> bool:
    limits = np.iinfo(kind.to_pandas_dtype())
    return limits.min <= number <= limits.max


class _Lists:
    """A column of lists of numbers."""

    def __init__(self, column: Any) -> None:
        self.offsets, self.values = column.offsets.to_numpy(), column.values.to_numpy()

    def __getitem__(self, row: int) -> list[int]:
        return self.values[self.offsets[row] : self.offsets[row + 1]].tolist()


class _Texts:
    """A column of texts; those that repeat are Python's once they were asked for."""

    def __init__(self, column: Any) -> None:
        self.column, self.repeat = column, pa.types.is_dictionary(column.type)

    @functools.cached_property
    def coded(self) -> tuple[np.ndarray, list[str]]:
        return self.column.indices.to_numpy(), self.column.dictionary.to_pylist()

    def __getitem__(self, row: int) -> str:
        if not self.repeat:
            return self.column[row].as_py()
        codes, texts = self.coded
        return texts[codes[row]]


class _Part:
    """The prompts of a record batch."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        column = {name: cast(Any, batch.column(name)) for name in RECORD.names}
        self.asked = np.frombuffer(column["asked"].buffers()[1], "V16", len(batch), 16 * column["asked"].offset)
        self.numbers = {name: column[name].to_numpy() for name in ("wording", "part", "demo_tokens")}
        self.lists = {name: _Lists(column[name]) for name in ("ids", "segments", "gold", "target")}
        self.texts = {name: _Texts(column[name]) for name in ("key", "language")}
        self.marks, self.names = column["marks"].offsets.to_numpy(), _Texts(column["marks"].keys)
        self.places = _Lists(column["marks"].items)
        self.answers, self.said = column["answers"].offsets.to_numpy(), _Texts(column["answers"].values)
        self.passage = column["passage"]
        self.of_passages = np.flatnonzero(self.passage.is_valid())
        self.starts, self.ends = (_Lists(self.passage.field(name)) for name in ("starts", "ends"))

    def view(self, row: int) -> Encoded:
        """A prompt."""
        made: dict[str, Any] = {name: column[row] for name, column in self.texts.items()}
        for name, column in self.lists.items():
            made[name] = column[row]
        for name, numbers in self.numbers.items():
            made[name] = numbers[row].item()
        made["marks"] = {self.names[at]: self.places[at] for at in range(self.marks[row], self.marks[row + 1])}
        made["answers"] = [self.said[at] for at in range(self.answers[row], self.answers[row + 1])]
        made["passage"] = None
        if len(self.of_passages) and self.passage[row].is_valid:
            made["passage"] = Passage(self.passage.field("text")[row].as_py(), self.starts[row], self.ends[row])
        return Encoded.holding(made)


class EncodedRows(Sequence[Encoded]):
    """The prompts of record batches, see `columns_of`."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._join([_Part(batch) for batch in batches if len(batch)])

    def _join(self, parts: list[_Part]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part.asked) for part in self._parts], dtype=np.int64)
        self._kept = functools.lru_cache(maxsize=VIEWS)(self._view)

    def __add__(self, other: EncodedRows) -> EncodedRows:
        both = EncodedRows([])
        both._join([*self._parts, *other._parts])
        return both

    @classmethod
    def of(cls, prompts: Iterable[Encoded]) -> EncodedRows:
        """Prompts as columns, of many in a file (`spooled`)."""
        return cls(spooled(packed(columns_of(some)) for some in _some(prompts)))

    @classmethod
    def read(cls, files: Iterable[Path]) -> EncodedRows:
        """What `write` wrote into local files, memory-mapped."""
        return cls(pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0) for file in files)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each prompt, [prompts]."""
        return _joined([np.diff(part.lists["ids"].offsets) for part in self._parts])

    @functools.cached_property
    def numbers(self) -> np.ndarray:
        """Each prompt's number in its row, [prompts]."""
        return _joined([part.numbers["part"] for part in self._parts])

    @functools.cached_property
    def demo_tokens(self) -> np.ndarray:
        """How many tokens of each prompt are demonstrations, [prompts]."""
        return _joined([part.numbers["demo_tokens"] for part in self._parts])

    @functools.cached_property
    def asked(self) -> np.ndarray:
        """What an answer depends on, see `asked`, [prompts]."""
        return _joined([part.asked for part in self._parts])

    @functools.cached_property
    def languages(self) -> np.ndarray:
        """Each prompt's language, [prompts]."""
        return _joined([np.array(part.texts["language"].column.to_pylist()) for part in self._parts])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._parts else 0

    @overload
    def __getitem__(self, row: int) -> Encoded: ...

    @overload
    def __getitem__(self, row: slice) -> list[Encoded]: ...

    def __getitem__(self, row: int | slice) -> Encoded | list[Encoded]:
        rows = range(len(self))[row]
        return self._kept(rows) if isinstance(rows, int) else [self._kept(one) for one in rows]

    def __iter__(self) -> Iterator[Encoded]:
        return itertools.chain.from_iterable(map(part.view, range(len(part.asked))) for part in self._parts)

    def _view(self, row: int) -> Encoded:
        at = int(np.searchsorted(self._ends, row, side="right"))
        part = self._parts[at]
        return part.view(row - int(self._ends[at]) + len(part.asked))


def _joined(columns: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(columns) if columns else np.array([], np.int32)


def _some(prompts: Iterable[Encoded]) -> Iterator[list[Encoded]]:
    """Prompts, PART at a time."""
    left = iter(prompts)
    return iter(lambda: list(itertools.islice(left, PART)), [])


def write(prompts: Iterable[Encoded], file: Path) -> int:
    """Write prompts into a local file, see `EncodedRows.read`; how many there are."""
    batches = [columns_of(some) for some in _some(prompts)]
    (whole,) = pa.Table.from_batches(batches, RECORD).combine_chunks().to_batches() or [columns_of([])]
    batch = packed(whole)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return len(batch)

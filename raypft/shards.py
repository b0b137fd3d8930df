"""Named tensors in safetensors files, written and read a tensor at a time: one file where they are small, else shards
and an index, as transformers has them.

trained.safetensors
trained-00001-of-00002.safetensors, trained-00002-of-00002.safetensors, trained.safetensors.index.json
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self, cast

from safetensors import SafetensorError, safe_open
from torch import Tensor

from raypft.errors import UserError, first_line
from raypft.storage import on_disk, sha256, written

WHOLE = 64 << 20
"""Bytes of trained values, fp32, up to which they are one whole file, in a state and in a result."""
SHARD = 1 << 30
"""Bytes of a shard; a tensor is never divided."""
AT_ONCE = 1 << 22
"""Entries that are copied to CPU memory and written, or read, together."""
INDEX = ".index.json"
"""What follows a file's name in that of its index."""

Named = Iterable[tuple[str, Tensor]]
Shapes = Mapping[str, Sequence[int]]


def nbytes(shapes: Shapes) -> int:
    """Bytes of fp32 tensors."""
    return 4 * sum(map(math.prod, shapes.values()))


def write(file: Path, shapes: Shapes, tensors: Named, metadata: Mapping[str, str] | None = None) -> int:
    """Write fp32 tensors, of any device, to a local safetensors file; the checksum that `checked` asks for.

    Args:
        shapes: of the tensors, in the order in which they come.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    checksum = 0
    with file.open("wb") as stream:
        for block in (len(text).to_bytes(8, "little"), text):
            stream.write(block)
            checksum = zlib.crc32(block, checksum)
        for (name, shape), (given, tensor) in zip(shapes.items(), tensors, strict=True):
            if name != given or math.prod(shape) != tensor.numel():
                raise ValueError(f"{file.name}: found {given} {list(tensor.shape)}; expected {name} {list(shape)}")
            for part in tensor.detach().reshape(-1).split(AT_ONCE):
                block = part.float().cpu().numpy().data
                stream.write(block)
                checksum = zlib.crc32(block, checksum)
    return checksum


def checked(file: Path, checksum: int) -> str:
    """The sha256 of a file that `write` wrote, once it is on disk and was read back.

    Raises:
        OSError: what is read is not what was written.
    """
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        found, digest = 0, hashlib.sha256()
        while block := stream.read(4 * AT_ONCE):
            found = zlib.crc32(block, found)
            digest.update(block)
    if found != checksum:
        raise OSError(f"{file}: what was read back is not what was written")
    return digest.hexdigest()


class Flat:
    """The tensors of a local file that `write` wrote, read by ranges and not mapped: a state is as large as what a
    process may hold."""

    def __init__(self, file: Path) -> None:
        self._stream = file.open("rb")
        size = int.from_bytes(self._stream.read(8), "little")
        self._header, self._first = json.loads(self._stream.read(size)), 8 + size

    def read(self, name: str, start: int, into: Tensor) -> None:
        """Fill a flat fp32 tensor on CPU with the entries from `start` on."""
        begin, end = self._header[name]["data_offsets"]
        if begin + 4 * start + into.nbytes > end:
            raise ValueError(f"{self._stream.name}: {name} has fewer entries than are asked for")
        self._stream.seek(self._first + begin + 4 * start)
        self._stream.readinto(into.numpy().data.cast("B"))

    def close(self) -> None:
        """Let go of the file."""
        self._stream.close()


def save(
    path: Path, shapes: Shapes, tensors: Named, metadata: Callable[[], dict[str, str]] | None = None
) -> dict[str, str]:
    """Write tensors to `path`, or to shards beside it, and read them back; the sha256 of the file, or of the index, by
    its name.

    Args:
        shapes: of the tensors, in the order in which they come; metadata: asked when all have come.

    Raises:
        OSError: what is read back is not what was written.
    """
    if nbytes(shapes) <= WHOLE:
        values = dict(sorted(tensors))  # in the order of the safetensors library
        with written(path) as file:
            own = {name: shapes[name] for name in values}
            digest = checked(file, write(file, own, values.items(), metadata() if metadata else None))
        index_of(path).unlink(missing_ok=True)
        return {path.name: digest}
    groups, given = _groups(shapes), iter(tensors)
    weight_map, digests = dict[str, str](), dict[str, str]()
    for number, group in enumerate(groups, start=1):
        name = f"{path.stem}-{number:05}-of-{len(groups):05}{path.suffix}"
        with written(path.with_name(name)) as file:
            own = ((key, next(given)[1]) for key in group)
            digests[name] = checked(file, write(file, group, own))
        weight_map |= dict.fromkeys(group, name)
    facts = {"total_size": nbytes(shapes), "sha256": digests, **(metadata() if metadata else {})}
    with written(index_of(path)) as file:
        file.write_text(json.dumps({"metadata": facts, "weight_map": weight_map}, indent=1), encoding="utf-8")
        digest = sha256(file)
    path.unlink(missing_ok=True)
    return {index_of(path).name: digest}


def _groups(shapes: Shapes) -> list[dict[str, Sequence[int]]]:
    """The shapes of each shard."""
    groups: list[dict[str, Sequence[int]]] = [{}]
    for name, shape in shapes.items():
        if groups[-1] and nbytes(groups[-1]) + nbytes({name: shape}) > SHARD:
            groups.append({})
        groups[-1][name] = shape
    return groups


def index_of(path: Path) -> Path:
    """Where the index of a file is that was written as shards."""
    return path.with_name(path.name + INDEX)


def file_of(path: Path) -> Path | None:
    """The file or the index that is there, None where neither is."""
    return next((file for file in (path, index_of(path)) if file.is_file()), None)


def read_index(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What an index says about its tensors, and in which file each is.

    Raises:
        OSError, ValueError: it can't be read.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    try:
        facts, files = dict(found["metadata"]), dict(found["weight_map"])
    except (KeyError, TypeError, ValueError):
        raise ValueError("no index of shards") from None
    for file in set(files.values()):
        if not isinstance(file, str) or Path(file).name != file:
            raise ValueError(f"a shard is called {file!r}; expected a file beside the index")
    return facts, files


class Saved:
    """The tensors of a file or of its shards; one of these is open at a time, read in whatever order but best in its
    own.

    Args:
        path: where `save` wrote; digests: what it gave, as far as it is known.

    Raises:
        UserError: it is not there or not whole, here and where a tensor is read.
    """

    def __init__(self, path: Path, digests: Mapping[str, str] | None = None) -> None:
        self.path = file_of(path) or path
        self._stack, self._name, self._stream = ExitStack(), "", cast(Any, None)
        self._digests = dict(digests or {})
        if self.path == path:
            self._open(path.name)
            self._files = dict.fromkeys(self._stream.keys(), path.name)
        else:
            try:
                with on_disk(self.path) as file:
                    self._check(file, self.path.name)
                    facts, self._files = read_index(file)
            except (OSError, ValueError) as error:
                raise self._damaged(self.path, error) from None
            self._digests |= facts.get("sha256", {})

    @property
    def names(self) -> list[str]:
        """The names of the tensors, in the order of the files."""
        return list(self._files)

    def __getitem__(self, name: str) -> Tensor:
        """A tensor, mapped from its file."""
        self._open(self._files[name])
        return self._stream.get_tensor(name)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, self[name]) for name in self._files)

    def _open(self, name: str) -> None:
        if name == self._name:
            return
        self.close()
        path = self.path.with_name(name)
        try:
            file = self._stack.enter_context(on_disk(path))
            self._check(file, name)
            self._stream = self._stack.enter_context(cast(Any, safe_open)(file, "pt"))
        except (OSError, SafetensorError) as error:
            raise self._damaged(path, error) from None
        self._name = name

    def _check(self, file: Path, name: str) -> None:
        if name in self._digests and sha256(file) != self._digests[name]:
            raise OSError("its sha256 is not the one it was written with")

    @staticmethod
    def _damaged(path: Path, error: Exception) -> UserError:
        return UserError(f"run: {path} can't be read: {first_line(error)}; train the seed again with --fresh")

    def close(self) -> None:
        """Let go of the open file."""
        self._stack.close()
        self._name = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

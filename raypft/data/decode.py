"""Bytes of a file become text: unpacked, UTF-8, no byte-order mark; what is no such text is called by its name."""

from __future__ import annotations

import codecs
import contextlib
import io
import itertools
import lzma
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa

COMPRESSIONS = {"gz": "gzip", "bz2": "bz2", "zst": "zstd", "xz": "xz"}
"""What a file's last ending says of how it is packed."""
MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16"}
MARKS[codecs.BOM_UTF16_BE] = "UTF-16"
OTHERS = {
    b"PK\x03\x04": "a zip archive (an Excel file is one); unpack it, or save it as CSV UTF-8",
    b"\xd0\xcf\x11\xe0": "an old Excel file; save it as CSV UTF-8",
    b"PAR1": "a Parquet file; call it .parquet",
    b"ARROW1": "an Arrow file; call it .arrow",
    b"\x1f\x8b": "packed with gzip; let its name end in .gz",
    b"BZh": "packed with bzip2; let its name end in .bz2",
    b"\x28\xb5\x2f\xfd": "packed with zstd; let its name end in .zst",
    b"\xfd7zXZ": "packed with xz; let its name end in .xz",
}
"""How files begin that are no text."""
CONVERT = "convert it: iconv -f {} -t UTF-8 OLD > NEW"
PIECE = 1 << 20
"""Bytes that are read at a time."""


class Content(NamedTuple):
    """What a file holds.

    opened: opens it, at its beginning, as often as it is called; compression: how it is packed, a key of COMPRESSIONS.
    """

    opened: Callable[[], pa.NativeFile]
    compression: str | None = None

    @contextlib.contextmanager
    def stream(self) -> Iterator[Any]:
        """Its bytes, unpacked, from the first on; Arrow's file where that unpacks, else Python's.

        Raises:
            ValueError: while it is read: damaged or cut off.
        """
        with self.opened() as stream:
            try:
                if self.compression is None:
                    yield stream
                elif self.compression == "xz":  # which Arrow does not know
                    yield lzma.LZMAFile(stream)  # noqa: SIM115  # pyright: ignore[reportArgumentType]  # a file to it
                else:
                    yield pa.CompressedInputStream(stream, COMPRESSIONS[self.compression])
            except (lzma.LZMAError, EOFError, OSError) as error:
                if self.compression is None:
                    raise
                raise ValueError(f"it can't be unpacked as .{self.compression}: {error}") from None

    def pieces(self) -> Iterator[bytes]:
        """Its bytes, unpacked, a piece at a time; raises as `stream`."""
        with self.stream() as stream:
            while piece := stream.read(PIECE):
                yield piece

    def at_once(self) -> pa.NativeFile:
        """Its bytes, unpacked, as a file of which any part can be read; in memory where it is packed.

        Raises:
            ValueError: damaged or cut off.
        """
        return self.opened() if self.compression is None else pa.BufferReader(b"".join(self.pieces()))


class Pieces(io.RawIOBase):
    """Pieces of bytes as a stream, less the first `skip` bytes."""

    def __init__(self, pieces: Iterable[bytes], skip: int = 0) -> None:
        super().__init__()
        self._pieces, self._left = iter(pieces), memoryview(b"")
        while skip and (size := self.readinto(bytearray(skip))):
            skip -= size

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase.readinto`."""
        if not self._left:
            self._left = memoryview(next(self._pieces, b""))
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size


def check_text(data: bytes) -> None:
    """Whether a file may be UTF-8 text, by its first bytes.

    Raises:
        ValueError: it is something else, which is named.
    """
    other = next((told for begin, told in OTHERS.items() if data.startswith(begin)), None)
    if other is not None:
        raise ValueError(f"it is {other}")
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), None)
    if encoding is not None:
        raise ValueError(f"it is {encoding}; expected UTF-8; {CONVERT.format(encoding)}")
    if b"\0" in data[:1000]:
        raise ValueError(f"it holds zero bytes, as UTF-16 does; expected UTF-8; {CONVERT.format('UTF-16LE')}")


def decoded(data: bytes) -> str:
    """The text of a file.

    Raises:
        ValueError: it is no UTF-8 (line and byte named).
    """
    check_text(data)
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise _no_text(data.count(b"\n", 0, error.start), data[error.start]) from None


def check_all_text(pieces: Iterable[bytes]) -> None:
    """Look through a file for what is no UTF-8.

    Raises:
        ValueError: line and byte named.
    """
    lines, decoder = 0, codecs.getincrementaldecoder("utf-8")()
    for piece in itertools.chain(pieces, [b""]):
        begin = decoder.getstate()[0]
        try:
            decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            whole = begin + piece
            raise _no_text(lines + whole.count(b"\n", 0, error.start), whole[error.start]) from None
        lines += piece.count(b"\n")


def _no_text(lines: int, byte: int) -> ValueError:
    return ValueError(
        f"line {lines + 1} holds the byte 0x{byte:02x}, which is no UTF-8; if it comes from Windows or "
        f"Excel, {CONVERT.format('WINDOWS-1252')}"
    )

"""Bytes of a file become text: unpacked, UTF-8, no byte-order mark; what is no such text is called by its name."""

from __future__ import annotations

import codecs
import lzma

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


def unpacked(stream: pa.NativeFile, compression: str | None) -> pa.NativeFile:
    """What a file holds, whole in memory where it is packed.

    Raises:
        ValueError: damaged or cut off.
    """
    if compression is None:
        return stream
    try:
        if compression == "xz":  # which Arrow does not know
            return pa.BufferReader(lzma.decompress(stream.read()))
        return pa.BufferReader(pa.CompressedInputStream(stream, COMPRESSIONS[compression]).read())
    except (lzma.LZMAError, OSError) as error:
        raise ValueError(f"it can't be unpacked as .{compression}: {error}") from None


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
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"line {line} holds the byte 0x{data[error.start]:02x}, which is no UTF-8; if it comes from Windows or "
            f"Excel, {CONVERT.format('WINDOWS-1252')}"
        ) from None

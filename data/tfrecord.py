"""Read and write TFRecord files without TensorFlow.

A record is framed as: u64 length, u32 masked CRC-32C of the length, the data, u32 masked CRC-32C of the data,
all little-endian (tensorflow/core/lib/io/record_writer.h). A file may be compressed as a whole, by gzip or
zlib. What the data of a record means, `tf_example.py` knows.

Whatever a file holds, reading it ends, raises nothing but `UserError`, and keeps one record in memory.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO, Literal, Protocol

import google_crc32c

from vidsim.common.errors import UserError
from vidsim.common.files import atomic_path
from vidsim.data.tf_example import Features, encode_example

MAX_RECORD_LENGTH = 64 * 2**20  # bytes
HEADER_LENGTH = 12  # bytes before the data: length and its CRC

_CHUNK = 2**18
# Features compress by less than 2, all-zero ones by 1000; text by 10. Beyond this a file is taken for a bomb.
_MAX_EXPANSION = 200
_EXPANSION_FREE = 16 * 2**20  # bytes that any compressed file may unpack to
_GZIP, _ZLIB = 31, 15  # zlib's `wbits`


@dataclass(frozen=True, slots=True)
class Record:
    """One record: its number in the file (0-based), the byte where its frame begins, and its data.

    In a compressed file `offset` counts the bytes after decompression.
    """

    index: int
    offset: int
    data: bytes

    @property
    def data_offset(self) -> int:
        """Byte where the data begins, after the header."""
        return self.offset + HEADER_LENGTH


class _SourceError(Exception):
    """Compressed data that cannot be unpacked, before it is known which record it stands in."""


class _Source(Protocol):
    """Bytes in order; `read` gives fewer than asked only at the end."""

    def read(self, size: int) -> bytes: ...

    def left(self) -> int | None: ...


def masked_crc(data: bytes) -> int:
    """CRC-32C of `data`, rotated and shifted as TFRecord stores it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_records(
    path: str | Path,
    *,
    check_crc: bool = True,
    max_length: int = MAX_RECORD_LENGTH,
    on_bad: Callable[[UserError], None] | None = None,
) -> Iterator[Record]:
    """Walk through the records of a file; gzip and zlib are recognised by their first bytes.

    Args:
        path: The file.
        check_crc: Compare both checksums of every record.
        max_length: Longest data accepted, bytes.
        on_bad: Called with the error of a record whose data is damaged while its frame is whole, so that the
            next record can be found; that record is left out. Without it such a record raises.

    Raises:
        UserError: No regular file, cannot be read, or damaged: names file, record number and byte. With
            `on_bad` it means that the framing is lost: no later record of the file can be found.
    """
    path = Path(path)
    try:
        # Looked at before opening: to open a pipe that nobody writes to would wait for ever.
        status = path.stat()
        if not S_ISREG(status.st_mode):
            raise UserError("is not a regular file", file=path)
        with open(path, "rb", buffering=_CHUNK) as file:
            source = _open_source(file, status.st_size)
            yield from _records(source, path, check_crc, max_length, on_bad)
    except FileNotFoundError:
        raise UserError("no such file", file=path) from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", file=path) from error


def _records(
    source: _Source,
    path: Path,
    check_crc: bool,
    max_length: int,
    on_bad: Callable[[UserError], None] | None,
) -> Iterator[Record]:
    index = offset = 0

    def damaged(message: str) -> UserError:
        return UserError(f"{message} (the record starts at byte {offset:,})", file=path, record=index)

    def read(size: int) -> bytes:
        try:
            return source.read(size)
        except _SourceError as error:
            raise damaged(str(error)) from None

    while header := read(HEADER_LENGTH):
        if len(header) < HEADER_LENGTH:
            raise damaged(f"the file ends inside the record's header, {len(header)} of 12 bytes are there")
        length, length_crc = struct.unpack("<QI", header)
        if check_crc and masked_crc(header[:8]) != length_crc:
            hint = "" if index else "; is this a TFRecord file?"
            raise damaged(f"the checksum of the length is wrong: this record and all after it cannot be found{hint}")
        if length > max_length:
            raise damaged(f"says it is {length:,} bytes long, the limit is {max_length:,}")
        left = source.left()
        if left is not None and length + 4 > left:
            raise damaged(f"the file is truncated: the record needs {length + 4:,} more bytes, {left:,} are left")
        data = read(length)
        footer = read(4)
        if len(data) < length or len(footer) < 4:
            raise damaged("the file ends inside the record")
        if check_crc and masked_crc(data) != int.from_bytes(footer, "little"):
            error = damaged("the checksum of the data is wrong")
            if on_bad is None:
                raise error
            on_bad(error)
        else:
            yield Record(index, offset, data)
        index += 1
        offset += HEADER_LENGTH + length + 4


def _open_source(file: BinaryIO, size: int) -> _Source:
    head = file.read(HEADER_LENGTH)
    file.seek(0)
    # The length of a first record can look like the mark of gzip or zlib; its checksum cannot by accident.
    if len(head) == HEADER_LENGTH and masked_crc(head[:8]) == int.from_bytes(head[8:], "little"):
        return _Plain(file, size)
    if head[:3] == b"\x1f\x8b\x08":
        return _Inflated(file, _GZIP)
    if head[:1] == b"\x78" and len(head) > 1 and int.from_bytes(head[:2], "big") % 31 == 0:
        return _Inflated(file, _ZLIB)
    return _Plain(file, size)


class _Plain:
    """An uncompressed file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        return data

    def left(self) -> int | None:
        return self._left


class _Inflated:
    """A gzip or zlib file, unpacked step by step; refuses truncation, trailing bytes and bombs."""

    def __init__(self, file: BinaryIO, wbits: int) -> None:
        self._file = file
        self._inflate = zlib.decompressobj(wbits)
        self._packed = b""
        self._unpacked, self._position = b"", 0
        self._num_in = self._num_out = 0

    def left(self) -> int | None:
        return None

    def read(self, size: int) -> bytes:
        pieces = []
        while size:
            if self._position == len(self._unpacked) and not self._step():
                break
            piece = self._unpacked[self._position : self._position + size]
            self._position += len(piece)
            size -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    def _step(self) -> bool:
        """Unpack some more; False at the end."""
        self._unpacked, self._position = b"", 0
        while not self._unpacked:
            if self._inflate.eof:
                if self._inflate.unused_data or self._file.read(1):
                    raise _SourceError("there are bytes after the end of the compressed data")
                return False
            packed = self._packed or self._file.read(_CHUNK)
            self._num_in += 0 if self._packed else len(packed)
            try:
                self._unpacked = self._inflate.decompress(packed, _CHUNK)
            except zlib.error as error:
                raise _SourceError(f"the compressed data is damaged ({error})") from None
            self._packed = self._inflate.unconsumed_tail
            if not packed and not self._unpacked and not self._inflate.eof:
                raise _SourceError("the compressed data is truncated")
            self._num_out += len(self._unpacked)
            if self._num_out > _EXPANSION_FREE + _MAX_EXPANSION * self._num_in:
                raise _SourceError(f"the compressed data unpacks to more than {_MAX_EXPANSION} times its size")
        return True


def write_tfrecords(
    path: str | Path, examples: Iterable[Features], *, compression: Literal["gzip", "zlib"] | None = None
) -> int:
    """Write a file, whole or not at all; the same examples give the same bytes.

    Args:
        path: The file.
        examples: Feature name -> list of bytes, of int or of float, one mapping a record.
        compression: How to compress the file as a whole.

    Returns:
        Number of records.

    Raises:
        UserError: A value of another type, an integer beyond 64 bits, a full disk.
    """
    return write_frames(path, (frame_record(encode_example(example)) for example in examples), compression=compression)


def write_frames(
    path: str | Path, frames: Iterable[bytes], *, compression: Literal["gzip", "zlib"] | None = None
) -> int:
    """Write framed records (`frame_record`) as a file, whole or not at all; returns their number."""
    count = 0
    with atomic_path(path) as temporary, open(temporary, "wb", buffering=_CHUNK) as file:
        deflate = zlib.compressobj(wbits=_GZIP if compression == "gzip" else _ZLIB) if compression else None
        for frame in frames:
            file.write(deflate.compress(frame) if deflate else frame)
            count += 1
        if deflate:
            file.write(deflate.flush())
    return count


def frame_record(data: bytes) -> bytes:
    """A record's data with its length and checksums around it."""
    length = struct.pack("<Q", len(data))
    footer = struct.pack("<I", masked_crc(data))
    return b"".join((length, struct.pack("<I", masked_crc(length)), data, footer))

from __future__ import annotations

import gzip
import os
import random
import struct
import zlib
from pathlib import Path

import pytest

from vidsim.common.errors import UserError
from vidsim.data.tf_example import parse_example
from vidsim.data.tfrecord import (
    frame_record,
    masked_crc,
    read_records,
    write_frames,
    write_tfrecords,
)


def read_all(path: Path) -> list[bytes]:
    return [record.data for record in read_records(path)]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_masked_crc_of_known_vectors() -> None:
    # RFC 3720 B.4 gives the CRC-32C of 32 zero bytes as 8a9136aa. Rotated right by 15 bits that is 6d551522;
    # plus a282ead8, modulo 2**32: 0fd7fffa.
    assert masked_crc(bytes(32)) == 0x0FD7FFFA
    # The check value e3069283 of "123456789": rotated 2507c60d, plus a282ead8: c78ab0e5.
    assert masked_crc(b"123456789") == 0xC78AB0E5


def test_frame_by_hand() -> None:
    frame = frame_record(bytes(32))
    assert frame[:8] == (32).to_bytes(8, "little")
    assert frame[8:12] == masked_crc(frame[:8]).to_bytes(4, "little")
    assert frame[12:44] == bytes(32)
    assert frame[44:] == bytes.fromhex("faffd70f")


def test_records_know_their_place(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecords"
    assert write_frames(path, [frame_record(b"abc"), frame_record(b""), frame_record(b"\x00")]) == 3
    records = list(read_records(path))
    assert [(r.index, r.offset, r.data) for r in records] == [(0, 0, b"abc"), (1, 19, b""), (2, 35, b"\x00")]
    assert records[1].data_offset == 31


@pytest.mark.parametrize("compression", [None, "gzip", "zlib"])
def test_round_trip(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "a.tfrecords"
    examples = [{"id": [str(i).encode()], "n": list(range(i)), "f": [b"\x01\x00" * 700] * i} for i in range(40)]
    assert write_tfrecords(path, examples, compression=compression) == 40  # type: ignore[arg-type]
    assert [parse_example(record.data) for record in read_records(path)] == examples
    if compression == "gzip":
        assert gzip.decompress(path.read_bytes())[:8] == struct.pack("<Q", len(next(read_records(path)).data))
    first = path.read_bytes()
    write_tfrecords(path, examples, compression=compression)  # type: ignore[arg-type]
    assert path.read_bytes() == first


def test_records_larger_than_any_buffer(tmp_path: Path) -> None:
    big = random.Random(0).randbytes(700_000)
    for compression in (None, "gzip"):
        path = tmp_path / "big"
        write_frames(
            path,
            [frame_record(big), frame_record(b"x"), frame_record(bytes(900_000))],
            compression=compression,
        )
        assert read_all(path) == [big, b"x", bytes(900_000)]


def test_a_length_that_looks_like_gzip_or_zlib_is_read_as_a_plain_file(tmp_path: Path) -> None:
    for length in (0x088B1F, 0x9C78):  # 1f 8b 08 and 78 9c in little-endian order
        path = write(tmp_path / "plain", frame_record(bytes(length)))
        assert read_all(path) == [bytes(length)]


def test_an_empty_file_holds_no_records(tmp_path: Path) -> None:
    assert read_all(write(tmp_path / "empty", b"")) == []


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    content = frame_record(b"first record") + frame_record(b"") + frame_record(b"the last")
    path = tmp_path / "flipped"
    for bit in range(len(content) * 8):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(UserError):
            read_all(path)


def test_every_truncation_is_found(tmp_path: Path) -> None:
    first, second = frame_record(b"first record"), frame_record(b"the last")
    path = tmp_path / "short"
    for size in range(len(first + second)):
        path.write_bytes((first + second)[:size])
        if size in (0, len(first)):
            assert len(read_all(path)) == (size > 0)
            continue
        with pytest.raises(UserError) as caught:
            read_all(path)
        assert caught.value.record == (0 if size < len(first) else 1)
        assert caught.value.file == str(path)


def test_damaged_data_can_be_left_out_while_the_frame_is_whole(tmp_path: Path) -> None:
    frames = [bytearray(frame_record(text)) for text in (b"one", b"two", b"three")]
    frames[1][12] ^= 1
    path = write(tmp_path / "bad", b"".join(frames))
    with pytest.raises(UserError, match=r"record 1: the checksum of the data is wrong .*byte 19"):
        read_all(path)
    errors: list[UserError] = []
    assert [record.index for record in read_records(path, on_bad=errors.append)] == [0, 2]
    assert [error.record for error in errors] == [1]
    assert [record.data for record in read_records(path, check_crc=False)] == [b"one", b"uwo", b"three"]


def test_a_damaged_length_loses_the_rest(tmp_path: Path) -> None:
    frames = [bytearray(frame_record(text)) for text in (b"one", b"two", b"three")]
    frames[1][8] ^= 1
    path = write(tmp_path / "bad", b"".join(frames))
    errors: list[UserError] = []
    records = read_records(path, on_bad=errors.append)
    assert next(records).data == b"one"
    with pytest.raises(UserError, match="record 1: the checksum of the length is wrong"):
        next(records)
    assert errors == []
    assert len(list(read_records(path, check_crc=False))) == 3


def test_length_is_capped_by_the_limit_and_by_the_file(tmp_path: Path) -> None:
    length = struct.pack("<Q", 2**40)
    path = write(tmp_path / "huge", length + struct.pack("<I", masked_crc(length)) + bytes(100))
    with pytest.raises(UserError, match=r"1,099,511,627,776 bytes long, the limit is 67,108,864"):
        read_all(path)
    with pytest.raises(UserError, match=r"needs 1,099,511,627,780 more bytes, 100 are left"):
        list(read_records(path, max_length=2**50))
    with pytest.raises(UserError, match="the limit is 2"):
        list(read_records(write(path, frame_record(b"abc")), max_length=2))


def test_compressed_files_that_end_early_or_late(tmp_path: Path) -> None:
    content = b"".join(frame_record(random.Random(seed).randbytes(50)) for seed in range(3))
    for packed in (gzip.compress(content), zlib.compress(content)):
        path = tmp_path / "packed"
        for size in range(12, len(packed)):
            path.write_bytes(packed[:size])
            with pytest.raises(UserError, match="truncated"):
                read_all(path)
        path.write_bytes(packed + b"x")
        with pytest.raises(UserError, match="record 3: there are bytes after the end of the compressed data"):
            read_all(path)
        damaged = bytearray(packed)
        damaged[-2] ^= 4  # in the size that gzip ends with, in the checksum that zlib ends with
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            read_all(path)


def test_decompression_bomb_is_refused(tmp_path: Path) -> None:
    frame = frame_record(bytes(60 * 2**20))
    path = write(tmp_path / "bomb", gzip.compress(frame))
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match="more than 200 times its size"):
        read_all(path)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a regular file"):
        read_all(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        read_all(tmp_path / "missing")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="not a regular file"):
        read_all(pipe)


def test_writer_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecords"
    with pytest.raises(UserError, match="field 'n'"):
        write_tfrecords(path, [{"n": [1]}, {"n": [2**70]}])
    assert list(tmp_path.iterdir()) == []

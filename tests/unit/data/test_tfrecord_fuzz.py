from __future__ import annotations

import gzip
import random
import resource
import time
import zlib
from pathlib import Path

import pytest

from vidsim.common.errors import UserError
from vidsim.data.tf_example import encode_example, parse_example
from vidsim.data.tfrecord import frame_record, masked_crc, read_records


def corpus() -> list[bytes]:
    rng = random.Random(1)
    frames = []
    for index in range(6):
        features = {
            "id": [str(index).encode()],
            "title": ["标题".encode() * index],
            "tag_id": [rng.randrange(-5, 10**6) for _ in range(index)],
            "score": [0.5, -1.0],
            "frame_feature": [rng.randbytes(64) for _ in range(index % 4)],
        }
        frames.append(frame_record(encode_example(features)))
    plain = b"".join(frames)
    return [plain, gzip.compress(plain, mtime=0), zlib.compress(plain)]


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One or two changes."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 2)):
        at = rng.randrange(len(data) or 1)
        match rng.randrange(8):
            case 0:
                data = data[:at]
            case 1:
                data[at : at + 1] = bytes([data[at] ^ 1 << rng.randrange(8)]) if data else b""
            case 2:
                data[at:at] = rng.randbytes(rng.randint(1, 20))
            case 3:
                del data[at : at + rng.randint(1, 40)]
            case 4:
                data[at : at + 8] = bytes([255]) * 8
            case 5:
                data[at : at + 8] = rng.choice([0, 1, 2**31, 2**40, 2**63]).to_bytes(8, "little")
            case 6:
                data += data[at : at + rng.randint(1, 400)]
            case _:
                data[at : at + 10] = bytes([128 | rng.randrange(128)]) * 10
    return bytes(data)


def mend_checksums(content: bytes) -> bytes:
    """Give every frame that can be walked to right checksums."""
    out, position = [], 0
    while position + 16 <= len(content):
        length = int.from_bytes(content[position : position + 8], "little")
        data = content[position + 12 : position + 12 + length]
        if len(data) < length:
            break
        out.append(frame_record(data))
        position += 16 + length
    return b"".join(out) + content[position:]


def read(path: Path, check_crc: bool) -> UserError | None:
    """Read a whole file; any error but a UserError comes through and fails the test."""
    try:
        for record in read_records(path, check_crc=check_crc):
            parse_example(record.data, file=path, record=record.index, offset=record.data_offset)
    except UserError as error:
        return error
    return None


def exercise(folder: Path, num_mutants: int, seed: int) -> tuple[int, int]:
    """Read mutants; returns how many were read and how many refused."""
    rng = random.Random(seed)
    sources = corpus()
    refused = 0
    path = folder / "mutant"
    for _ in range(num_mutants):
        content = mutate(rng.choice(sources), rng)
        path.write_bytes(mend_checksums(content) if rng.random() < 0.5 else content)
        start = time.process_time()
        error = read(path, check_crc=rng.random() < 0.7)
        assert time.process_time() - start < 5
        if error:
            refused += 1
            assert error.file == str(path)
            assert error.record is not None
    return num_mutants - refused, refused


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    good, bad = exercise(tmp_path, 300, seed=0)
    assert good >= 10
    assert bad >= 200


def test_mended_checksums_are_right() -> None:
    plain = corpus()[0]
    assert mend_checksums(plain) == plain
    broken = bytearray(plain)
    broken[13] ^= 1
    mended = mend_checksums(bytes(broken))
    length = int.from_bytes(mended[:8], "little")
    assert int.from_bytes(mended[12 + length : 16 + length], "little") == masked_crc(mended[12 : 12 + length])


@pytest.mark.slow
def test_ten_thousand_mutants_within_time_and_memory(tmp_path: Path) -> None:
    exercise(tmp_path, 200, seed=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    good, bad = exercise(tmp_path, 10_000, seed=2)
    assert time.process_time() - start < 120
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024  # KiB
    assert good >= 200
    assert bad >= 6_000

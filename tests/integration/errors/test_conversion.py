"""Competition files and tables that are wrong: each fault is named with file, record and field."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidsim.data.tf_example import encode_example, parse_example
from vidsim.data.tfrecord import frame_record, read_records, write_frames

POINTWISE, LABELS, TAGS = "pointwise/pretrain_0.tfrecords", "pairwise/label.tsv", "tag_list.txt"
CONVERT = ("convert", "aiac", "src", "--out", "out", "--frame_dim", "8", "--num_processes", "1")
LEAVE_OUT = "Fix: mend it or copy the file again, or leave what is bad out with --on_error quarantine"


def edit(path: Path, record: int, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the features of a record."""
    rows = [dict(parse_example(each.data, file=path, record=each.index)) for each in read_records(path)]
    change(rows[record])
    write_frames(path, [frame_record(encode_example(row)) for row in rows])


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def set_line(path: Path, number: int, line: str) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[: number - 1], line, *lines[number:]]) + "\n")


def set_score(path: Path, number: int, score: str) -> None:
    set_line(path, number, path.read_text().splitlines()[number - 1].rpartition("\t")[0] + f"\t{score}")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


NAN_FRAME = [np.full(8, np.nan, np.float16).tobytes()]
RECORDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, "record 29: the file is truncated: the record needs "),
    "bit_flipped_in_data": (lambda path: flip(path, 100), "record 0: the checksum of the data is wrong "),
    "bit_flipped_in_length": (lambda path: flip(path, 1), "record 0: the checksum of the length is wrong: "),
    "no_tfrecord": (lambda path: path.write_text("<html>" * 9), "record 0: the checksum of the length is wrong: "),
    "narrow_frame": (
        lambda path: edit(path, 2, lambda row: row.update(frame_feature=[b"1234567"])),
        "record 2, field 'frame_feature': frame 0 has 7 bytes, 8 float16 take 16. Fix: check --frame_dim",
    ),
    "nan": (
        lambda path: edit(path, 2, lambda row: row.update(frame_feature=NAN_FRAME)),
        f"record 2, field 'frame_feature': vector 0, component 0 is not finite. {LEAVE_OUT}",
    ),
    "title_not_utf8": (
        lambda path: edit(path, 2, lambda row: row.update(title=[b"ab\xff"])),
        f"record 2, field 'title': is not UTF-8 (byte 2 of 3). {LEAVE_OUT}",
    ),
    "no_title": (
        lambda path: edit(path, 2, lambda row: row.pop("title")),
        f"record 2, field 'title': the feature is missing. {LEAVE_OUT}",
    ),
    "text_as_id_number": (
        lambda path: edit(path, 2, lambda row: row.update(id=[12])),
        f"record 2, field 'id': must be bytes, is int64. {LEAVE_OUT}",
    ),
}


@pytest.mark.parametrize("fault", RECORDS)
def test_a_bad_record_is_named(place: Any, fault: str) -> None:
    break_it, message = RECORDS[fault]
    break_it(place / f"src/{POINTWISE}")
    error = place.fails(*CONVERT, makes=("out",))
    assert error.startswith(f"src/{POINTWISE}, {message}")
    assert ". Fix: " in error
    assert place.files() >= {"out/tags.txt"}  # whole; nothing of the part is there
    assert not (place / "out/pointwise/data-00000.arrow").exists()


def test_a_duplicate_id_names_both_records(place: Any) -> None:
    edit(place / f"src/{POINTWISE}", 3, lambda row: row.update(id=[b"77"]))
    edit(place / "src/pointwise/pretrain_1.tfrecords", 5, lambda row: row.update(id=[b"77"]))
    error = place.fails(*CONVERT, makes=("out",))
    start = (
        f"src/pointwise/pretrain_1.tfrecords, record 5, field 'id': the id 77 stands already in record 3 of {POINTWISE}"
    )
    assert error.startswith(start)
    assert not (place / "out/pointwise/manifest.json").exists()


def test_an_empty_file_is_named(place: Any) -> None:
    (place / f"src/{POINTWISE}").write_bytes(b"")
    assert place.fails(*CONVERT, makes=("out",)) == f"src/{POINTWISE}: holds no records. Fix: copy the file again"


LINES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "pair_without_video": (
        LABELS,
        lambda path: set_line(path, 4, "12\t13\t0.5"),
        f", line 4, field 'id1': the video 12 is not among the pairwise videos. {LEAVE_OUT}",
    ),
    "score_too_high": (
        LABELS,
        lambda path: set_score(path, 4, "7"),
        f", line 4, field 'score': is 7, must be from 0 to 1. {LEAVE_OUT}",
    ),
    "score_nan": (
        LABELS,
        lambda path: set_score(path, 4, "nan"),
        f", line 4, field 'score': is nan, must be from 0 to 1. {LEAVE_OUT}",
    ),
    "two_fields": (
        LABELS,
        lambda path: set_line(path, 4, "12\t13"),
        f", line 4: 2 fields, 3 expected: query, candidate, score, with tabs between. {LEAVE_OUT}",
    ),
    "no_labels": (LABELS, lambda path: path.write_bytes(b""), ": is empty. Fix: copy the file again"),
    "junk_tag": (
        TAGS,
        lambda path: set_line(path, 7, "sport"),
        ", line 7, field 'tag': 'sport' is no tag id, which is a whole number. Fix: remove or mend the line",
    ),
    "duplicate_tag": (
        TAGS,
        lambda path: set_line(path, 7, path.read_text().splitlines()[0]),
        ", line 7, field 'tag': the tag ",
    ),
    "no_tags": (TAGS, lambda path: path.write_bytes(b""), ": is empty. Fix: copy the file again"),
    "binary_tags": (
        TAGS,
        lambda path: path.write_bytes(b"\xff\x00"),
        f", line 1: is not UTF-8 text (byte 0). {LEAVE_OUT}",
    ),
}


@pytest.mark.parametrize("fault", LINES)
def test_a_bad_line_is_named(place: Any, fault: str) -> None:
    file, break_it, message = LINES[fault]
    break_it(place / f"src/{file}")
    error = place.fails(*CONVERT, makes=("out",))
    assert error.startswith(f"src/{file}{message}")
    assert not (place / f"out/{'tags.txt' if file == TAGS else 'pairs.tsv'}").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("convert aiac nowhere --out out", "nowhere: no such folder"),
        ("convert aiac empty --out out", "empty: holds none of the competition's TFRecord files. Fix: name the folder"),
        (
            "convert aiac src --out a_file --frame_dim 8 --num_processes 1",
            "a_file/failures.jsonl: cannot be written (File exists). Fix: choose another --out",
        ),
        ("convert aiac src --out out --frame_dim 0", "--frame_dim: is 0, must be at least 1"),
        ("convert aaic src --out out", "there is no converter 'aaic'. Fix: use aiac or table"),
        ("generate --out src", "src: is there already and not empty. Fix: choose another --out"),
        ("generate --out out --num_videos 0", "--num_videos: is 0, must be at least 1"),
        ("generate --out out --num_videos 9999999999", "out: needs "),
        (
            "convert table nowhere.jsonl --out out",
            "nowhere.jsonl: no such file. Fix: name a JSONL, CSV, TSV or Parquet",
        ),
        ("convert table a_file --out out", "a_file: the suffix '' is not known. Fix: say --format"),
        ("convert table rows.jsonl --out data", "data: is there already and not empty. Fix: choose another --out"),
    ],
)
def test_what_is_not_there_or_in_the_way_is_named(place: Any, words: str, message: str) -> None:
    assert place.fails(*words.split()).startswith(message)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.jsonl", '{"id": "a"}\n{"id":\n', ", line 2: is not valid JSON ("),
        (
            "rows.jsonl",
            '{"id": "a"}\n{"id": "a"}\n',
            ", line 2, field 'id': the id 'a' stands already in line 1. Fix: give",
        ),
        ("rows.jsonl", '{"title": "x"}\n', ", line 1, field 'id': is missing. Fix: give every row an id"),
        ("rows.jsonl", "", ": holds no rows. Fix: write one video on each row"),
        ("rows.csv", "id,title\na,x\nb\n", ", line 3: 1 fields, the header has 2. Fix: check separators and quotes"),
        ("rows.csv", "id,id\na,x\n", ", line 1: the column 'id' stands twice"),
    ],
)
def test_a_bad_row_of_a_table_is_named(place: Any, name: str, text: str, message: str) -> None:
    (place / name).write_text(text)
    assert place.fails("convert", "table", name, "--out", "out").startswith(f"{name}{message}")


def test_no_room_while_converting_leaves_whole_files_only(place: Any, file_limit: Any) -> None:
    with file_limit(10_000):
        error = place.fails(*CONVERT, makes=("out",))
    assert error.startswith("out/pointwise/data-00000.arrow: grew beyond the limit on the size of a file. Fix: raise")
    assert {name for name in place.files() if name.startswith("out/")} == {"out/tags.txt"}


def test_a_full_disk_while_converting_is_named(place: Any) -> None:
    (place / "disk").mkdir()
    (place / "rows.jsonl").write_text("".join(f'{{"id": "{row}", "title": "{"x" * 100}"}}\n' for row in range(2000)))
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here, so no disk of its own; the file size limit is tested instead")
    convert = f'"{sys.executable}" -m vidsim.launch.cli convert table rows.jsonl --out disk/out; code=$?'
    shell = f"mount -t tmpfs -o size=64k none disk && {convert}; find disk -type f >&2; exit $code"
    result = subprocess.run([*command, shell], cwd=place.folder, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    place_and_fault = r"disk/out/data-00000\.arrow: no space left on the disk while writing \([\d,]+ bytes free\)"
    assert re.fullmatch(rf"error: {place_and_fault}\. Fix: free .+\n", result.stderr)


def test_a_conversion_goes_on_once_the_fault_is_mended(place: Any) -> None:
    shutil.copytree(place / "src", place / "again")
    flip(place / "src/pairwise/pairwise.tfrecords", 100)
    place.fails(*CONVERT, makes=("out",))
    shutil.copy(place / "again/pairwise/pairwise.tfrecords", place / "src/pairwise")
    code, said, _ = place.run(*CONVERT)
    assert code == 0
    assert "pointwise: 60 videos in 2 shards (2 finished earlier and kept)" in said

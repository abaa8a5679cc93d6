from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidsim.common.errors import UserError
from vidsim.data.convert.rows import read_rows

ROWS = [{"id": "a", "title": 'ein "Zitat", Komma'}, {"id": "b", "title": "猫"}]


def _jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")


def _csv(path: Path) -> None:
    path.write_text('id,title\na,"ein ""Zitat"", Komma"\nb,猫\n', encoding="utf-8-sig")


def _tsv(path: Path) -> None:
    path.write_text('id\ttitle\na\tein "Zitat", Komma\nb\t猫\n', encoding="utf-8")


def _parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path)


@pytest.mark.parametrize(
    ("suffix", "write", "numbers"),
    [("jsonl", _jsonl, [1, 2]), ("csv", _csv, [2, 3]), ("tsv", _tsv, [2, 3]), ("parquet", _parquet, [0, 1])],
)
def test_reads_every_format(suffix: str, write: Callable[[Path], None], numbers: list[int], tmp_path: Path) -> None:
    path = tmp_path / f"videos.{suffix}"
    write(path)
    assert list(read_rows(path)) == list(zip(numbers, ROWS, strict=True))
    other = path.rename(tmp_path / "videos.data")
    assert list(read_rows(other, suffix)) == list(zip(numbers, ROWS, strict=True))


def test_a_quoted_line_break_keeps_its_row_together(tmp_path: Path) -> None:
    path = tmp_path / "videos.csv"
    path.write_text('id,title\na,"two\nlines"\nb,c\n')
    assert list(read_rows(path)) == [(3, {"id": "a", "title": "two\nlines"}), (4, {"id": "b", "title": "c"})]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "a"', "is not valid JSON"),
        (b'{"id": NaN}', "NaN is not JSON"),
        (b'{"id": 1, "id": 2}', "a key stands twice"),
        (b'["a"]', "must be a JSON object, is list"),
        ('{"id": "Äpfel"}'.encode("latin-1"), "is not valid JSON.*can't decode"),
        (b"[" * 100_000, "is not valid JSON"),
    ],
)
def test_a_bad_json_line_is_named_and_passed_over(line: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "videos.jsonl"
    path.write_bytes(b'{"id": "x"}\n' + line + b'\n\n{"id": "y"}\n')
    first, (number, error), last = read_rows(path)
    assert (first, last) == ((1, {"id": "x"}), (4, {"id": "y"}))
    assert number == 2
    assert isinstance(error, UserError)
    with pytest.raises(UserError, match=rf"videos\.jsonl, line 2: .*{message}"):
        raise error


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        ("csv", "id,title\na\nb,c\n", "line 2: 1 fields, the header has 2"),
        ("tsv", "id\ttitle\na\tb\tc\nb\tc\n", "line 2: 3 fields, the header has 2"),
        ("csv", 'id,title\n"a"x,y\nb,c\n', "line 2: is malformed"),
    ],
)
def test_a_bad_line_is_named_and_passed_over(suffix: str, content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / f"videos.{suffix}"
    path.write_text(content)
    (_, error), last = read_rows(path)
    assert last[1] == {"id": "b", "title": "c"}
    assert message in str(error)


def test_bytes_that_are_not_utf8_stay_visible(tmp_path: Path) -> None:
    path = tmp_path / "videos.csv"
    path.write_bytes(b"id,title\na,\xff\n")
    assert list(read_rows(path)) == [(2, {"id": "a", "title": "\udcff"})]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "id,title,id\n", "the column 'id' stands twice"),
        ("a.parquet", "PAR1 no", "cannot be read as Parquet"),
        ("a.xlsx", "x", r"suffix '\.xlsx' is not known.*--format"),
    ],
)
def test_a_file_that_is_no_table_is_named(name: str, content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        list(read_rows(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.csv: no such file"):
        read_rows(tmp_path / "none.csv")


def test_a_long_field_is_read(tmp_path: Path) -> None:
    row: dict[str, Any] = {"id": "a", "asr": "x" * 300_000}
    path = tmp_path / "a.csv"
    path.write_text(f"id,asr\na,{row['asr']}\n")
    assert list(read_rows(path)) == [(2, row)]


def test_an_open_quote_stops_where_it_would_swallow_good_rows(tmp_path: Path) -> None:
    path = tmp_path / "videos.csv"
    path.write_text('id,title\na,b\nc,"open\n' + "".join(f"v{number},x\n" for number in range(1000)))
    found = read_rows(path)
    assert next(found) == (2, {"id": "a", "title": "b"})
    with pytest.raises(UserError, match=r"videos\.csv, line 3: is malformed .* to line 1003\. Fix: close the quote"):
        next(found)
    path.write_text('id,title\na,b\nc,"open\n')  # nothing follows that could be lost
    number, error = list(read_rows(path))[1]
    assert (number, "line 3: is malformed" in str(error)) == (3, True)

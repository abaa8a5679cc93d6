from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from vidsim.common.errors import UserError
from vidsim.data.convert.aiac_labels import read_labels, read_tag_list

IDS = pa.chunked_array([["1", "2"], ["3"]], pa.string())


def raise_it(error: UserError) -> None:
    raise error


def test_good_labels(tmp_path: Path) -> None:
    path = tmp_path / "label.tsv"
    path.write_bytes(b"1\t2\t0.05\r\n3\t1\t1\n2\t2\t0")
    pairs = read_labels(path, IDS, raise_it)
    assert (pairs.id1, pairs.id2, pairs.score.tolist()) == (["1", "3", "2"], ["2", "1", "2"], [0.05, 1.0, 0.0])


@pytest.mark.parametrize(
    ("line", "field", "message"),
    [
        (b"1\t2", None, "2 fields, 3 expected"),
        (b"1\t2\t0.5\t", None, "4 fields, 3 expected"),
        (b"", None, "1 fields, 3 expected"),
        (b"\t2\t0.5", "id1", "is empty"),
        (b"1\t 2\t0.5", "id2", "is no id"),
        (b"1\t2\tscore", "score", "'score' is no number"),
        (b"1\t2\tnan", "score", "is nan, must be from 0 to 1"),
        (b"1\t2\t-0.05", "score", "is -0.05"),
        (b"1\t2\t1.05", "score", "is 1.05"),
        (b"1\t4\t0.5", "id2", "the video 4 is not among the pairwise videos"),
        (b"4\t1\t0.5", "id1", "the video 4 is not among the pairwise videos"),
        (b"1\t\xff\t0.5", None, "is not UTF-8 text"),
    ],
)
def test_bad_labels(tmp_path: Path, line: bytes, field: str | None, message: str) -> None:
    path = tmp_path / "label.tsv"
    path.write_bytes(b"1\t2\t0.5\n" + line + b"\n3\t2\t0.5\n")
    with pytest.raises(UserError) as caught:
        read_labels(path, IDS, raise_it)
    assert (caught.value.file, caught.value.record, caught.value.field) == (str(path), 2, field)
    assert message in caught.value.message
    errors: list[UserError] = []
    pairs = read_labels(path, IDS, errors.append)
    assert pairs.id1 == ["1", "3"]
    assert [error.record for error in errors] == [2]


def test_tag_list(tmp_path: Path) -> None:
    path = tmp_path / "tag_list.txt"
    path.write_text("12\tsport\t99\n7\n\nx\n07\n7\n-3\n٣\n")
    errors: list[UserError] = []
    assert read_tag_list(path, errors.append).tags == ("12", "7", "-3")
    assert [(error.record, error.message) for error in errors] == [
        (3, "is blank"),
        (4, "'x' is no tag id, which is a whole number"),
        (5, "'07' is no tag id, which is a whole number"),
        (6, "the tag 7 stands already in line 2"),
        (8, "'٣' is no tag id, which is a whole number"),
    ]
    with pytest.raises(UserError, match="line 3, field 'tag': is blank"):
        read_tag_list(path, raise_it)


def test_empty_files(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    with pytest.raises(UserError, match="is empty"):
        read_labels(path, IDS, raise_it)
    with pytest.raises(UserError, match="is empty"):
        read_tag_list(path, raise_it)
    errors: list[UserError] = []
    assert len(read_labels(path, IDS, errors.append)) == 0
    assert read_tag_list(path, errors.append).size == 0
    assert [error.record for error in errors] == [None, None]

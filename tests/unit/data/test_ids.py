from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vidsim.common.errors import UserError
from vidsim.data.ids import read_ids
from vidsim.data.manifest import StreamInfo
from vidsim.data.shards import ShardWriter, write_manifest


def test_text_file(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes(b"\xef\xbb\xbf12\r\nb c\r\nd")
    assert read_ids(path) == ["12", "b c", "d"]


@pytest.mark.parametrize("end", ["", "\n", "\n\n \n"])
def test_blank_lines_may_stand_at_the_end(tmp_path: Path, end: str) -> None:
    path = tmp_path / "ids.txt"
    path.write_text(f"b\na{end}", encoding="utf-8")
    assert read_ids(path) == ["b", "a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no ids"),
        ("\n \n", "holds no ids"),
        ("a\n\nb\n", r"ids\.txt, .*2: '' is not one id.*Fix: one id on each line"),
        ("a\n\x0b\nb\n", "2: .* is not one id"),
        ("a\nb\t1\n", "2: 'b"),
        ("a\n b\n", "2: ' b' is not one id"),
        ("a\nb\na\n", "1 ids occur more than once: a"),
    ],
)
def test_faults_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "ids.txt"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_ids(path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_ids(tmp_path / "ids.txt")
    (tmp_path / "other.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"other\.txt: is not UTF-8"):
        read_ids(tmp_path / "other.txt")
    with pytest.raises(UserError, match="holds no data set"):
        read_ids(tmp_path)


def write_data_set(folder: Path, ids: list[str]) -> None:
    with ShardWriter(folder / "data-00000.arrow", {"frames": 2}) as writer:
        for video in ids:
            row = {"id": video, "title": "", "asr": "", "tags": [], "category": None}
            writer.write({**row, "frames": np.zeros((0, 2), np.float16)})
    write_manifest(folder, [writer.info], {"frames": StreamInfo(dim=2, extractor=None)}, has_tags=False)


def test_data_set_folders(tmp_path: Path) -> None:
    write_data_set(tmp_path / "test_b", ["3", "1"])
    write_data_set(tmp_path / "test_a", ["2"])
    assert read_ids(tmp_path / "test_b") == ["3", "1"]
    assert read_ids(tmp_path) == ["2", "3", "1"]
    write_data_set(tmp_path / "test_c", ["1"])
    with pytest.raises(UserError, match="1 ids occur more than once: 1"):
        read_ids(tmp_path)

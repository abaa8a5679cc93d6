from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidsim.common.errors import UserError
from vidsim.data.arrow import open_videos
from vidsim.data.manifest import StreamInfo
from vidsim.data.shards import ShardWriter, summarise_histogram, write_manifest


def test_info_describes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "data-00000.arrow"
    with ShardWriter(path, {"frames": 2}, source="s.tfrecords", source_sha256="0" * 64) as writer:
        writer.write({"id": "a", "frames": b"\x00" * 8, "num_frames": 2})
        writer.write({"id": "b", "title": "xy"})
        assert not path.exists()  # whole or not at all
    assert writer.info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert writer.info.num_bytes == path.stat().st_size
    assert (writer.info.file, writer.info.num_rows, writer.num_rows) == ("data-00000.arrow", 2, 2)
    assert writer.stats == {"title": {0: 1, 2: 1}, "asr": {0: 2}, "tags": {0: 2}, "frames": {2: 1, 0: 1}}
    assert pickle.loads(pickle.dumps(writer.info)).stats == writer.stats  # comes back from a worker
    assert [file.name for file in path.parent.iterdir()] == ["data-00000.arrow"]


def test_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.arrow", "b.arrow"):
        with ShardWriter(tmp_path / name, {"frames": 2}) as writer:
            writer.write({"id": "a", "tags": ["x"], "frames": np.ones((3, 2), np.float16)})
    assert (tmp_path / "a.arrow").read_bytes() == (tmp_path / "b.arrow").read_bytes()


def test_bytes_and_array_are_the_same_row(tmp_path: Path) -> None:
    frames = np.arange(6, dtype=np.float16).reshape(3, 2)
    with ShardWriter(tmp_path / "data-00000.arrow", {"frames": 2}) as writer:
        writer.write({"id": "a", "frames": frames})
        writer.write({"id": "b", "frames": frames.tobytes(), "num_frames": 3})
        writer.write({"id": "c", "frames": memoryview(frames.tobytes()), "num_frames": np.int64(3)})
        writer.write({"id": "d", "frames": np.asfortranarray(frames)})  # another memory order, the same numbers
        frames[:] = 7  # the caller's buffer is free again after `write`
    write_manifest(tmp_path, [writer.info], {"frames": StreamInfo(dim=2)}, has_tags=False)
    for row in open_videos(tmp_path):
        assert row["frames"].tolist() == [[0, 1], [2, 3], [4, 5]]


def test_batches_are_bounded(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "data-00000.arrow", {"frames": 2}) as writer:
        for number in range(1201):
            writer.write({"id": str(number)})
    write_manifest(tmp_path, [writer.info], {"frames": StreamInfo(dim=2)}, has_tags=False)
    chunks = open_videos(tmp_path).ids().chunks
    assert [len(chunk) for chunk in chunks] == [500, 500, 201]


def test_text_counts_towards_the_bytes_of_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidsim.data.shards._BATCH_BYTES", 1000)
    with ShardWriter(tmp_path / "data-00000.arrow", {"frames": 2}) as writer:
        for number in range(6):
            writer.write({"id": str(number), "title": "x" * 300, "asr": "y" * 300})
    write_manifest(tmp_path, [writer.info], {"frames": StreamInfo(dim=2)}, has_tags=False)
    assert [len(chunk) for chunk in open_videos(tmp_path).ids().chunks] == [2, 2, 2]


class _StopError(Exception):
    pass


def test_nothing_is_left_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "data-00000.arrow"
    path.write_bytes(b"old")

    def write() -> None:
        with ShardWriter(path, {"frames": 2}) as writer:
            for number in range(600):
                writer.write({"id": str(number)})
            raise _StopError

    with pytest.raises(_StopError):
        write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


NAN = np.array([[0, 0], [0, np.nan]], np.float16)
INF = np.array([[-np.inf, 0]], np.float16)
SURROGATE = "ab\ud800"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "field 'id': must be text, is NoneType"),
        ({"id": ""}, "field 'id': is empty"),
        ({"id": 7}, "field 'id': must be text, is int"),
        ({"id": b"7"}, "field 'id': must be text, is bytes"),
        ({"id": "a\tb"}, "field 'id': .*control characters"),
        ({"id": "a "}, "field 'id': .*outer blanks"),
        ({"id": "a", "title": None}, "field 'title': must be text, is NoneType"),
        ({"id": "a", "title": SURROGATE}, "field 'title': holds a lone surrogate at character 2"),
        ({"id": "a", "asr": SURROGATE}, "field 'asr': holds a lone surrogate at character 2"),
        ({"id": "a", "asr": 1.5}, "field 'asr': must be text, is float"),
        ({"id": "a", "tags": "x"}, "field 'tags': must be a list of text, is str"),
        ({"id": "a", "tags": [1]}, "field 'tags': must be text, is int"),
        ({"id": "a", "tags": ["x", ""]}, "field 'tags': the tag '' is empty"),
        ({"id": "a", "tags": ["x\ny"]}, "field 'tags': .*control characters"),
        ({"id": "a", "category": "3"}, "field 'category': must be a whole number or null, is str"),
        ({"id": "a", "category": True}, "field 'category': must be a whole number or null, is bool"),
        ({"id": "a", "category": 2**63}, "field 'category': 9223372036854775808 does not fit"),
        (
            {"id": "a", "frames": b"\x00" * 6, "num_frames": 1},
            "field 'frames': 6 bytes, 1 vectors of 2 .* take 4",
        ),
        ({"id": "a", "frames": b"\x00" * 4}, "field 'num_frames': must be a whole number, is NoneType"),
        ({"id": "a", "frames": b"", "num_frames": -1}, "field 'num_frames': is -1"),
        ({"id": "a", "num_frames": 1}, "field 'frames': 0 bytes, 1 vectors"),
        ({"id": "a", "num_frames": "0"}, "field 'num_frames': must be a whole number, is str"),
        ({"id": "a", "frames": [[0.0, 0.0]]}, "field 'frames': must be bytes or a float16 array, is list"),
        (
            {"id": "a", "frames": np.zeros((1, 2))},
            r"field 'frames': must be float16 \[n, 2\], is float64 \[1, 2\]",
        ),
        (
            {"id": "a", "frames": np.zeros((1, 3), np.float16)},
            r"must be float16 \[n, 2\], is float16 \[1, 3\]",
        ),
        ({"id": "a", "frames": np.zeros(2, np.float16)}, r"must be float16 \[n, 2\], is float16 \[2\]"),
        ({"id": "a", "frames": np.zeros((1, 2), np.float16), "num_frames": 2}, "4 bytes, 2 vectors"),
        ({"id": "a", "frames": NAN}, "field 'frames': vector 1, component 1 is not finite"),
        ({"id": "a", "frames": INF}, "field 'frames': vector 0, component 0 is not finite"),
        ({"id": "a", "titel": "x"}, "field 'titel': is no column of this data set"),
    ],
)
def test_planted_faults(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with ShardWriter(tmp_path / "data.arrow", {"frames": 2}, source="in.tfrecords") as writer:
        writer.write({"id": "good"})
        with pytest.raises(UserError, match=message) as caught:
            writer.write(row)
        assert (caught.value.file, caught.value.record) == ("in.tfrecords", 1)
        with pytest.raises(UserError, match="record 77"):
            writer.write(row, record=77)
    assert writer.num_rows == 1  # a refused row leaves nothing behind, so that a converter can go on


def test_extreme_finite_numbers_are_legal(tmp_path: Path) -> None:
    extremes = np.array([[65504, -65504], [6e-8, -0.0]], np.float16)
    with ShardWriter(tmp_path / "data-00000.arrow", {"frames": 2}) as writer:
        writer.write({"id": "a", "frames": extremes})
    write_manifest(tmp_path, [writer.info], {"frames": StreamInfo(dim=2)}, has_tags=False)
    assert open_videos(tmp_path)[0]["frames"].tobytes() == extremes.tobytes()


@pytest.mark.parametrize("streams", [{"title": 2}, {"num_frames": 2, "frames": 2}, {"a-b": 2}])
def test_bad_stream_names(tmp_path: Path, streams: dict[str, int]) -> None:
    with pytest.raises(UserError, match="cannot be the name of a stream"):
        ShardWriter(tmp_path / "data.arrow", streams)


def test_duplicate_ids_name_both_records(tmp_path: Path) -> None:
    infos = []
    for shard, ids in enumerate((["a", "b", "c"], ["d", "b"])):
        with ShardWriter(tmp_path / f"data-{shard:05d}.arrow", {"frames": 2}) as writer:
            for id in ids:
                writer.write({"id": id})
        infos.append(writer.info)
    with pytest.raises(UserError, match=r"'b' stands twice: row 1 of data-00000.arrow and row 1 of data-00001.arrow"):
        write_manifest(tmp_path, infos, {"frames": StreamInfo(dim=2)}, has_tags=False)
    assert not (tmp_path / "manifest.json").exists()


def test_summary_by_hand() -> None:
    # 0 0 1 1 1 1 1 5 9 9: ten lengths, sum 28.
    found = summarise_histogram({9: 2, 0: 2, 1: 5, 5: 1})
    assert found == {"mean": 2.8, "p50": 1, "p75": 5, "p99": 9, "max": 9, "num_empty": 2}

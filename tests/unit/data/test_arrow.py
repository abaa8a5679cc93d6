from __future__ import annotations

import json
import multiprocessing
import operator
import os
import pickle
import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidsim.common.errors import UserError
from vidsim.data.arrow import concat_videos, open_all, open_videos

Rows = list[dict[str, Any]]
Write = Callable[..., Path]


def assert_same_row(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    np.testing.assert_array_equal(found["frames"], expected["frames"])
    assert found["frames"].dtype == np.float16
    assert found["frames"].shape == expected["frames"].shape
    rest = {key: value for key, value in found.items() if key != "frames"}
    assert rest == {key: value for key, value in expected.items() if key != "frames"}


@pytest.mark.parametrize("num_shards", [1, 3])
def test_rows_come_back_as_written(write_data_set: Write, rows: Rows, num_shards: int) -> None:
    videos = open_videos(write_data_set(rows, num_shards=num_shards))
    assert len(videos) == 7
    for row, expected in enumerate(rows):
        assert_same_row(videos[row], expected)
    for found, expected in zip(videos, rows, strict=True):
        assert_same_row(found, expected)
    assert_same_row(videos[-1], rows[6])
    assert videos.streams == {"frames": 4}
    assert videos.ids().to_pylist() == [f"v{number}" for number in range(7)]
    assert videos.column("num_frames").to_pylist() == list(range(7))


def test_empty_data_set(write_data_set: Write) -> None:
    videos = open_videos(write_data_set([]))
    assert len(videos) == 0
    assert list(videos) == []
    with pytest.raises(IndexError):
        videos[0]


@pytest.mark.parametrize("row", [7, -8])
def test_row_out_of_range(write_data_set: Write, rows: Rows, row: int) -> None:
    with pytest.raises(IndexError, match="of 7"):
        open_videos(write_data_set(rows))[row]


def test_frames_are_views_of_the_file(write_data_set: Write, rows: Rows) -> None:
    frames = open_videos(write_data_set(rows))[6]["frames"]
    assert not frames.flags.owndata
    assert not frames.flags.writeable


def test_further_stream(write_data_set: Write, rows: Rows) -> None:
    streams = {"frames": 4, "audio": 2}
    written = [row | {"audio": np.full((2, 2), 0.5, np.float16)} for row in rows]
    videos = open_videos(write_data_set(written, streams=streams))
    assert videos.streams == streams
    np.testing.assert_array_equal(videos[3]["audio"], written[3]["audio"])
    assert_same_row({key: value for key, value in videos[3].items() if key != "audio"}, rows[3])


def test_read_keeps_order_and_takes_columns(write_data_set: Write, rows: Rows) -> None:
    videos = open_videos(write_data_set(rows, num_shards=2))
    found = videos.read(np.array([5, 0, 5]), ["title", "frames"])
    assert [row["title"] for row in found] == [rows[5]["title"], "", rows[5]["title"]]
    assert [row["frames"].shape for row in found] == [(5, 4), (0, 4), (5, 4)]
    assert all(row.keys() == {"title", "frames"} for row in found)
    assert_same_row(videos.read([2])[0], rows[2])
    with pytest.raises(KeyError, match="no column 'titel'"):
        videos.read([0], ["titel"])


def test_rows_of(write_data_set: Write, rows: Rows) -> None:
    videos = open_videos(write_data_set(rows, num_shards=3))
    found = videos.rows_of(["v5", "v0", "v5", "v6"])
    assert found.dtype == np.int64
    assert found.tolist() == [5, 0, 5, 6]
    assert videos.rows_of([]).tolist() == []


def test_rows_of_names_missing_ids(write_data_set: Write, rows: Rows) -> None:
    videos = open_videos(write_data_set(rows))
    with pytest.raises(UserError, match=r"7 of 8 videos are not in .*, first x0, x1, x2, x3, x4\."):
        videos.rows_of(["v1", *(f"x{number}" for number in range(7))])


def test_fingerprint_is_of_the_content(write_data_set: Write, rows: Rows) -> None:
    first = open_videos(write_data_set(rows, "first"))
    same = open_videos(write_data_set(rows, "same"))
    other = open_videos(write_data_set(rows[:6], "other"))
    assert first.fingerprint() == same.fingerprint()
    assert first.fingerprint() != other.fingerprint()
    assert len(first.fingerprint()) == 64


def test_pickle_holds_no_rows_and_opens_again(
    write_data_set: Write, rows: Rows, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_data_set(rows * 1)
    monkeypatch.chdir(tmp_path)
    videos = open_videos("data")
    monkeypatch.chdir("/")  # a worker may stand elsewhere
    pickled = pickle.dumps(videos)
    assert "标题".encode() not in pickled
    assert_same_row(pickle.loads(pickled)[4], rows[4])


@pytest.mark.multi_process
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_rows(write_data_set: Write, rows: Rows, method: str) -> None:
    videos = open_videos(write_data_set(rows))
    assert videos[1]["id"] == "v1"  # used before the fork
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        assert_same_row(pool.submit(operator.getitem, videos, 4).result(), rows[4])


def test_concat(write_data_set: Write, rows: Rows) -> None:
    first = open_videos(write_data_set(rows[:3], "first"))
    second = open_videos(write_data_set(rows[3:], "second", num_shards=2, has_tags=False))
    videos = concat_videos([first, second])
    for row, expected in enumerate(rows):
        assert_same_row(videos[row], expected)
    assert videos.name == "first+second"
    assert videos.rows_of(["v6", "v0"]).tolist() == [6, 0]
    assert videos.fingerprint() not in (first.fingerprint(), second.fingerprint())
    assert videos.manifest.num_videos == 7
    assert [shard.file for shard in videos.manifest.shards] == [
        "first/data-00000.arrow",
        "second/data-00000.arrow",
        "second/data-00001.arrow",
    ]
    assert_same_row(pickle.loads(pickle.dumps(videos))[5], rows[5])


def test_open_all_opens_one_or_several(write_data_set: Write, rows: Rows) -> None:
    first, second = write_data_set(rows[:3], "first"), write_data_set(rows[3:], "second")
    assert [video["id"] for video in open_all([first, str(second)])] == [row["id"] for row in rows]
    assert open_all([first]).name == "first"
    with pytest.raises(UserError, match="no data set to read"):
        open_all([])
    with pytest.raises(UserError, match="is named twice"):
        open_all([first, first])


def test_concat_refuses_nothing_other_streams_and_shared_ids(write_data_set: Write, rows: Rows) -> None:
    first = open_videos(write_data_set(rows, "first"))
    with pytest.raises(UserError, match="no data set"):
        concat_videos([])
    wide = write_data_set([{"id": "w"}], "wide", streams={"frames": 8})
    with pytest.raises(
        UserError, match=r"wide, field 'streams': has frames of width 8.* but .*first has frames of width 4"
    ):
        concat_videos([first, open_videos(wide)])
    shared = open_videos(write_data_set([{"id": "w"}, {"id": "v2"}], "shared"))
    with pytest.raises(
        UserError,
        match=r"'v2' stands twice: row 2 of first/data-00000.arrow and row 1 of shared/data-00000.arrow",
    ):
        concat_videos([first, shared])


def test_shard_is_missing(write_data_set: Write, rows: Rows) -> None:
    folder = write_data_set(rows, num_shards=2)
    (folder / "data-00001.arrow").unlink()
    with pytest.raises(UserError, match=r"data-00001.arrow: the manifest lists this shard, but there is no"):
        open_videos(folder)


@pytest.mark.parametrize("with_size", [True, False])
@pytest.mark.parametrize("keep", [0, 7, 0.5, -8, -1])
def test_shard_is_truncated(write_data_set: Write, rows: Rows, keep: float, with_size: bool) -> None:
    folder = write_data_set(rows)
    path = folder / "data-00000.arrow"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    if not with_size:
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["shards"][0]["num_bytes"]
        (folder / "manifest.json").write_text(json.dumps(manifest))
        if keep == -8:  # only the end-of-stream mark is gone: all rows are there
            assert len(open_videos(folder)) == 7
            return
    with pytest.raises(UserError, match=r"data-00000.arrow: is truncated"):
        open_videos(folder)


def test_shard_lost_its_last_batch(write_data_set: Write) -> None:
    # 501 rows are two batches; a file that ends between them is a valid stream.
    folder = write_data_set([{"id": str(number)} for number in range(501)])
    other = write_data_set([{"id": str(number)} for number in range(500)], "other")
    (folder / "data-00000.arrow").write_bytes((other / "data-00000.arrow").read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["shards"][0]["num_bytes"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="holds 500 rows, the manifest says 501"):
        open_videos(folder)


def test_shard_has_other_columns(write_data_set: Write, rows: Rows) -> None:
    folder = write_data_set(rows)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["streams"]["audio"] = {"dim": 2, "extractor": None}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"data-00000.arrow: has no column audio \(binary\)"):
        open_videos(folder)


def test_wrong_width_in_the_manifest_is_named(write_data_set: Write, rows: Rows) -> None:
    folder = write_data_set(rows)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["streams"]["frames"]["dim"] = 5
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"record 1, field 'frames': does not hold whole vectors of 5"):
        open_videos(folder)[1]


def test_flipped_bits_are_read_or_named_but_never_crash(write_data_set: Write, rows: Rows) -> None:
    folder = write_data_set(rows)
    path = folder / "data-00000.arrow"
    content = path.read_bytes()
    generator = random.Random(0)
    num_read = 0
    errors: list[UserError] = []
    for _ in range(400):
        damaged = bytearray(content)
        damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            videos = open_videos(folder)
            list(videos)
            videos.ids()
            num_read += 1
        except UserError as error:
            errors.append(error)
    assert num_read > 0
    assert num_read + len(errors) == 400
    assert all(error.file for error in errors)
    assert sum("damaged" in error.message for error in errors) > 100


def _private_bytes() -> int:
    """Memory that is not file-backed; mapped pages belong to the page cache."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_reading_everything_takes_no_memory(write_data_set: Write) -> None:
    frames = np.ones((16, 1024), np.float16)  # 32 KiB a row, 48 MiB in all
    videos = open_videos(
        write_data_set([{"id": str(n), "frames": frames} for n in range(1500)], streams={"frames": 1024})
    )
    videos[0]
    before = _private_bytes()
    assert sum(float(row["frames"][0, 0]) for row in videos) == 1500
    assert _private_bytes() - before < 8 * 2**20


def test_datasets_reads_the_shards(write_data_set: Write, rows: Rows, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    folder = write_data_set(rows)
    found = datasets.Dataset.from_file(str(folder / "data-00000.arrow"))
    assert found[4]["id"] == "v4"
    assert found[4]["frames"] == rows[4]["frames"].tobytes()


def test_many_shards_hold_no_file_open(write_data_set: Any) -> None:
    made = [{"id": f"v{number}", "frames": np.full((2, 4), number, np.float16)} for number in range(400)]
    folder = write_data_set(made, num_shards=200)
    before = len(os.listdir("/proc/self/fd"))
    videos = open_videos(folder)
    order = np.random.default_rng(0).permutation(400).tolist()
    read = videos.read(order, ["id", "frames"])
    assert [row["id"] for row in read] == [f"v{number}" for number in order]
    assert all((row["frames"] == number).all() for row, number in zip(read, order, strict=True))
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_reading_ahead_where_there_is_nothing_to_read(write_data_set: Write) -> None:
    videos = open_videos(write_data_set([{"id": "a"}, {"id": "b"}]))
    assert [row["frames"].shape for row in videos.read([1, 0, -1])] == [(0, 4)] * 3
    assert videos.read([]) == []
    with pytest.raises(IndexError, match="row 2 of 2"):
        videos.read([0, 2])

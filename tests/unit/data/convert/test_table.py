from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidsim.common.errors import UserError
from vidsim.data.arrow import Videos, open_videos
from vidsim.data.convert import table

ROWS: list[dict[str, Any]] = [
    {"id": "a", "title": "one", "asr": ["x", "y"], "tags": ["p", "q", "p"], "category": 2},
    {"id": "b", "title": None, "tags": []},
    {"id": "c", "title": "猫", "asr": "", "tags": "p,r"},
]
FEATURES = {
    "a": np.arange(6, dtype=np.float16).reshape(2, 3),
    "b": np.zeros((0, 3), np.float16),
    "c": np.full((1, 3), 0.5, np.float16),
}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "videos.jsonl", ROWS)


@pytest.fixture
def features(tmp_path: Path) -> Path:
    path = tmp_path / "features.npz"
    np.savez(path, **FEATURES)  # type: ignore[arg-type]
    return path


def convert(*arguments: object) -> None:
    assert table.main([str(argument) for argument in arguments]) == 0


def read(folder: Path) -> Videos:
    return open_videos(folder)


def test_converts_rows_with_features(rows: Path, features: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(rows, "--out", out, "--features", features, "--extractor", "net")
    videos = read(out)
    assert [row["id"] for row in videos] == ["a", "b", "c"]
    assert [row["title"] for row in videos] == ["one", "", "猫"]
    assert [row["asr"] for row in videos] == ["x y", "", ""]
    assert [row["tags"] for row in videos] == [["p", "q"], [], ["p", "r"]]
    assert [row["category"] for row in videos] == [2, None, None]
    for row in videos:
        np.testing.assert_array_equal(row["frames"], FEATURES[row["id"]])
    manifest = videos.manifest
    assert manifest.has_tags
    assert (manifest.streams["frames"].dim, manifest.streams["frames"].extractor) == (3, "net")
    assert manifest.counts["num_repeated_tags"] == 1
    assert manifest.counts["num_rows_without_features"] == {"frames": 0}
    assert "--features" in manifest.created_by["command"]
    assert manifest.shards[0].source_sha256
    assert sorted(path.name for path in out.iterdir()) == ["data-00000.arrow", "manifest.json"]


def test_maps_columns(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("key,name,words,more,kind\n1,one,p|q,x,3\n2,two,,y,\n")
    mapping = ["--id", "key", "--title", "name", "--asr", "more", "name", "--tags", "words", "--category", "kind"]
    convert(path, "--out", tmp_path / "out", *mapping, "--tag_separator", "|", "--id_prefix", "v")
    first, second = read(tmp_path / "out")
    assert first == {"id": "v1", "title": "one", "asr": "x one", "tags": ["p", "q"], "category": 3}
    assert second == {"id": "v2", "title": "two", "asr": "y two", "tags": [], "category": None}


def test_without_features_there_is_no_stream(rows: Path, tmp_path: Path) -> None:
    convert(rows, "--out", tmp_path / "text")
    assert read(tmp_path / "text").streams == {}
    convert(rows, "--out", tmp_path / "empty", "--frame_dim", 5)
    videos = read(tmp_path / "empty")
    assert videos.streams == {"frames": 5}
    assert [row["frames"].shape for row in videos] == [(0, 5)] * 3


def test_rows_may_share_features(features: Path, tmp_path: Path) -> None:
    shared = [{"id": "en-a", "clip": "a"}, {"id": "zh-a", "clip": "a"}]
    path = write_rows(tmp_path / "shared.jsonl", shared)
    convert(path, "--out", tmp_path / "out", "--features", features, "--feature_id", "clip")
    for row in read(tmp_path / "out"):
        np.testing.assert_array_equal(row["frames"], FEATURES["a"])
    assert read(tmp_path / "out").manifest.counts["num_unused_features"] == {"frames": 2}


def test_further_streams(rows: Path, features: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "audio.npz", **{id: np.ones((1, 2), np.float16) for id in "abc"})  # type: ignore[arg-type]
    audio = f"audio={tmp_path}/audio.npz"
    convert(rows, "--out", tmp_path / "out", "--features", features, "--stream", audio)
    videos = read(tmp_path / "out")
    assert videos.streams == {"frames": 3, "audio": 2}
    assert [row["audio"].tolist() for row in videos] == [[[1, 1]]] * 3


def test_many_rows_make_several_shards(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "many.jsonl", [{"id": str(number)} for number in range(7)])
    convert(path, "--out", tmp_path / "out", "--shard_rows", 3)
    videos = read(tmp_path / "out")
    assert [shard.num_rows for shard in videos.manifest.shards] == [3, 3, 1]
    assert videos.ids().to_pylist() == [str(number) for number in range(7)]
    assert not videos.manifest.has_tags


def test_missing_features_stop_or_become_no_frames(
    tmp_path: Path, features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows(tmp_path / "more.jsonl", [*ROWS, {"id": "d"}])
    with pytest.raises(UserError, match=r"more\.jsonl, line 4, field 'id': there are no frames features of 'd'"):
        convert(path, "--out", tmp_path / "out", "--features", features)
    assert not (tmp_path / "out").exists()
    convert(path, "--out", tmp_path / "out", "--features", features, "--allow_missing_features")
    assert read(tmp_path / "out")[3]["frames"].shape == (0, 3)
    assert read(tmp_path / "out").manifest.counts["num_rows_without_features"] == {"frames": 1}
    assert "1 videos have no frames features" in capsys.readouterr().out


BAD = [
    ({"id": "a", "title": 1.5}, "field 'title': must be text"),
    ({"id": "a\tb"}, "field 'id': .*holds control characters"),
    ({"title": "x"}, "field 'id': is missing"),
    ({"id": "a", "title": "\ud800"}, "field 'title': holds a lone surrogate"),
    ({"id": "a", "tags": ["x\ny"]}, "field 'tags': the tag .*control characters"),
    ({"id": "a", "category": 2**63}, "field 'category': .*does not fit 64 bits"),
    ({"id": "z"}, "field 'id': the id 'z' stands already in line 1"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_a_bad_row_stops_and_leaves_nothing(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in [{"id": "z"}, row]))
    with pytest.raises(UserError, match=rf"bad\.jsonl, line 2, {message}"):
        convert(path, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_rows_are_quarantined_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.jsonl"
    lines = [json.dumps({"id": "z"}), *(json.dumps(row) for row, _ in BAD), "no json", json.dumps({"id": "y"})]
    path.write_text("\n".join(lines))
    convert(path, "--out", tmp_path / "out", "--on_error", "quarantine")
    assert read(tmp_path / "out").ids().to_pylist() == ["z", "y"]
    assert read(tmp_path / "out").manifest.counts["num_failed_rows"] == len(BAD) + 1
    failures = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    assert [failure["row"] for failure in failures] == list(range(2, len(BAD) + 3))
    assert {failure["file"] for failure in failures} == {str(path)}
    assert failures[0]["field"] == "title"
    assert f"{len(BAD) + 1} rows failed" in capsys.readouterr().out


def test_only_bad_rows_are_an_error(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "bad.jsonl", [{"id": ""}])
    with pytest.raises(UserError, match=r"no row could be converted \(1 failed\)"):
        convert(path, "--out", tmp_path / "out", "--on_error", "quarantine")
    assert not (tmp_path / "out").exists()


def test_a_bad_feature_array_stops(rows: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", a=FEATURES["a"], b=FEATURES["b"], c=np.full((1, 3), np.inf, np.float32))
    with pytest.raises(UserError, match=r"f\.npz, record c: holds a number that is not finite"):
        convert(rows, "--out", tmp_path / "out", "--features", tmp_path / "f.npz")


def test_a_folder_that_is_taken_is_left_alone(rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match=r"out: is there already and not empty"):
        convert(rows, "--out", out)
    assert (out / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--title", "titel"], "field 'titel': no row has this column"),
        (["--features", "FEATURES", "--frames", "x"], "exclude each other"),
        (["--frames", "x"], r"--extractor: is needed with --frames"),
        (["--feature_index", "x.json"], "--feature_index: goes with --features"),
        (["--features", "FEATURES", "--frame_dim", "4"], "is 4, but the features are 3 wide"),
        (["--frame_dim", "0"], "--frame_dim: is 0, must be at least 1"),
        (["--shard_rows", "0"], "--shard_rows: is 0"),
        (["--tag_separator", ""], "--tag_separator: must not be empty"),
        (["--stream", "audio.npz"], "'audio.npz' is not NAME=PATH"),
        (["--features", "FEATURES", "--stream", "frames=x"], "'frames=x' is not NAME=PATH of a further"),
        (["--stream", "title=FEATURES"], "'title' cannot be the name of a stream"),
    ],
)
def test_options_that_make_no_sense_are_named(
    arguments: list[str], message: str, rows: Path, features: Path, tmp_path: Path
) -> None:
    given = [argument.replace("FEATURES", str(features)) for argument in arguments]
    with pytest.raises(UserError, match=message):
        convert(rows, "--out", tmp_path / "out", *given)
    assert not (tmp_path / "out").exists()


def test_rows_that_fail_are_not_counted_as_written(
    tmp_path: Path, features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [{"id": "x\ty", "tags": ["p", "p"]}, {"id": "z", "title": 1.5}, {"id": "q", "tags": ["p", "p", "\x00"]}]
    path = write_rows(tmp_path / "videos.jsonl", [ROWS[0], *bad])
    words = ["--on_error", "quarantine", "--allow_missing_features"]
    convert(path, "--out", tmp_path / "out", "--features", features, *words)
    counts = read(tmp_path / "out").manifest.counts
    assert (counts["num_failed_rows"], counts["num_rows_without_features"]) == (3, {"frames": 0})
    assert counts["num_repeated_tags"] == 1
    assert "written with none" not in capsys.readouterr().out


def test_a_quote_that_swallows_rows_stops_even_under_quarantine(tmp_path: Path) -> None:
    path = tmp_path / "videos.csv"
    path.write_text('id,title\na,"open\nb,c\n')
    with pytest.raises(UserError, match=r"line 2: is malformed .*Fix: close the quote"):
        convert(path, "--out", tmp_path / "out", "--on_error", "quarantine")
    assert not (tmp_path / "out").exists()


def test_a_table_whose_titles_have_another_name_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_rows(tmp_path / "v.jsonl", [{"id": "a", "name": "one", "transcript": "x", "tags": ["p"]}])
    convert(source, "--out", tmp_path / "out")
    expected = "no column title, asr; not read: name, transcript (name what you want with --title, --asr)"
    assert expected in capsys.readouterr().out
    convert(source, "--title", "name", "--out", tmp_path / "named")
    assert "not read" not in capsys.readouterr().out

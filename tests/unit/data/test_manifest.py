from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vidsim.common.errors import UserError
from vidsim.data.manifest import read_manifest

Rows = list[dict[str, Any]]
Write = Callable[..., Path]
Change = Callable[[dict[str, Any]], object]


def test_manifest_says_what_was_written(write_data_set: Write, rows: Rows) -> None:
    manifest = read_manifest(write_data_set(rows, num_shards=2))
    assert manifest.num_videos == 7
    assert manifest.has_tags
    assert manifest.streams["frames"].dim == 4
    assert manifest.streams["frames"].extractor == "test"
    assert [shard.num_rows for shard in manifest.shards] == [4, 3]
    assert [shard.source for shard in manifest.shards] == ["source_0", "source_1"]
    # Titles have 0, 2, ..., 12 characters; tags 0 1 2 0 1 2 0; frames 0..6: over both shards.
    assert manifest.counts["title"] == {
        "mean": 6.0,
        "p50": 6,
        "p75": 10,
        "p99": 12,
        "max": 12,
        "num_empty": 1,
    }
    assert manifest.counts["tags"]["num_empty"] == 3
    assert manifest.counts["frames"]["mean"] == 3.0
    assert manifest.created_by["command"] == "test"


def test_written_json_is_what_was_read(write_data_set: Write, rows: Rows) -> None:
    folder = write_data_set(rows)
    content = json.loads((folder / "manifest.json").read_text())
    content["shards"][0]["note"] = "kept"
    (folder / "manifest.json").write_text(json.dumps(content))
    assert read_manifest(folder).to_json() == content


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        read_manifest(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, not a data set folder"):
        read_manifest(tmp_path / "file")


def test_no_manifest_names_the_data_sets_inside(tmp_path: Path, write_data_set: Write, rows: Rows) -> None:
    write_data_set(rows, "pairwise")
    with pytest.raises(UserError, match=r"holds no manifest.json.*name one of the data sets inside it: pairwise"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": NaN}', "\x00", '{"a": 1, "a": 2}'])
def test_manifest_is_no_object(write_data_set: Write, rows: Rows, content: str) -> None:
    folder = write_data_set(rows)
    (folder / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json"):
        read_manifest(folder)


def _set(*keys: str | int, value: object) -> Change:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("schema_version", value=2), "'schema_version': is 2, this vidsim reads 1"),
        (_set("schema_version", value=True), "'schema_version': must be int"),
        (lambda content: content.pop("num_videos"), "'num_videos': is missing"),
        (_set("num_videos", value=-1), "'num_videos': is -1"),
        (_set("num_videos", value=8), "'num_videos': is 8, but the shards listed hold 7"),
        (_set("has_tags", value="yes"), "'has_tags': must be bool, is 'yes'"),
        (_set("streams", value=[]), "'streams': must be dict"),
        (_set("streams", "frames", value=3), "the stream 'frames' must be an object"),
        (_set("streams", "frames", "dim", value=0), "'streams.frames.dim': is 0"),
        (_set("streams", "frames", "extractor", value=1), "'streams.frames.extractor'"),
        (_set("streams", "title", value={"dim": 4}), "'title' cannot be the name of a stream"),
        (_set("streams", "a b", value={"dim": 4}), "'a b' cannot be the name of a stream"),
        (_set("shards", 0, value="x"), r"shards\[0\] must be an object"),
        (
            _set("shards", 0, "file", value="../x.arrow"),
            r"'shards\[0\].file': '../x.arrow' is not a file name",
        ),
        (_set("shards", 0, "file", value=".."), r"'shards\[0\].file'"),
        (_set("shards", 0, "sha256", value="abc"), r"'shards\[0\].sha256'"),
        (_set("shards", 0, "num_rows", value=-7), r"'shards\[0\].num_rows'"),
        (lambda content: content["shards"].append(content["shards"][0] | {"num_rows": 0}), "is listed twice"),
    ],
)
def test_planted_faults(write_data_set: Write, rows: Rows, change: Change, message: str) -> None:
    folder = write_data_set(rows)
    content = json.loads((folder / "manifest.json").read_text())
    change(content)
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        read_manifest(folder)
    assert caught.value.file == str(folder / "manifest.json")

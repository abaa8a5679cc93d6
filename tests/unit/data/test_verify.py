from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vidsim.common.errors import UserError
from vidsim.common.files import sha256_file
from vidsim.data import schema
from vidsim.data.verify import find_data_sets, main, verify_folder

Rows = list[dict[str, Any]]
Write = Callable[..., Path]


@pytest.fixture
def converted(write_data_set: Write, rows: Rows, tmp_path: Path) -> Path:
    """A converted folder: two data sets, pairs over both, tags."""
    write_data_set(rows[:4], "all/pairwise", num_shards=2)
    write_data_set([{"id": row["id"]} for row in rows[4:]], "all/test_a", has_tags=False)
    (tmp_path / "all" / "pairs.tsv").write_text("v0\tv1\t0.5\nv0\tv6\t1\n")
    (tmp_path / "all" / "tags.txt").write_text("0\n1\n")
    return tmp_path / "all"


def problems(folder: Path) -> list[str]:
    return [str(result) for result in verify_folder(folder, quiet=True) if isinstance(result, UserError)]


def plant(folder: Path, **columns: list[Any]) -> None:
    """Replace columns of the first shard, past the writer's checks, and make the manifest agree."""
    path = folder / "data-00000.arrow"
    with pa.ipc.open_stream(path.read_bytes()) as reader:
        table = reader.read_all()
    for name, values in columns.items():
        position = table.schema.names.index(name)
        table = table.set_column(position, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][0] |= {"sha256": sha256_file(path), "num_bytes": path.stat().st_size}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_sound_folder(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(converted)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"OK {converted}/pairwise/data-00000.arrow: 2 rows",
        f"OK {converted}/pairwise/data-00001.arrow: 2 rows",
        f"OK {converted}/pairwise: 4 videos, all ids differ",
        f"OK {converted}/test_a/data-00000.arrow: 3 rows",
        f"OK {converted}/test_a: 3 videos, all ids differ",
        f"OK {converted}/tags.txt: 2 tags",
        f"OK {converted}/pairs.tsv: 2 pairs, all 3 videos found",
    ]
    assert main([str(converted), "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_one_data_set_alone(converted: Path) -> None:
    assert main([str(converted / "pairwise")]) == 0
    assert find_data_sets(converted) == [converted / "pairwise", converted / "test_a"]


def test_every_flipped_bit_is_found(write_data_set: Write, rows: Rows) -> None:
    folder = write_data_set(rows)
    path = folder / "data-00000.arrow"
    content = path.read_bytes()
    for position in range(3, len(content), 61):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        found = problems(folder)
        assert found, position
        assert "data-00000.arrow" in found[0]


def test_damage_is_reported_and_the_rest_still_checked(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = converted / "pairwise" / "data-00001.arrow"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"the content differs.*sha256") as caught:
        main([str(converted)])
    assert caught.value.file == str(path)
    captured = capsys.readouterr()
    assert captured.out.count("PROBLEM") == 1
    assert f"OK {converted}/test_a: 3 videos" in captured.out
    assert "pairs.tsv: ids not checked" in captured.out


FRAMES_2 = np.array([[1, 2, 3, 4], [5, 6, np.nan, 8]], np.float16).tobytes()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["v0", ""]}, "record 1, field 'id': is empty or holds"),
        ({"id": ["v0", "a\tb"]}, "record 1, field 'id': is empty or holds control"),
        ({"id": [" v0", "v1"]}, "record 0, field 'id': is empty or holds control characters or outer blanks"),
        ({"id": ["v0", None]}, "record 1, field 'id': is null"),
        ({"title": [None, "x"]}, "record 0, field 'title': is null"),
        ({"tags": [["x"], ["y", "z "]]}, "record 1, field 'tags': a tag is null, empty"),
        ({"tags": [["x", None], []]}, "record 0, field 'tags': a tag is null, empty"),
        ({"num_frames": [0, 2]}, "record 1, field 'frames': 8 bytes, 2 vectors of 4 float16 take 16"),
        ({"num_frames": [0, -1]}, "record 1, field 'frames': 8 bytes, -1 vectors"),
        ({"frames": [b"x", b"12345678"]}, "record 0, field 'frames': 1 bytes, 0 vectors"),
        (
            {"frames": [b"", FRAMES_2], "num_frames": [0, 2]},
            "record 1, field 'frames': vector 1, component 2 is not",
        ),
        ({"id": ["v0", "v0"]}, "'v0' stands twice: row 0 of data-00000.arrow and row 1 of data-00000.arrow"),
        ({"id": ["v0", "v3"]}, "'v3' stands twice: row 1 of data-00000.arrow and row 1 of data-00001.arrow"),
        ({"title": [b"ok", b"\xff"]}, "record 0: rows 0 to 1 are damaged .*UTF"),
    ],
)
def test_planted_rows(converted: Path, columns: dict[str, list[Any]], message: str) -> None:
    if isinstance(columns.get("title", [""])[0], bytes):
        binary = pa.array(columns["title"], pa.binary())
        columns = {"title": pa.Array.from_buffers(pa.string(), 2, binary.buffers())}
    plant(converted / "pairwise", **columns)
    found = problems(converted)
    assert len([line for line in found if "pairs.tsv" not in line]) == 1, found
    with pytest.raises(UserError, match=message):
        main([str(converted), "--quiet"])


def test_tags_where_the_manifest_says_none(write_data_set: Write) -> None:
    folder = write_data_set([{"id": "a"}, {"id": "b", "tags": ["x"]}], has_tags=False)
    assert len(problems(folder)) == 1
    assert "record 1, field 'tags': has tags, but the manifest says has_tags: false" in problems(folder)[0]


def test_many_problems_are_counted(write_data_set: Write) -> None:
    folder = write_data_set([{"id": str(number)} for number in range(60)])
    plant(folder, num_frames=[1] * 60)
    with pytest.raises(UserError, match=r"0 bytes, 1 vectors.*\(the first of 21 problems"):
        main([str(folder), "--quiet"])
    assert problems(folder)[-1].endswith("40 more problems")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("pairs.tsv", "v0\tv9\t1\nv1\tv8\t0\n", "2 of 4 ids stand in no data set here, first v9, v8"),
        ("pairs.tsv", "v0\tv1\t2\n", "line 1, field 'score': 2 is not within"),
        ("tags.txt", "a\na\n", "line 2, field 'tags': the tag 'a' stands already in line 1"),
        ("pairwise/manifest.json", "{}", "'schema_version': is missing"),
    ],
)
def test_other_files(converted: Path, file: str, content: str, message: str) -> None:
    (converted / file).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        main([str(converted), "--quiet"])
    assert caught.value.file == str(converted / file)


def test_missing_and_stray_shards(converted: Path) -> None:
    (converted / "pairwise" / "data-00001.arrow").rename(converted / "pairwise" / "data-00002.arrow")
    stray, missing = problems(converted)
    assert "data-00002.arrow: is in the folder, but the manifest does not list it" in stray
    assert "data-00001.arrow: the manifest lists this shard" in missing


def test_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no data set"):
        main([str(tmp_path)])
    with pytest.raises(UserError, match="no such folder"):
        main([str(tmp_path / "nowhere")])
    hidden = tmp_path / ".cache"
    hidden.mkdir()
    (hidden / schema.MANIFEST_FILE).write_text("{}")
    with pytest.raises(UserError, match="holds no data set"):
        main([str(tmp_path)])

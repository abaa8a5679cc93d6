from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidsim.common.errors import UserError
from vidsim.common.files import sha256_file
from vidsim.data.arrow import open_videos
from vidsim.data.convert.aiac import AiacConversion, main
from vidsim.data.pairs import read_pairs
from vidsim.data.synthetic import GeneratorConfig, generate
from vidsim.data.synthetic_errors import Planted, insert_dirty_records, plan_records
from vidsim.data.tags import TagVocabulary
from vidsim.data.tf_example import parse_example
from vidsim.data.tfrecord import read_records, write_frames, write_tfrecords
from vidsim.data.verify import verify_folder

DIM = 4
CONFIG = GeneratorConfig(num_videos=40, num_pairs=12, num_test_pairs=6, num_files=3, num_tags=40, frame_dim=DIM)


@pytest.fixture(scope="module")
def clean_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clean") / "competition"
    generate(out, CONFIG)
    return out


@pytest.fixture(scope="module")
def dirty_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dirty") / "competition"
    generate(out, GeneratorConfig(**{**vars(CONFIG), "plant_errors": True}))
    return out


@pytest.fixture
def source(clean_source: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(clean_source, tmp_path / "source"))


def convert(source: Path, out: Path, **options: Any) -> list[str]:
    lines: list[str] = []
    AiacConversion(source=source, out=out, say=lines.append, **({"frame_dim": DIM} | options)).run()
    return lines


def failures(folder: Path) -> list[dict[str, Any]]:
    path = folder / "failures.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def video(id: str, /, **changes: Any) -> dict[str, Any]:
    """Features of a good record, with some changed; None removes one."""
    features = {
        "id": [id.encode()],
        "title": [b"title"],
        "asr_text": [b""],
        "tag_id": [3, 1],
        "category_id": [203],
        "frame_feature": [np.arange(DIM, dtype="<f2").tobytes()] * 2,
    }
    return {key: value for key, value in (features | changes).items() if value is not None}


def write_part(source: Path, videos: list[Mapping[str, Any]], name: str = "pointwise/pretrain_0") -> Path:
    path = source / f"{name}.tfrecords"
    write_tfrecords(path, videos)
    return path


def test_every_row_is_what_the_record_says(clean_source: Path, tmp_path: Path) -> None:
    lines = convert(clean_source, tmp_path / "out")
    for part in ("pointwise", "pairwise", "test_a", "test_b"):
        expected = [
            parse_example(record.data)
            for path in sorted((clean_source / part).glob("*.tfrecords"))
            for record in read_records(path)
        ]
        videos = open_videos(tmp_path / "out" / part)
        assert len(videos) == len(expected)
        for row, features in zip(videos, expected, strict=True):
            assert [row["id"].encode()] == features["id"]
            assert [row["title"].encode()] == features["title"]
            assert [row["asr"].encode()] == features["asr_text"]
            assert row["tags"] == [str(tag) for tag in features.get("tag_id", [])]
            assert ([] if row["category"] is None else [row["category"]]) == features.get("category_id", [])
            assert [frame.tobytes() for frame in row["frames"]] == features["frame_feature"]
        assert videos.manifest.has_tags == (part in ("pointwise", "pairwise"))
        assert not failures(tmp_path / "out" / part)
    assert lines[0].endswith("not there: nothing")
    assert "pointwise: 40 videos in 3 shards" in lines
    assert "pairs.tsv: 12 pairs" in lines
    assert "tags.txt: 40 tags" in lines


def test_pairs_and_tags_are_copied(clean_source: Path, tmp_path: Path) -> None:
    convert(clean_source, tmp_path)
    found, expected = read_pairs(tmp_path / "pairs.tsv"), read_pairs(clean_source / "pairwise" / "label.tsv")
    assert (found.id1, found.id2, found.score.tolist()) == (
        expected.id1,
        expected.id2,
        expected.score.tolist(),
    )
    assert (tmp_path / "pairs.tsv").read_text().startswith("id1\tid2\tscore\n")
    tags = TagVocabulary.from_file(tmp_path / "tags.txt").tags
    assert list(tags) == (clean_source / "tag_list.txt").read_text().split()


def test_manifest_names_the_sources(clean_source: Path, tmp_path: Path) -> None:
    convert(clean_source, tmp_path, extractor=None, command="the command")
    manifest = open_videos(tmp_path / "pointwise").manifest
    assert manifest.streams["frames"].dim == DIM
    assert manifest.streams["frames"].extractor is None
    assert [shard.source for shard in manifest.shards] == [f"pointwise/pretrain_{n}.tfrecords" for n in range(3)]
    digest = sha256_file(clean_source / "pointwise" / "pretrain_1.tfrecords")
    assert manifest.shards[1].source_sha256 == digest
    assert manifest.created_by["command"] == "the command"
    assert manifest.counts["num_failed_records"] == 0


def test_quarantine_names_every_planted_error_and_nothing_else(dirty_source: Path, tmp_path: Path) -> None:
    lines = convert(dirty_source, tmp_path, is_lenient=True)
    planted = json.loads((dirty_source / "planted_errors.json").read_text())
    expected = {(entry["file"], entry["record"], entry["field"]) for entry in planted}
    found = [
        (entry["file"], entry["record"], entry["field"])
        for folder in (tmp_path, *(tmp_path / part for part in ("pointwise", "pairwise", "test_a", "test_b")))
        for entry in failures(folder)
    ]
    assert len(found) == len(planted)
    assert set(found) == expected
    # Nothing clean is lost.
    assert len(open_videos(tmp_path / "pointwise")) == 40
    assert len(read_pairs(tmp_path / "pairs.tsv")) == 12
    in_pointwise = sum(entry["file"].startswith("pointwise") for entry in planted)
    folder = tmp_path / "pointwise"
    assert (
        f"pointwise: 40 videos in 4 shards; records left out: {in_pointwise}, see {folder / 'failures.jsonl'}" in lines
    )
    assert open_videos(folder).manifest.counts["num_failed_records"] == in_pointwise


KINDS = {item.kind: item for item in plan_records([("pointwise/pretrain_0.tfrecords", 50), ("b", 50)])}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "duplicate_id_other_file"])
def test_stop_names_file_record_and_field(tmp_path: Path, kind: str) -> None:
    planted = Planted(kind=kind, file="pointwise/pretrain_0.tfrecords", record=1, field=KINDS[kind].field)
    clean = [video("1"), video("2"), video("3")]
    frames = insert_dirty_records(clean, [planted], video("9"), b"1", b"1")
    path = tmp_path / "pointwise" / "pretrain_0.tfrecords"
    write_frames(path, frames)
    with pytest.raises(UserError) as caught:
        convert(tmp_path, tmp_path / "out")
    assert caught.value.file == str(path)
    assert caught.value.record == 1
    assert caught.value.field == KINDS[kind].field
    assert not list((tmp_path / "out").rglob("manifest.json"))
    assert not list((tmp_path / "out").rglob(".*tmp"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"title": None}, "field 'title': the feature is missing"),
        ({"tag_id": None}, "field 'tag_id': the feature is missing"),
        ({"frame_feature": None}, "field 'frame_feature': the feature is missing"),
        ({"id": [7]}, "field 'id': must be bytes, is int64"),
        ({"tag_id": [0.5]}, "field 'tag_id': must be int64, is float"),
        ({"id": []}, "field 'id': holds 0 values, one expected"),
        ({"id": [b"a", b"b"]}, "field 'id': holds 2 values, one expected"),
        ({"id": [b"a\tb"]}, "field 'id': .* control characters"),
        ({"asr_text": [b"ab\xff"]}, r"field 'asr_text': is not UTF-8 \(byte 2 of 3\)"),
        ({"category_id": [1, 2]}, "field 'category_id': holds 2 values"),
        ({"frame_feature": [bytes(8), bytes(6)]}, r"frame 1 has 6 bytes, 4 float16 take 8\. Fix: check --frame_dim"),
        (
            {"frame_feature": [bytes(8), b"\0\0\0\x7c\0\0\0\0"]},
            "field 'frame_feature': vector 1, component 1 is not finite",
        ),
    ],
)
def test_messages_of_bad_records(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_part(tmp_path, [video("1"), video("2", **changes)])
    with pytest.raises(UserError, match=f"record 1, .*{message}"):
        convert(tmp_path, tmp_path / "out")


def test_an_error_leaves_no_empty_folder(clean_source: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "pairwise").mkdir(parents=True)
    (source / "pairwise/pairwise.tfrecords").write_bytes(b"not a TFRecord file")
    with pytest.raises(UserError, match=r"pairwise\.tfrecords"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    # What is whole stays, and so does what was there before.
    shutil.copytree(clean_source / "test_a", source / "test_a")
    shutil.copytree(clean_source / "pointwise", source / "pointwise")
    (tmp_path / "out/test_a").mkdir(parents=True)
    with pytest.raises(UserError, match=r"pairwise\.tfrecords"):
        convert(source, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["pointwise", "test_a"]
    assert len(open_videos(tmp_path / "out/pointwise")) == CONFIG.num_videos


def test_legal_oddities_pass(tmp_path: Path) -> None:
    odd = video("2", title=[], asr_text=[b""], tag_id=[], category_id=[], frame_feature=[], another_feature=[1])
    write_part(tmp_path, [video("1", frame_feature=[bytes(8)] * 40), odd])
    lines = convert(tmp_path, tmp_path / "out")
    first, second = open_videos(tmp_path / "out" / "pointwise")
    assert first["frames"].shape == (40, DIM)
    assert second["frames"].shape == (0, DIM)
    assert (second["title"], second["tags"], second["category"]) == ("", [], None)
    assert "pointwise: features that the format does not have, not read: another_feature" in lines


def test_duplicates_between_files_name_both_and_leave_out_the_later(tmp_path: Path) -> None:
    write_part(tmp_path, [video("1"), video("bad", title=None), video("2")], "pointwise/pretrain_0")
    write_part(tmp_path, [video("3"), video("2"), video("1"), video("2")], "pointwise/pretrain_10")
    write_part(tmp_path, [video("4")], "pointwise/pretrain_2")
    lines = convert(tmp_path, tmp_path / "out", is_lenient=True)
    assert list(open_videos(tmp_path / "out" / "pointwise").ids().to_pylist()) == ["1", "2", "4", "3"]
    found = [(entry["file"], entry["record"], entry["message"]) for entry in failures(tmp_path / "out" / "pointwise")]
    source = "pointwise/pretrain_0.tfrecords"
    assert found == [
        (source, 1, "the feature is missing"),
        ("pointwise/pretrain_10.tfrecords", 1, f"the id 2 stands already in record 2 of {source}"),
        ("pointwise/pretrain_10.tfrecords", 2, f"the id 1 stands already in record 0 of {source}"),
        ("pointwise/pretrain_10.tfrecords", 3, f"the id 2 stands already in record 2 of {source}"),
    ]
    assert "pointwise/pretrain_1.tfrecords, pointwise/pretrain_3.tfrecords" in lines[0]  # gaps in the numbers
    # Unchanged, all is kept; when the first of two is gone, the other one counts.
    assert "(3 finished earlier and kept)" in convert(tmp_path, tmp_path / "out", is_lenient=True)[1]
    write_part(tmp_path, [video("1")], "pointwise/pretrain_0")
    convert(tmp_path, tmp_path / "out", is_lenient=True)
    assert list(open_videos(tmp_path / "out" / "pointwise").ids().to_pylist()) == ["1", "4", "3", "2"]


def test_restart_keeps_finished_shards(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(source, out)
    shards = sorted((out / "pointwise").glob("*.arrow"))
    manifest = (out / "pointwise" / "manifest.json").read_bytes()
    before = {path: path.stat().st_mtime_ns for path in shards}
    shards[1].unlink()
    os.truncate(shards[2], 100)
    # Touched but not changed: the content decides.
    os.utime(source / "pointwise" / "pretrain_0.tfrecords", ns=(1, 1))
    lines = convert(source, out)
    assert "pointwise: 40 videos in 3 shards (1 finished earlier and kept)" in lines
    assert any("in 1 shard (1 finished" in line for line in lines if line.startswith("pairwise: "))
    assert shards[0].stat().st_mtime_ns == before[shards[0]]
    assert shards[1].stat().st_mtime_ns != before[shards[1]]
    assert (out / "pointwise" / "manifest.json").read_bytes() == manifest


def test_changed_source_or_options_are_converted_again(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(source, out)
    path = source / "pointwise" / "pretrain_0.tfrecords"
    content = bytearray(path.read_bytes())
    frames = list(read_records(path))
    write_tfrecords(path, [parse_example(record.data) for record in frames[1:]])
    lines = convert(source, out)
    assert "pointwise: 39 videos in 3 shards (2 finished earlier and kept)" in lines
    # The same size, another content: only the checksum tells.
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match="checksum of the data"):
        convert(source, out)
    assert not (out / "pointwise" / "manifest.json").exists()
    assert "40 videos in 3 shards (" not in "".join(convert(source, out, check_crc=False))


def test_a_damaged_note_only_costs_time(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(source, out)
    for note, content in (("data-00000", "{"), ("data-00001", "[]"), ("data-00002", '{"info": {}}')):
        (out / "pointwise" / ".convert" / f"{note}.json").write_text(content)
    assert "pointwise: 40 videos in 3 shards" in convert(source, out)


def test_leftovers_of_other_runs_are_removed(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(source, out)
    half = out / "pointwise" / ".data-00000.arrow.123.tmp"
    half.write_bytes(b"half")
    (source / "pointwise" / "pretrain_2.tfrecords").unlink()
    convert(source, out)
    left = sorted(path.name for path in (out / "pointwise").iterdir())
    assert left == [".convert", "data-00000.arrow", "data-00001.arrow", "manifest.json"]


def test_data_of_another_origin_is_not_overwritten(clean_source: Path, tmp_path: Path) -> None:
    (tmp_path / "pointwise").mkdir()
    (tmp_path / "pointwise" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="another origin"):
        convert(clean_source, tmp_path)


def test_compressed_files_are_read(source: Path, tmp_path: Path) -> None:
    path = source / "test_a" / "test_a.tfrecords"
    path.write_bytes(gzip.compress(path.read_bytes()))
    convert(source, tmp_path / "out")
    assert len(open_videos(tmp_path / "out" / "test_a")) > 0


def test_parts_may_be_absent(source: Path, tmp_path: Path) -> None:
    for part in ("pointwise", "test_b"):
        shutil.rmtree(source / part)
    (source / "tag_list.txt").unlink()
    lines = convert(source, tmp_path / "out")
    assert lines[0].startswith("found: pairwise (1 TFRecord), test_a (1 TFRecord), pairwise/label.tsv; ")
    assert lines[0].endswith("not there: pointwise, test_b, tag_list.txt")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["pairs.tsv", "pairwise", "test_a"]
    (source / "pairwise" / "pairwise.tfrecords").unlink()
    assert "pairwise/label.tsv: not converted" in convert(source, tmp_path / "again")[-1]
    shutil.rmtree(source / "test_a")
    with pytest.raises(UserError, match="holds none of the competition's TFRecord files"):
        convert(source, tmp_path / "none")
    with pytest.raises(UserError, match="no such folder"):
        convert(tmp_path / "nowhere", tmp_path / "none")


def test_tag_list_is_found_nearby_and_must_be_one(source: Path, tmp_path: Path) -> None:
    (source / "tag_list.txt").rename(source / "pointwise" / "tag_list.txt")
    convert(source, tmp_path / "out")
    assert (tmp_path / "out" / "tags.txt").exists()
    (source / "tag_list.txt").write_text("1\n")
    with pytest.raises(UserError, match=r"differs from .*--tag_list"):
        convert(source, tmp_path / "out")
    convert(source, tmp_path / "out", tag_list=source / "tag_list.txt")
    assert (tmp_path / "out" / "tags.txt").read_text() == "1\n"


def test_a_part_without_a_good_record_is_an_error(tmp_path: Path) -> None:
    write_part(tmp_path, [video("1", title=None)])
    with pytest.raises(UserError, match=r"pointwise: no record could be converted \(1 failed\)"):
        convert(tmp_path, tmp_path / "out", is_lenient=True)
    assert [entry["record"] for entry in failures(tmp_path / "out" / "pointwise")] == [0]


@pytest.mark.multi_process
def test_processes_do_not_change_the_result(dirty_source: Path, tmp_path: Path) -> None:
    convert(dirty_source, tmp_path / "one", is_lenient=True)
    convert(dirty_source, tmp_path / "two", is_lenient=True, num_processes=2)
    names = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*") if path.is_file()}
    assert names == {path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*.*") if path.is_file()}
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


@pytest.mark.multi_process
def test_an_error_in_a_worker_stops_the_others_cleanly(source: Path, tmp_path: Path) -> None:
    path = source / "pointwise" / "pretrain_1.tfrecords"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"pretrain_1.tfrecords, record 1\d: the file is truncated"):
        convert(source, tmp_path / "out", num_processes=2)
    assert not list((tmp_path / "out").rglob(".*tmp"))
    assert not (tmp_path / "out" / "pointwise" / "data-00001.arrow").exists()


def test_command_line(clean_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [str(clean_source), "--out", str(tmp_path / "out"), "--frame_dim", "4", "--num_processes", "1"]
    assert main(argv) == 0
    assert "test_b: " in capsys.readouterr().out
    manifest = open_videos(tmp_path / "out" / "pairwise").manifest
    assert manifest.streams["frames"].extractor is None  # not the competition's width
    assert manifest.created_by["command"].startswith("vidsim convert aiac ")
    with pytest.raises(UserError, match="--num_processes: is 0"):
        main([*argv, "--num_processes", "0"])


def test_a_part_where_some_records_have_tags_has_tags(tmp_path: Path) -> None:
    tagless = video("2", tag_id=None, category_id=None)
    write_part(tmp_path, [video("1"), tagless], "test_a/test_a")
    write_part(tmp_path, [tagless], "test_b/test_b")
    convert(tmp_path, tmp_path / "out")
    assert open_videos(tmp_path / "out" / "test_a").manifest.has_tags
    assert not open_videos(tmp_path / "out" / "test_b").manifest.has_tags
    assert not [result for result in verify_folder(tmp_path / "out") if isinstance(result, UserError)]


def test_a_file_that_may_not_be_read_is_one_error(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open

    def refuse(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path).endswith("pretrain_1.tfrecords"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr("builtins.open", refuse)  # root may read everything
    with pytest.raises(UserError, match=r"pretrain_1\.tfrecords: cannot be read \(Permission denied\)"):
        convert(source, tmp_path / "out")

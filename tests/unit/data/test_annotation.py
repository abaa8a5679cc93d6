from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidsim.common.errors import UserError
from vidsim.data.annotation import TaggedVideos, annotate, read_tags, split_videos, tag_columns
from vidsim.data.cowatch_graph import EVAL, TRAIN, VALIDATION, parts_of

COLUMNS = ("id", ["tags"], ",")
VIDEOS: list[dict[str, Any]] = [
    {"id": "a", "tags": ["cat", "dog", "cat"]},
    {"id": "b", "tags": []},
    {"id": "c", "tags": ["dog", "鱼"]},
]


def tagged(**tags: list[str]) -> TaggedVideos:
    return TaggedVideos(list(tags), pa.chunked_array([list(tags.values())], pa.list_(pa.string())), "tags.jsonl")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    match path.suffix:
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case ".jsonl":
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        case suffix:
            comma = {".csv": ",", ".tsv": "\t"}[suffix]
            lines = [comma.join(["id", "tags"]), *(comma.join([r["id"], "|".join(r["tags"])]) for r in rows)]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.tsv", "t.parquet"])
def test_tags_are_read_from_every_kind_of_table(tmp_path: Path, name: str) -> None:
    found = read_tags(write(tmp_path / name, VIDEOS), tag_columns("id", ["tags"], "|"))
    assert found.ids == ["a", "b", "c"]
    assert found.tags.to_pylist() == [["cat", "dog"], [], ["dog", "鱼"]]


def test_tags_are_read_from_a_data_set_and_from_columns_of_any_name(
    tmp_path: Path, write_data_set: Callable[..., Path]
) -> None:
    folder = write_data_set([{"id": row["id"], "tags": row["tags"]} for row in VIDEOS], num_shards=2)
    assert read_tags(folder, tag_columns(*COLUMNS)).tags.to_pylist() == [row["tags"] for row in VIDEOS]
    other = [{"key": 7, "genres": ["x"], "words": "y; z", "category": "no number", "title": 3.5}]
    found = read_tags(write(tmp_path / "o.jsonl", other), tag_columns("key", ["genres", "words"], ";"))
    assert (found.ids, found.tags.to_pylist()) == (["7"], [["x", "y", "z"]])


def test_bad_tables_are_refused_by_name(tmp_path: Path) -> None:
    for rows, message in (
        ([*VIDEOS, {"id": "a", "tags": ["cat"]}], "1 ids occur more than once: a"),
        ([{"id": "a", "tags": 3}], "line 1, field 'tags': must be a list"),
        ([{"id": "a", "words": ["cat"]}], "field 'tags': no row has this column"),
        ([{"tags": ["cat"]}], "line 1, field 'id': is missing"),
        ([*VIDEOS, {"id": "d", "tags": ["a\tb"]}], r"line 4, field 'tags': the tag 'a\\tb' .*control characters"),
        ([{"id": "d", "tags": ["rock\nroll"]}], r"line 1, field 'tags': .*control characters"),
        ([{"id": "d\te", "tags": ["x"]}], r"line 1, field 'id': .*control characters"),
    ):
        with pytest.raises(UserError, match=message):
            read_tags(write(tmp_path / "t.jsonl", rows), tag_columns(*COLUMNS))
    (tmp_path / "latin.csv").write_bytes("id,tags\na,Äpfel\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.csv, line 2, field 'tags': holds a lone surrogate"):
        read_tags(tmp_path / "latin.csv", tag_columns(*COLUMNS))
    with pytest.raises(UserError, match="no such file"):
        read_tags(tmp_path / "none.jsonl", tag_columns(*COLUMNS))
    with pytest.raises(UserError, match="manifest"):
        read_tags(tmp_path, tag_columns(*COLUMNS))


def test_features_and_tags_are_brought_together_and_what_is_left_out_is_said() -> None:
    #        train                                              validation       test
    ids = ["t1", "t2", "t3", "t4", "bare", "v1", "v2", "e1", "e2", "unknown"]
    part = np.array([TRAIN] * 5 + [VALIDATION] * 2 + [EVAL] * 2 + [TRAIN])
    given = tagged(
        e2=["dog", "cat", "dog"], t4=["rare"], t3=["dog", "cat"], t2=["dog"], t1=["cat", "dog", "once"],
        bare=[], v1=["new"], v2=["dog", "new"], e1=["cat"], lost=["cat"],
    )  # fmt: skip
    found = annotate(ids, given, part, min_count=2, max_tags=None)
    assert found.vocabulary.tags == ("dog", "cat")
    assert found.vocabulary.counts == (3, 2)
    assert [ids[v] for v in found.train] == ["t1", "t2", "t3", "t4"]
    assert {name: [ids[v] for v in videos] for name, videos in found.evaluated.items()} == {
        "validation": ["v2"],
        "test": ["e1", "e2"],
    }
    rows, classes = found.pairs(np.array([8, 3, 0, 5, 6]))  # e2, t4, t1, v1, v2
    assert rows.tolist() == [0, 0, 2, 2, 4]
    assert classes.tolist() == [0, 1, 0, 1, 0]
    assert found.lines == [
        "videos: 8 with features and tags",
        "left out: 2 videos with features have no tags: bare, unknown",
        "left out: 1 videos with tags have no features: lost",
        "tags: 2, each on at least 2 training videos; 2 others are left out, with 2 of 7 uses",
        "train: 4 videos, 1 of them without any of these tags",
        "validation: 1 videos; 1 without any of these tags are left out",
        "test: 2 videos; 0 without any of these tags are left out",
    ]
    assert annotate(ids, given, part, min_count=1, max_tags=1).vocabulary.tags == ("dog",)


def test_nothing_to_train_or_validate_on_is_refused() -> None:
    given = tagged(a=["cat"], b=["cat"], c=["fish"])
    for ids, part, message in (
        (["x", "y"], [TRAIN, TRAIN], "of 2 videos with features 0 have tags, none to train on"),
        (["a", "b"], [EVAL, VALIDATION], "of 2 videos with features 2 have tags, none to train on"),
        (["a", "b"], [TRAIN, EVAL], "no video is left to validate on"),
        (["a", "c"], [TRAIN, VALIDATION], "no video is left to validate on"),
    ):
        with pytest.raises(UserError, match=message):
            annotate(ids, given, np.array(part), min_count=1, max_tags=None)
    with pytest.raises(UserError, match="no tag occurs 9 times"):
        annotate(["a", "b"], given, np.array([TRAIN, VALIDATION]), min_count=9, max_tags=None)


def test_the_split_is_that_of_the_co_watch_graph_or_the_given_test() -> None:
    ids = [f"v{number}" for number in range(400)]
    part = split_videos(ids, 0.3, 0.1, 5, None)
    assert np.array_equal(part, parts_of(ids, 0.3, 0.1, 5))
    assert np.bincount(part).tolist() == pytest.approx([240, 40, 120], abs=30)
    given = split_videos(ids, 0.3, 0.1, 5, ids[:7])
    assert np.flatnonzero(given == EVAL).tolist() == list(range(7))
    assert np.array_equal(split_videos(ids[::-1], 0.3, 0.1, 5, None), part[::-1])

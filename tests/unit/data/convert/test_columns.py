from __future__ import annotations

from typing import Any

import pytest

from vidsim.common.errors import UserError
from vidsim.data.convert.columns import CellError, ColumnMap


def columns(**options: Any) -> ColumnMap:
    defaults: dict[str, Any] = {
        "id": "id",
        "title": "title",
        "asr": ("asr",),
        "tags": ("tags",),
        "category": "category",
        "feature_id": "id",
    }
    return ColumnMap(**(defaults | options))


def test_converts_a_row() -> None:
    row = {"id": 7, "title": ["a", "b"], "asr": None, "tags": "x, y,,x ", "category": "3", "other": 1.5}
    mapped = columns(id_prefix="en-")
    assert mapped.convert(row) == (
        {"id": "en-7", "title": "a b", "asr": "", "tags": ["x", "y"], "category": 3},
        "7",
    )
    assert mapped.num_repeated_tags == 1


def test_joins_several_columns() -> None:
    mapped = columns(asr=("speech", "ocr"), tags=("tags", "genres"), tag_separator="|")
    row = {"id": "a", "speech": ["one", "", "two"], "ocr": "three", "tags": ["p, q", 5], "genres": "r|p, q"}
    video, _ = mapped.convert(row)
    assert (video["asr"], video["tags"]) == ("one two three", ["p, q", "5", "r"])


def test_features_may_go_by_another_column() -> None:
    assert columns(feature_id="clip", id_prefix="zh-").convert({"id": "a", "clip": "c"})[1] == "c"
    with pytest.raises(CellError, match="is missing"):
        columns(feature_id="clip").convert({"id": "a"})


@pytest.mark.parametrize(
    ("category", "expected"),
    [(None, None), ("", None), (4, 4), (4.0, 4), ("4", 4), ("-1", -1), ("3.0", 3), (str(2**53 + 1), 2**53 + 1)],
)
def test_reads_categories(category: Any, expected: int | None) -> None:
    assert columns().convert({"id": "a", "category": category})[0]["category"] == expected


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({}, "id"),
        ({"id": ""}, "id"),
        ({"id": 1.5}, "id"),
        ({"id": True}, "id"),
        ({"id": "a", "title": 1.5}, "title"),
        ({"id": "a", "title": {"en": "x"}}, "title"),
        ({"id": "a", "asr": [["x"]]}, "asr"),
        ({"id": "a", "tags": 5}, "tags"),
        ({"id": "a", "tags": [None]}, "tags"),
        ({"id": "a", "category": "news"}, "category"),
        ({"id": "a", "category": 1.5}, "category"),
        ({"id": "a", "category": float("inf")}, "category"),
        ({"id": "a", "category": float("nan")}, "category"),
        ({"id": "a", "category": True}, "category"),
    ],
)
def test_a_bad_cell_is_named(row: dict[str, Any], column: str) -> None:
    with pytest.raises(CellError) as caught:
        columns().convert(row)
    assert caught.value.column == column
    assert str(caught.value.at("videos.csv", 9)).startswith(f"videos.csv, line 9, field '{column}': ")


def test_knows_whether_there_are_tags_at_all() -> None:
    mapped = columns()
    mapped.convert({"id": "a"})
    assert not mapped.has_tags
    mapped.convert({"id": "b", "tags": None})
    assert mapped.has_tags


def test_a_named_column_that_no_row_has_is_refused() -> None:
    mapped = columns(title="titel", optional=frozenset({"asr", "tags", "category"}))
    mapped.convert({"id": "a", "title": "x"})
    with pytest.raises(UserError, match=r"field 'titel': no row has this column. Fix: name one of: id, title"):
        mapped.check_met("videos.csv")
    mapped.convert({"id": "b", "titel": "x"})
    mapped.check_met("videos.csv")

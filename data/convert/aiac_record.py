"""One record of the competition's TFRecords to one video row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from vidsim.data import schema
from vidsim.data.rows import FieldError
from vidsim.data.tf_example import FeatureValues

FEATURES = {
    schema.ID: "id",
    schema.TITLE: "title",
    schema.ASR: "asr_text",
    schema.TAGS: "tag_id",
    schema.CATEGORY: "category_id",
    schema.FRAMES: "frame_feature",
}
"""Column of a video row -> name of the feature, which error messages use."""

_KIND_NAMES = {bytes: "bytes", int: "int64", float: "float"}
Value = TypeVar("Value", bytes, int)


def to_row(features: Mapping[str, FeatureValues], *, frame_dim: int, needs_tags: bool) -> dict[str, Any]:
    """Decode a record's features; the shard writer checks ids and numbers further.

    Args:
        features: What `parse_example` gave.
        frame_dim: Width of a frame feature; a frame is that many float16, little-endian.
        needs_tags: Whether `tag_id` and `category_id` must be there (not in the test sets).

    Raises:
        FieldError: A missing feature, another type, number of values, frame width, or text that is no UTF-8.
    """
    frames = _values(features, "frame_feature", bytes)
    for number, frame in enumerate(frames):
        if len(frame) != 2 * frame_dim:
            raise FieldError(
                "frame_feature",
                f"frame {number} has {len(frame):,} bytes, {frame_dim} float16 take {2 * frame_dim:,}",
                "check --frame_dim",
            )
    tags: list[int] = []
    category: list[int] = []
    if needs_tags or "tag_id" in features:
        tags = _values(features, "tag_id", int)
    if needs_tags or "category_id" in features:
        category = _values(features, "category_id", int)
        if len(category) > 1:
            raise FieldError("category_id", f"holds {len(category)} values, one expected")
    return {
        schema.ID: _text(features, "id", required=True),
        schema.TITLE: _text(features, "title"),
        schema.ASR: _text(features, "asr_text"),
        schema.TAGS: [str(tag) for tag in tags],
        schema.CATEGORY: category[0] if category else None,
        schema.FRAMES: b"".join(frames),
        schema.count_column(schema.FRAMES): len(frames),
    }


def _values(features: Mapping[str, FeatureValues], name: str, kind: type[Value]) -> list[Value]:
    if name not in features:
        raise FieldError(name, "the feature is missing")
    values = features[name]
    if values and not isinstance(values[0], kind):
        raise FieldError(name, f"must be {_KIND_NAMES[kind]}, is {_KIND_NAMES[type(values[0])]}")
    return values  # type: ignore[return-value]  # a feature's values are of one type


def _text(features: Mapping[str, FeatureValues], name: str, *, required: bool = False) -> str:
    values = _values(features, name, bytes)
    if len(values) > 1 or (required and not values):
        raise FieldError(name, f"holds {len(values)} values, one expected")
    if not values:
        return ""
    try:
        return values[0].decode()
    except UnicodeDecodeError as error:
        raise FieldError(name, f"is not UTF-8 (byte {error.start} of {len(values[0])})") from None

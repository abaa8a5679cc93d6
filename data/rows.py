"""What makes a video row valid: types, text, tags, and the bytes of its vectors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vidsim.data import schema

# An Arrow `binary` cell and the batch around it are addressed by 31 bits.
_MAX_CELL_BYTES = 2**30
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_INT64 = np.iinfo(np.int64)
_SCAN = 2**17
_FLOAT16_EXPONENT = np.uint16(0x7C00)


class FieldError(Exception):
    """A bad cell, before it is known which record it stands in."""

    def __init__(self, field: str, message: str, fix: str | None = None) -> None:
        """Keep the parts."""
        super().__init__(message)
        self.field, self.message, self.fix = field, message, fix


def check_row(row: Mapping[str, Any], streams: Mapping[str, int]) -> dict[str, Any]:
    """Check a row and return its cells, one for each column; what is not given is empty.

    Args:
        row: See `ShardWriter.write`.
        streams: Width of a vector of each stream.

    Raises:
        FieldError: Names the field; the caller knows the record.
    """
    cells: dict[str, Any] = {
        schema.ID: _check_id(row.get(schema.ID)),
        schema.TITLE: _check_text(schema.TITLE, row.get(schema.TITLE, "")),
        schema.ASR: _check_text(schema.ASR, row.get(schema.ASR, "")),
        schema.TAGS: _check_tags(row.get(schema.TAGS, ())),
        schema.CATEGORY: _check_category(row.get(schema.CATEGORY)),
    }
    for name, dim in streams.items():
        count = schema.count_column(name)
        cells[name], cells[count] = _check_vectors(name, row.get(name, b""), row.get(count), dim)
    unknown = row.keys() - cells.keys()
    if unknown:
        raise FieldError(str(min(unknown, key=str)), "is no column of this data set", f"use {', '.join(cells)}")
    return cells


def _check_id(value: object) -> str:
    """Check a video id: text that can stand in a TSV column."""
    text = _check_text(schema.ID, value)
    if not text:
        raise FieldError(schema.ID, "is empty", "give every video an id")
    if not is_plain_line(text):
        raise FieldError(schema.ID, f"{text!r:.60} holds control characters or outer blanks")
    return text


def is_plain_line(text: str) -> bool:
    """Whether text can be a field of a TSV file: not empty, no control characters, no outer blanks."""
    return bool(text) and text == text.strip() and not _CONTROL.search(text)


def _check_text(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise FieldError(field, f"must be text, is {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise FieldError(
            field, f"holds a lone surrogate at character {error.start}", "decode the source as UTF-8"
        ) from None
    return value


def _check_tags(value: object) -> list[str]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise FieldError(schema.TAGS, f"must be a list of text, is {type(value).__name__}")
    for tag in value:
        _check_text(schema.TAGS, tag)
        if not is_plain_line(tag):
            raise FieldError(schema.TAGS, f"the tag {tag!r:.60} is empty or holds control characters or outer blanks")
    return list(value)


def _check_category(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise FieldError(schema.CATEGORY, f"must be a whole number or null, is {type(value).__name__}")
    if not _INT64.min <= value <= _INT64.max:
        raise FieldError(schema.CATEGORY, f"{value} does not fit 64 bits")
    return int(value)


def _check_vectors(stream: str, value: object, num: object, dim: int) -> tuple[bytes, int]:
    """Check a stream's cell: its byte length against `num` and `dim`, and that every number is finite."""
    if isinstance(value, np.ndarray):
        if value.dtype != np.float16 or value.ndim != 2 or value.shape[1] != dim:
            raise FieldError(stream, f"must be float16 [n, {dim}], is {value.dtype} {list(value.shape)}")
        num = len(value) if num is None else num
        data = value.astype("<f2", copy=False).tobytes()
    elif isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
    else:
        raise FieldError(stream, f"must be bytes or a float16 array, is {type(value).__name__}")
    count = schema.count_column(stream)
    if num is None and not data:
        num = 0
    if isinstance(num, bool) or not isinstance(num, int | np.integer):
        raise FieldError(count, f"must be a whole number, is {type(num).__name__}")
    if num < 0:
        raise FieldError(count, f"is {num}, must not be negative")
    if len(data) > _MAX_CELL_BYTES:
        raise FieldError(stream, f"{len(data):,} bytes in one video, the limit is {_MAX_CELL_BYTES:,}")
    if len(data) != num * dim * 2:
        raise FieldError(
            stream,
            f"{len(data)} bytes, {num} vectors of {dim} float16 take {num * dim * 2}",
            "check the width of the features (--frame_dim)" if stream == schema.FRAMES else None,
        )
    bad = first_non_finite(np.frombuffer(data, np.uint16))
    if bad is not None:
        raise FieldError(stream, f"vector {bad // dim}, component {bad % dim} is not finite")
    return data, int(num)


def first_non_finite(bits: npt.NDArray[np.uint16]) -> int | None:
    """Index of the first NaN or infinity among float16 numbers, given as bits (faster than `isfinite`)."""
    for start in range(0, len(bits), _SCAN):  # in pieces that stay in the cache
        bad = (bits[start : start + _SCAN] & _FLOAT16_EXPONENT) == _FLOAT16_EXPONENT
        if bad.any():
            return start + int(bad.argmax())
    return None

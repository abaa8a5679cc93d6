"""Dirty rows for a generated competition: one of each kind, each with the place where it was put.

A check of the data that runs over such a competition must name every one of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vidsim.data.tf_example import Features, encode_example
from vidsim.data.tfrecord import HEADER_LENGTH, frame_record

PLANTED_FILE = "planted_errors.json"

# Kind -> the field at fault. Each is one more record between clean ones; nothing clean is lost.
_RECORD_KINDS: dict[str, str | None] = {
    "missing_title": "title",
    "integer_id": "id",
    "empty_id": "id",
    "two_titles": "title",
    "title_not_utf8": "title",
    "asr_not_utf8": "asr_text",
    "text_tags": "tag_id",
    "two_categories": "category_id",
    "float_frames": "frame_feature",
    "narrow_frame": "frame_feature",
    "nan_in_frame": "frame_feature",
    "infinity_in_frame": "frame_feature",
    "not_an_example": None,
    "data_checksum": None,
    "duplicate_id_same_file": "id",
    "duplicate_id_other_file": "id",
}


@dataclass(frozen=True, kw_only=True)
class Planted:
    """One dirty row.

    Attributes:
        kind: What is wrong.
        file: Path inside the competition folder.
        record: Number of the record (from 0) or of the line (from 1); None for a whole file.
        field: Feature or column at fault; None where the record as a whole cannot be read.
    """

    kind: str
    file: str
    record: int | None
    field: str | None

    def to_json(self) -> dict[str, str | int | None]:
        """For `planted_errors.json`."""
        return dataclasses.asdict(self)


def plan_records(files: Sequence[tuple[str, int]]) -> list[Planted]:
    """Spread the dirty records over the pointwise files, given as (name, clean records).

    The last file ends with one more, whose length is damaged: no record after it could be found.
    """
    planted = []
    num_dirty = [0] * len(files)

    def plant(kind: str, field: str | None, index: int) -> None:
        name, num_clean = files[index]
        # Clean and dirty records take turns, starting with a clean one, while clean ones last.
        record = num_dirty[index] + min(num_clean, num_dirty[index] + 1)
        planted.append(Planted(kind=kind, file=name, record=record, field=field))
        num_dirty[index] += 1

    for number, (kind, field) in enumerate(_RECORD_KINDS.items()):
        if kind == "duplicate_id_other_file":
            if len(files) > 1:
                plant(kind, field, 1)
            continue
        plant(kind, field, number % len(files))
    name, num_clean = files[-1]
    planted.append(Planted(kind="length_checksum", file=name, record=num_clean + num_dirty[-1], field=None))
    return planted


def plan_truncation(name: str, num_clean: int) -> Planted:
    """A last record that is cut off."""
    return Planted(kind="truncated", file=name, record=num_clean, field=None)


def insert_dirty_records(
    clean: Iterable[Features], planted: Sequence[Planted], extra: Features, first_id: bytes, other_id: bytes
) -> Iterator[bytes]:
    """Frames of a file: the clean records, with the planted ones at their places.

    Args:
        clean: Features of the clean records.
        planted: The dirty records of this file.
        extra: Features of a clean record with an id that no other has; the dirty ones are made from it.
        first_id: Id of this file's first record.
        other_id: Id of another file's first record.
    """
    waiting = sorted(planted, key=lambda item: item.record or 0)
    count = 0

    def due() -> Iterator[bytes]:
        nonlocal count
        while waiting and waiting[0].record == count:
            yield _dirty_frame(waiting.pop(0).kind, extra, first_id, other_id)
            count += 1

    for features in clean:
        yield from due()
        yield frame_record(encode_example(features))
        count += 1
    yield from due()


def _dirty_frame(kind: str, extra: Features, first_id: bytes, other_id: bytes) -> bytes:
    features = dict(extra)
    frames = [value for value in extra["frame_feature"] if isinstance(value, bytes)]
    match kind:
        case "missing_title":
            del features["title"]
        case "integer_id":
            features["id"] = [1234567890]
        case "empty_id":
            features["id"] = [b""]
        case "two_titles":
            features["title"] = [b"one", b"two"]
        case "title_not_utf8":
            features["title"] = [b"\xe6\xa0"]
        case "asr_not_utf8":
            features["asr_text"] = [b"good \xff bad"]
        case "text_tags":
            features["tag_id"] = [b"17"]
        case "two_categories":
            features["category_id"] = [101, 102]
        case "float_frames":
            features["frame_feature"] = [0.5, 0.25]
        case "narrow_frame":
            features["frame_feature"] = [*frames[:-1], frames[-1][:-2]]
        case "nan_in_frame" | "infinity_in_frame":
            value = np.float16("nan" if kind == "nan_in_frame" else "inf").tobytes()
            features["frame_feature"] = [*frames[:-1], frames[-1][:-2] + value]
        case "not_an_example":
            return frame_record(b"\x0a\x7fnot an example")
        case "duplicate_id_same_file":
            features["id"] = [first_id]
        case "duplicate_id_other_file":
            features["id"] = [other_id]
    frame = bytearray(frame_record(encode_example(features)))
    match kind:
        case "data_checksum":
            frame[HEADER_LENGTH + 20] ^= 0x10
        case "length_checksum":
            frame[8] ^= 0x01
        case "truncated":
            del frame[len(frame) // 2 :]
    return bytes(frame)


def dirty_labels(lines: list[str], name: str) -> list[Planted]:
    """Put one line of each kind at the end of `label.tsv`; returns what was put where."""
    left, right, _ = lines[0].split("\t")
    dirty = [
        ("pair_without_video", "id2", f"{left}\t1234567890\t0.5"),
        ("score_too_high", "score", f"{left}\t{right}\t1.05"),
        ("score_not_a_number", "score", f"{left}\t{right}\thigh"),
        ("score_nan", "score", f"{left}\t{right}\tnan"),
        ("two_columns", None, f"{left}\t{right}"),
    ]
    planted = []
    for kind, field, line in dirty:
        lines.append(line)
        planted.append(Planted(kind=kind, file=name, record=len(lines), field=field))
    return planted


def dirty_tags(lines: list[str], name: str) -> list[Planted]:
    """Put one line of each kind at the end of `tag_list.txt`; returns what was put where."""
    planted = []
    for kind, line in (("tag_not_a_number", "sport"), ("duplicate_tag", lines[0]), ("blank_tag", "")):
        lines.append(line)
        planted.append(Planted(kind=kind, file=name, record=len(lines), field="tag"))
    return planted

"""The competition's text files: `label.tsv` and `tag_list.txt`, checked line by line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vidsim.common.errors import UserError
from vidsim.data.pairs import Pairs
from vidsim.data.rows import is_plain_line
from vidsim.data.tags import TagVocabulary

OnBad = Callable[[UserError], None]
"""What is done with a bad line: raise its error, or note it and go on."""


def read_labels(path: Path, ids: pa.ChunkedArray, on_bad: OnBad, *, hint: str = "") -> Pairs:
    """Read `query, candidate, score` lines without a header, and check that both videos are there.

    Args:
        path: `label.tsv`.
        ids: Ids of the pairwise videos.
        on_bad: Called with the error of each bad line, which is left out if it returns.
        hint: Added to the message about a video that is not there.

    Raises:
        UserError: What `on_bad` raises; a file that cannot be read.
    """
    id1: list[str] = []
    id2: list[str] = []
    scores: list[float] = []
    numbers: list[int] = []
    for number, line in _lines(path, on_bad):
        try:
            left, right, score = _parse_label(line, path, number)
        except UserError as error:
            on_bad(error)
            continue
        id1.append(left)
        id2.append(right)
        scores.append(score)
        numbers.append(number)
    known = ids.combine_chunks()
    there = {
        name: pc.is_in(pa.array(values, pa.string()), value_set=known).to_numpy(zero_copy_only=False)
        for name, values in (("id1", id1), ("id2", id2))
    }
    for row in np.flatnonzero(~(there["id1"] & there["id2"])).tolist():
        name, id = ("id2", id2[row]) if there["id1"][row] else ("id1", id1[row])
        message = f"the video {id} is not among the pairwise videos{hint}"
        on_bad(UserError(message, file=path, record=numbers[row], field=name))
    pairs = Pairs(id1, id2, np.array(scores, dtype=np.float64))
    return pairs.take(np.flatnonzero(there["id1"] & there["id2"]))


def _parse_label(line: str, path: Path, number: int) -> tuple[str, str, float]:
    fields = line.split("\t")
    if len(fields) != 3:
        message = f"{len(fields)} fields, 3 expected: query, candidate, score, with tabs between"
        raise UserError(message, file=path, record=number)
    for name, value in zip(("id1", "id2"), fields, strict=False):
        if not is_plain_line(value):
            message = f"{value!r:.60} is no id" if value else "is empty"
            raise UserError(message, file=path, record=number, field=name)
    try:
        score = float(fields[2])
    except ValueError:
        message = f"{fields[2]!r:.40} is no number"
        raise UserError(message, file=path, record=number, field="score") from None
    if not (math.isfinite(score) and 0 <= score <= 1):
        raise UserError(f"is {score:g}, must be from 0 to 1", file=path, record=number, field="score")
    return fields[0], fields[1], score


def read_tag_list(path: Path, on_bad: OnBad) -> TagVocabulary:
    """Read the tag list: a whole number in each line, before the first tab if there is one.

    Args:
        path: `tag_list.txt`.
        on_bad: Called with the error of each bad line, which is left out if it returns.

    Raises:
        UserError: What `on_bad` raises; a file that cannot be read.
    """
    line_of: dict[str, int] = {}
    for number, line in _lines(path, on_bad):
        tag = line.partition("\t")[0]
        message = None
        if not tag.strip():
            message = "is blank"
        elif not (tag.isascii() and tag.removeprefix("-").isdecimal() and str(int(tag)) == tag):
            message = f"{tag!r:.40} is no tag id, which is a whole number"
        elif tag in line_of:
            message = f"the tag {tag} stands already in line {line_of[tag]}"
        if message:
            on_bad(UserError(message, file=path, record=number, field="tag", fix="remove or mend the line"))
            continue
        line_of[tag] = number
    return TagVocabulary(tuple(line_of))


def _lines(path: Path, on_bad: OnBad) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, from 1; what is no UTF-8 goes to `on_bad`, and so does a file without lines."""
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield number, line.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    on_bad(UserError(f"is not UTF-8 text (byte {error.start})", file=path, record=number))
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", file=path) from None
    if not number:
        on_bad(UserError("is empty", file=path, fix="copy the file again"))

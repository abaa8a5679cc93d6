"""Several data sets as one table of rows, and which of them may be trained on.

Rows that are held out for evaluation are chosen by a hash of their id, so the choice does not depend on the order of
the data or on what else is in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from vidsim.common.errors import UserError
from vidsim.data.arrow import Videos, concat_videos, open_videos
from vidsim.data.ids import read_ids
from vidsim.data.pairs import read_pairs


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Memory-mapped videos of all data sets of a run.

    Attributes:
        videos: All rows, data set after data set.
        trainable: For each folder its row numbers in `videos` that may be trained on, int64 [n].
        held_out: Row numbers that are only evaluated on, int64 [n].
        num_excluded: Rows of excluded videos.
    """

    videos: Videos
    trainable: dict[str, np.ndarray]
    held_out: np.ndarray
    num_excluded: int


def open_corpus(folders: Iterable[str], *, excluded: set[str], held_out_fraction: float) -> Corpus:
    """Open data sets and set rows apart.

    Args:
        folders: Data set folders; one that is named twice is opened once.
        excluded: Video ids that must not be trained on.
        held_out_fraction: Share of the other rows that is only evaluated on.

    Raises:
        UserError: A folder cannot be opened, or nothing is left to train on.
    """
    names = list(dict.fromkeys(folders))
    opened = [open_videos(name) for name in names]
    videos = concat_videos(opened)
    trainable: dict[str, np.ndarray] = {}
    held_out: list[np.ndarray] = []
    num_excluded = start = 0
    for name, part in zip(names, opened, strict=True):
        is_excluded, is_held_out = _set_apart(part.ids(), excluded, held_out_fraction)
        rows = np.arange(start, start + len(part), dtype=np.int64)
        trainable[name] = rows[~is_excluded & ~is_held_out]
        held_out.append(rows[is_held_out & ~is_excluded])
        num_excluded += int(is_excluded.sum())
        start += len(part)
        if not len(trainable[name]):
            raise UserError(
                "no row is left to train on", file=name, fix="check data.exclude and data.held_out_fraction"
            )
    return Corpus(videos=videos, trainable=trainable, held_out=np.concatenate(held_out), num_excluded=num_excluded)


def _set_apart(ids: pa.ChunkedArray, excluded: set[str], fraction: float) -> tuple[np.ndarray, np.ndarray]:
    is_excluded = np.zeros(len(ids), dtype=bool)
    is_held_out = np.zeros(len(ids), dtype=bool)
    threshold = int(fraction * 2**32)
    position = 0
    for chunk in ids.chunks:
        for text in chunk.to_pylist():
            is_excluded[position] = text in excluded
            if threshold:
                digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
                is_held_out[position] = int.from_bytes(digest, "little") < threshold
            position += 1
    return is_excluded, is_held_out


def read_excluded(files: Sequence[str]) -> set[str]:
    """Video ids from files: `.txt` with an id a line, or pairs whose videos are meant.

    Raises:
        UserError: A file is missing, empty or malformed.
    """
    excluded: set[str] = set()
    for name in files:
        if Path(name).suffix == ".txt":
            excluded.update(read_ids(name))
        else:
            pairs = read_pairs(name, score_range=None)  # the scores are not used
            excluded.update(pairs.id1, pairs.id2)
    return excluded

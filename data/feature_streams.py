"""Precomputed features of videos, one vector a video and stream, held as they lie on the disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vidsim.common.errors import UserError
from vidsim.common.progress import progress
from vidsim.data.cowatch_graph import Integers
from vidsim.data.embeddings import positions, read_embeddings, shown
from vidsim.data.ids import read_ids

_BLOCK = 16_384


@dataclass(frozen=True, eq=False)
class FeatureStreams:
    """Vectors of the same V videos in several streams.

    Attributes:
        ids: V ids, in the order of the first stream.
        arrays: Of each stream float [N_s, D_s], possibly memory-mapped, or what reads like one.
        rows: Of each stream int64 [V], where each video stands in its array.
    """

    ids: list[str]
    arrays: dict[str, npt.NDArray[Any]]
    rows: dict[str, Integers]

    @property
    def dims(self) -> dict[str, int]:
        """Width of each stream."""
        return {name: int(array.shape[1]) for name, array in self.arrays.items()}

    def take(self, videos: Integers) -> dict[str, npt.NDArray[np.float32]]:
        """Vectors of some videos, float32 [len(videos), D_s] of each stream."""
        return {name: array[self.rows[name][videos]].astype(np.float32) for name, array in self.arrays.items()}

    def blocks(self, videos: Integers) -> Iterator[tuple[Integers, dict[str, npt.NDArray[np.float32]]]]:
        """All of these videos, some thousands at a time."""
        for start in range(0, len(videos), _BLOCK):
            part = videos[start : start + _BLOCK]
            yield part, self.take(part)

    def statistics(self, videos: Integers) -> dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
        """Mean and standard deviation of each dimension over these videos, float32 [D_s] twice for each stream."""
        sums = {name: np.zeros((2, dim)) for name, dim in self.dims.items()}
        shift = {name: vectors[0].astype(np.float64) for name, vectors in self.take(videos[:1]).items()}
        for _, block in self.blocks(videos):
            for name, vectors in block.items():
                moved = vectors - shift[name]  # sums of squares about a typical value keep their digits
                sums[name] += [moved.sum(axis=0), np.square(moved).sum(axis=0)]
        result = {}
        for name, (total, squares) in sums.items():
            mean = total / len(videos)
            variance = np.maximum(squares / len(videos) - mean**2, 0)
            result[name] = ((mean + shift[name]).astype(np.float32), np.sqrt(variance).astype(np.float32))
        return result

    def joined(self, training: Integers) -> npt.NDArray[np.float32]:
        """All videos' features as one vector each, float32 [V, sum of D_s].

        Every dimension is standardised as among the training videos, then every stream brought to length 1.
        """
        parts = []
        for name, (mean, deviation) in self.statistics(training).items():
            vectors = self.arrays[name][self.rows[name]].astype(np.float32) - mean
            vectors /= np.where(deviation == 0, np.float32(1), deviation)
            parts.append(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))
        return np.concatenate(parts, axis=1)


def open_features(sources: Mapping[str, str], ids: str | None = None) -> FeatureStreams:
    """Open the streams and check every number.

    Args:
        sources: Stream name to a `.npy` array [V, D], one of frames [V, F, D], of which the means are taken, or an
            embeddings folder or `.parquet`.
        ids: Text file or data set with the ids of the rows of `.npy` arrays; None: row numbers are the ids.

    Raises:
        UserError: Nothing readable, arrays of another length than the ids, a value that is not finite, a video that
            one stream has and another has not; names it.
    """
    row_ids = read_ids(ids) if ids is not None else None
    order: list[str] | None = None
    first = ""
    arrays: dict[str, npt.NDArray[Any]] = {}
    rows: dict[str, Integers] = {}
    for name, source in sources.items():
        if not name.isidentifier():
            raise UserError(f"{name!r} is no name of a stream", field="features", fix="use letters, digits and _")
        own, arrays[name] = _open(Path(source), row_ids)
        if order is None:
            order, first = own, source
        rows[name] = positions(order, own)
        lacking = [order[i] for i in np.flatnonzero(rows[name] < 0).tolist()]
        if lacking or len(own) != len(order):
            extra = [own[i] for i in np.flatnonzero(positions(own, order) < 0).tolist()]
            what = f"lacks {len(lacking):,} ({shown(lacking)}) and has {len(extra):,} others ({shown(extra)})"
            raise UserError(
                f"of the {len(order):,} videos of {first} it {what}",
                file=source,
                field=f"features.{name}",
                fix="give every stream the same videos",
            )
        _check_finite(arrays[name], own, Path(source), name)
    if order is None:
        raise UserError("no stream is given", field="features", fix="name at least one: visual: features.npy")
    return FeatureStreams(order, arrays, rows)


class _FrameMeans:
    """An array [N, F, D] on the disk, read as the means over its frames, float32 [N, D]."""

    def __init__(self, frames: npt.NDArray[Any]) -> None:
        """Keep the array."""
        self._frames = frames
        self.shape = (frames.shape[0], frames.shape[2])

    def __len__(self) -> int:
        """N."""
        return self.shape[0]

    def __getitem__(self, rows: Any) -> npt.NDArray[np.float32]:
        """Means of some rows, some hundred at a time."""
        chosen = np.arange(len(self))[rows]
        means = np.empty((len(chosen), self.shape[1]), dtype=np.float32)
        for start in range(0, len(chosen), 256):
            part = chosen[start : start + 256]
            means[start : start + 256] = self._frames[part].mean(axis=1, dtype=np.float32)
        return means


def _open(path: Path, row_ids: list[str] | None) -> tuple[list[str], Any]:
    if path.suffix != ".npy":
        embeddings = read_embeddings(path)
        return embeddings.ids, embeddings.vectors
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"is not a readable array ({error})", file=path) from None
    if array.ndim not in (2, 3) or not np.issubdtype(array.dtype, np.floating) or 0 in array.shape:
        what = f"must be floats [videos, width] or [videos, frames, width], is {array.dtype} {list(array.shape)}"
        raise UserError(what, file=path)
    if row_ids is not None and len(row_ids) != len(array):
        what = f"has {len(array):,} rows, but there are {len(row_ids):,} ids"
        raise UserError(what, file=path, fix="name the ids of these rows with ids")
    return row_ids or [str(row) for row in range(len(array))], array if array.ndim == 2 else _FrameMeans(array)


def _check_finite(array: npt.NDArray[Any], ids: list[str], path: Path, name: str) -> None:
    for start in progress(range(0, len(array), _BLOCK), desc=f"checking {name}", unit="blocks"):
        bad = np.flatnonzero(~np.isfinite(array[start : start + _BLOCK].astype(np.float32)).all(axis=1))
        if len(bad):
            row = start + int(bad[0])
            what = f"the vector of video {ids[row]} holds NaN or infinity"
            raise UserError(what, file=path, record=row, fix="extract the features of this video again")

"""Extract the features of frame pictures once, into a stacked array that several conversions share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from vidsim.common.progress import progress
from vidsim.data.convert.features import Vectors, write_stack
from vidsim.data.video.extract import FeatureExtractor
from vidsim.data.video.frames import FrameFolder


def extract_stack(
    frames: FrameFolder, extractor: FeatureExtractor, out: str | Path, ids: Iterable[str] | None = None
) -> int:
    """Write `out` (`.npy`) and its index beside it, for `vidsim convert table --features`.

    Args:
        frames: The pictures.
        extractor: What makes vectors of them.
        out: The array file.
        ids: Which videos, in this order; None takes all, in the order of their ids.

    Returns:
        Number of frames.

    Raises:
        UserError: A picture that cannot be decoded.
        KeyError: An id without frames.
    """
    chosen = sorted(frames) if ids is None else list(ids)

    def vectors() -> Iterator[tuple[str, Vectors]]:
        for id in progress(chosen, desc="extract", unit="videos"):
            yield id, extractor(frames.read(id))

    return write_stack(out, vectors(), dim=extractor.dim, extractor=extractor.name)

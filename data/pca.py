"""Principal directions of each stream of features (block PCA), exact and in one pass over the videos."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

from vidsim.data.cowatch_graph import Integers
from vidsim.data.feature_streams import FeatureStreams

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Block:
    """Centre and principal directions of one stream.

    Attributes:
        mean: float64 [D].
        directions: float64 [D, C], orthonormal columns, those of largest variance first, signs fixed.
        variances: float64 [C], along each direction.
        explained: Share of the stream's variance along all of them, 0 to 1.
    """

    mean: Float64
    directions: Float64
    variances: Float64
    explained: float

    @property
    def scale(self) -> float:
        """What brings the mean squared length of the projected vectors to 1; 0 where they never vary."""
        total = float(self.variances.sum())
        return total**-0.5 if total > 0 else 0.0


def block_pca(features: FeatureStreams, videos: Integers, num_directions: int) -> dict[str, Block]:
    """Principal directions of every stream over these videos.

    Args:
        features: The streams.
        videos: int64 [N], those that may be fitted on.
        num_directions: At most so many of each stream; those without variance are never kept, but for the first.

    Returns:
        A block for each stream.
    """
    # Moments about a typical vector keep their digits where the mean is far from 0.
    origin = {name: vectors[0].astype(np.float64) for name, vectors in features.take(videos[:1]).items()}
    sums = {name: np.zeros(dim) for name, dim in features.dims.items()}
    squares = {name: np.zeros((dim, dim)) for name, dim in features.dims.items()}
    for _, block in features.blocks(videos):
        for name, vectors in block.items():
            moved = vectors - origin[name]
            sums[name] += moved.sum(axis=0)
            squares[name] += moved.T @ moved
    result = {}
    for name, dim in features.dims.items():
        mean = sums[name] / len(videos)
        covariance = squares[name] / len(videos) - np.outer(mean, mean)
        values, directions = eigh(covariance, subset_by_index=[max(dim - num_directions, 0), dim - 1])
        values = np.maximum(values[::-1], 0.0)
        kept = max(int((values > values[0] * dim * np.finfo(np.float32).eps).sum()), 1)
        values, directions = values[:kept], directions[:, ::-1][:, :kept]
        directions = directions * np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(kept)])
        total = max(float(np.trace(covariance)), np.finfo(np.float64).tiny)
        result[name] = Block(mean + origin[name], directions, values, min(float(values.sum()) / total, 1.0))
    return result

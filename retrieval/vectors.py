"""Unit vectors and their cosines, computed in one way by everything that searches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from vidsim.common.errors import UserError
from vidsim.data.embeddings import Embeddings, shown

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

SIMILARITY: Final = "similarity"
"""In the metadata of embeddings: `dot` where lengths mean something, as of `vidsim factors`."""
_SMALLEST_NORM = 1e-6


def require_cosine(embeddings: Embeddings) -> Embeddings:
    """The same embeddings, unless they are for dot products.

    Raises:
        UserError: The lengths of the vectors mean something.
    """
    if embeddings.metadata.get(SIMILARITY) == "dot":
        raise UserError(
            "the lengths of its vectors mean something, which cosines and an index lose",
            file=embeddings.name,
            fix="use them with `vidsim recommend`",
        )
    return embeddings


def unit_vectors(vectors: npt.ArrayLike, names: Sequence[str]) -> Float32:
    """Vectors of norm 1, float32 [N, D]; without a copy if they are that already.

    Args:
        vectors: float [N, D], finite, no zero rows.
        names: N names for messages.

    Raises:
        UserError: Not two-dimensional, nothing there, zero or non-finite vectors (how many, the first five).
    """
    array = np.ascontiguousarray(vectors, dtype=np.float32)
    if array.ndim != 2 or not array.size:
        raise UserError(f"vectors must be [N, D], not {list(array.shape)}")
    norms = np.sqrt(np.einsum("nd,nd->n", array, array, dtype=np.float64))
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > _SMALLEST_NORM))).tolist()
    if bad:
        message = f"{len(bad):,} vectors are zero or not finite: {shown([names[i] for i in bad])}"
        raise UserError(message, fix="embed them again, or leave them out")
    if np.abs(norms - 1).max() < _SMALLEST_NORM:
        return array
    return array / norms[:, None].astype(np.float32)


def unit_queries(queries: npt.ArrayLike, k: int, dim: int, name: str | None = None) -> Float32:
    """What a search is asked, as unit vectors float32 [Q, D].

    Args:
        queries: float [Q, D].
        k: How many videos are wanted.
        dim: Width of the vectors that are searched.
        name: What is searched, for messages.

    Raises:
        UserError: k < 1, another width, a zero or non-finite query.
    """
    if k < 1:
        raise UserError(f"must be at least 1, not {k}", field="-k", fix="ask for one or more")
    vectors = unit_vectors(queries, [f"query {number}" for number in range(len(np.asarray(queries)))])
    if vectors.shape[1] != dim:
        raise UserError(f"queries have width {vectors.shape[1]}, the index {dim}", file=name)
    return vectors


def exact_cosines(near: Float32, query: Float32) -> Float64:
    """Cosines of float32 [n, D] with a unit vector float32 [D], in float64, whatever the size of the block."""
    wide = near.astype(np.float64)
    cosines = np.einsum("nd,d->n", wide, query.astype(np.float64))
    cosines /= np.sqrt(np.einsum("nd,nd->n", wide, wide))
    return np.clip(cosines, -1, 1)

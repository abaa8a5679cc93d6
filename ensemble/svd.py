"""Exact rank-d projection of weighted, concatenated embeddings.

`[√w1 e1, √w2 e2, ...]` of unit vectors has as cosine the weighted mean of the members' cosines (the weights
sum to 1). Its best rank-d approximation is the projection on the d leading eigenvectors of the D x D Gram
matrix `X^T X`, accumulated over blocks of rows: exact like a full SVD of X, without a second copy of X.
The matrix is not centred: a shift would change the cosines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh
from scipy.linalg.blas import dsyrk

from vidsim.common.errors import UserError
from vidsim.data.embeddings import Embeddings, shown

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

_BLOCK_ROWS = 1024  # of 1536 float64: what a core's cache still holds
# Norms below this are rounding: the direction of such a vector means nothing.
_SMALLEST_NORM = 1e-6


def check_no_zeros(embeddings: Embeddings) -> None:
    """Refuse vectors without a direction, as their cosines mean nothing.

    Raises:
        UserError: Zero vectors: how many, and the first five ids.
    """
    norms = np.sqrt(np.einsum("nd,nd->n", embeddings.vectors, embeddings.vectors, dtype=np.float64))
    zeros = [embeddings.ids[i] for i in np.flatnonzero(norms < _SMALLEST_NORM).tolist()]
    if zeros:
        message = f"{len(zeros):,} embeddings are zero vectors, which have no cosine: {shown(zeros)}"
        raise UserError(message, file=embeddings.name, fix="embed these videos again, or leave them out")


def check_not_collapsed(embeddings: Embeddings) -> None:
    """Refuse a model that gives every video the same direction.

    Raises:
        UserError: All cosines are 1 (within rounding).
    """
    rows = next(concat_blocks([embeddings.vectors[:1]], [1.0]))
    cosines = (block @ rows[0] for block in concat_blocks([embeddings.vectors], [1.0]))
    if len(embeddings) > 1 and all(part.min() > 1 - 1e-6 for part in cosines):
        message = f"all {len(embeddings):,} embeddings point the same way (a collapsed model)"
        raise UserError(message, file=embeddings.name, fix="leave this member out")


def concat_blocks(
    members: Sequence[Float32], weights: Sequence[float], dtype: npt.DTypeLike = np.float64
) -> Iterator[npt.NDArray[np.floating]]:
    """Blocks of rows of `[√w1 e1, √w2 e2, ...]`, each e an L2-normalised row of a member.

    Args:
        members: float32 [N, D_i] each, no zero rows.
        weights: One for each member, >= 0; with sum 1 every row has norm 1. Weight 0 leaves a member out.
        dtype: float64, or float32 where the rounding of the members themselves is good enough.

    Yields:
        float [n, D] with D the sum of the D_i of the others, in the order of the rows.
    """
    used = [(vectors, np.sqrt(weight)) for vectors, weight in zip(members, weights, strict=True) if weight > 0]
    dim = sum(vectors.shape[1] for vectors, _ in used)
    for start in range(0, len(members[0]), _BLOCK_ROWS):
        block = np.empty((min(_BLOCK_ROWS, len(members[0]) - start), dim), dtype)
        left = 0
        for vectors, scale in used:
            part = block[:, left : left + vectors.shape[1]]
            part[:] = vectors[start : start + len(block)]
            part *= (scale / np.sqrt(np.einsum("nd,nd->n", part, part)))[:, None]
            left += vectors.shape[1]
        yield block


def gram_matrix(blocks: Iterable[npt.NDArray[np.floating]]) -> Float64:
    """`X^T X` of the stacked blocks, float64 [D, D]; one triangle is computed, the other copied."""
    total: Float64 | None = None
    for block in blocks:
        if total is None:
            total = np.zeros((block.shape[1],) * 2, order="F")
        total = dsyrk(1.0, block.T, beta=1.0, c=total, overwrite_c=1)
    if total is None:
        raise UserError("there are no rows to fit on")
    above = np.triu(total)
    return above + np.triu(above, 1).T


def leading_directions(gram: Float64, rank: int) -> tuple[Float64, Float64]:
    """The eigenvectors with the largest eigenvalues, signs fixed so that runs agree.

    Args:
        gram: float64 [D, D], symmetric.
        rank: How many; at most D are there.

    Returns:
        Orthonormal columns float64 [D, min(rank, D)] and their eigenvalues (>= 0), largest first.
    """
    dim = len(gram)
    values, vectors = eigh(gram, subset_by_index=[max(dim - rank, 0), dim - 1])
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    largest = np.abs(vectors).argmax(axis=0)
    return vectors * np.sign(vectors[largest, np.arange(vectors.shape[1])]), values


def project(
    members: Sequence[Float32],
    weights: Sequence[float],
    components: npt.NDArray[np.floating],
    ids: Sequence[str],
) -> Float32:
    """Project the concatenation on the components and normalise again.

    Args:
        members: float32 [N, D_i] each.
        weights: One for each member.
        components: [D, d], orthonormal columns.
        ids: N ids, for messages.

    Returns:
        float32 [N, d] with rows of norm 1.

    Raises:
        UserError: Videos that lie outside of the space of the projection (how many, the first five ids).
    """
    directions = components.astype(np.float32)
    out = np.empty((len(members[0]), directions.shape[1]), np.float32)
    start = 0
    for block in concat_blocks(members, weights, np.float32):
        rows = block @ directions
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        lost = [ids[start + i] for i in np.flatnonzero(norms < _SMALLEST_NORM).tolist()]
        if lost:
            message = f"{len(lost):,} videos lie outside of the projection's {directions.shape[1]} dimensions"
            raise UserError(f"{message}: {shown(lost)}", fix="fit the projection on more videos, or raise --dim")
        out[start : start + len(rows)] = rows / norms
        start += len(rows)
    return out

"""Cosines of labelled pairs by embeddings."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vidsim.common.errors import UserError
from vidsim.data.embeddings import Embeddings, shown
from vidsim.data.pairs import Pairs

Float64 = npt.NDArray[np.float64]

_BLOCK_ROWS = 128  # two blocks of float64 stay in a core's cache


def pair_cosines(
    vectors: npt.NDArray[np.floating], rows1: npt.NDArray[np.int64], rows2: npt.NDArray[np.int64]
) -> Float64:
    """Cosine of row `rows1[i]` and row `rows2[i]`, float64 [N] in -1..1, computed in float64.

    Args:
        vectors: float [V, D], no zero rows among those asked for.
        rows1: int64 [N].
        rows2: int64 [N].
    """
    out = np.empty(len(rows1))
    for start in range(0, len(rows1), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        first, second = vectors[rows1[block]].astype(np.float64), vectors[rows2[block]].astype(np.float64)
        norms = np.einsum("nd,nd->n", first, first) * np.einsum("nd,nd->n", second, second)
        out[block] = np.einsum("nd,nd->n", first, second) / np.sqrt(norms)
    return np.clip(out, -1.0, 1.0)


def cosines_of_pairs(embeddings: Embeddings, pairs: Pairs) -> Float64:
    """Cosine of the two videos of each pair, float64 [N].

    Raises:
        UserError: Videos without an embedding, or with a zero vector (how many, the first five ids).
    """
    rows = embeddings.rows_of([*pairs.id1, *pairs.id2])
    rows1, rows2 = rows[: len(pairs)], rows[len(pairs) :]
    with np.errstate(invalid="ignore"):
        cosines = pair_cosines(embeddings.vectors, rows1, rows2)
    bad = np.isnan(cosines)
    if bad.any():
        suspects = np.unique([rows1[bad], rows2[bad]])
        zeros = [embeddings.ids[row] for row in suspects.tolist() if not embeddings.vectors[row].any()]
        message = f"{len(zeros):,} embeddings are zero vectors, which have no cosine: {shown(zeros)}"
        fix = "embed these videos again, or leave their pairs out"
        raise UserError(message, file=embeddings.name, fix=fix)
    return cosines

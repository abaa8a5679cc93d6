"""How good rankings are: NDCG@k, average precision, recall@k. numpy only, one value per query.

Every metric takes what was found (`ranked`: float [Q, K], the relevance of the items in the order in which they
were found) and what there was to find (`ideal`: float [Q, M], the relevances of all relevant items of each query in
any order, filled up with 0). `ranked_by_scores` and `ranked_by_rows` make them; `metrics_of_vectors` goes all the way
from embeddings, a block of queries at a time. An item is relevant if its
relevance is above 0; for another threshold give `ranked >= 4`, `ideal >= 4`. The mean over queries is the
usual figure (MAP); the values themselves are for intervals and paired comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from vidsim.common.errors import UserError

Float64 = npt.NDArray[np.float64]
_RESAMPLES: Final = 1000
_CONFIDENCE: Final = 0.95
Gain = Literal["exponential", "linear"]
_SCORES_AT_ONCE = 2**21


def ranked_by_scores(scores: npt.ArrayLike, relevance: npt.ArrayLike) -> Float64:
    """Relevance in the order of scores; among equal scores the less relevant come first.

    Args:
        scores: float [Q, N], the higher the better.
        relevance: float or bool [Q, N], which is also the `ideal` of the metrics.

    Returns:
        float64 [Q, N].

    Raises:
        UserError: Shapes differ, or a value is not finite.
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(relevance, dtype=np.float64)
    if values.ndim != 2 or values.shape != truth.shape:
        raise UserError(f"scores {list(values.shape)} and relevance {list(truth.shape)} must both be [Q, N]")
    if not (np.isfinite(values).all() and np.isfinite(truth).all()):
        raise UserError("a score or a relevance is not finite")
    return np.take_along_axis(truth, np.lexsort((truth, -values), axis=-1), axis=1)


def ranked_by_rows(rows: npt.ArrayLike, relevant: Sequence[Mapping[int, float]]) -> tuple[Float64, Float64]:
    """Relevance of found rows, and of all that there was to find.

    Args:
        rows: int [Q, K] from a search, the best first, -1 where nothing more was found.
        relevant: For each query, row to relevance above 0.

    Returns:
        `ranked` float64 [Q, K] and `ideal` float64 [Q, M].

    Raises:
        UserError: Not one mapping for each query, a row that was found twice, a relevance that is not above 0.
    """
    found = np.asarray(rows)
    if found.ndim != 2 or len(found) != len(relevant):
        raise UserError(f"rows {list(found.shape)} for {len(relevant)} queries")
    ranked = np.zeros(found.shape)
    ideal = np.zeros((len(relevant), max((len(one) for one in relevant), default=0)))
    for query, (listed, truth) in enumerate(zip(found.tolist(), relevant, strict=True)):
        there = [row for row in listed if row >= 0]
        if len(set(there)) != len(there):
            raise UserError("a row was found twice", record=query)
        if not all(value > 0 and np.isfinite(value) for value in truth.values()):
            raise UserError("a relevance is not above 0", record=query, fix="leave out what is not relevant")
        ranked[query] = [truth.get(row, 0.0) if row >= 0 else 0.0 for row in listed]
        ideal[query, : len(truth)] = list(truth.values())
    return ranked, ideal


def metrics_of_vectors(
    queries: npt.NDArray[np.float32],
    candidates: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    k: int,
) -> dict[str, Float64]:
    """NDCG@k, recall@k and average precision (over the whole list) of each query, by dot products.

    Equal scores count against the model: among them the irrelevant come first. Memory does not grow with the number
    of queries.

    Args:
        queries: float32 [Q, E].
        candidates: float32 [C, E].
        rows: int64 [M], ascending; positions of queries. Every query occurs.
        columns: int64 [M], positions of candidates; what is relevant to the query, all alike.
        k: At least 1.

    Returns:
        `ndcg@k`, `recall@k` and `map`, each float64 [Q] in [0, 1].

    Raises:
        UserError: A score is not finite, a query without relevant candidate, k < 1.
    """
    result: dict[str, list[Float64]] = {f"ndcg@{k}": [], f"recall@{k}": [], "map": []}
    block = max(_SCORES_AT_ONCE // max(len(candidates), 1), 1)
    for start in range(0, len(queries), block):
        scores = queries[start : start + block] @ candidates.T
        if not np.isfinite(scores).all():
            raise UserError("a score is not finite")
        first, last = np.searchsorted(rows, [start, start + len(scores)])
        ranked, ideal = _ranked_sparse(scores, rows[first:last] - start, columns[first:last])
        result[f"ndcg@{k}"].append(ndcg_at_k(ranked, ideal, k, gain="linear"))
        result[f"recall@{k}"].append(recall_at_k(ranked, ideal, k))
        result["map"].append(average_precision(ranked, ideal))
    return {name: np.concatenate(values) for name, values in result.items()}


def _ranked_sparse(
    scores: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """`ranked_by_scores` and `ideal` where few of many items are relevant: only their places are worked out."""
    counts = np.bincount(rows, minlength=len(scores))
    ranked = np.zeros(scores.shape, dtype=bool)
    ends = np.cumsum(counts)
    for query, (row, start, end) in enumerate(zip(np.sort(scores, axis=1), ends - counts, ends, strict=True)):
        hits = np.sort(scores[query, columns[start:end]])
        # Behind it, and level with it but relevant, or behind: all the others stand before it.
        level = np.arange(len(hits)) - np.searchsorted(hits, hits)
        ranked[query, len(row) - 1 - np.searchsorted(row, hits) - level] = True
    return ranked, np.arange(counts.max(initial=0)) < counts[:, None]


def ndcg_at_k(ranked: npt.ArrayLike, ideal: npt.ArrayLike, k: int, *, gain: Gain) -> Float64:
    """Discounted gains of the first k over those of the best possible order, in [0, 1] (KDD'18 Eq. 3).

    The gain must be named, as the same ranking of graded items gives quite different figures.

    Args:
        ranked: float [Q, K], at least 0.
        ideal: float [Q, M].
        k: At least 1; places beyond K count as not relevant.
        gain: `exponential`: 2^relevance - 1 (the paper), `linear`: the relevance. Equal for 0 and 1.

    Raises:
        UserError: Shapes that do not fit, k < 1, a query without relevant items, a negative relevance.
    """
    found, truth = _checked(ranked, ideal, k)
    if gain not in ("exponential", "linear"):
        raise UserError(f"must be exponential or linear, not {gain!r}", field="gain")
    best = -np.sort(-truth, axis=1)
    sums = []
    for values in (found[:, :k], best[:, :k]):
        gains = np.exp2(values) - 1 if gain == "exponential" else values
        sums.append((gains / np.log2(np.arange(values.shape[1]) + 2.0)).sum(axis=1))
    return sums[0] / sums[1]


def average_precision(ranked: npt.ArrayLike, ideal: npt.ArrayLike, k: int | None = None) -> Float64:
    """Mean over the relevant items of the precision at their places, 0 for those not found (KDD'18 Eq. 4).

    Divided by the number of relevant items, also with `k`, not by how many were found or could be among k.

    Args:
        ranked: float or bool [Q, K].
        ideal: float or bool [Q, M].
        k: Only the first k places; None for all.

    Raises:
        UserError: As `ndcg_at_k`.
    """
    found, truth = _checked(ranked, ideal, k)
    hits = found[:, :k] > 0
    precision = hits.cumsum(axis=1) / (np.arange(hits.shape[1]) + 1.0)
    return (precision * hits).sum(axis=1) / (truth > 0).sum(axis=1)


def recall_at_k(ranked: npt.ArrayLike, ideal: npt.ArrayLike, k: int) -> Float64:
    """Share of the relevant items among the first k, in [0, 1].

    With one relevant item per query this is the usual R@k of text-video retrieval.

    Args:
        ranked: float or bool [Q, K].
        ideal: float or bool [Q, M].
        k: At least 1.

    Raises:
        UserError: As `ndcg_at_k`.
    """
    found, truth = _checked(ranked, ideal, k)
    return (found[:, :k] > 0).sum(axis=1) / (truth > 0).sum(axis=1)


def mean_interval(values: Float64, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of a mean over queries or users."""
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(0, len(values), len(values))].mean() for _ in range(_RESAMPLES)]
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _checked(ranked: npt.ArrayLike, ideal: npt.ArrayLike, k: int | None) -> tuple[Float64, Float64]:
    found, truth = np.asarray(ranked, dtype=np.float64), np.asarray(ideal, dtype=np.float64)
    if found.ndim != 2 or truth.ndim != 2 or len(found) != len(truth):
        raise UserError(f"ranked {list(found.shape)} and ideal {list(truth.shape)} must be [Q, K] and [Q, M]")
    if k is not None and k < 1:
        raise UserError(f"must be at least 1, not {k}", field="k")
    for values in (found, truth):
        if not (np.isfinite(values) & (values >= 0)).all():
            raise UserError("a relevance is negative or not finite")
    without = np.flatnonzero(~(truth > 0).any(axis=1))
    if len(without) or not len(truth):
        message = f"{len(without):,} of {len(truth):,} queries have no relevant item"
        raise UserError(message, fix="leave them out, and say so")
    if ((found > 0).sum(axis=1) > (truth > 0).sum(axis=1)).any():
        raise UserError("more relevant items were found than there are")
    return found, truth

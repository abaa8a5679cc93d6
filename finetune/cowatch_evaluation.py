"""Related videos for videos never trained on: recall and NDCG in both cold-start directions.

T2E: the query is a training video, what is looked for are fresh ones; E2T: the query is fresh, what is looked for are
established ones (Lee et al. 2018, §4.1.1). Relevant is who shares an edge with the query. Candidates are all videos
of the other part, with an edge or without.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vidsim.data.cowatch_graph import CowatchGraph, Integers, Neighbours

Vectors = npt.NDArray[np.float32]
DIRECTIONS = ("t2e", "e2t")
_BLOCK = 512


@dataclass(frozen=True, eq=False)
class RelatedQueries:
    """One direction.

    Attributes:
        queries: int64 [Q], videos.
        candidates: int64 [C], videos, ascending.
        rows: int64 [M], position of a query, ascending.
        columns: int64 [M], position of a candidate that is relevant to it.
    """

    queries: Integers
    candidates: Integers
    rows: Integers
    columns: Integers


def related_queries(graph: CowatchGraph, max_queries: int, seed: int) -> dict[str, RelatedQueries]:
    """Queries of both directions, drawn at random where there are too many; a direction without any is left out."""
    crossing = np.flatnonzero(graph.is_eval[graph.edges].sum(axis=0) == 1)
    near: Neighbours = graph.neighbours(crossing)
    has_edge = np.diff(near.starts) > 0
    result = {}
    for name, wanted in zip(DIRECTIONS, (True, False), strict=True):
        queries = np.flatnonzero(has_edge & (graph.is_eval != wanted))
        candidates = np.flatnonzero(graph.is_eval == wanted)
        if len(queries) > max_queries:
            queries = np.sort(np.random.default_rng(seed).choice(queries, max_queries, replace=False))
        if len(queries):
            result[name] = RelatedQueries(queries, candidates, *near.pairs_within(queries, candidates))
    return result


def related_metrics(
    query_vectors: Vectors, candidate_vectors: Vectors, related: RelatedQueries, k: int
) -> tuple[float, float]:
    """Recall@k and NDCG@k (relevance 0 or 1), means over the queries, each in [0, 1].

    Equal scores count against the model: among them the irrelevant come first. Memory is that of some hundred queries.

    Args:
        query_vectors: float32 [Q, E]; scores are dot products.
        candidate_vectors: float32 [C, E].
        related: What is relevant.
        k: At least 1.

    Raises:
        ValueError: A score is not finite.
    """
    recall, ndcg = [], []
    discounts = 1 / np.log2(np.arange(2, k + 2))
    for start in range(0, len(related.queries), _BLOCK):
        stop = min(start + _BLOCK, len(related.queries))
        scores = query_vectors[start:stop] @ candidate_vectors.T
        if not np.isfinite(scores).all():
            raise ValueError("a score is not finite")
        first, last = np.searchsorted(related.rows, [start, stop])
        relevant = np.zeros(scores.shape, dtype=bool)
        relevant[related.rows[first:last] - start, related.columns[first:last]] = True
        for row, truth in zip(scores, relevant, strict=True):
            # Only what can be among the first k is sorted: everything from the k-th score up.
            limit = np.partition(row, -k)[-k] if k < len(row) else row.min()
            top = np.flatnonzero(row >= limit)
            hits = truth[top[np.lexsort((truth[top], -row[top]))[:k]]]
            count = int(truth.sum())
            recall.append(hits.sum() / count)
            ndcg.append((hits * discounts[: len(hits)]).sum() / discounts[: min(count, k)].sum())
    return float(np.mean(recall)), float(np.mean(ndcg))


def evaluate_related(
    vectors: Vectors, queries: dict[str, RelatedQueries], k: int, *, query_vectors: Vectors | None = None
) -> dict[str, float]:
    """`recall@k` and `ndcg@k` of each direction, and `ndcg@k`, the mean over the directions.

    Args:
        vectors: float32 [V, E] of all videos.
        queries: From `related_queries`.
        k: Cut-off.
        query_vectors: float32 [V, E], where a video has another vector as a query; None: it has not.
    """
    as_query = vectors if query_vectors is None else query_vectors
    result = {}
    for name, related in queries.items():
        found = related_metrics(as_query[related.queries], vectors[related.candidates], related, k)
        result[f"{name}_recall@{k}"], result[f"{name}_ndcg@{k}"] = found
    return result | {f"ndcg@{k}": float(np.mean([result[f"{name}_ndcg@{k}"] for name in queries]))}

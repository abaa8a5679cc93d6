"""How well embeddings find related videos, and what can be had without learning."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vidsim.data.cowatch_graph import CowatchGraph
from vidsim.data.cowatch_queries import E2T, RelatedQueries
from vidsim.modeling.ranking_metrics import metrics_of_vectors

Vectors = npt.NDArray[np.float32]


def evaluate_related(
    vectors: Vectors, queries: dict[str, RelatedQueries], k: int, *, query_vectors: Vectors | None = None
) -> dict[str, float]:
    """`t2e_ndcg@k`, `t2e_recall@k`, `t2e_map` and so on, means over the queries; `ndcg@k`, the mean of both directions.

    Args:
        vectors: float32 [V, E] of all videos.
        queries: From `related_queries`.
        k: Cut-off.
        query_vectors: float32 [V, E], where a video has another vector as a query; None: it has not.

    Raises:
        UserError: A score is not finite.
    """
    result: dict[str, float] = {}
    for direction, related in queries.items():
        result |= evaluate_direction(direction, vectors, related, k, query_vectors=query_vectors)
    if queries:
        result[f"ndcg@{k}"] = float(np.mean([result[f"{direction}_ndcg@{k}"] for direction in queries]))
    return result


def evaluate_direction(
    direction: str, vectors: Vectors, related: RelatedQueries, k: int, *, query_vectors: Vectors | None = None
) -> dict[str, float]:
    """`t2e_ndcg@k`, `t2e_recall@k` and `t2e_map`, means over the queries of one direction; see `evaluate_related`."""
    as_query = vectors if query_vectors is None else query_vectors
    found = metrics_of_vectors(as_query[related.queries], vectors[related.candidates], related.rows, related.columns, k)
    return {f"{direction}_{name}": float(values.mean()) for name, values in found.items()}


def floors(
    graph: CowatchGraph, untrained: Vectors, queries: dict[str, RelatedQueries], k: int
) -> dict[str, dict[str, float]]:
    """Metrics of what needs no learning: what is known as it is, and the training videos with most training edges.

    Popularity ranks training videos only: no held-out video has a training edge, so there is no `t2e` and no mean.

    Args:
        graph: The graph.
        untrained: float32 [V, D], of all its videos.
        queries: From `related_queries`.
        k: Cut-off.
    """
    found = {"untrained features": evaluate_related(untrained, queries, k)}
    if E2T in queries:
        popularity = graph.popularity()[:, None]
        found["popularity in training"] = evaluate_direction(
            E2T, popularity, queries[E2T], k, query_vectors=np.ones_like(popularity)
        )
    return found

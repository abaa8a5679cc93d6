"""How well embeddings find related videos, and what can be had without learning."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vidsim.data.cowatch_graph import CowatchGraph
from vidsim.data.cowatch_queries import RelatedQueries
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
    as_query = vectors if query_vectors is None else query_vectors
    result: dict[str, float] = {}
    for direction, related in queries.items():
        found = metrics_of_vectors(
            as_query[related.queries], vectors[related.candidates], related.rows, related.columns, k
        )
        result |= {f"{direction}_{name}": float(values.mean()) for name, values in found.items()}
    if queries:
        result[f"ndcg@{k}"] = float(np.mean([result[f"{direction}_ndcg@{k}"] for direction in queries]))
    return result


def floors(
    graph: CowatchGraph, untrained: Vectors, queries: dict[str, RelatedQueries], k: int
) -> dict[str, dict[str, float]]:
    """Metrics of what needs no learning: what is known as it is, and the videos with most edges to training videos.

    Args:
        graph: The graph.
        untrained: float32 [V, D], of all its videos.
        queries: From `related_queries`.
        k: Cut-off.
    """
    popularity = graph.popularity()[:, None]
    return {
        "untrained features": evaluate_related(untrained, queries, k),
        "popularity in training": evaluate_related(popularity, queries, k, query_vectors=np.ones_like(popularity)),
    }

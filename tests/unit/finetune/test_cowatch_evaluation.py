from __future__ import annotations

import numpy as np
import pytest

from vidsim.data.cowatch_graph import EVAL, TRAIN, CowatchGraph
from vidsim.data.cowatch_queries import related_queries
from vidsim.data.feature_streams import FeatureStreams
from vidsim.finetune.cowatch_evaluation import evaluate_related, floors


def graph() -> CowatchGraph:
    # Videos 0..3 train, 4..6 eval; 6 has no edge.
    edges = np.array([[0, 0, 1, 2, 4], [1, 4, 4, 5, 5]])
    part = np.where(np.arange(7) >= 4, EVAL, TRAIN).astype(np.int8)
    return CowatchGraph([f"v{number}" for number in range(7)], part, edges, np.ones(5, dtype=np.int64), {})


def test_perfect_vectors_and_another_vector_as_a_query() -> None:
    queries = related_queries(graph(), 10, 0)
    near = np.eye(7, dtype=np.float32)
    for one, other in graph().edges.T.tolist():
        near[one, other] = near[other, one] = 1
    perfect = evaluate_related(np.eye(7, dtype=np.float32), queries, 2, query_vectors=near)
    names = {f"{direction}_{name}" for direction in ("t2e", "e2t") for name in ("recall@2", "ndcg@2", "map")}
    assert perfect == dict.fromkeys(names | {"ndcg@2"}, 1.0)
    blind = evaluate_related(np.eye(7, dtype=np.float32), queries, 1)
    assert blind["ndcg@1"] == 0


def test_what_needs_no_learning() -> None:
    array = np.array([[0.0], [2], [0], [2], [5], [1], [1]], dtype=np.float32)  # train: mean 1, deviation 1
    features = FeatureStreams(graph().ids, {"a": array, "b": array[:, [0, 0]]}, dict.fromkeys("ab", np.arange(7)))
    vectors = features.joined(np.arange(4))
    root = np.sqrt(0.5)
    np.testing.assert_allclose(vectors[:5], np.array([[-1], [1], [-1], [1], [1]]) * [[1, root, root]], rtol=1e-6)
    assert not vectors[5:].any()
    found = floors(graph(), vectors, related_queries(graph(), 10, 0), 1)
    # Only 0 and 1 have a training edge and stand level; 1 is relevant to 4 but one of the two is drawn last.
    assert found["popularity in training"]["e2t_recall@1"] == pytest.approx((1 / 2 + 0) / 2)
    # No held-out video has a training edge: popularity cannot rank them, and no mean is made with what it cannot do.
    assert set(found["popularity in training"]) == {"e2t_recall@1", "e2t_ndcg@1", "e2t_map"}
    assert found["untrained features"]["t2e_recall@1"] == pytest.approx(1 / 3)


def test_without_held_out_queries_there_is_no_popularity() -> None:
    queries = related_queries(graph(), 10, 0)
    del queries["e2t"]
    assert set(floors(graph(), np.eye(7, dtype=np.float32), queries, 1)) == {"untrained features"}

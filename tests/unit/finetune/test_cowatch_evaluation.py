from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from vidsim.data.cowatch_graph import CowatchGraph
from vidsim.finetune.cowatch_evaluation import RelatedQueries, evaluate_related, related_metrics, related_queries


def graph() -> CowatchGraph:
    # Videos 0..3 train, 4..6 eval; 6 has no edge.
    edges = np.array([[0, 0, 1, 2, 4], [1, 4, 4, 5, 5]])
    held_out = np.arange(7) >= 4
    return CowatchGraph([f"v{number}" for number in range(7)], held_out, edges, np.ones(5, dtype=np.int64), {})


def test_queries_and_what_is_relevant_to_them() -> None:
    found = related_queries(graph(), max_queries=10, seed=0)
    t2e, e2t = found["t2e"], found["e2t"]
    assert t2e.queries.tolist() == [0, 1, 2]
    assert t2e.candidates.tolist() == [4, 5, 6]
    assert list(zip(t2e.rows.tolist(), t2e.columns.tolist(), strict=True)) == [(0, 0), (1, 0), (2, 1)]
    assert e2t.queries.tolist() == [4, 5]
    assert e2t.candidates.tolist() == [0, 1, 2, 3]
    assert sorted(zip(e2t.rows.tolist(), e2t.columns.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 2)]
    few = related_queries(graph(), max_queries=1, seed=0)
    assert [len(part.queries) for part in few.values()] == [1, 1]
    assert set(few["t2e"].rows.tolist()) == {0}


def random_case(num_queries: int, num_candidates: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, RelatedQueries]:
    generator = np.random.default_rng(0)
    queries = generator.standard_normal((num_queries, 5)).astype(np.float32)
    candidates = generator.standard_normal((num_candidates, 5)).astype(np.float32)
    relevant = generator.random((num_queries, num_candidates)) < 0.1
    relevant[:, 3] = True
    rows, columns = relevant.nonzero()
    related = RelatedQueries(np.arange(num_queries), np.arange(num_candidates), rows, columns)
    return queries, candidates, relevant, related


@pytest.mark.parametrize("k", [1, 10, 37, 50])
def test_recall_and_ndcg_are_those_of_the_references(k: int) -> None:
    queries, candidates, relevant, related = random_case(600, 37)  # more queries than a block
    recall, ndcg = related_metrics(queries, candidates, related, k)
    scores = queries @ candidates.T
    found = np.take_along_axis(relevant, np.argsort(-scores, axis=1), axis=1)[:, :k]
    assert recall == pytest.approx((found.sum(axis=1) / relevant.sum(axis=1)).mean())
    assert ndcg == pytest.approx(ndcg_score(relevant, scores, k=k))


def test_by_hand_and_with_ties() -> None:
    related = RelatedQueries(np.array([0]), np.arange(3), np.array([0, 0]), np.array([1, 2]))
    one = np.ones((1, 1), dtype=np.float32)
    recall, ndcg = related_metrics(one, np.array([[3.0], [2.0], [1.0]], dtype=np.float32), related, 2)
    assert recall == 0.5
    assert ndcg == pytest.approx((1 / np.log2(3)) / (1 + 1 / np.log2(3)))
    # All alike: the irrelevant one stands first.
    assert related_metrics(one, np.ones((3, 1), dtype=np.float32), related, 1) == (0.0, 0.0)
    with pytest.raises(ValueError, match="not finite"):
        related_metrics(one * np.nan, np.ones((3, 1), dtype=np.float32), related, 1)


def test_perfect_vectors_and_another_vector_as_a_query() -> None:
    queries = related_queries(graph(), 10, 0)
    near = np.eye(7, dtype=np.float32)
    for one, other in graph().edges.T.tolist():
        near[one, other] = near[other, one] = 1
    perfect = evaluate_related(np.eye(7, dtype=np.float32), queries, 2, query_vectors=near)
    assert perfect == {"t2e_recall@2": 1, "t2e_ndcg@2": 1, "e2t_recall@2": 1, "e2t_ndcg@2": 1, "ndcg@2": 1}
    blind = evaluate_related(np.eye(7, dtype=np.float32), queries, 1)
    assert blind["ndcg@1"] == 0

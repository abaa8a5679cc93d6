from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, label_ranking_average_precision_score, ndcg_score

from vidsim.common.errors import UserError
from vidsim.modeling import ranking_metrics
from vidsim.modeling.ranking_metrics import (
    average_precision,
    mean_interval,
    metrics_of_vectors,
    ndcg_at_k,
    ranked_by_rows,
    ranked_by_scores,
    recall_at_k,
)


def random_case(seed: int, num_queries: int = 20, num_items: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Scores of both signs without ties, ratings 0 to 5, mostly 0."""
    generator = np.random.default_rng(seed)
    ratings = generator.integers(1, 6, (num_queries, num_items)) * (generator.random((num_queries, num_items)) < 0.2)
    ratings[:, 0] = generator.integers(1, 6, num_queries)
    return generator.normal(size=(num_queries, num_items)) + 0.2 * ratings, ratings


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 5, 10, 60, 100])
def test_ndcg_equals_sklearn(seed: int, k: int) -> None:
    scores, ratings = random_case(seed)
    ranked = ranked_by_scores(scores, ratings)
    linear = ndcg_at_k(ranked, ratings, k, gain="linear")
    exponential = ndcg_at_k(ranked, ratings, k, gain="exponential")
    assert linear.mean() == pytest.approx(ndcg_score(ratings, scores, k=k))
    assert exponential.mean() == pytest.approx(ndcg_score(2.0**ratings - 1, scores, k=k))
    assert linear.mean() > exponential.mean() + 0.01  # the two are not the same figure
    for query in range(3):
        assert linear[query] == pytest.approx(ndcg_score(ratings[[query]], scores[[query]], k=k))
    binary = (ratings > 0).astype(float)
    both = [ndcg_at_k(ranked > 0, binary, k, gain=gain) for gain in ("linear", "exponential")]
    np.testing.assert_allclose(both[0], both[1])


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_equals_sklearn(seed: int) -> None:
    scores, ratings = random_case(seed)
    ranked = ranked_by_scores(scores, ratings)
    expected = [average_precision_score(truth > 0, row) for truth, row in zip(ratings, scores, strict=True)]
    np.testing.assert_allclose(average_precision(ranked, ratings), expected)
    assert average_precision(ranked, ratings).mean() == pytest.approx(
        label_ranking_average_precision_score(ratings > 0, scores)
    )
    liked = ratings >= 3
    some = liked.any(axis=1)
    expected = [average_precision_score(truth, row) for truth, row in zip(liked[some], scores[some], strict=True)]
    np.testing.assert_allclose(average_precision(ranked[some] >= 3, liked[some]), expected)


@pytest.mark.parametrize("seed", range(3))
def test_recall_equals_counting(seed: int) -> None:
    scores, ratings = random_case(seed)
    ranked = ranked_by_scores(scores, ratings)
    for query, (row, truth) in enumerate(zip(scores, ratings, strict=True)):
        relevant = set(np.flatnonzero(truth).tolist())
        order = sorted(range(len(row)), key=lambda item: -row[item])
        for k in (1, 7, 60):
            expected = len(relevant & set(order[:k])) / len(relevant)
            assert recall_at_k(ranked, ratings, k)[query] == pytest.approx(expected)


SCORES = [[0.9, 0.8, -0.1, 0.7], [0.2, 0.5, 0.5, 0.1]]
RELEVANT = [[False, True, False, True], [False, True, False, False]]


def test_by_hand() -> None:
    # Query 0: order 0, 1, 3, 2. Query 1: the relevant item is level with an irrelevant one, which goes first.
    ranked = ranked_by_scores(SCORES, RELEVANT)
    assert ranked.tolist() == [[0, 1, 1, 0], [0, 1, 0, 0]]
    assert [recall_at_k(ranked, RELEVANT, k).tolist() for k in (1, 2, 3, 9)] == [[0, 0], [0.5, 1], [1, 1], [1, 1]]
    assert average_precision(ranked, RELEVANT) == pytest.approx([(1 / 2 + 2 / 3) / 2, 1 / 2])
    assert average_precision(ranked, RELEVANT, 2) == pytest.approx([(1 / 2) / 2, 1 / 2])
    two, three = 1 / np.log2(3), 1 / np.log2(4)
    assert ndcg_at_k(ranked, RELEVANT, 3, gain="linear") == pytest.approx([(two + three) / (1 + two), two])
    # Ratings 3 then 1 against the ideal 3, 2, 1: 2^r - 1 gives 7, 1 against 7, 3, 1.
    got = ndcg_at_k([[3, 1]], [[1, 2, 3]], 3, gain="exponential")
    assert got == pytest.approx([(7 + two) / (7 + 3 * two + three)])


def test_found_rows_are_looked_up() -> None:
    rows = [[5, 2, 9, -1], [7, 1, 0, 3]]
    ranked, ideal = ranked_by_rows(rows, [{2: 4.0, 11: 1.0}, {3: 1.0}])
    assert ranked.tolist() == [[0, 4, 0, 0], [0, 0, 0, 1]]
    assert ideal.tolist() == [[4, 1], [1, 0]]
    assert recall_at_k(ranked, ideal, 4).tolist() == [0.5, 1.0]
    # A list cut at k against the whole order.
    scores, ratings = random_case(1)
    order = np.argsort(-scores, axis=1)[:, :10]
    relevant = [{int(item): float(row[item]) for item in np.flatnonzero(row)} for row in ratings]
    ranked, ideal = ranked_by_rows(order, relevant)
    whole = ndcg_at_k(ranked_by_scores(scores, ratings), ratings, 10, gain="exponential")
    np.testing.assert_allclose(ndcg_at_k(ranked, ideal, 10, gain="exponential"), whole)


def random_vectors(num_queries: int, num_candidates: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whole numbers, so that many scores are equal; and what is relevant."""
    generator = np.random.default_rng(0)
    queries = generator.integers(-2, 3, (num_queries, 5)).astype(np.float32)
    candidates = generator.integers(-2, 3, (num_candidates, 5)).astype(np.float32)
    relevant = generator.random((num_queries, num_candidates)) < 0.1
    relevant[:, 3] = True
    return queries, candidates, relevant


@pytest.mark.parametrize("block", [1, 100, 2**21])
@pytest.mark.parametrize("k", [1, 10, 37, 50])
def test_metrics_of_vectors_are_those_of_all_scores(k: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking_metrics, "_SCORES_AT_ONCE", block)
    queries, candidates, relevant = random_vectors(60, 37)
    found = metrics_of_vectors(queries, candidates, *relevant.nonzero(), k)
    scores = queries @ candidates.T
    assert len(np.unique(scores)) < 60  # ties
    ranked = ranked_by_scores(scores, relevant)
    np.testing.assert_allclose(found[f"ndcg@{k}"], ndcg_at_k(ranked, relevant, k, gain="exponential"))
    np.testing.assert_allclose(found[f"recall@{k}"], recall_at_k(ranked, relevant, k))
    np.testing.assert_allclose(found["map"], average_precision(ranked, relevant))


def test_vectors_by_hand() -> None:
    rows, columns = np.array([0, 0]), np.array([1, 2])
    one = np.ones((1, 1), dtype=np.float32)
    found = metrics_of_vectors(one, np.array([[3], [2], [1]], dtype=np.float32), rows, columns, 2)
    assert found["recall@2"].tolist() == [0.5]
    assert found["ndcg@2"] == pytest.approx([(1 / np.log2(3)) / (1 + 1 / np.log2(3))])
    assert found["map"] == pytest.approx([(1 / 2 + 2 / 3) / 2])
    # All alike: the irrelevant one stands first.
    level = np.ones((3, 1), dtype=np.float32)
    assert metrics_of_vectors(one, level, rows, columns, 1)["recall@1"].tolist() == [0.0]
    with pytest.raises(UserError, match="not finite"):
        metrics_of_vectors(one * np.nan, level, rows, columns, 1)
    with pytest.raises(UserError, match="1 of 2 queries have no relevant item"):
        metrics_of_vectors(np.ones((2, 1), dtype=np.float32), level, rows, columns, 1)


def test_bad_input_is_refused() -> None:
    ranked = ranked_by_scores(SCORES, RELEVANT)
    with pytest.raises(UserError, match="1 of 2 queries have no relevant item"):
        recall_at_k([[0, 0], [0, 1]], [[0, 0], [0, 1]], 1)
    with pytest.raises(UserError, match="field 'k': must be at least 1"):
        ndcg_at_k(ranked, RELEVANT, 0, gain="linear")
    with pytest.raises(UserError, match="must be exponential or linear, not 'exp'"):
        ndcg_at_k(ranked, RELEVANT, 1, gain="exp")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="not finite"):
        ranked_by_scores([[float("nan"), 1.0]], [[True, False]])
    with pytest.raises(UserError, match=r"must both be \[Q, N\]"):
        ranked_by_scores(SCORES, [[True]])
    with pytest.raises(UserError, match="negative or not finite"):
        recall_at_k([[-1.0]], [[1.0]], 1)
    with pytest.raises(UserError, match="more relevant items were found than there are"):
        average_precision([[1, 1]], [[1, 0]])
    with pytest.raises(UserError, match=r"must be \[Q, K\] and \[Q, M\]"):
        recall_at_k([[1.0]], [[1.0], [1.0]], 1)
    with pytest.raises(UserError, match="record 0: a row was found twice"):
        ranked_by_rows([[3, 3]], [{3: 1.0}])
    with pytest.raises(UserError, match="record 0: a relevance is not above 0"):
        ranked_by_rows([[3]], [{3: 0.0}])


def test_interval_holds_the_mean_and_narrows() -> None:
    generator = np.random.default_rng(0)
    few, many = generator.random(50), generator.random(5000)
    low, high = mean_interval(many)
    assert low < many.mean() < high
    # 1.96 standard errors on each side.
    assert high - low == pytest.approx(2 * 1.96 * many.std() / np.sqrt(5000), rel=0.1)
    assert np.subtract(*mean_interval(few)[::-1]) > 5 * (high - low)
    assert mean_interval(many) == mean_interval(many)

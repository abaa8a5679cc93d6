from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, label_ranking_average_precision_score, ndcg_score

from vidsim.common.errors import UserError
from vidsim.modeling.ranking_metrics import (
    average_precision,
    ndcg_at_k,
    ranked_by_rows,
    ranked_by_scores,
    recall_at_k,
    reciprocal_rank,
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
def test_recall_and_reciprocal_rank_equal_counting(seed: int) -> None:
    scores, ratings = random_case(seed)
    ranked = ranked_by_scores(scores, ratings)
    for query, (row, truth) in enumerate(zip(scores, ratings, strict=True)):
        relevant = set(np.flatnonzero(truth).tolist())
        order = sorted(range(len(row)), key=lambda item: -row[item])
        for k in (1, 7, 60):
            expected = len(relevant & set(order[:k])) / len(relevant)
            assert recall_at_k(ranked, ratings, k)[query] == pytest.approx(expected)
        first = next(place for place, item in enumerate(order, 1) if item in relevant)
        assert reciprocal_rank(ranked, ratings)[query] == pytest.approx(1 / first)


SCORES = [[0.9, 0.8, -0.1, 0.7], [0.2, 0.5, 0.5, 0.1]]
RELEVANT = [[False, True, False, True], [False, True, False, False]]


def test_by_hand() -> None:
    # Query 0: order 0, 1, 3, 2. Query 1: the relevant item is level with an irrelevant one, which goes first.
    ranked = ranked_by_scores(SCORES, RELEVANT)
    assert ranked.tolist() == [[0, 1, 1, 0], [0, 1, 0, 0]]
    assert [recall_at_k(ranked, RELEVANT, k).tolist() for k in (1, 2, 3, 9)] == [[0, 0], [0.5, 1], [1, 1], [1, 1]]
    assert reciprocal_rank(ranked, RELEVANT).tolist() == [0.5, 0.5]
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
    assert reciprocal_rank(ranked[:, :2], ideal).tolist() == [0.5, 0.0]
    # A list cut at k against the whole order.
    scores, ratings = random_case(1)
    order = np.argsort(-scores, axis=1)[:, :10]
    relevant = [{int(item): float(row[item]) for item in np.flatnonzero(row)} for row in ratings]
    ranked, ideal = ranked_by_rows(order, relevant)
    whole = ndcg_at_k(ranked_by_scores(scores, ratings), ratings, 10, gain="exponential")
    np.testing.assert_allclose(ndcg_at_k(ranked, ideal, 10, gain="exponential"), whole)


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
        reciprocal_rank([[-1.0]], [[1.0]])
    with pytest.raises(UserError, match="more relevant items were found than there are"):
        average_precision([[1, 1]], [[1, 0]])
    with pytest.raises(UserError, match=r"must be \[Q, K\] and \[Q, M\]"):
        reciprocal_rank([[1.0]], [[1.0], [1.0]])
    with pytest.raises(UserError, match="record 0: a row was found twice"):
        ranked_by_rows([[3, 3]], [{3: 1.0}])
    with pytest.raises(UserError, match="record 0: a relevance is not above 0"):
        ranked_by_rows([[3]], [{3: 0.0}])

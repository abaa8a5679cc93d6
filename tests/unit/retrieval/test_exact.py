from __future__ import annotations

import numpy as np
import pytest

from vidsim.common.errors import UserError
from vidsim.retrieval import exact as module
from vidsim.retrieval.exact import ExactIndex


def random_vectors(num: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num, dim)).astype(np.float32) * 5


def brute_force(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    units = [rows.astype(np.float64) / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, vectors)]
    scores = units[0] @ units[1].T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(scores, rows, axis=1)


@pytest.mark.parametrize("k", [1, 7, 200])
def test_equal_to_brute_force(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    monkeypatch.setattr(module, "_BLOCK_SCORES", 1000)  # several blocks of queries
    vectors, queries = random_vectors(200), random_vectors(23, seed=1)
    rows, scores = ExactIndex([str(i) for i in range(200)], vectors).search(queries, k)
    expected_rows, expected_scores = brute_force(vectors, queries, k)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)
    assert (rows.dtype, scores.dtype) == (np.int64, np.float32)


def test_ties_keep_the_order_of_the_ids() -> None:
    vectors = np.tile(random_vectors(1), (50, 1)) * np.array([[1], [2]] * 25, np.float32)
    vectors[20] = -vectors[20]
    rows, scores = ExactIndex([str(i) for i in range(50)], vectors).search(vectors[:1], 30)
    assert rows[0].tolist() == [i for i in range(31) if i != 20]
    np.testing.assert_allclose(scores, 1, atol=1e-6)


def test_exact_duplicates_tie_wherever_they_stand() -> None:
    vectors = random_vectors(1001, 33)
    vectors[[900, 13, 500]] = vectors[7]
    rows, _ = ExactIndex([str(i) for i in range(1001)], vectors).search(vectors[7:8], 4)
    assert rows[0].tolist() == [7, 13, 500, 900]


def test_self_is_left_out_and_k_is_bounded() -> None:
    vectors = random_vectors(6)
    index = ExactIndex(list("abcdef"), vectors)
    rows, _ = index.search(vectors[[2, 4]], 99, exclude=[2, 4])
    assert rows.shape == (2, 5)
    assert 2 not in rows[0]
    assert 4 not in rows[1]
    rows, _ = index.search(vectors[[2]], 3, exclude=[-1])
    assert rows[0, 0] == 2
    alone = ExactIndex(["a"], vectors[:1])
    assert alone.search(vectors[:1], 3, exclude=[0])[0].shape == (1, 0)


def test_unit_vectors_are_not_copied() -> None:
    vectors = np.eye(4, dtype=np.float32)
    assert ExactIndex(list("abcd"), vectors).vectors is vectors


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_vectors_without_a_direction_are_named(bad: float) -> None:
    vectors = random_vectors(4)
    vectors[2] = bad
    with pytest.raises(UserError, match="1 vectors are zero or not finite: c"):
        ExactIndex(list("abcd"), vectors)
    with pytest.raises(UserError, match="not finite: query 2"):
        ExactIndex(list("ab"), random_vectors(2)).search(vectors, 1)


def test_faults_are_named() -> None:
    index = ExactIndex(["1234567890", "1234567891", "77"], random_vectors(3))
    with pytest.raises(UserError, match=r"no video has the id '1234567892' among 3\. Fix: did you mean 123456789"):
        index.row_of("1234567892")
    with pytest.raises(UserError, match="Fix: name an id of these embeddings"):
        index.row_of("zzz")
    with pytest.raises(UserError, match="queries have width 5, the index 8"):
        index.search(random_vectors(1, 5), 1)
    with pytest.raises(UserError, match="must be at least 1, not 0"):
        index.search(random_vectors(1), 0)
    with pytest.raises(UserError, match="1 rows to exclude for 2 queries"):
        index.search(random_vectors(2), 1, exclude=[0])
    with pytest.raises(UserError, match="2 ids for 3 vectors"):
        ExactIndex(list("ab"), random_vectors(3))
    with pytest.raises(UserError, match="1 ids occur more than once"):
        ExactIndex(list("aab"), random_vectors(3))


def test_similar_leaves_out_ids_and_has_no_metadata() -> None:
    vectors = random_vectors(9)
    index = ExactIndex(list("abcdefghi"), vectors, model="m")
    assert (index.model, index.dim) == ("m", 8)
    [ranked] = index.similar(vectors[:1], 9)
    assert ranked[0] == ("a", pytest.approx(1))
    [first, second] = index.similar(vectors[[0, 0]], 3, without=[["a", ranked[1][0], "unknown"], []])
    assert first == ranked[2:5]
    assert second == ranked[:3]
    np.testing.assert_array_equal(index.vectors_by_id(["c", "a"]), index.vectors[[2, 0]])
    with pytest.raises(UserError, match="--where: needs an index with metadata"):
        index.similar(vectors[:1], 3, where=["category=3"])
    with pytest.raises(UserError, match="must be at least 1, not 0"):
        index.similar(vectors[:1], 0, without=[["a"]])

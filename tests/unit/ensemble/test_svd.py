from __future__ import annotations

import numpy as np
import pytest

from vidsim.common.errors import UserError
from vidsim.data.embeddings import Embeddings
from vidsim.ensemble import svd


def members(num_rows: int, dims: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal((num_rows, dim)).astype(np.float32) * 3 for dim in dims]


def cosines(rows: np.ndarray) -> np.ndarray:
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return unit @ unit.T


def concat(parts: list[np.ndarray], weights: list[float]) -> np.ndarray:
    return np.concatenate(list(svd.concat_blocks(parts, weights)))


def test_cosine_of_the_concatenation_is_the_weighted_mean_of_cosines() -> None:
    parts, weights = members(50, (4, 7, 5)), [0.5, 0.2, 0.3]
    rows = concat(parts, weights)
    assert rows.shape == (50, 16)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-12)
    expected = sum(w * cosines(part) for w, part in zip(weights, parts, strict=True))
    np.testing.assert_allclose(rows @ rows.T, expected, atol=1e-12)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = members(50, (4, 3))
    whole = concat(parts, [0.5, 0.5])
    gram = svd.gram_matrix(svd.concat_blocks(parts, [0.5, 0.5]))
    monkeypatch.setattr(svd, "_BLOCK_ROWS", 7)
    np.testing.assert_array_equal(concat(parts, [0.5, 0.5]), whole)
    np.testing.assert_allclose(svd.gram_matrix(svd.concat_blocks(parts, [0.5, 0.5])), gram, atol=1e-13)


def test_weight_zero_leaves_a_member_out() -> None:
    parts = members(9, (4, 3, 2))
    np.testing.assert_array_equal(concat(parts, [0.5, 0.0, 0.5]), concat([parts[0], parts[2]], [0.5, 0.5]))


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_equal_to_a_full_svd(rank: int) -> None:
    parts, weights = members(40, (6, 6)), [0.6, 0.4]
    rows = concat(parts, weights)
    components, values = svd.leading_directions(svd.gram_matrix(svd.concat_blocks(parts, weights)), rank)
    left, singular, right = np.linalg.svd(rows, full_matrices=False)
    np.testing.assert_allclose(values, singular[:rank] ** 2, rtol=1e-10)
    np.testing.assert_allclose(np.abs(np.sum(components * right[:rank].T, axis=0)), 1, atol=1e-10)
    np.testing.assert_allclose(components.T @ components, np.eye(rank), atol=1e-12)
    fused = svd.project(parts, weights, components, [str(i) for i in range(40)])
    np.testing.assert_allclose(cosines(fused), cosines(left[:, :rank] * singular[:rank]), atol=1e-6)


def test_signs_are_fixed() -> None:
    gram = svd.gram_matrix(svd.concat_blocks(members(30, (8,)), [1.0]))
    components, _ = svd.leading_directions(gram, 4)
    assert (components[np.abs(components).argmax(axis=0), np.arange(4)] > 0).all()


@pytest.mark.parametrize("rank", [9, 12])
def test_full_rank_loses_nothing(rank: int) -> None:
    parts, weights = members(30, (4, 5)), [0.25, 0.75]
    components, values = svd.leading_directions(svd.gram_matrix(svd.concat_blocks(parts, weights)), rank)
    assert components.shape == (9, 9)
    assert values.sum() == pytest.approx(30)  # every row has norm 1
    fused = svd.project(parts, weights, components, [str(i) for i in range(30)])
    rows = concat(parts, weights)
    np.testing.assert_allclose(cosines(fused), rows @ rows.T, atol=1e-6)


def test_zero_vectors_are_named() -> None:
    vectors = np.ones((4, 3), np.float32)
    vectors[[1, 3]] = 0
    with pytest.raises(UserError, match=r"emb/b: 2 embeddings are zero vectors.*: y, w"):
        svd.check_no_zeros(Embeddings(["x", "y", "z", "w"], vectors, name="emb/b"))


def test_collapsed_member_is_named() -> None:
    vectors = np.ones((4, 3), np.float32) * np.array([[1], [2], [3], [4]], np.float32)
    with pytest.raises(UserError, match="emb/b: all 4 embeddings point the same way"):
        svd.check_not_collapsed(Embeddings(list("abcd"), vectors, name="emb/b"))
    vectors[2, 0] = 0
    svd.check_not_collapsed(Embeddings(list("abcd"), vectors))


def test_videos_outside_of_the_projection_are_named() -> None:
    components = np.array([[1.0], [0.0]])
    with pytest.raises(UserError, match=r"1 videos lie outside .*: q"):
        svd.project([np.array([[1, 1], [0, 2]], np.float32)], [1.0], components, ["p", "q"])

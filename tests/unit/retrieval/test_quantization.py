from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from vidsim.common.errors import UserError
from vidsim.modeling.ranking_metrics import ndcg_at_k, ranked_by_rows
from vidsim.retrieval.quantization import BITS, Quantizer, fit_quantizer, search_codes

BOTH = [pytest.param(False, id="per-dimension"), pytest.param(True, id="shared")]


def unit(num: int, dim: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(num, dim)) * np.linspace(0.5, 2, dim)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_levels_of_a_normal_distribution_are_those_of_max() -> None:
    # J. Max, "Quantizing for minimum distortion", 1960, table I: 4 levels and 16 levels of a normal distribution.
    values = norm.ppf((np.arange(200_000) + 0.5) / 200_000)[:, None]
    generator = np.random.default_rng(0)
    two = fit_quantizer(generator.permutation(values), 2)
    np.testing.assert_allclose(two.levels[0], [-1.510, -0.4528, 0.4528, 1.510], atol=0.02)
    four = fit_quantizer(generator.permutation(values), 4, shared=True)
    published = [0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733]
    np.testing.assert_allclose(four.levels[0, 8:], published, atol=0.03)
    for quantizer, distortion in ((two, 0.1175), (four, 0.009497)):
        error = np.mean((quantizer.decode(quantizer.encode(values)) - values) ** 2)
        assert error == pytest.approx(distortion, rel=0.02)


def best_error(values: np.ndarray, num_levels: int) -> float:
    """Least squared error of 1-d k-means by dynamic programming over all contiguous cells."""
    ordered = np.sort(values.astype(np.float64))
    num = len(ordered)
    cost = np.zeros((num + 1, num + 1))
    for start in range(num):
        for end in range(start + 1, num + 1):
            cell = ordered[start:end]
            cost[start, end] = ((cell - cell.mean()) ** 2).sum()
    best = np.full((num_levels + 1, num + 1), np.inf)
    best[0, 0] = 0
    for level in range(1, num_levels + 1):
        for end in range(1, num + 1):
            best[level, end] = min(best[level - 1, start] + cost[start, end] for start in range(end))
    return float(best[num_levels, num])


def test_levels_are_near_the_best_there_are() -> None:
    for seed in range(3):
        values = np.random.default_rng(seed).normal(size=(60, 1)).astype(np.float32)
        quantizer = fit_quantizer(values, 2)
        error = ((quantizer.decode(quantizer.encode(values)) - values) ** 2).sum()
        assert error <= 1.15 * best_error(values[:, 0], 4)


@pytest.mark.parametrize("shared", BOTH)
@pytest.mark.parametrize("bits", BITS)
def test_codes_name_the_nearest_level_and_levels_are_means(bits: int, shared: bool) -> None:
    vectors = unit(700, 13)
    quantizer = fit_quantizer(vectors, bits, shared=shared)
    assert quantizer.levels.shape == (13, 1 << bits)
    assert (np.diff(quantizer.levels, axis=1) >= 0).all()
    assert shared == (quantizer.levels == quantizer.levels[:1]).all()
    packed = quantizer.encode(vectors)
    assert packed.shape == (700, {2: 4, 4: 7, 8: 13}[bits])
    assert packed.dtype == np.uint8
    distances = np.abs(vectors[:, :, None].astype(np.float64) - quantizer.levels)
    codes = quantizer.unpack(packed)
    chosen = np.take_along_axis(distances, codes[:, :, None].astype(np.int64), axis=2)[:, :, 0]
    np.testing.assert_allclose(chosen, distances.min(axis=2), atol=1e-7)
    decoded = quantizer.decode(packed)
    assert quantizer.encode(decoded).tobytes() == packed.tobytes() or bits == 8  # levels may coincide at 8 bits
    groups = [codes == level for level in range(1 << bits)]
    for level, group in enumerate(groups):
        for column in [slice(None)] if shared else range(13):
            inside = vectors[:, column][group[:, column]]
            if len(inside):
                at = quantizer.levels[0 if shared else column, level]
                assert inside.mean(dtype=np.float64) == pytest.approx(at, abs=1e-5)


def test_packing_by_hand() -> None:
    levels = np.array([[-1, 0, 1, 2]] * 5, np.float32)
    quantizer = Quantizer(levels, 2, shared=True)
    # Codes 0 1 2 3 | 2: the first dimension in the lowest bits.
    packed = quantizer.encode([[-1.4, 0.2, 1, 9, 0.6]])
    assert packed.tolist() == [[0 + (1 << 2) + (2 << 4) + (3 << 6), 2]]
    assert quantizer.unpack(packed).tolist() == [[0, 1, 2, 3, 2]]
    assert quantizer.decode(packed).tolist() == [[-1, 0, 1, 2, 1]]
    four = Quantizer(np.arange(16, dtype=np.float32)[None].repeat(3, 0), 4, shared=True)
    assert four.encode([[3, 9, 15]]).tolist() == [[3 + 9 * 16, 15]]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("shared", BOTH)
@pytest.mark.parametrize("bits", BITS)
def test_table_look_ups_equal_dot_products(bits: int, shared: bool, symmetric: bool) -> None:
    vectors, queries = unit(500, 21), unit(30, 21, seed=1)
    quantizer = fit_quantizer(vectors, bits, shared=shared)
    packed = quantizer.encode(vectors)
    # Brute force: decode code by code from the levels.
    codes = quantizer.unpack(packed)
    decoded = np.array([[quantizer.levels[d, code] for d, code in enumerate(row)] for row in codes], np.float64)
    asked = queries
    if symmetric:
        nearest = np.abs(queries[:, :, None] - quantizer.levels).argmin(axis=2)
        asked = np.array([[quantizer.levels[d, code] for d, code in enumerate(row)] for row in nearest])
    expected = asked.astype(np.float64) @ (decoded / np.linalg.norm(decoded, axis=1, keepdims=True)).T
    rows, scores = search_codes(quantizer, packed, queries, 500, symmetric=symmetric)
    np.testing.assert_allclose(scores, np.take_along_axis(expected, rows, axis=1), atol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()
    first, values = search_codes(quantizer, packed, queries, 10, symmetric=symmetric)
    assert first.tolist() == rows[:, :10].tolist()
    assert values.tobytes() == scores[:, :10].tobytes()


def test_equal_codes_keep_their_order() -> None:
    vectors = np.tile(unit(3, 8), (4, 1))
    quantizer = fit_quantizer(vectors, 4)
    rows, _ = search_codes(quantizer, quantizer.encode(vectors), vectors[1:2], 3)
    assert rows.tolist() == [[1, 4, 7]]


def test_constant_dimensions_are_kept() -> None:
    vectors = np.full((50, 4), 0.25, np.float32)
    vectors[:, 1] = np.linspace(-1, 1, 50)
    quantizer = fit_quantizer(vectors, 4)
    decoded = quantizer.decode(quantizer.encode(vectors))
    assert decoded[:, [0, 2, 3]].tolist() == vectors[:, [0, 2, 3]].tolist()


@pytest.mark.parametrize("shared", BOTH)
def test_four_bits_keep_the_quality_and_two_do_not(shared: bool) -> None:
    # Topics of ten videos: the others of its topic are what a video should find.
    generator = np.random.default_rng(0)
    topics = generator.normal(size=(200, 160)).repeat(10, axis=0)
    vectors = topics + 1.5 * generator.normal(size=topics.shape)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    asked = np.arange(0, 2000, 10)
    relevant = [{row: 1.0 for row in range(start + 1, start + 10)} for start in asked.tolist()]

    def quality(scores: np.ndarray) -> float:
        scores[np.arange(len(asked)), asked] = -np.inf
        rows = np.argsort(-scores, axis=1)[:, :10]
        return float(ndcg_at_k(*ranked_by_rows(rows, relevant), 10, gain="exponential").mean())

    exact = quality(vectors[asked] @ vectors.T)
    kept = {}
    for bits in BITS:
        quantizer = fit_quantizer(vectors, bits, shared=shared)
        kept[bits] = quality(vectors[asked] @ quantizer.decode(quantizer.encode(vectors)).T) / exact
    assert 0.4 < exact < 0.95
    assert kept[8] > 0.998
    assert kept[4] > 0.99
    assert kept[2] < kept[4] - 0.03


def test_faults_are_named() -> None:
    vectors = unit(40, 6)
    with pytest.raises(UserError, match="field 'bits': must be 2, 4 or 8, not 3"):
        fit_quantizer(vectors, 3)
    with pytest.raises(UserError, match=r"vectors must be \[N, D\], not \[0, 6\]"):
        fit_quantizer(vectors[:0], 4)
    quantizer = fit_quantizer(vectors, 4)
    with pytest.raises(UserError, match=r"vectors must be \[N, 6\], not \[40, 5\]"):
        quantizer.encode(vectors[:, :5])
    bad = vectors.copy()
    bad[7, 1] = np.nan
    with pytest.raises(UserError, match="record 7: 1 vectors are not finite"):
        quantizer.encode(bad)
    with pytest.raises(UserError, match=r"codes are uint8 \[40, 2\], not uint8 \[N, 3\]"):
        search_codes(quantizer, quantizer.encode(vectors)[:, :2], vectors[:1], 3)
    with pytest.raises(UserError, match="must be at least 1, not 0"):
        search_codes(quantizer, quantizer.encode(vectors), vectors[:1], 0)

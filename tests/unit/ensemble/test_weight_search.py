from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import spearmanr

from vidsim.common.errors import UserError
from vidsim.data.embeddings import Embeddings
from vidsim.data.pairs import Pairs
from vidsim.ensemble.weight_search import best_weights, search_weights


def noisy(noises: list[float], num_pairs: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.round(generator.random(num_pairs) * 20) / 20
    return np.stack([labels + generator.standard_normal(num_pairs) * noise for noise in noises]), labels


def value(weights: tuple[float, ...], cosines: np.ndarray, labels: np.ndarray) -> float:
    return float(spearmanr(np.asarray(weights) @ cosines, labels).statistic)


@pytest.mark.parametrize("noises", [[0.3, 0.9], [0.2, 0.4, 1.5], [0.3, 0.3, 0.6, 2.0, 0.5]])
def test_never_below_singles_nor_equal_weights(noises: list[float]) -> None:
    cosines, labels = noisy(noises)
    weights = best_weights(cosines, labels)
    assert sum(weights) == pytest.approx(1)
    assert min(weights) >= 0
    found = value(weights, cosines, labels)
    num = len(noises)
    others = [tuple(1 / num for _ in noises)] + [tuple(float(i == m) for i in range(num)) for m in range(num)]
    assert found >= max(value(other, cosines, labels) for other in others)
    assert found > value(others[0], cosines, labels) + 0.005  # members this unequal: there is a gain to find


def test_three_members_are_searched_exhaustively() -> None:
    cosines, labels = noisy([0.2, 0.4, 1.5])
    grid = [(i / 20, j / 20, (20 - i - j) / 20) for i, j in product(range(21), repeat=2) if i + j <= 20]
    best = max(value(weights, cosines, labels) for weights in grid)
    assert value(best_weights(cosines, labels), cosines, labels) >= best - 1e-6


def test_ascent_comes_close_to_a_fine_search() -> None:
    cosines, labels = noisy([0.2, 0.3, 0.4, 0.8])
    steps = [i / 10 for i in range(11)]
    best = max(
        value((a, b, c, 1 - a - b - c), cosines, labels) for a, b, c in product(steps, repeat=3) if a + b + c <= 1
    )
    assert value(best_weights(cosines, labels), cosines, labels) >= best - 1e-6


def test_useless_member_gets_no_weight() -> None:
    cosines, labels = noisy([0.2, 0.2])
    cosines[1] = -cosines[1]
    assert best_weights(cosines, labels) == (1.0, 0.0)


def test_equal_weights_win_ties() -> None:
    cosines, labels = noisy([0.5])
    assert best_weights(np.repeat(cosines, 4, axis=0), labels) == (0.25, 0.25, 0.25, 0.25)


def make(noise: float, seed: int, name: str) -> Embeddings:
    base = np.random.default_rng(0).standard_normal((80, 6))
    vectors = base + np.random.default_rng(seed).standard_normal((80, 6)) * noise
    return Embeddings([f"v{i}" for i in range(80)], vectors.astype(np.float32), name=name)


def make_pairs(num: int = 300) -> Pairs:
    truth = make(0, 0, "truth").vectors
    rows = np.random.default_rng(5).integers(0, 80, (2, num))
    unit = truth / np.linalg.norm(truth, axis=1, keepdims=True)
    score = np.clip(np.sum(unit[rows[0]] * unit[rows[1]], axis=1), 0, 1).astype(np.float64)
    return Pairs([f"v{i}" for i in rows[0]], [f"v{i}" for i in rows[1]], score)


def test_search_reports_gains_and_is_deterministic() -> None:
    members = [make(0.3, 1, "good"), make(2.5, 2, "bad")]
    found = search_weights(members, make_pairs(), num_resamples=50)
    assert found.weights[0] > found.weights[1]
    assert found.spearman >= max(found.equal, *found.singles)
    assert found.interval_over_equal is not None
    assert found.interval_over_equal[0] > 0
    assert found.expected_gain is not None
    assert found.expected_gain > 0
    text = found.report(["good", "bad"])
    assert "good: weight" in text
    assert "gain over equal weights to expect" in text
    assert found == search_weights(members, make_pairs(), num_resamples=50)


def test_no_gain_is_said() -> None:
    members = [make(1.0, 1, "x"), make(1.0, 2, "y")]
    text = search_weights(members, make_pairs(40), num_resamples=20).report(["x", "y"])
    assert "equal weights" in text


def test_too_few_pairs() -> None:
    with pytest.raises(UserError, match="5 pairs are too few"):
        search_weights([make(1, 1, "x")], make_pairs(5))

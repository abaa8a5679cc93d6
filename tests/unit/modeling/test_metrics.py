from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from vidsim.modeling.metrics import (
    mse,
    pearson,
    spearman,
)


def pairs(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 5, num) / 4
    return labels + generator.normal(size=num), labels


def test_spearman_by_hand() -> None:
    # Ranks 1, 2, 3 against 2, 1, 3: 1 - 6 * 2 / (3 * 8).
    assert spearman([0.1, 0.2, 0.9], [5.0, 1.0, 7.0]) == pytest.approx(0.5)
    assert spearman([3.0, 2.0, 1.0], [0.0, 0.5, 1.0]) == pytest.approx(-1.0)


def test_correlations_equal_scipy_with_ties() -> None:
    predictions, labels = pairs(200)
    assert spearman(predictions, labels) == pytest.approx(spearmanr(predictions, labels).statistic)
    assert pearson(predictions, labels) == pytest.approx(pearsonr(predictions, labels).statistic)
    assert pearson([1e-300, 2e-300, 4e-300], [1.0, 2.0, 4.0]) == pytest.approx(1.0)


def test_mse_by_hand() -> None:
    assert mse([0.5, 1.0], [0.0, 1.0]) == pytest.approx(0.125)
    assert mse([0.5], [0.5]) == 0.0


@pytest.mark.parametrize("metric", [spearman, pearson])
def test_refuses_what_has_no_correlation(metric: object) -> None:
    assert callable(metric)
    for predictions, labels, message in (
        ([0.5, 0.5, 0.5], [0.0, 0.5, 1.0], "all 3 predictions are the same"),
        ([0.0, 0.5, 1.0], [1.0, 1.0, 1.0], "all 3 labels are the same"),
        ([0.0, float("nan"), 1.0], [1.0, 0.0, 1.0], "1 of 3 predictions are not finite, first at 1: nan"),
        ([0.0, 0.1], [float("inf"), 0.0], "labels are not finite"),
        ([0.0], [0.0], "at least 2"),
        ([0.0, 0.1], [0.0], "one length"),
    ):
        with pytest.raises(ValueError, match=message):
            metric(predictions, labels)

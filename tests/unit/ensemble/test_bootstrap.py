from __future__ import annotations

import numpy as np
import pytest

from vidsim.ensemble.bootstrap import percentile_interval, spearman_resamples
from vidsim.modeling.metrics import spearman


@pytest.mark.parametrize("decimals", [1, 12])  # with and without ties in the predictions
def test_equal_to_sorting_each_resample_anew(decimals: int) -> None:
    generator = np.random.default_rng(3)
    labels = np.round(generator.random(40), 1)
    predictions = [np.round(labels + generator.standard_normal(40) * s, decimals) for s in (0.3, 1.0)]
    groups = [f"q{i // 3}" for i in range(40)]
    found = spearman_resamples(predictions, labels, groups=groups, num_resamples=20, seed=5)
    draws = np.random.default_rng(5)
    names = sorted(set(groups))
    for row in found:
        drawn = [names[i] for i in draws.integers(0, len(names), len(names))]
        rows = [i for name in drawn for i in range(40) if groups[i] == name]
        for value, prediction in zip(row, predictions, strict=True):
            assert value == pytest.approx(spearman(prediction[rows], labels[rows]), abs=1e-12)


def test_pair_by_pair_and_deterministic() -> None:
    generator = np.random.default_rng(0)
    labels = generator.random(30)
    first = spearman_resamples([labels**3], labels, num_resamples=50, seed=1)
    assert first.shape == (50, 1)
    np.testing.assert_allclose(first, 1, atol=1e-12)
    noisy = labels + generator.standard_normal(30)
    same = [spearman_resamples([noisy], labels, num_resamples=5, seed=seed) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(same[0], same[1])
    assert (same[0] != same[2]).any()


def test_resamples_without_a_value() -> None:
    values = spearman_resamples([np.arange(3.0)], np.array([0.0, 0.0, 1.0]), num_resamples=200, seed=0)
    assert np.isnan(values).any()
    assert percentile_interval(values[:, 0]) is not None
    assert percentile_interval(np.array([np.nan, np.nan, 0.5])) is None
    assert percentile_interval(np.empty(0)) is None
    assert percentile_interval(np.arange(101.0)) == pytest.approx((2.5, 97.5))


def test_interval_is_as_wide_as_the_large_sample_error() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 5, 300) / 4
    predictions = labels + generator.normal(size=300)
    low, high = percentile_interval(spearman_resamples([predictions], labels, num_resamples=300)[:, 0]) or (0, 0)
    value = spearman(predictions, labels)
    assert low < value < high
    # Large-sample standard error of a correlation r: about (1 - r^2) / sqrt(N).
    assert high - low == pytest.approx(2 * 1.96 * (1 - value**2) / np.sqrt(300), rel=0.3)


def test_groups_see_that_copies_tell_nothing_new() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 5, 100) / 4
    predictions = labels + generator.normal(size=100)
    videos = [f"v{index}" for index in range(100)] * 9

    def width(repeats: int, groups: list[str] | None) -> float:
        values = [np.tile(predictions, repeats)], np.tile(labels, repeats)
        interval = percentile_interval(spearman_resamples(*values, groups=groups, num_resamples=300)[:, 0])
        assert interval is not None
        return interval[1] - interval[0]

    assert width(9, videos) == pytest.approx(width(1, None), rel=0.2)
    assert width(9, None) * 2 < width(9, videos)


def test_one_draw_says_nothing_of_the_spread() -> None:
    generator = np.random.default_rng(0)
    labels = generator.random(29)
    predictions = [labels + generator.standard_normal(29) for _ in range(2)]
    values = spearman_resamples(predictions, labels, groups=["q"] * 29, num_resamples=50)
    assert values.shape == (50, 2)
    assert percentile_interval(values[:, 0]) is None
    assert percentile_interval(values[:, 1] - values[:, 0]) is None

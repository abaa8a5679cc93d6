from __future__ import annotations

import numpy as np
import pytest
from sklearn.preprocessing import QuantileTransformer

from vidsim.modeling.labels import fit_label_transform, self_distilled_labels

# Pairs in 10,000 per label 0, .05, ..., 1: published marginals of the competition's label file (36.4 % at 0,
# 6.9 % at .5, 13.9 % at 1); the rest is chosen so that the published rank levels come out.
COUNTS = [
    3640,
    550,
    345,
    240,
    240,
    230,
    203,
    203,
    203,
    203,
    690,
    256,
    256,
    256,
    256,
    256,
    139,
    139,
    139,
    180,
    1376,
]
LEVELS = np.arange(21) / 20
PUBLISHED = {0: 0, 0.05: 0.28, 0.1: 0.34, 0.25: 0.44, 0.5: 0.61, 0.75: 0.81, 0.95: 0.895, 1: 1}


@pytest.fixture(scope="module")
def competition_labels() -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(LEVELS, COUNTS))


def test_the_sample_has_the_published_moments(competition_labels: np.ndarray) -> None:
    assert len(competition_labels) == 10_000
    assert competition_labels.mean() == pytest.approx(0.359, abs=0.005)
    assert competition_labels.std() == pytest.approx(0.379, abs=0.005)
    assert np.median(competition_labels) == pytest.approx(0.2)


def test_rank_levels_are_the_published_ones(competition_labels: np.ndarray) -> None:
    transform = fit_label_transform("rank", competition_labels)
    for label, level in PUBLISHED.items():
        assert transform([label])[0] == pytest.approx(level, abs=0.005), label
    assert transform([0.0, 1.0]).tolist() == [0.0, 1.0]


def test_rank_by_hand() -> None:
    # Average ranks of 0, 0, .5, 1: 1.5, 1.5, 3, 4; minus 1.5, over 2.5.
    transform = fit_label_transform("rank", [0.5, 0.0, 1.0, 0.0])
    assert transform([0.5, 0.0, 1.0, 0.0]).tolist() == pytest.approx([0.6, 0.0, 1.0, 0.0])
    # A label that was not there: half way between its neighbours; outside: the end.
    assert transform([0.25, -3.0, 2.0]).tolist() == pytest.approx([0.3, 0.0, 1.0])


def test_rank_depends_on_the_order_of_labels_only() -> None:
    labels = np.array([0.1, 0.4, 0.4, 0.9])
    np.testing.assert_allclose(
        fit_label_transform("rank", labels)(labels), fit_label_transform("rank", labels**3)(labels**3)
    )


def test_quantile_equals_scikit_learn(competition_labels: np.ndarray) -> None:
    ours = fit_label_transform("quantile", competition_labels)
    theirs = QuantileTransformer(n_quantiles=100, output_distribution="uniform", subsample=None)
    theirs.fit(competition_labels[:, None])
    queries = np.concatenate([LEVELS, [0.01, 0.33, 0.99]])
    np.testing.assert_allclose(ours(queries), theirs.transform(queries[:, None])[:, 0], atol=1e-12)


def test_quantile_of_fewer_labels_than_quantiles() -> None:
    transform = fit_label_transform("quantile", [0.0, 0.5, 1.0])
    assert transform([0.0, 0.25, 0.5, 1.0, 7.0]).tolist() == pytest.approx([0.0, 0.25, 0.5, 1.0, 1.0])


def test_raw_is_the_label_itself_and_no_alias() -> None:
    labels = np.array([0.2, 0.7])
    targets = fit_label_transform("raw", labels)(labels)
    assert targets.tolist() == [0.2, 0.7]
    targets[0] = 9.0
    assert labels[0] == 0.2


def test_refuses_what_has_no_meaning() -> None:
    with pytest.raises(ValueError, match="label 1 is nan"):
        fit_label_transform("raw", [0.1, float("nan")])
    with pytest.raises(ValueError, match="at least 2 different labels, there are 1"):
        fit_label_transform("rank", [0.5, 0.5])
    with pytest.raises(ValueError, match="at least 2 different labels, there are 0"):
        fit_label_transform("quantile", [])
    with pytest.raises(ValueError, match="one-dimensional"):
        fit_label_transform("raw", [[0.1]])


def test_self_distilled_labels_by_hand() -> None:
    assert self_distilled_labels([1.0, 0.0, 0.5], [0.5, -0.4, 0.5]).tolist() == pytest.approx([0.85, 0.0, 0.5])
    assert self_distilled_labels([1.0], [0.0], label_weight=0.25).tolist() == [0.25]
    with pytest.raises(ValueError, match="1 labels but 2 cosines"):
        self_distilled_labels([1.0], [0.0, 0.1])
    with pytest.raises(ValueError, match="label_weight"):
        self_distilled_labels([1.0], [0.0], label_weight=1.5)

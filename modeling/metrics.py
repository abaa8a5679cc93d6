"""What a model is judged by on labelled pairs: correlation and error.

numpy and scipy only; nothing here returns NaN: what has no value raises ValueError with the reason.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def spearman(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Spearman rank correlation, ties sharing their average rank; the score of AIAC 2021 Track 1.

    Args:
        predictions: float [N].
        labels: float [N].

    Returns:
        In [-1, 1]; with tied labels even a perfect ranking stays below 1.

    Raises:
        ValueError: Lengths differ, fewer than 2 values, a value is not finite, or one side is constant.
    """
    from scipy.stats import rankdata  # half a second to import, which nothing before the first evaluation waits for

    first, second = _checked(predictions, labels)
    return _correlation(rankdata(first), rankdata(second))


def pearson(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Pearson correlation, in [-1, 1]. Arguments and errors as for `spearman`."""
    return _correlation(*_checked(predictions, labels))


def mse(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Mean squared error of float [N] against float [N].

    Raises:
        ValueError: Lengths differ, no values, or a value is not finite.
    """
    first, second = _checked(predictions, labels, at_least=1)
    return float(np.mean((first - second) ** 2))


def _checked(
    predictions: ArrayLike, labels: ArrayLike, at_least: int = 2
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = np.asarray(predictions, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"predictions {first.shape} and labels {second.shape} must be two lists of one length")
    if len(first) < at_least:
        raise ValueError(f"needs at least {at_least} values, there are {len(first)}")
    for name, values in (("prediction", first), ("label", second)):
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ValueError(f"{len(bad)} of {len(values)} {name}s are not finite, first at {bad[0]}: {values[bad[0]]}")
    return first, second


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    for name, values in (("predictions", first), ("labels", second)):
        if _is_constant(values):
            raise ValueError(f"all {len(values)} {name} are the same: a correlation is not defined")
    first, second = first - first.mean(), second - second.mean()
    first, second = first / np.abs(first).max(), second / np.abs(second).max()  # tiny values would square to 0
    # einsum, not BLAS: that would wake all cores for a short sum, and round by how many there are.
    covariance, *variances = (np.einsum("n,n->", a, b) for a, b in ((first, second), (first, first), (second, second)))
    return float(np.clip(covariance / np.sqrt(variances[0] * variances[1]), -1.0, 1.0))


def _is_constant(values: NDArray[np.float64]) -> bool:
    return bool(values.min() == values.max())

"""What a model is judged by: correlation with labels, its uncertainty and its ceiling, and retrieval quality.

numpy and scipy only; nothing here returns NaN: what has no value raises ValueError with the reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

Metric = Callable[[ArrayLike, ArrayLike], float]


def spearman(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Spearman rank correlation, ties sharing their average rank; the score of AIAC 2021 Track 1.

    Args:
        predictions: float [N].
        labels: float [N].

    Returns:
        In [-1, 1]; with tied labels even a perfect ranking stays below 1 (see `tie_ceiling`).

    Raises:
        ValueError: Lengths differ, fewer than 2 values, a value is not finite, or one side is constant.
    """
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


def tie_ceiling(labels: ArrayLike) -> float:
    """The highest Spearman correlation that predictions without ties can reach, in (0, 1].

    `sqrt(1 - sum (t^3 - t) / (N^3 - N))` over the groups of t equal labels: sorted right, the predictions'
    ranks still spread where the labels' ranks are shared. Labels of AIAC 2021: .974.

    Raises:
        ValueError: Fewer than 2 labels, a label is not finite, or all are the same.
    """
    values, _ = _checked(labels, labels)
    if values.min() == values.max():
        raise ValueError(f"all {len(values)} labels are {values[0]}: no ranking to agree with")
    counts = np.unique(values, return_counts=True)[1].astype(np.float64)
    num = float(len(values))
    return float(np.sqrt(1.0 - np.sum(counts**3 - counts) / (num**3 - num)))


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A metric with its bootstrap interval.

    Attributes:
        value: The metric on all pairs.
        low: Lower end.
        high: Upper end.
        confidence: Share of resamples inside, for instance .95.
        num_resamples: Resamples that had a value.
    """

    value: float
    low: float
    high: float
    confidence: float
    num_resamples: int

    def __str__(self) -> str:
        """`.8860 [.8801, .8912]`, four digits."""
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def bootstrap(
    predictions: ArrayLike,
    labels: ArrayLike,
    metric: Metric = spearman,
    *,
    groups: ArrayLike | None = None,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of a metric over pairs, or over groups of pairs that are drawn together.

    Pairs that share a video are not independent: give the video (for instance the first id of each pair) as
    `groups`, or the interval is too narrow. Resamples without a value (all labels equal) are left out;
    `num_resamples` of the answer counts the others.

    Args:
        predictions: float [N].
        labels: float [N].
        metric: (predictions, labels) -> float.
        groups: [N], any sortable values; None = each pair is its own group.
        num_resamples: How many times to draw with replacement.
        confidence: In (0, 1).
        seed: Of the draws.

    Raises:
        ValueError: As the metric does on all pairs; or more than a tenth of the resamples have no value.
    """
    first, second = _checked(predictions, labels, at_least=1)
    value = metric(first, second)
    members = None if groups is None else _group_members(groups, len(first))
    num_groups = len(first) if members is None else len(members)
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(num_resamples):
        rows = generator.integers(0, num_groups, size=num_groups)
        if members is not None:
            rows = np.concatenate([members[group] for group in rows])
        with contextlib.suppress(ValueError):  # a resample with all labels equal has no value
            values.append(metric(first[rows], second[rows]))
    if len(values) < 0.9 * num_resamples:
        raise ValueError(f"only {len(values)} of {num_resamples} resamples have a value; too few pairs")
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return Interval(value=value, low=float(low), high=float(high), confidence=confidence, num_resamples=len(values))


def recall_at_k(scores: ArrayLike, relevant: ArrayLike, k: int) -> float:
    """Share of the relevant items among the first k, averaged over the queries, in [0, 1].

    With one relevant item per query this is the usual R@k of text-video retrieval. Equal scores count against
    the
    model: among them the irrelevant items come first.

    Args:
        scores: float [Q, N], higher = better.
        relevant: bool [Q, N], at least one per query.
        k: In 1..N.

    Raises:
        ValueError: Shapes differ, a score is not finite, a query has nothing relevant, or k is out of range.
    """
    ordered = _ordered_relevance(scores, relevant)
    if not 1 <= k <= ordered.shape[1]:
        raise ValueError(f"k must be in 1..{ordered.shape[1]}, not {k}")
    return float(np.mean(ordered[:, :k].sum(axis=1) / ordered.sum(axis=1)))


def mean_reciprocal_rank(scores: ArrayLike, relevant: ArrayLike) -> float:
    """`1 / rank` of the first relevant item, mean over the queries, in (0, 1]. Arguments as `recall_at_k`."""
    ordered = _ordered_relevance(scores, relevant)
    return float(np.mean(1.0 / (ordered.argmax(axis=1) + 1.0)))


def _group_members(groups: ArrayLike, num_pairs: int) -> list[NDArray[np.intp]]:
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    if group_of.shape != (num_pairs,):
        raise ValueError(f"groups of shape {group_of.shape} for {num_pairs} pairs")
    order = np.argsort(group_of, kind="stable")
    return np.split(order, np.cumsum(np.bincount(group_of, minlength=len(names)))[:-1])


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
    first, second = (
        first / np.abs(first).max(),
        second / np.abs(second).max(),
    )  # tiny values would square to 0
    return float(np.clip(first @ second / (np.linalg.norm(first) * np.linalg.norm(second)), -1.0, 1.0))


def _is_constant(values: NDArray[np.float64]) -> bool:
    return bool(values.min() == values.max())


def _ordered_relevance(scores: ArrayLike, relevant: ArrayLike) -> NDArray[np.bool_]:
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(relevant, dtype=bool)
    if values.ndim != 2 or values.shape != truth.shape:
        raise ValueError(f"scores {values.shape} and relevant {truth.shape} must have one shape [queries, items]")
    if not np.isfinite(values).all():
        raise ValueError("a score is not finite")
    without = np.flatnonzero(~truth.any(axis=1))
    if len(without) or not len(truth):
        raise ValueError(f"{len(without)} of {len(truth)} queries have no relevant item")
    order = np.lexsort((truth, -values), axis=-1)
    return np.take_along_axis(truth, order, axis=1)

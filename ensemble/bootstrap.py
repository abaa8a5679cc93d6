"""Bootstrap of Spearman correlations without sorting anew in each resample.

A resample only changes how often each pair counts. Sorted once, the average ranks of a resample are
cumulative sums of those counts: O(N), and the same draws serve several predictions, so that their differences
are paired.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


class _TieGroups:
    """Values sorted once, equal ones in one group."""

    def __init__(self, values: Float64) -> None:
        self.order = np.argsort(values, kind="stable")
        ordered = values[self.order]
        is_first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
        self.starts = np.flatnonzero(is_first)
        self.group_of = np.empty(len(values), np.int64)
        self.group_of[self.order] = np.cumsum(is_first) - 1

    def centred_ranks(self, counts: Float64) -> Float64:
        """Average rank less the mean rank, float64 [N], where value i occurs `counts[i]` times."""
        sizes = np.add.reduceat(counts[self.order], self.starts)
        ranks = np.cumsum(sizes) - sizes / 2  # before + (size + 1) / 2, less the 1/2 that the mean has too
        return (ranks - counts.sum() / 2)[self.group_of]


def spearman_resamples(
    predictions: Sequence[Float64],
    labels: Float64,
    *,
    groups: Sequence[str] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Float64:
    """Spearman correlation of each prediction in each bootstrap resample.

    Args:
        predictions: M times float64 [N].
        labels: float64 [N].
        groups: N names; pairs of one name are drawn together (pairs that share a video are not independent).
            None draws pair by pair.
        num_resamples: R, how many times to draw with replacement.
        seed: Of the draws.

    Returns:
        float64 [R, M]; NaN where a resample leaves a side without two different values.
    """
    group_of = np.unique(np.asarray(groups), return_inverse=True)[1] if groups is not None else None
    num_groups = int(group_of.max()) + 1 if group_of is not None else len(labels)
    rankers = [_TieGroups(values) for values in predictions]
    label_ranker = _TieGroups(labels)
    generator = np.random.default_rng(seed)
    out = np.full((num_resamples, len(predictions)), np.nan)
    for number in range(num_resamples):
        drawn = generator.integers(0, num_groups, num_groups)
        counts = np.bincount(drawn, minlength=num_groups).astype(np.float64)
        if group_of is not None:
            counts = counts[group_of]
        label_ranks = label_ranker.centred_ranks(counts)
        weighted = counts * label_ranks
        label_norm = weighted @ label_ranks
        for column, ranker in enumerate(rankers):
            ranks = ranker.centred_ranks(counts)
            norm = (counts * ranks) @ ranks
            if norm > 0 and label_norm > 0:
                out[number, column] = (weighted @ ranks) / np.sqrt(norm * label_norm)
    return out


def percentile_interval(values: Float64, confidence: float = 0.95) -> tuple[float, float] | None:
    """Lower and upper percentile of the resamples that have a value; None if fewer than half have one."""
    known = values[np.isfinite(values)]
    if not len(known) or len(known) * 2 < len(values):
        return None
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(known, [tail, 1.0 - tail])
    return float(low), float(high)

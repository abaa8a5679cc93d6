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


class _Labels:
    """Labels sorted once into levels of equal values."""

    def __init__(self, values: Float64) -> None:
        levels, self.level_of = np.unique(values, return_inverse=True)
        self.num_levels = len(levels)

    def centred_ranks(self, counts: Float64) -> tuple[Float64, float]:
        """Average rank of each level less the mean rank, float64 [levels], and their squares' sum over pairs."""
        sizes = np.bincount(self.level_of, weights=counts, minlength=self.num_levels).astype(np.float64)
        ranks = _mid_ranks(sizes)
        return ranks, _dot(sizes * ranks, ranks)


class _Prediction:
    """A prediction whose pairs are sorted once; everything else about the pairs is kept in that order."""

    def __init__(self, values: Float64, draw_of: Int64, labels: _Labels) -> None:
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        self.tie_starts = starts if len(starts) < len(values) else None
        self.tie_sizes = np.diff(starts, append=len(values))
        self.draw_of = draw_of[order]
        self.level_of = labels.level_of[order]

    def spearman(self, times_drawn: Float64, label_ranks: Float64, label_norm: float) -> float:
        """Spearman correlation where what is drawn as number g counts `times_drawn[g]` times; NaN without one."""
        counts = times_drawn[self.draw_of]
        if self.tie_starts is None:
            ranks = _mid_ranks(counts)
        else:
            ranks = np.repeat(_mid_ranks(np.add.reduceat(counts, self.tie_starts)), self.tie_sizes)
        weighted = counts * ranks
        norm = _dot(weighted, ranks) * label_norm
        if not norm > 0:
            return float("nan")
        by_level = np.bincount(self.level_of, weights=weighted, minlength=len(label_ranks))
        return _dot(by_level.astype(np.float64), label_ranks) / float(np.sqrt(norm))


def _dot(first: Float64, second: Float64) -> float:
    # BLAS would wake all cores for each of these short sums; waking them takes longer than the sum.
    return float(np.einsum("n,n->", first, second))


def _mid_ranks(sizes: Float64) -> Float64:
    """Average rank less the mean rank of groups in rising order, that have these sizes."""
    ranks = np.cumsum(sizes)  # before + (size + 1) / 2, less the 1/2 that the mean has too
    return ranks - (sizes + ranks[-1]) / 2


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
        float64 [R, M]; NaN where a resample leaves a side without two different values, and everywhere if all
        pairs are drawn together, which says nothing of the spread.
    """
    draw_of = np.arange(len(labels)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    num_draws = int(draw_of.max()) + 1
    if num_draws < 2:
        return np.full((num_resamples, len(predictions)), np.nan)
    ranked_labels = _Labels(labels)
    ranked = [_Prediction(values, draw_of, ranked_labels) for values in predictions]
    generator = np.random.default_rng(seed)
    out = np.empty((num_resamples, len(predictions)))
    for row in out:
        drawn = generator.integers(0, num_draws, num_draws)
        times_drawn = np.bincount(drawn, minlength=num_draws).astype(np.float64)
        label_ranks, label_norm = ranked_labels.centred_ranks(times_drawn[draw_of])
        row[:] = [prediction.spearman(times_drawn, label_ranks, label_norm) for prediction in ranked]
    return out


def percentile_interval(values: Float64, confidence: float = 0.95) -> tuple[float, float] | None:
    """Lower and upper percentile of the resamples that have a value; None if fewer than half have one."""
    known = values[np.isfinite(values)]
    if not len(known) or len(known) * 2 < len(values):
        return None
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(known, [tail, 1.0 - tail])
    return float(low), float(high)


def brackets(interval: tuple[float, float] | None, sign: str = "") -> str:
    """An interval for people, `[low, high]`; nothing where there is none.

    Args:
        interval: From `percentile_interval`.
        sign: `+` to show the sign of positive numbers too.
    """
    return f"[{interval[0]:{sign}.4f}, {interval[1]:{sign}.4f}]" if interval else ""

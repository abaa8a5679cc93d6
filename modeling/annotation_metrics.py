"""How good predicted tags are: GAP@k and both mean average precisions. numpy only.

Only the k best tags of each video are looked at, as in the YouTube-8M challenge. Equal scores share one threshold, as
in scikit-learn: no figure depends on the order in which equal ones are given.

Legend: Q videos, k predictions of each, K tags, P (video, tag) pairs that are true.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Predictions:
    """The k best tags of each of Q videos, and what there was to find.

    Attributes:
        tags: int64 [Q, k].
        scores: float64 [Q, k].
        hits: bool [Q, k], whether the video carries the tag.
        videos: int64 [P], 0..Q-1.
        carried: int64 [P], 0..K-1; the video of the same place carries it.
    """

    tags: Integers
    scores: Float64
    hits: npt.NDArray[np.bool_]
    videos: Integers
    carried: Integers

    @classmethod
    def judge(
        cls, tags: npt.ArrayLike, scores: npt.ArrayLike, videos: npt.ArrayLike, carried: npt.ArrayLike
    ) -> Predictions:
        """Compare what was predicted with what is true.

        Args:
            tags: int [Q, k], from 0.
            scores: float [Q, k], the higher the better.
            videos: int [P], 0..Q-1.
            carried: int [P]; every pair once.

        Raises:
            ValueError: Shapes that do not fit, a score that is not finite, a tag twice for one video, a video that
                carries none.
        """
        found, values = np.asarray(tags, dtype=np.int64), np.asarray(scores, dtype=np.float64)
        rows, truth = np.asarray(videos, dtype=np.int64), np.asarray(carried, dtype=np.int64)
        if found.ndim != 2 or found.shape != values.shape or rows.shape != truth.shape or not found.size:
            shapes = ", ".join(str(list(part.shape)) for part in (found, values, rows, truth))
            raise ValueError(f"[Q, k], [Q, k], [P] and [P] expected, got {shapes}")
        if not np.isfinite(values).all():
            raise ValueError("a score is not finite")
        num_tags = max(int(found.max()), int(truth.max(initial=0))) + 1
        predicted, true = np.arange(len(found))[:, None] * num_tags + found, rows * num_tags + truth
        if len(np.unique(predicted)) != predicted.size or len(np.unique(true)) != len(true):
            raise ValueError("a tag stands twice for one video")
        if (np.bincount(rows, minlength=len(found)) == 0).any() or rows.max() >= len(found):
            raise ValueError("every video must carry a tag, and no other video may")
        return cls(found, values, np.isin(predicted, true), rows, truth)


def gap(predictions: Predictions, weights: npt.ArrayLike | None = None) -> float:
    """Global average precision, in [0, 1] (Lee et al. 2018 Eq. 9).

    All predictions of all videos make one ranking; the sum of precision times gain of recall. Recall is of all tags
    that the videos carry, also those that are not among the k best.

    Args:
        predictions: What was found.
        weights: float [Q], how often each video counts (for bootstrap intervals); None: once.
    """
    everything = np.zeros(predictions.tags.size, dtype=np.int64)
    return float(
        _average(predictions, everything, np.zeros_like(predictions.videos), _weights(predictions, weights))[0]
    )


def annotation_metrics(predictions: Predictions) -> dict[str, float]:
    """`gap`, `map_sample` and `map_class`, each in [0, 1].

    - `gap`: see there.
    - `map_sample`: the same in the ranking of each video alone (Eq. 4), mean over videos.
    - `map_class`: the same in the ranking of each tag alone, over the videos among whose k best it is, mean over the
      tags that any video carries.
    """
    weight = _weights(predictions, None)
    num_videos, k = predictions.tags.shape
    by_video = _average(predictions, np.repeat(np.arange(num_videos), k), predictions.videos, weight)
    by_tag = _average(predictions, predictions.tags.reshape(-1), predictions.carried, weight)
    carried = np.unique(predictions.carried)
    return {
        "gap": gap(predictions),
        "map_sample": float(by_video.mean()),
        "map_class": float(by_tag[carried].mean()),
    }


def _weights(predictions: Predictions, weights: npt.ArrayLike | None) -> Float64:
    return np.ones(len(predictions.tags)) if weights is None else np.asarray(weights, dtype=np.float64)


def _average(predictions: Predictions, found: Integers, carried: Integers, weight: Float64) -> Float64:
    """Average precision of each ranking.

    Args:
        predictions: What was found.
        found: int64 [Q * k], the ranking that each prediction belongs to.
        carried: int64 [P], the ranking that each true pair belongs to.
        weight: float64 [Q], of the videos.
    """
    totals = np.bincount(carried, weight[predictions.videos], minlength=int(found.max()) + 1).astype(np.float64)
    each = np.repeat(weight, predictions.tags.shape[1])
    return average_precisions(found, predictions.scores.reshape(-1), predictions.hits.reshape(-1), each, totals)


def average_precisions(
    groups: Integers, scores: Float64, hits: npt.NDArray[np.bool_], weights: Float64, totals: Float64
) -> Float64:
    """Average precision of several rankings at once.

    Args:
        groups: int64 [N], which ranking, 0..G-1.
        scores: float64 [N].
        hits: bool [N].
        weights: float64 [N], how often each counts.
        totals: float64 [G], hits that there are, whether ranked or not, counted as often.

    Returns:
        float64 [G]; 0 where there are none.
    """
    order = np.lexsort((-scores, groups))
    group, score, weight = groups[order], scores[order], weights[order]
    is_last = np.ones(len(order), dtype=bool)  # of those with its score: only there a threshold can lie
    is_last[:-1] = (group[1:] != group[:-1]) | (score[1:] != score[:-1])
    ends = np.flatnonzero(is_last)
    group = group[ends]
    begins = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))
    of_block = np.repeat(np.arange(len(begins)), np.diff(np.append(begins, len(group))))

    def running(values: Float64) -> tuple[Float64, Float64]:
        """Sum from the group's beginning up to each threshold, and to the one before it."""
        sums = np.concatenate([[0.0], np.cumsum(values)[ends]])
        before = sums[begins][of_block]
        return sums[1:] - before, sums[:-1] - before

    found, found_before = running(weight * hits[order])
    ranked, _ = running(weight)
    gain = (found - found_before) / np.where(totals > 0, totals, 1)[group]
    precision = found / np.where(ranked > 0, ranked, 1)
    return np.bincount(group, gain * precision, minlength=len(totals)).astype(np.float64)

"""Targets for labelled pairs: raw, rank- or quantile-normalised, or softened by a model's own answer.

A transform is fitted on the training labels and applied to any others. Labels and targets are float64 [N].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

LabelKind = Literal["raw", "rank", "quantile"]
_NUM_QUANTILES = 100


@dataclass(frozen=True, kw_only=True)
class LabelTransform:
    """A fitted, monotone map from labels to targets; make one with `fit_label_transform`.

    Attributes:
        kind: raw = the label itself; rank = its average rank among the training labels, scaled to 0..1 (first
            place of AIAC 2021, arXiv 2111.01677 §2.3.2: +.006 on the test); quantile = its place among 100
            quantiles (third place: +.002 over its earlier target in validation).
        knots: Known labels, rising (rank), or quantiles, not falling (quantile); empty for raw.
        targets: The target of each knot.
    """

    kind: LabelKind
    knots: tuple[float, ...] = ()
    targets: tuple[float, ...] = ()

    def __call__(self, labels: ArrayLike) -> NDArray[np.float64]:
        """Targets of labels, float64 [N].

        Unknown labels are interpolated; beyond the ends the end's target holds.

        Raises:
            ValueError: A label is not finite.
        """
        values = _checked(labels)
        if self.kind == "raw":
            return values
        knots, targets = np.asarray(self.knots), np.asarray(self.targets)
        if self.kind == "rank":
            return np.interp(values, knots, targets)
        # A label that fills several quantiles gets the middle of its plateau: interpolate from both sides.
        from_below = np.interp(values, knots, targets)
        from_above = -np.interp(-values, -knots[::-1], -targets[::-1])
        middle = 0.5 * (from_below + from_above)
        return np.where(values <= knots[0], 0.0, np.where(values >= knots[-1], 1.0, middle))


def fit_label_transform(kind: LabelKind, labels: ArrayLike) -> LabelTransform:
    """Fit a transform on training labels.

    rank: `(r - min r) / (max r - min r)` with r the average rank (ties share it), so the lowest label becomes
    0 and the highest 1. quantile: 100 quantiles of the labels, target = place among them in 0..1; the lowest
    and the highest label become 0 and 1, a repeated label the middle of its plateau.

    Args:
        kind: "raw", "rank" or "quantile".
        labels: float [N], finite, of the training pairs only.

    Raises:
        ValueError: The labels are not finite, or (rank, quantile) all the same.
    """
    values = _checked(labels)
    if kind == "raw":
        return LabelTransform(kind=kind)
    known, first = np.unique(values, return_index=True)
    if len(known) < 2:
        raise ValueError(f"a {kind} target needs at least 2 different labels, there are {len(known)}")
    if kind == "rank":
        from scipy.stats import rankdata  # half a second to import

        ranks = rankdata(values, method="average")[first]
        targets = (ranks - ranks[0]) / (ranks[-1] - ranks[0])
        return _transform(kind, known, targets)
    num_quantiles = min(_NUM_QUANTILES, len(values))
    targets = np.linspace(0.0, 1.0, num_quantiles)
    knots = np.maximum.accumulate(np.percentile(values, targets * 100))
    return _transform(kind, knots, targets)


def self_distilled_labels(labels: ArrayLike, cosines: ArrayLike, label_weight: float = 0.7) -> NDArray[np.float64]:
    """`w * label + (1 - w) * cosine`: targets softened by the answers of a model trained before.

    Sixth place of AIAC 2021: .7 of the label, .3 of the model's own cosine, then training again. Cosines
    below 0 are taken as 0, so that targets stay in the labels' range.

    Args:
        labels: float [N], already transformed, in [0, 1].
        cosines: float [N], of the earlier model for the same pairs.
        label_weight: w, in [0, 1].

    Returns:
        float64 [N], in [0, 1].

    Raises:
        ValueError: Lengths differ, a value is not finite, or the weight is outside [0, 1].
    """
    own, answers = _checked(labels), _checked(cosines)
    if len(own) != len(answers):
        raise ValueError(f"{len(own)} labels but {len(answers)} cosines")
    if not 0.0 <= label_weight <= 1.0:
        raise ValueError(f"label_weight must be in [0, 1], not {label_weight}")
    return label_weight * own + (1.0 - label_weight) * np.clip(answers, 0.0, 1.0)


def _checked(labels: ArrayLike) -> NDArray[np.float64]:
    values = np.array(labels, dtype=np.float64)  # a copy: targets never alias the labels
    if values.ndim != 1:
        raise ValueError(f"labels must be one-dimensional, not of shape {values.shape}")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ValueError(f"label {bad[0]} is {values[bad[0]]}; labels must be finite")
    return values


def _transform(kind: LabelKind, knots: NDArray[np.float64], targets: NDArray[np.float64]) -> LabelTransform:
    return LabelTransform(kind=kind, knots=_floats(knots), targets=_floats(targets))


def _floats(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(value) for value in cast(Sequence[float], values))

"""Search for the weights of an ensemble on labelled pairs.

The cosine of a weighted concatenation is the weighted mean of the members' cosines, so only those are
needed. Equal weights and each single member are among the candidates: on the pairs of the search the result
is never below them. As the search fits these pairs, the gain to expect on others is estimated by two-fold
cross-fitting: weights found on one half, scored on the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vidsim.common.errors import UserError
from vidsim.data.embeddings import Embeddings
from vidsim.data.pair_cosines import cosines_of_pairs
from vidsim.data.pairs import Pairs
from vidsim.ensemble.bootstrap import brackets, percentile_interval, spearman_resamples
from vidsim.ensemble.score import check_pairs
from vidsim.modeling.metrics import spearman

Float64 = npt.NDArray[np.float64]
Weights = tuple[float, ...]

_GRID_PARTS = 20  # exhaustive search: weights are multiples of 1/20
_EXHAUSTIVE_UP_TO = 3
_MOVES = (0.2, 0.1, 0.05, 0.02)
# Differences below this are rounding, not ranking: no move is made for them.
_SMALLEST_GAIN = 1e-7


@dataclass(frozen=True, kw_only=True)
class WeightSearch:
    """Found weights and what they are worth.

    Attributes:
        weights: One for each member, >= 0, sum 1.
        spearman: Of the found weights on the pairs of the search.
        equal: Of equal weights.
        singles: Of each member alone.
        interval_over_equal: 95 % bootstrap interval of the gain over equal weights, on the searched pairs.
        interval_over_best: The same over the best single member.
        expected_gain: Gain over equal weights on pairs that took no part, by two-fold cross-fitting; None
            where there are too few pairs for it.
        num_pairs: Pairs of the search.
    """

    weights: Weights
    spearman: float
    equal: float
    singles: tuple[float, ...]
    interval_over_equal: tuple[float, float] | None
    interval_over_best: tuple[float, float] | None
    expected_gain: float | None
    num_pairs: int

    def report(self, names: Sequence[str]) -> str:
        """What was found, as lines of text; says so where equal weights are as good."""
        best = int(np.argmax(self.singles))
        lines = [f"weights searched on {self.num_pairs:,} pairs; Spearman there (a fit, so optimistic):"]
        lines += [
            f"  {name}: weight {weight:.3f}, alone {single:.4f}"
            for name, weight, single in zip(names, self.weights, self.singles, strict=True)
        ]
        lines.append(f"  found weights {self.spearman:.4f}, equal weights {self.equal:.4f}")
        over_best, over_equal = self.spearman - self.singles[best], self.spearman - self.equal
        lines.append(f"  gain over {names[best]} {over_best:+.4f} {brackets(self.interval_over_best, '+')}")
        lines.append(f"  gain over equal weights {over_equal:+.4f} {brackets(self.interval_over_equal, '+')}")
        if self.expected_gain is None:
            lines.append("  too few pairs to tell the gain to expect on others")
        else:
            lines.append(f"  gain over equal weights to expect on other pairs {self.expected_gain:+.4f}")
            if self.expected_gain <= 0:
                lines.append("  that is no gain: equal weights (without --search_weights) are the safer choice")
        return "\n".join(lines)


class _Objective:
    """Spearman of a weighted mean of cosines; each point is computed once."""

    def __init__(self, cosines: Float64, labels: Float64) -> None:
        from scipy.stats import rankdata  # half a second to import, for one way of fusing

        self.cosines = cosines
        self.rank = rankdata
        ranks = rankdata(labels)
        ranks -= ranks.mean()
        self.label_ranks = ranks / np.linalg.norm(ranks)
        self.known: dict[Weights, float] = {}

    def __call__(self, weights: Weights) -> float:
        key = tuple(round(weight, 9) for weight in weights)
        if key not in self.known:
            ranks = self.rank(np.asarray(weights) @ self.cosines)
            ranks -= ranks.mean()
            norm = np.linalg.norm(ranks)
            self.known[key] = float(ranks @ self.label_ranks / norm) if norm > 0 else 0.0
        return self.known[key]


def _grid(num_members: int) -> Iterator[Weights]:
    """Every point of the simplex whose weights are multiples of 1/20."""
    for bars in itertools.combinations(range(_GRID_PARTS + num_members - 1), num_members - 1):
        edges = (-1, *bars, _GRID_PARTS + num_members - 1)
        yield tuple((after - before - 1) / _GRID_PARTS for before, after in itertools.pairwise(edges))


def _climb(objective: _Objective, weights: Weights) -> Weights:
    """Move weight from one member to another as long as the best such move gains; large moves first."""
    for step in _MOVES:
        while True:
            best, best_value = weights, objective(weights) + _SMALLEST_GAIN
            for giver, taker in itertools.permutations(range(len(weights)), 2):
                moved = list(weights)
                amount = min(step, moved[giver])
                moved[giver] -= amount
                moved[taker] += amount
                if amount > 0 and objective(tuple(moved)) > best_value:
                    best, best_value = tuple(moved), objective(tuple(moved))
            if best == weights:
                break
            weights = best
    return weights


def best_weights(cosines: Float64, labels: Float64) -> Weights:
    """Weights with the highest Spearman correlation: a grid for up to three members, else an ascent.

    The ascent starts at equal weights, at the best single member and at the best pair of members; nothing is
    random. Where several weights are equally good the first candidate wins, and equal weights come first.

    Args:
        cosines: float64 [M, N], of each member for each pair.
        labels: float64 [N], not all the same.
    """
    num_members = len(cosines)
    objective = _Objective(cosines, labels)
    equal = tuple(1 / num_members for _ in range(num_members))
    singles = [tuple(float(i == m) for i in range(num_members)) for m in range(num_members)]
    candidates = [equal, *singles]
    if num_members <= _EXHAUSTIVE_UP_TO:
        candidates += _grid(num_members)
    else:
        halves = [
            tuple(0.5 if i in pair else 0.0 for i in range(num_members))
            for pair in itertools.combinations(range(num_members), 2)
        ]
        starts = [equal, max(singles, key=objective), max(halves, key=objective)]
        candidates += [_climb(objective, start) for start in starts]
    best = candidates[0]
    for candidate in candidates[1:]:
        if objective(candidate) > objective(best) + _SMALLEST_GAIN:
            best = candidate
    return best


def search_weights(
    members: Sequence[Embeddings], pairs: Pairs, *, num_resamples: int = 200, seed: int = 0
) -> WeightSearch:
    """Find weights on labelled pairs and say what they are worth.

    Args:
        members: Two or more embeddings that hold the videos of the pairs.
        pairs: Pairs that no member was trained on (else the weights favour the member that remembers most).
        num_resamples: Bootstrap resamples for the intervals.
        seed: Of the resamples and of the halves.

    Raises:
        UserError: Fewer than six pairs, constant labels, videos without an embedding.
    """
    check_pairs(pairs, pairs.name)
    if len(pairs) < 6:
        what = f"{len(pairs)} pairs are too few to search weights on"
        raise UserError(what, file=pairs.name, fix="give 6 pairs or more")
    cosines = np.stack([cosines_of_pairs(member, pairs) for member in members])
    labels = pairs.score
    weights = best_weights(cosines, labels)
    singles = tuple(_value(row, labels) for row in cosines)
    fused, mean, best = np.asarray(weights) @ cosines, cosines.mean(axis=0), cosines[int(np.argmax(singles))]
    draws = spearman_resamples([fused, mean, best], labels, groups=pairs.id1, num_resamples=num_resamples, seed=seed)
    return WeightSearch(
        weights=weights,
        spearman=_value(fused, labels),
        equal=_value(mean, labels),
        singles=singles,
        interval_over_equal=percentile_interval(draws[:, 0] - draws[:, 1]),
        interval_over_best=percentile_interval(draws[:, 0] - draws[:, 2]),
        expected_gain=_cross_fitted_gain(cosines, labels, pairs.id1, seed),
        num_pairs=len(pairs),
    )


def _value(predictions: Float64, labels: Float64) -> float:
    """Spearman; 0 for a member that gives every pair the same cosine."""
    return spearman(predictions, labels) if np.ptp(predictions) > 0 else 0.0


def _cross_fitted_gain(cosines: Float64, labels: Float64, groups: Sequence[str], seed: int) -> float | None:
    """Gain over equal weights on the half that the weights were not found on, mean of both ways round."""
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    in_first = np.zeros(len(names), bool)
    in_first[np.random.default_rng(seed).permutation(len(names))[: len(names) // 2]] = True
    gains = []
    for fitted in (in_first[group_of], ~in_first[group_of]):
        if not fitted.any() or fitted.all() or np.ptp(labels[fitted]) == 0 or np.ptp(labels[~fitted]) == 0:
            return None
        weights = np.asarray(best_weights(cosines[:, fitted], labels[fitted]))
        other = cosines[:, ~fitted]
        gains.append(_value(weights @ other, labels[~fitted]) - _value(other.mean(axis=0), labels[~fitted]))
    return float(np.mean(gains))

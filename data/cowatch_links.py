"""Which watches of a session make an edge, and how much a link weighs (Lee et al. 2018, §3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vidsim.common.checks import require_at_least
from vidsim.common.errors import UserError
from vidsim.data.cowatch_graph import Integers, Weights

_LINKS_AT_ONCE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class CowatchConfig:
    """How sessions become a graph.

    Attributes:
        gap: Seconds between two watches of a user after which a new session begins; None: never.
        window: Two watches of a session make an edge if they are at most so many places apart.
        max_session: A session without an order links all its videos, and is cut into even parts of at most so many.
        weighting: What a link adds to the weight of its edge: 1, or (`session`) 1 / (watches of its session - 1), so
            that every watch gives away as much in a session without an order, however long that is.
        min_weight: Lighter edges are dropped.
        eval_fraction: Share of the videos held out for the evaluation that is reported.
        validation_fraction: Share of the videos held out for choosing a checkpoint.
        seed: Of the split.
    """

    gap: float | None = 1800.0
    window: int = 1
    max_session: int = 100
    weighting: Literal["count", "session"] = "count"
    min_weight: float = 2
    eval_fraction: float = 0.3
    validation_fraction: float = 0.1
    seed: int = 0

    def validate(self) -> None:
        """Refuse values outside their range."""
        require_at_least(vars(self), {"window": 1, "max_session": 2, "seed": 0}, prefix="--")
        if not 0 < self.min_weight < math.inf:
            raise UserError(f"{self.min_weight:g} is not above 0", field="--min_weight")
        if self.gap is not None and not self.gap > 0:
            raise UserError(f"{self.gap:g} is not above 0", field="--gap")
        if self.seed >= 2**32:
            raise UserError(f"{self.seed} is not below 2^32", field="--seed")
        for name in ("eval_fraction", "validation_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{getattr(self, name):g} is not in [0, 1)", field=f"--{name}")
        if self.eval_fraction + self.validation_fraction >= 1:
            what = "with --eval_fraction it leaves no video to train on"
            raise UserError(what, field="--validation_fraction", fix="lower one of them")


def link(
    key: Integers, video: Integers, time: np.ndarray | None, config: CowatchConfig
) -> tuple[Integers, Weights, int]:
    """Edges within sessions.

    Args:
        key: int64 [N], whose watch it is.
        video: int64 [N].
        time: float64 [N], seconds, equal times keeping the order they are given in; None: sessions are sets.
        config: `gap`, `window`, `max_session`, `weighting`.

    Returns:
        int64 [2, E] with the smaller video first, every pair once and none of a video with itself; float64 [E], their
        weights; number of sessions.
    """
    if time is None:
        # Each video of a set once, shuffled, so that a set that must be cut is not cut by number.
        key, video = np.unique(np.stack([key, video]), axis=1)
        order = np.lexsort((np.random.default_rng(config.seed).permutation(len(key)), key))
    else:
        order = np.lexsort((time, key))
    key, video = key[order], video[order]
    begins = np.ones(len(key), dtype=bool)
    begins[1:] = key[1:] != key[:-1]
    if time is None:
        # Even parts: if only the last were shorter, it could be of one video, which would have no edge.
        starts = np.flatnonzero(begins)
        size = np.diff(np.append(starts, len(key)))
        place, size_of = np.arange(len(key)) - np.repeat(starts, size), np.repeat(size, size)
        part = place * -(-size_of // config.max_session) // size_of
        begins[1:] |= part[1:] != part[:-1]
    elif config.gap is not None:
        begins[1:] |= np.diff(time[order]) > config.gap
    session = np.cumsum(begins)
    window = config.window if time is not None else config.max_session - 1
    num_videos = int(video.max(initial=0)) + 1
    share = np.ones(len(key))
    if config.weighting == "session":
        share /= np.maximum(np.bincount(session)[session] - 1, 1)
    found: list[tuple[Integers, Weights]] = [(np.empty(0, dtype=np.int64), np.empty(0))]
    for distance in range(1, min(window, len(video) - 1) + 1):
        together = (session[distance:] == session[:-distance]) & (video[distance:] != video[:-distance])
        if distance > 1 and not (session[distance:] == session[:-distance]).any():
            break
        one, other = video[:-distance][together], video[distance:][together]
        found.append((np.minimum(one, other) * num_videos + np.maximum(one, other), share[:-distance][together]))
        if sum(len(codes) for codes, _ in found[1:]) > max(len(found[0][0]), _LINKS_AT_ONCE):
            found = [_summed(found)]
    codes, weights = _summed(found)
    return np.stack(np.divmod(codes, num_videos)), weights, int(begins.sum())


def _summed(found: Sequence[tuple[Integers, Weights]]) -> tuple[Integers, Weights]:
    """Every code once, with the sum of its weights."""
    codes, weights = (np.concatenate(parts) for parts in zip(*found, strict=True))
    codes, inverse = np.unique(codes, return_inverse=True)
    return codes, np.bincount(inverse, weights, minlength=len(codes)).astype(np.float64, copy=False)

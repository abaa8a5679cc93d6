"""From the videos of a history to a ranking: the average or the largest cosine (Lee et al. 2018, Eq. 5 and 6).

`average` is one query by linearity: the mean of a history's unit vectors, which is not normalised again, as its length
is part of the score. `max` asks for each video of the history. What was watched is never recommended, and that
is exact: not a top list with holes, but the best of all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from vidsim.common.errors import UserError
from vidsim.data.embeddings import positions, shown
from vidsim.retrieval.index import VectorIndex
from vidsim.retrieval.recommend_histories import Histories
from vidsim.retrieval.vectors import unit_vectors

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Aggregation = Literal["average", "max"]
AGGREGATIONS: Final = ("average", "max")

# float32 sums of D products are off by less than this; what lies this close to the k-th score is recomputed.
_ROUNDING: Final = 1e-5
_SMALLEST_NORM: Final = 1e-6
_DECIMALS: Final = 12  # equal vectors have products that are equal to so many
_BLOCK_SCORES: Final = 1 << 25  # 128 MiB of float32


@dataclass(frozen=True, eq=False)
class ExactScorer:
    """Every score over embeddings.

    Attributes:
        ids: N distinct ids.
        vectors: float32 [N, D], unit vectors for cosines.
        allowed: bool [N], what may be recommended; None: all.
        longest: Length of the longest vector.
    """

    ids: Sequence[str]
    vectors: Float32
    allowed: npt.NDArray[np.bool_] | None = None
    longest: float = 1.0

    def rank(
        self, liked: Sequence[Float32], watched: Sequence[Int64], k: int, aggregate: Aggregation
    ) -> tuple[Int64, Float32]:
        """See `rank_histories`."""
        rows = np.full((len(liked), k), -1, np.int64)
        scores = np.full((len(liked), k), -np.inf, np.float32)
        step = max(1, _BLOCK_SCORES // len(self.ids))
        for start in range(0, len(liked), step):
            part = liked[start : start + step]
            if aggregate == "average":
                block = np.stack([one.mean(axis=0) for one in part]) @ self.vectors.T
            for offset, own in enumerate(part):
                user = start + offset
                row = block[offset] if aggregate == "average" else self._largest(own)
                self._best(row, own, watched[user], aggregate, rows[user], scores[user])
        return rows, scores

    def _largest(self, own: Float32) -> Float32:
        step = max(1, _BLOCK_SCORES // len(self.ids))
        parts = [(own[start : start + step] @ self.vectors.T).max(axis=0) for start in range(0, len(own), step)]
        largest: Float32 = np.max(parts, axis=0)
        return largest

    def _best(
        self, row: Float32, own: Float32, watched: Int64, aggregate: Aggregation, rows: Int64, scores: Float32
    ) -> None:
        """The best of one user from scores that are right to within rounding; equal ones in the order of the ids."""
        free = np.ones(len(row), bool) if self.allowed is None else self.allowed.copy()
        free[watched] = False
        k = min(len(rows), int(free.sum()))
        if not k:
            return
        row = np.where(free, row, -np.inf)
        rounding = _ROUNDING * self.longest * float(np.sqrt(np.einsum("nd,nd->n", own, own).max()))
        near = np.flatnonzero(row >= np.partition(row, len(row) - k)[len(row) - k] - rounding)
        wide, far = own.astype(np.float64), self.vectors[near].astype(np.float64)
        if aggregate == "average":  # einsum: no sum depends on how many others are computed beside it
            exact = np.einsum("nd,d->n", far, wide.mean(axis=0))
        else:
            exact = np.round((far @ wide.T).max(axis=1), _DECIMALS)
        order = np.argsort(-exact, kind="stable")[:k]
        rows[:k], scores[:k] = near[order], exact[order]


@dataclass(frozen=True, eq=False)
class IndexScorer:
    """Scores of an index (`vidsim index`), as good as its codes.

    Attributes:
        index: The index.
        among: Ids that may be recommended; None: all.
    """

    index: VectorIndex
    among: Sequence[str] | None = None

    def rank(
        self, liked: Sequence[Float32], watched: Sequence[Int64], k: int, aggregate: Aggregation
    ) -> tuple[Int64, Float32]:
        """See `rank_histories`."""
        if aggregate == "average":
            means = np.stack([one.mean(axis=0) for one in liked])
            norms = np.linalg.norm(means, axis=1).astype(np.float32)
            found = self.index.search(means, k, among=self.among, exclude=[one.tolist() for one in watched])
            return found.rows, found.scores * norms[:, None]
        # The best k of all: each is among the best k of the video it is most like.
        owner = np.repeat(np.arange(len(liked)), [len(one) for one in liked])
        lists = [one.tolist() for one in watched]  # one list a user, however many videos ask for it
        excluded = [lists[user] for user in owner.tolist()]
        found = self.index.search(np.concatenate(liked), k, among=self.among, exclude=excluded)
        rows = np.full((len(liked), found.rows.shape[1]), -1, np.int64)
        scores = np.full(rows.shape, -np.inf, np.float32)
        for user in range(len(liked)):
            mine = owner == user
            near, values = found.rows[mine].ravel(), found.scores[mine].ravel()
            order = np.lexsort((near, -values))
            _, first = np.unique(near[order], return_index=True)  # each video where it scores best
            chosen = [place for place in order[np.sort(first)].tolist() if near[place] >= 0][: rows.shape[1]]
            rows[user, : len(chosen)], scores[user, : len(chosen)] = near[chosen], values[chosen]
        return rows, scores


Scorer = ExactScorer | IndexScorer


def rank_histories(
    scorer: Scorer,
    histories: Histories,
    vectors_of: Callable[[Int64], Float32],
    row_of: Int64,
    k: int,
    aggregate: Aggregation,
) -> tuple[Int64, Float32]:
    """The k best videos for each user that the user has not watched.

    Args:
        scorer: What may be recommended.
        histories: U users, each with at least one video that counts.
        vectors_of: Unit vectors float32 [n, D] of videos of the histories.
        row_of: int64, for each video of the histories its row in the scorer, -1 if it is not there.
        k: How many.
        aggregate: `average` or `max`.

    Returns:
        Rows int64 [U, k] of the scorer, the best first, and their scores float32 [U, k]. -1 where nothing is left, and
        everywhere for a user whose average is 0: it says nothing of any video.

    Raises:
        UserError: A user without a video that counts.
    """
    without = np.flatnonzero(histories.num_liked() == 0)
    if len(without):
        names = [histories.users[user] for user in without.tolist()]
        raise UserError(f"{len(without):,} users have no history: {shown(names)}", fix="leave them out")
    numbers = range(len(histories))
    lists = [histories.liked(user) for user in numbers]
    needed, place = np.unique(np.concatenate(lists), return_inverse=True)
    unit = vectors_of(needed)
    liked = [unit[part] for part in np.split(place, np.cumsum([len(one) for one in lists])[:-1])]
    speaks = np.ones(len(liked), dtype=bool)
    if aggregate == "average":
        limit = _SMALLEST_NORM * (scorer.longest if isinstance(scorer, ExactScorer) else 1.0)
        speaks = np.array([np.linalg.norm(one.mean(axis=0)) > limit for one in liked])
    rows = np.full((len(histories), k), -1, np.int64)
    scores = np.full((len(histories), k), -np.inf, np.float32)
    chosen = np.flatnonzero(speaks)
    if len(chosen):
        watched = [row_of[histories.watched(user)] for user in chosen.tolist()]
        left_out = [one[one >= 0] for one in watched]
        found, values = scorer.rank([liked[user] for user in chosen.tolist()], left_out, k, aggregate)
        rows[chosen, : found.shape[1]], scores[chosen, : found.shape[1]] = found, values
    return rows, scores


def exact_scorer(
    ids: Sequence[str], vectors: npt.ArrayLike, *, among: Sequence[str] | None = None, similarity: str = "cosine"
) -> ExactScorer:
    """A scorer over embeddings.

    Args:
        ids: N distinct ids.
        vectors: float [N, D], finite; for cosines no zero rows.
        among: Ids that may be recommended; None: all.
        similarity: `cosine`, or `dot`: lengths count.

    Raises:
        UserError: Zero vectors, ids in `among` without an embedding.
    """
    allowed = None
    if among is not None:
        rows = positions(among, ids)
        if (rows < 0).any():
            unknown = [among[place] for place in np.flatnonzero(rows < 0).tolist()]
            raise UserError(f"{len(unknown):,} candidates have no embedding: {shown(unknown)}", field="--candidates")
        allowed = np.zeros(len(ids), dtype=bool)
        allowed[rows] = True
    if similarity == "cosine":
        return ExactScorer(ids, unit_vectors(vectors, ids), allowed)
    raw = np.ascontiguousarray(vectors, dtype=np.float32)
    return ExactScorer(ids, raw, allowed, float(np.sqrt(np.einsum("nd,nd->n", raw, raw).max())))

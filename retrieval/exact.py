"""`ExactIndex`: the most similar videos by cosine, with numpy alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vidsim.common.errors import UserError
from vidsim.data.embeddings import did_you_mean
from vidsim.retrieval.vectors import Float32, Int64, exact_cosines, unit_queries, unit_vectors

# Scores of one block of queries: 128 MiB of float32.
_BLOCK_SCORES = 1 << 25
# float32 sums of D products are off by less than this; what lies this close to the k-th score is recomputed.
_ROUNDING = 1e-5


class ExactIndex:
    """Exact nearest neighbours by cosine.

    Scores are computed in float32 blocks; those that can be among the first k are computed again in float64,
    so that the order does not depend on block sizes. Equal scores keep the order of `ids`.

    Args:
        ids: N distinct ids.
        vectors: float [N, D], finite, no zero rows; used without a copy if it is float32 with rows of norm 1.
        model: Fingerprint of the model that made them, if it is known.

    Raises:
        UserError: Shapes that do not fit, zero or non-finite vectors (how many, the first five ids).
    """

    def __init__(self, ids: Sequence[str], vectors: npt.ArrayLike, model: str | None = None) -> None:
        """Normalise the vectors."""
        self.ids = list(ids)
        self.model = model
        if len(self.ids) != len(np.asarray(vectors)):
            raise UserError(f"{len(self.ids)} ids for {len(np.asarray(vectors))} vectors")
        self.vectors = unit_vectors(vectors, self.ids)
        self._row_of = {video: row for row, video in enumerate(self.ids)}
        if len(self._row_of) != len(self.ids):
            raise UserError(f"{len(self.ids) - len(self._row_of)} ids occur more than once")

    def __len__(self) -> int:
        """Number of videos."""
        return len(self.ids)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self.vectors.shape[1])

    def vectors_by_id(self, ids: Sequence[str]) -> Float32:
        """Unit vectors of videos, float32 [n, D].

        Raises:
            UserError: Unknown ids.
        """
        return self.vectors[[self.row_of(video) for video in ids]]

    def similar(
        self,
        queries: npt.ArrayLike,
        k: int,
        *,
        where: Sequence[str] = (),
        without: Sequence[Sequence[str]] | None = None,
    ) -> list[list[tuple[str, float]]]:
        """See `Searchable`; there is no metadata for `where`."""
        if k < 1:
            raise UserError(f"must be at least 1, not {k}", field="k")
        if where:
            fix = "make one: vidsim index --metadata FILE"
            raise UserError("needs an index with metadata", field="--where", fix=fix)
        left_out = [self._rows_there(one) for one in without] if without is not None else []
        most = max((len(one) for one in left_out), default=0)
        rows, scores = self.search(queries, k + most)
        result = []
        for number, (found, values) in enumerate(zip(rows.tolist(), scores.tolist(), strict=True)):
            gone = left_out[number] if left_out else set()
            hits = [(self.ids[row], score) for row, score in zip(found, values, strict=True) if row not in gone]
            result.append(hits[:k])
        return result

    def _rows_there(self, ids: Sequence[str]) -> set[int]:
        return {self._row_of[video] for video in ids if video in self._row_of}

    def row_of(self, video: str) -> int:
        """Row of an id.

        Raises:
            UserError: Unknown id, with the ids that are spelled like it.
        """
        row = self._row_of.get(video)
        if row is None:
            fix = did_you_mean(video, self.ids, "name an id of these embeddings")
            raise UserError(f"no video has the id {video!r} among {len(self.ids):,}", fix=fix)
        return row

    def search(self, queries: npt.ArrayLike, k: int, *, exclude: Sequence[int] | None = None) -> tuple[Int64, Float32]:
        """The k most similar videos of each query.

        Args:
            queries: float [Q, D].
            k: How many; at most as many as there are (less the excluded one) come back.
            exclude: One row for each query that is left out (the query itself), or -1 for none.

        Returns:
            Rows int64 [Q, min(k, N)] (N - 1 with `exclude`) and their cosines float32, the largest first.

        Raises:
            UserError: Another width than the index, k < 1, a zero or non-finite query.
        """
        vectors = unit_queries(queries, k, self.dim)
        rows_left_out = np.full(len(vectors), -1) if exclude is None else np.asarray(exclude, dtype=np.int64)
        if rows_left_out.shape != (len(vectors),):
            raise UserError(f"{len(rows_left_out)} rows to exclude for {len(vectors)} queries", field="exclude")
        k = min(k, len(self) - (exclude is not None))
        rows, scores = np.empty((len(vectors), k), np.int64), np.empty((len(vectors), k), np.float32)
        step = max(1, _BLOCK_SCORES // len(self))
        for start in range(0, len(vectors) if k else 0, step):
            block = vectors[start : start + step] @ self.vectors.T
            for offset, row_scores in enumerate(block):
                number = start + offset
                if rows_left_out[number] >= 0:
                    row_scores[rows_left_out[number]] = -np.inf
                rows[number], scores[number] = self._first(vectors[number], row_scores, k)
        return rows, scores

    def _first(self, query: Float32, row_scores: Float32, k: int) -> tuple[Int64, Float32]:
        """The k best rows of one query, from scores that are right to within rounding."""
        at_least = np.partition(row_scores, len(row_scores) - k)[len(row_scores) - k] - _ROUNDING
        candidates = np.flatnonzero(row_scores >= at_least)
        exact = exact_cosines(self.vectors[candidates], query)
        order = np.argsort(-exact, kind="stable")[:k]  # candidates are in the order of the rows
        return candidates[order], exact[order].astype(np.float32)

"""`vidsim search`: the videos most like a given one, by exact cosine over embeddings or with an index."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vidsim.common.arguments import ArgumentParser
from vidsim.common.errors import UserError
from vidsim.data.arrow import open_videos
from vidsim.data.embeddings import Embeddings, read_embeddings
from vidsim.data.schema import TITLE
from vidsim.retrieval.conditions import parse_conditions
from vidsim.retrieval.index import VectorIndex
from vidsim.retrieval.index_files import is_index
from vidsim.retrieval.vectors import exact_cosines, unit_vectors

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

# Scores of one block of queries: 128 MiB of float32.
_BLOCK_SCORES = 1 << 25
# float32 sums of D products are off by less than this; what lies this close to the k-th score is recomputed.
_ROUNDING = 1e-5
_NUM_SUGGESTED = 3
_MOST_COMPARED = 200_000


class ExactIndex:
    """Exact nearest neighbours by cosine.

    Scores are computed in float32 blocks; those that can be among the first k are computed again in float64,
    so that the order does not depend on block sizes. Equal scores keep the order of `ids`.

    Args:
        ids: N distinct ids.
        vectors: float [N, D], finite, no zero rows; used without a copy if it is float32 with rows of norm 1.

    Raises:
        UserError: Shapes that do not fit, zero or non-finite vectors (how many, the first five ids).
    """

    def __init__(self, ids: Sequence[str], vectors: npt.ArrayLike) -> None:
        """Normalise the vectors."""
        self.ids = list(ids)
        if len(self.ids) != len(np.asarray(vectors)):
            raise UserError(f"{len(self.ids)} ids for {len(np.asarray(vectors))} vectors")
        self.vectors = unit_vectors(vectors, self.ids)
        self._row_of = {video: row for row, video in enumerate(self.ids)}
        if len(self._row_of) != len(self.ids):
            raise UserError(f"{len(self.ids) - len(self._row_of)} ids occur more than once")

    def __len__(self) -> int:
        """Number of videos."""
        return len(self.ids)

    def row_of(self, video: str) -> int:
        """Row of an id.

        Raises:
            UserError: Unknown id, with the ids that are spelled like it.
        """
        row = self._row_of.get(video)
        if row is None:
            close = difflib.get_close_matches(video, self.ids[:_MOST_COMPARED], _NUM_SUGGESTED)
            fix = f"did you mean {', '.join(close)}?" if close else "name an id of these embeddings"
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
        vectors = unit_vectors(queries, [f"query {number}" for number in range(len(np.asarray(queries)))])
        if vectors.shape[1] != self.vectors.shape[1]:
            raise UserError(f"queries have width {vectors.shape[1]}, the index {self.vectors.shape[1]}")
        if k < 1:
            raise UserError(f"must be at least 1, not {k}", field="k")
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


def find_similar(embeddings: Embeddings, queries: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
    """The k videos most like each query video, itself left out: lists of (id, cosine).

    Raises:
        UserError: Unknown ids (with similar ones), k < 1, zero vectors.
    """
    index = ExactIndex(embeddings.ids, embeddings.vectors)
    own = [index.row_of(video) for video in queries]
    rows, scores = index.search(index.vectors[own], k, exclude=own)
    return [
        [(index.ids[row], score) for row, score in zip(found.tolist(), values.tolist(), strict=True)]
        for found, values in zip(rows, scores, strict=True)
    ]


def search_index(folder: str, queries: Sequence[str], k: int, where: Sequence[str]) -> list[list[tuple[str, float]]]:
    """As `find_similar`, with an index that `vidsim index` made.

    Raises:
        UserError: Unknown ids, k < 1, a condition that does not fit the metadata, a damaged index.
    """
    index = VectorIndex.load(folder, mmap=True)
    rows = index.rows_of(queries)
    condition = parse_conditions(where, index.metadata.schema)
    return index.search(index.vectors_of(rows), k, where=condition, exclude=rows[:, None].tolist()).lists()


def read_titles(folder: str, ids: Sequence[str]) -> dict[str, str]:
    """Titles of videos of a data set, blanks and control characters turned into single spaces.

    Raises:
        UserError: The data set does not hold all of the ids.
    """
    videos = open_videos(folder)
    rows = videos.read(videos.rows_of(ids).tolist(), [TITLE])
    return {
        video: " ".join("".join(c if c.isprintable() else " " for c in row[TITLE]).split())
        for video, row in zip(ids, rows, strict=True)
    }


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="vidsim search",
        description="Print the videos most like given ones, by exact cosine over all embeddings or with an index.",
        epilog="example: vidsim search emb/fused --query 2345203561710403875 -k 10 --data data/aiac",
    )
    parser.add_argument("source", help="embeddings folder or file, or an index folder")
    parser.add_argument("--query", nargs="+", required=True, metavar="ID", help="video ids to find similar ones for")
    parser.add_argument("-k", type=int, default=10, help="how many for each query (%(default)s)")
    condition = "only videos for which this holds, such as category=3 or seconds<60; an index with metadata only"
    parser.add_argument("--where", nargs="+", default=[], metavar="CONDITION", help=condition)
    parser.add_argument("--data", metavar="FOLDER", help="data set to print the titles from")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Print the most similar videos of each query."""
    args = _parser().parse_args(argv)
    if is_index(args.source):
        found = search_index(args.source, args.query, args.k, args.where)
    elif args.where:
        raise UserError("needs an index with metadata", field="--where", fix="make one: vidsim index --metadata FILE")
    else:
        found = find_similar(read_embeddings(args.source), args.query, args.k)
    wanted = list(dict.fromkeys([*args.query, *(video for results in found for video, _ in results)]))
    titles = read_titles(args.data, wanted) if args.data else {}
    if args.json:
        answer = [
            {
                "query": query,
                "results": [
                    {"rank": rank, "id": video, "score": score} | ({"title": titles[video]} if titles else {})
                    for rank, (video, score) in enumerate(results, 1)
                ],
            }
            for query, results in zip(args.query, found, strict=True)
        ]
        print(json.dumps(answer, ensure_ascii=False, indent=2, allow_nan=False))
        return 0
    for query, results in zip(args.query, found, strict=True):
        print(f"{query}  {titles.get(query, '')}".rstrip())
        width = max((len(video) for video, _ in results), default=0)
        for rank, (video, score) in enumerate(results, 1):
            print(f"{rank:>4}  {score:.4f}  {video:<{width}}  {titles.get(video, '')}".rstrip())
    return 0

"""`vidsim recommend`: the videos most like what a user has watched, for one user or for all."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vidsim.common.arguments import ArgumentParser
from vidsim.common.errors import UserError
from vidsim.common.files import atomic_path, require_new
from vidsim.common.progress import progress
from vidsim.data.cowatch_sessions import SessionColumns
from vidsim.data.embeddings import Embeddings, positions, read_embeddings, shown
from vidsim.data.ids import read_ids
from vidsim.data.schema import ID
from vidsim.retrieval.index import VectorIndex
from vidsim.retrieval.index_files import is_index
from vidsim.retrieval.qdrant import is_address
from vidsim.retrieval.recommend_evaluation import evaluate_lists, num_unreachable, read_truth, report
from vidsim.retrieval.recommend_histories import Histories, read_histories, user_number
from vidsim.retrieval.recommend_scoring import (
    AGGREGATIONS,
    Aggregation,
    Float32,
    IndexScorer,
    Int64,
    Scorer,
    exact_scorer,
    rank_histories,
)
from vidsim.retrieval.search import read_titles
from vidsim.retrieval.vectors import SIMILARITY, unit_vectors

RECOMMENDATIONS_SCHEMA: Final = pa.schema(
    [("user", pa.string()), ("rank", pa.int32()), (ID, pa.string()), ("score", pa.float32())]
)
# Users and watches ranked at once.
_BLOCK_USERS: Final = 1024
_BLOCK_WATCHES: Final = 1 << 15
_NUM_SHOWN: Final = 10  # of one user's history


@dataclass(frozen=True, eq=False)
class Catalogue:
    """What may be recommended, and what histories are made of.

    Attributes:
        scorer: Ranks what may be recommended.
        ids: The videos that a history may hold.
        vectors_of: Vectors float32 [n, D] of rows of `ids`.
        row_of: int64, row in the scorer of each of `ids`, -1 where it cannot be recommended.
        num_candidates: How many videos may be recommended.
    """

    scorer: Scorer
    ids: list[str]
    vectors_of: Callable[[Int64], Float32]
    row_of: Int64
    num_candidates: int

    @property
    def recommended_ids(self) -> pa.ChunkedArray:
        """Ids by row of the scorer."""
        if isinstance(self.scorer, IndexScorer):
            return self.scorer.index.ids
        return pa.chunked_array([pa.array(self.scorer.ids, pa.string())])


def open_catalogue(
    source: str | Path,
    *,
    history_vectors: str | Path | None = None,
    candidates: str | Path | None = None,
    similarity: str | None = None,
) -> Catalogue:
    """Open embeddings, compared exactly, or an index.

    Args:
        source: Embeddings folder or file, or an index folder.
        history_vectors: Embeddings of the videos in the histories, where those are not in `source`, or are known
            better there than in the codes of an index.
        candidates: Text file or data set with the ids that may be recommended.
        similarity: `cosine`, or `dot` for embeddings whose lengths mean something; None: what the embeddings ask for
            (those of `vidsim factors` for dot), otherwise cosine.

    Raises:
        UserError: Nothing to read there, vectors of histories of another width or model, unknown candidates, `dot`
            with an index.
    """
    if is_address(source):
        fix = "name the embeddings, or an index of them in a folder"
        raise UserError("histories are not sent to a server", file=source, fix=fix)
    among = read_ids(candidates) if candidates is not None else None
    own = read_embeddings(history_vectors) if history_vectors is not None else None
    if is_index(source):
        if similarity == "dot":
            raise UserError("an index holds unit vectors", field="--similarity", fix="name the embeddings instead")
        index = VectorIndex.load(source, mmap=True)
        _require_same_model(own, index.dim, index.model, source)
        if among is not None:
            index.rows_of(among)
        number = len(index) if among is None else len(among)
        ids: list[str] = index.ids.to_pylist()
        if own is None:
            return Catalogue(IndexScorer(index, among), ids, index.vectors_of, np.arange(len(index)), number)
        return _with_histories(IndexScorer(index, among), own, ids, number, "cosine")
    embeddings = read_embeddings(source)
    similarity = similarity or embeddings.metadata.get(SIMILARITY) or "cosine"
    _require_same_model(own, embeddings.dim, embeddings.metadata.get("model"), source)
    scorer = exact_scorer(embeddings.ids, embeddings.vectors, among=among, similarity=similarity)
    number = len(embeddings) if among is None else len(among)
    if own is not None:
        return _with_histories(scorer, own, embeddings.ids, number, similarity)
    return Catalogue(scorer, embeddings.ids, lambda rows: scorer.vectors[rows], np.arange(len(embeddings)), number)


def _require_same_model(own: Embeddings | None, dim: int, model: Any, source: str | Path) -> None:
    if own is None:
        return
    fix = "name embeddings of the same model"
    if own.dim != dim:
        raise UserError(f"is of width {own.dim}, {source} of {dim}", file=own.name, field="--history_vectors", fix=fix)
    if None not in (model, own.metadata.get("model")) and model != own.metadata["model"]:
        raise UserError(f"is of another model than {source}", file=own.name, field="--history_vectors", fix=fix)


def _with_histories(scorer: Scorer, own: Embeddings, ids: list[str], number: int, similarity: str) -> Catalogue:
    vectors = unit_vectors(own.vectors, own.ids) if similarity == "cosine" else own.vectors
    return Catalogue(scorer, own.ids, lambda rows: vectors[rows], positions(own.ids, ids), number)


def ranked_blocks(
    catalogue: Catalogue, histories: Histories, k: int, aggregate: Aggregation
) -> Iterator[tuple[Histories, Int64, Float32]]:
    """For blocks of users: the users, rows int64 [n, k] (-1: nothing left) and scores float32 [n, k]."""
    sizes = np.maximum(histories.num_liked(), 1)
    block = np.maximum(np.arange(len(sizes)) // _BLOCK_USERS, (np.cumsum(sizes) - sizes) // _BLOCK_WATCHES)
    edges = np.flatnonzero(np.diff(np.maximum.accumulate(block), prepend=-1, append=-2))
    starts = edges[:-1].tolist()
    for start, end in zip(progress(starts, desc="recommending", unit="blocks"), edges[1:].tolist(), strict=True):
        part = histories.take(np.arange(start, end))
        yield part, *rank_histories(catalogue.scorer, part, catalogue.vectors_of, catalogue.row_of, k, aggregate)


def recommendation_table(users: list[str], rows: Int64, scores: Float32, ids: pa.ChunkedArray) -> pa.Table:
    """Columns user, rank from 1, id, score; nothing where a row is -1."""
    there = rows >= 0
    ranks = np.broadcast_to(np.arange(1, rows.shape[1] + 1, dtype=np.int32), rows.shape)
    who = pa.array(users, pa.string()).take(pa.array(np.broadcast_to(np.arange(len(rows))[:, None], rows.shape)[there]))
    return pa.table([who, ranks[there], ids.take(pa.array(rows[there])), scores[there]], schema=RECOMMENDATIONS_SCHEMA)


def write_recommendations(
    catalogue: Catalogue, histories: Histories, out: str | Path, k: int, aggregate: Aggregation
) -> tuple[int, int]:
    """Write the recommendations of all users to a Parquet file, whole or not at all.

    Returns:
        The number of rows, and how many users have fewer than k: nothing else is left to them, or their history says
        nothing (an average of 0).

    Raises:
        UserError: See `rank_histories`; the disk is full.
    """
    ids = catalogue.recommended_ids
    num_rows = num_short = 0
    with atomic_path(out) as path, pq.ParquetWriter(path, RECOMMENDATIONS_SCHEMA) as writer:
        for part, rows, scores in ranked_blocks(catalogue, histories, k, aggregate):
            table = recommendation_table(part.users, rows, scores, ids)
            writer.write_table(table)
            num_rows += table.num_rows
            num_short += int((rows < 0).any(axis=1).sum())
    return num_rows, num_short


def with_taste(histories: Histories) -> tuple[Histories, list[str]]:
    """The users of whom at least one video counts, and the names of the others.

    Raises:
        UserError: Nobody is left.
    """
    has = histories.num_liked() > 0
    if has.all():
        return histories, []
    if not has.any():
        raise UserError("no user has a watch that is rated high enough", field="--min_rating", fix="lower it")
    return histories.take(np.flatnonzero(has)), [histories.users[user] for user in np.flatnonzero(~has).tolist()]


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="vidsim recommend",
        description="Recommend the videos most like what a user has watched, never one of those: for all users of a\n"
        "file of watches a Parquet table with the columns user, rank, id and score, or for one user lines.\n"
        "  average  the mean of the cosines to the history: what all of it has in common\n"
        "  max      the largest of them: what is most like any one of it",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  vidsim recommend emb/videos watches.parquet --out recommendations.parquet -k 20\n"
        "  vidsim recommend index/videos watches.parquet --user 17 --aggregate max --data data/videos\n"
        "  vidsim recommend emb/videos --history 12 845 96\n"
        "  vidsim recommend emb/videos train.npz --out recommendations.parquet --truth later.npz",
    )
    parser.add_argument("source", help="embeddings folder or file, or an index folder")
    parser.add_argument("histories", type=Path, nargs="*", help="watches: Parquet, CSV, TSV or npz")
    parser.add_argument("--out", metavar="FILE", help="the table of all users, FILE.parquet")
    parser.add_argument("--overwrite", action="store_true", help="replace that table if it is there")
    parser.add_argument("--user", help="print the recommendations of this user")
    parser.add_argument("--history", nargs="+", metavar="ID", help="print those of one who has watched these videos")
    parser.add_argument("-k", type=int, default=20, help="how many for each user (%(default)s)")
    parser.add_argument("--aggregate", choices=AGGREGATIONS, default="average", help="see above (%(default)s)")
    parser.add_argument(
        "--similarity", choices=("cosine", "dot"), help="dot: lengths count too (cosine; dot for `factors`)"
    )
    parser.add_argument("--candidates", metavar="FILE", help="recommend only these: ids, one a line, or a data set")
    parser.add_argument("--history_vectors", metavar="EMB", help="embeddings of the watched videos, if apart")
    parser.add_argument("--data", metavar="FOLDER", help="data set to print the titles from")
    parser.add_argument("--truth", type=Path, help="later watches: print how many of them were recommended")
    names = SessionColumns()
    parser.add_argument("--user_column", default=names.user, help="column of the user (%(default)s)")
    parser.add_argument("--video", default=names.video, help="column of the video (%(default)s)")
    parser.add_argument("--time", help="column of the time; needed by --last alone")
    parser.add_argument("--rating", help="column of the rating")
    parser.add_argument("--min_rating", type=float, help="videos rated lower do not count, but are not recommended")
    parser.add_argument("--last", type=int, help="only so many of a user's newest videos count")
    parser.add_argument("--drop_unknown", action="store_true", help="leave out watched videos without an embedding")
    return parser


def _check(args: argparse.Namespace) -> None:
    """What can be said before anything is read."""
    if args.k < 1:
        raise UserError(f"must be at least 1, not {args.k}", field="-k")
    if sum(value is not None for value in (args.out, args.user, args.history)) != 1:
        raise UserError("give one of them", field="--out, --user, --history", fix="--out FILE.parquet is for all users")
    if args.out is not None and Path(args.out).suffix != ".parquet":
        raise UserError("must end in .parquet", file=args.out, field="--out")
    if args.out is not None:
        require_new(args.out, overwrite=args.overwrite)
    if args.history is not None and args.drop_unknown:
        raise UserError("goes with a file of watches", field="--drop_unknown", fix="leave unknown ids out of --history")
    if args.last is not None and args.last < 1:
        raise UserError(f"must be at least 1, not {args.last}", field="--last")
    if (args.history is None) != bool(args.histories):
        what = "says all of the history" if args.histories else "which file holds the watches?"
        raise UserError(what, field="--history" if args.histories else "histories")
    if (args.rating is None) != (args.min_rating is None):
        raise UserError("--rating and --min_rating go together", field="--min_rating", fix="give both or none")
    if args.truth is not None and args.out is None:
        raise UserError("goes with --out", field="--truth")


def _print_one(catalogue: Catalogue, history: Histories, args: argparse.Namespace) -> None:
    """The recommendations of a single user, as lines."""
    rows, scores = rank_histories(
        catalogue.scorer, history, catalogue.vectors_of, catalogue.row_of, args.k, args.aggregate
    )
    table = recommendation_table(history.users, rows, scores, catalogue.recommended_ids)
    found = list(zip(table[ID].to_pylist(), table["score"].to_pylist(), strict=True))
    liked = [catalogue.ids[row] for row in history.liked(0).tolist()]
    wanted = list(dict.fromkeys([*liked[:_NUM_SHOWN], *(video for video, _ in found)]))
    titles = read_titles(args.data, wanted) if args.data else {}
    print(
        f"after {len(liked):,} watched"
        if args.history is not None
        else f"{history.users[0]}, after {len(liked):,} watched"
    )
    width = max(len(video) for video in wanted)
    for video in liked[:_NUM_SHOWN] if args.data else []:
        print(f"   watched    {video:<{width}}  {titles.get(video, '')}".rstrip())
    for rank, (video, score) in enumerate(found, 1):
        print(f"{rank:>4}  {score:>7.4f}  {video:<{width}}  {titles.get(video, '')}".rstrip())


def _read(args: argparse.Namespace, catalogue: Catalogue) -> Histories:
    columns = SessionColumns(
        user=args.user_column, video=args.video, time=args.time, rating=args.rating, min_rating=args.min_rating
    )
    try:
        return read_histories(args.histories, columns, catalogue.ids, drop_unknown=args.drop_unknown, last=args.last)
    except UserError as error:
        if error.fix is not None:  # --user is somebody here, not a column
            error.fix = error.fix.replace("--user,", "--user_column,")
        raise


def main(argv: list[str] | None = None) -> int:
    """Print the recommendations of one user, or write those of all."""
    args = _parser().parse_args(argv)
    _check(args)
    truth = SessionColumns(user=args.user_column, video=args.video, time=None)
    catalogue = open_catalogue(
        args.source,
        history_vectors=args.history_vectors,
        candidates=args.candidates,
        similarity=args.similarity,
    )
    if args.k > catalogue.num_candidates:
        what = f"{args.k:,} are asked for, only {catalogue.num_candidates:,} videos may be recommended"
        raise UserError(what, field="-k", fix="ask for fewer")
    if args.history is not None:
        rows = positions(args.history, catalogue.ids)
        unknown = [args.history[place] for place in np.flatnonzero(rows < 0).tolist()]
        if unknown:
            what = f"{len(unknown):,} videos have no embedding: {shown(unknown)}"
            raise UserError(what, field="--history", fix="leave them out")
        _print_one(catalogue, Histories.of([""], np.zeros(len(rows), np.int64), rows), args)
        return 0
    histories = _read(args, catalogue)
    if histories.num_unknown:
        print(f"left out: {histories.num_unknown:,} watches of videos without an embedding")
    if args.user is not None:
        number = user_number(histories.users, args.user, args.histories[0])
        one = histories.take(np.array([number]))
        _print_one(catalogue, with_taste(one)[0], args)
        return 0
    later = None if args.truth is None else read_truth(args.truth, truth)  # before anything is written
    if later is not None and (missed := num_unreachable(later, histories, catalogue.ids, catalogue.recommended_ids)):
        whole = sum(map(len, later.values()))
        print(f"{missed:,} of {whole:,} later watches cannot be recommended (watched before, or no candidate): missed")
    histories, without = with_taste(histories)
    if without:
        print(f"left out: {len(without):,} users without a video rated high enough: {shown(without)}")
    num_rows, num_short = write_recommendations(catalogue, histories, args.out, args.k, args.aggregate)
    print(f"{args.out}: {num_rows:,} rows for {len(histories):,} users")
    if num_short:
        print(f"{num_short:,} users have fewer than {args.k}: nothing else is left, or their history says nothing")
    if later is not None:
        print(report(evaluate_lists(pq.read_table(args.out), later, args.k), args.k))
    return 0

"""`vidsim search`: the videos most like a given one, by exact cosine over embeddings or with an index."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vidsim.common.arguments import ArgumentParser
from vidsim.common.errors import UserError
from vidsim.data.arrow import open_videos
from vidsim.data.embeddings import Embeddings, read_embeddings
from vidsim.data.schema import TITLE
from vidsim.retrieval.searchable import Searchable, open_source, require_same_model
from vidsim.retrieval.vectors import Float32, unit_vectors


def queries_of(args: argparse.Namespace, searched: Searchable) -> tuple[list[str], Float32]:
    """Names and vectors [Q, D] of what is looked for.

    Raises:
        UserError: Unknown ids, nothing readable, vectors of another width or model than those searched.
    """
    if args.query:
        return args.query, searched.vectors_by_id(args.query)
    embeddings = read_embeddings(args.queries) if args.queries else read_vectors(args.vector)
    model = embeddings.metadata.get("model")
    require_same_model(searched, args.source, dim=embeddings.dim, model=model, other=embeddings.name)
    return embeddings.ids, unit_vectors(embeddings.vectors, embeddings.ids)


def read_vectors(path: str | Path) -> Embeddings:
    """Vectors of an .npy file, float [D] or [n, D], named `query 0`, `query 1`, ...

    Raises:
        UserError: Not such a file.
    """
    if not Path(path).is_file():
        raise UserError("no such file", file=path, field="--vector", fix="give an .npy file of vectors")
    try:
        array = np.atleast_2d(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"is no readable .npy file ({error})", file=path) from error
    if array.ndim != 2 or not array.size or array.dtype.kind != "f":
        raise UserError(f"holds {array.dtype} {list(array.shape)}, not float [D] or [n, D]", file=path)
    return Embeddings([f"query {row}" for row in range(len(array))], array.astype(np.float32), name=str(path))


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


def add_output_options(parser: ArgumentParser) -> None:
    """The options that say what is found and how it is printed."""
    parser.add_argument("-k", type=int, default=10, help="how many for each query (%(default)s)")
    condition = "only videos for which this holds, such as category=3 or seconds<60; an index with metadata only"
    parser.add_argument("--where", nargs="+", default=[], metavar="CONDITION", help=condition)
    parser.add_argument("--data", metavar="FOLDER", help="data set to print the titles from")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="vidsim search",
        description="Print the videos most like given ones, by exact cosine over all embeddings or with an index.\n"
        "A new video is searched for by its embedding:\n"
        "  vidsim convert table new.jsonl --features new.npy --out data/new\n"
        "  vidsim embed runs/finetune/mine data/new --out emb/new\n"
        "  vidsim search index/mine --queries emb/new\n"
        "which `vidsim search-video` does in one go.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: vidsim search emb/fused --query 2345203561710403875 -k 10 --data data/aiac",
    )
    parser.add_argument("source", help="embeddings folder or file, an index folder, or URL/collections/NAME of Qdrant")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--query", nargs="+", metavar="ID", help="video ids to find similar ones for")
    asked.add_argument("--queries", metavar="EMB", help="embeddings of the same model: look for every video of them")
    asked.add_argument("--vector", metavar="FILE", help=".npy file with a vector, or one a row")
    add_output_options(parser)
    return parser


def print_similar(
    searched: Searchable,
    queries: Sequence[str],
    vectors: Float32,
    args: argparse.Namespace,
    known: Sequence[str] = (),
) -> None:
    """Print the videos most like each query; a video is not like itself.

    Args:
        searched: Where to look.
        queries: Q names.
        vectors: float32 [Q, D].
        args: See `add_output_options`.
        known: Queries that are in the data set, and so have a title.

    Raises:
        UserError: See `Searchable.similar`; the data set does not hold what was found.
    """
    found = searched.similar(vectors, args.k, where=args.where, without=[[query] for query in queries])
    wanted = list(dict.fromkeys([*known, *(video for results in found for video, _ in results)]))
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
            for query, results in zip(queries, found, strict=True)
        ]
        print(json.dumps(answer, ensure_ascii=False, indent=2, allow_nan=False))
        return
    for query, results in zip(queries, found, strict=True):
        print(f"{query}  {titles.get(query, '')}".rstrip())
        width = max((len(video) for video, _ in results), default=0)
        if not results:
            print("   none")
        for rank, (video, score) in enumerate(results, 1):
            print(f"{rank:>4}  {score:.4f}  {video:<{width}}  {titles.get(video, '')}".rstrip())


def main(argv: list[str] | None = None) -> int:
    """Print the most similar videos of each query."""
    args = _parser().parse_args(argv)
    searched = open_source(args.source)
    queries, vectors = queries_of(args, searched)
    print_similar(searched, queries, vectors, args, known=args.query or ())
    return 0

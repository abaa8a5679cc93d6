"""`vidsim evaluate`: how well embeddings find videos that are watched together, whoever made them.

Asked in both cold-start directions of a co-watch graph (see `data.cowatch_queries`), beside what needs no learning:
random vectors, and the videos with most edges in training, which says nothing of videos that are new. Ranked are all
videos of the first embeddings, with an edge or without. Intervals are 95 % bootstrap intervals over queries;
differences are of the same queries.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidsim.common.arguments import ArgumentParser
from vidsim.common.errors import UserError
from vidsim.data.cowatch_graph import PARTS, CowatchGraph, on_videos, read_graph
from vidsim.data.cowatch_queries import E2T, RelatedQueries, related_queries
from vidsim.data.embeddings import Embeddings, read_embeddings
from vidsim.modeling.ranking_metrics import mean_interval, metrics_of_vectors
from vidsim.retrieval.quantization_table import quantization_table
from vidsim.retrieval.vectors import Float32, Float64, unit_vectors

Values = dict[str, dict[str, Float64]]
_RANDOM_DIM = 256


def aligned_vectors(members: Sequence[Embeddings]) -> dict[str, Float32]:
    """Unit vectors of the videos of the first embeddings, float32 [V, D] for each, by name.

    Raises:
        UserError: Videos that others do not have (how many, the first five), zero vectors.
    """
    ids = members[0].ids
    for member in members:
        if len(member) > len(ids):
            more = f"{len(member) - len(ids):,} videos that {members[0].name} does not have are left out"
            print(f"{member.name}: {more}", file=sys.stderr)
    return {member.name: unit_vectors(member.vectors[member.rows_of(ids)], ids) for member in members}


def related_values(as_query: Float32, vectors: Float32, queries: Mapping[str, RelatedQueries], k: int) -> Values:
    """`ndcg@k`, `recall@k` and `map` of each query, float64 [Q], for each direction.

    Args:
        as_query: float32 [V, E], the vectors of the videos that ask.
        vectors: float32 [V, E], those of the videos that are ranked.
        queries: From `related_queries`.
        k: Cut-off.
    """
    return {
        direction: metrics_of_vectors(
            as_query[related.queries], vectors[related.candidates], related.rows, related.columns, k
        )
        for direction, related in queries.items()
    }


def floors(graph: CowatchGraph, queries: Mapping[str, RelatedQueries], k: int, seed: int) -> dict[str, Values]:
    """The same figures of random vectors and, among training videos, of popularity."""
    drawn = np.random.default_rng(seed).normal(size=(len(graph.ids), _RANDOM_DIM)).astype(np.float32)
    vectors = unit_vectors(drawn, graph.ids)
    result = {"random vectors": related_values(vectors, vectors, queries, k)}
    if E2T in queries:
        popularity = graph.popularity()[:, None]
        alone = {E2T: queries[E2T]}
        result["most edges in training"] = related_values(np.ones_like(popularity), popularity, alone, k)
    return result


def summary(found: Mapping[str, Values], reference: str) -> list[dict[str, Any]]:
    """Mean and interval of every figure, and of its difference to those of one entry.

    Args:
        found: Figures by name.
        reference: The entry that differences are taken from.
    """
    rows = []
    for name, values in found.items():
        for direction, metrics in values.items():
            for metric, one in metrics.items():
                row = {"name": name, "direction": direction, "metric": metric, "num_queries": len(one)}
                row |= {"mean": float(one.mean()), "interval": mean_interval(one)}
                if name != reference:
                    difference = one - found[reference][direction][metric]
                    row |= {"difference": float(difference.mean()), "difference_interval": mean_interval(difference)}
                rows.append(row)
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table for people: a line for each name and direction, and lines of differences below."""
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    lines = [f"| | | {' | '.join(metrics)} |", "| --- | --- |" + " --- |" * len(metrics)]
    for kind, value, interval in (("", "mean", "interval"), (" less the first", "difference", "difference_interval")):
        sign = "+" if kind else ""
        for name, direction in dict.fromkeys((row["name"], row["direction"]) for row in rows):
            cells = [
                f"{row[value]:{sign}.4f} [{row[interval][0]:{sign}.4f}, {row[interval][1]:{sign}.4f}]"
                for row in rows
                if (row["name"], row["direction"]) == (name, direction) and value in row
            ]
            if cells:
                lines.append(f"| {name}{kind} | {direction} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="vidsim evaluate",
        description="How well embeddings find videos that are watched together: NDCG@k, recall@k, MAP on the held-out\n"
        "part of a co-watch graph. t2e: a training video asks, new ones are ranked; e2t: the other way round.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  vidsim evaluate emb/cowatch emb/untrained --graph data/cowatch\n"
        "  vidsim evaluate emb/cowatch --graph data/cowatch --quantization",
    )
    parser.add_argument("embeddings", nargs="+", help="of the graph's videos and any more; differences to the first")
    parser.add_argument("--graph", required=True, metavar="FOLDER", help="from `vidsim cowatch`")
    parser.add_argument("--part", choices=PARTS[1:], default="eval", help="held-out part (%(default)s)")
    parser.add_argument("-k", type=int, default=10, help="cut-off of NDCG and recall (%(default)s)")
    parser.add_argument("--max_queries", type=int, default=5000, help="of each direction, drawn if more (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw and of the random vectors (%(default)s)")
    quantization = "instead: what is lost by storing them in fewer bytes (KDD'18 Table 3), mean over the embeddings"
    parser.add_argument("--quantization", action="store_true", help=quantization)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Print the figures."""
    args = _parser().parse_args(argv)
    for name, value in (("-k", args.k), ("--max_queries", args.max_queries)):
        if value < 1:
            raise UserError(f"must be at least 1, not {value}", field=name)
    if len(set(args.embeddings)) != len(args.embeddings):
        raise UserError("the same embeddings are named twice")
    members = [read_embeddings(Path(name)) for name in args.embeddings]
    graph = on_videos(read_graph(args.graph), members[0].ids)
    queries = related_queries(graph, args.max_queries, args.seed, PARTS.index(args.part))
    if not queries:
        message = f"has no edge between a training video and one of {args.part}"
        raise UserError(message, file=args.graph, fix="make it from more sessions, or with a lower --min_weight")
    vectors = aligned_vectors(members)
    if args.quantization:
        rows = quantization_table(list(vectors.values()), graph, queries, args.k)
        text = rows.markdown()
        answer = rows.entries
    else:
        found = {name: related_values(one, one, queries, args.k) for name, one in vectors.items()}
        answer = summary(found | floors(graph, queries, args.k, args.seed), members[0].name)
        text = markdown(answer)
    if args.json:
        print(json.dumps(answer, indent=2, allow_nan=False))
        return 0
    for direction, related in queries.items():
        print(f"{direction}: {len(related.queries):,} queries, {len(related.candidates):,} candidates")
    print("relevance is 0 or 1, for which exponential and linear gain are the same\n")
    print(text)
    return 0

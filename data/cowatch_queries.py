"""Related videos in both cold-start directions: who asks, among whom, and what is relevant.

T2E: the query is a training video, what is looked for are held-out ones; E2T: the query is held out, what is looked
for are training videos (Lee et al. 2018, §4.1.1). Relevant is who shares an edge with the query. Candidates are all
videos of the other part, with an edge or without.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vidsim.data.cowatch_graph import EVAL, TRAIN, CowatchGraph, Integers, Neighbours

T2E, E2T = "t2e", "e2t"


@dataclass(frozen=True, eq=False)
class RelatedQueries:
    """One direction.

    Attributes:
        queries: int64 [Q], videos.
        candidates: int64 [C], videos, ascending.
        rows: int64 [M], position of a query, ascending.
        columns: int64 [M], position of a candidate that is relevant to it.
    """

    queries: Integers
    candidates: Integers
    rows: Integers
    columns: Integers


def related_queries(graph: CowatchGraph, max_queries: int, seed: int, part: int = EVAL) -> dict[str, RelatedQueries]:
    """Queries of both directions, drawn at random where there are too many; a direction without any is left out.

    Args:
        graph: The graph.
        max_queries: Of each direction, at most.
        seed: Of the draw.
        part: The held-out part, `VALIDATION` or `EVAL`.

    Returns:
        The directions `T2E` and `E2T`, also where the held-out part is the validation.
    """
    trained, held_out = graph.part == TRAIN, graph.part == part
    ends = graph.edges
    crossing = np.flatnonzero(trained[ends].any(axis=0) & held_out[ends].any(axis=0))
    near: Neighbours = graph.neighbours(crossing)
    has_edge = np.diff(near.starts) > 0
    result = {}
    for name, asking, asked in ((T2E, trained, held_out), (E2T, held_out, trained)):
        queries, candidates = np.flatnonzero(has_edge & asking), np.flatnonzero(asked)
        if len(queries) > max_queries:
            queries = np.sort(np.random.default_rng(seed).choice(queries, max_queries, replace=False))
        if len(queries):
            result[name] = RelatedQueries(queries, candidates, *near.pairs_within(queries, candidates))
    return result

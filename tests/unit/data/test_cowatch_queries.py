from __future__ import annotations

import numpy as np

from vidsim.data.cowatch_graph import EVAL, TRAIN, VALIDATION, CowatchGraph
from vidsim.data.cowatch_queries import related_queries


def graph() -> CowatchGraph:
    # Videos 0..3 train, 4..6 eval, 7 and 8 validation; 6 has no edge, 4-5 joins two eval videos, 7-8 and 5-8 no train.
    edges = np.array([[0, 0, 1, 2, 4, 3, 7, 5], [1, 4, 4, 5, 5, 7, 8, 8]])
    part = np.array([TRAIN] * 4 + [EVAL] * 3 + [VALIDATION] * 2, dtype=np.int8)
    return CowatchGraph([f"v{number}" for number in range(9)], part, edges, np.ones(8, dtype=np.int64), {})


def test_queries_and_what_is_relevant_to_them() -> None:
    found = related_queries(graph(), max_queries=10, seed=0)
    t2e, e2t = found["t2e"], found["e2t"]
    assert t2e.queries.tolist() == [0, 1, 2]
    assert t2e.candidates.tolist() == [4, 5, 6]
    assert list(zip(t2e.rows.tolist(), t2e.columns.tolist(), strict=True)) == [(0, 0), (1, 0), (2, 1)]
    assert e2t.queries.tolist() == [4, 5]
    assert e2t.candidates.tolist() == [0, 1, 2, 3]
    assert sorted(zip(e2t.rows.tolist(), e2t.columns.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 2)]


def test_the_validation_part_by_itself() -> None:
    found = related_queries(graph(), max_queries=10, seed=0, part=VALIDATION)
    assert found["t2e"].queries.tolist() == [3]
    assert found["t2e"].candidates.tolist() == [7, 8]
    assert found["e2t"].queries.tolist() == [7]  # 8 has no edge to a training video
    assert (found["e2t"].rows.tolist(), found["e2t"].columns.tolist()) == ([0], [3])


def test_too_many_queries_are_drawn_and_none_are_left_out() -> None:
    few = related_queries(graph(), max_queries=1, seed=0)
    assert [len(related.queries) for related in few.values()] == [1, 1]
    assert set(few["t2e"].rows.tolist()) == {0}
    alone = graph()
    alone.part[:] = TRAIN
    assert related_queries(alone, 10, 0) == {}

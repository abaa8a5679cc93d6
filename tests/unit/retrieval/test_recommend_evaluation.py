from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vidsim.common.errors import UserError
from vidsim.data.cowatch_sessions import SessionColumns
from vidsim.retrieval.recommend_evaluation import (
    evaluate_lists,
    num_unreachable,
    read_truth,
    report,
    user_metrics,
)
from vidsim.retrieval.recommend_histories import Histories


def test_by_hand() -> None:
    rows = [[4, 2, 9], [1, -1, -1], [3, 5, 7]]
    relevant = [{2: 1.0, 9: 1.0, 8: 1.0}, {0: 1.0}, {3: 1.0}]
    found = user_metrics(rows, relevant, 3)
    assert found.recall == pytest.approx([2 / 3, 0, 1])
    ideal = 1 + 1 / np.log2(3) + 1 / 2
    assert found.ndcg == pytest.approx([(1 / np.log2(3) + 1 / 2) / ideal, 0, 1])
    assert found.average_precision == pytest.approx([(1 / 2 + 2 / 3) / 3, 0, 1])
    assert user_metrics(rows, relevant, 1).recall == pytest.approx([0, 0, 1])


def test_lists_of_other_users_do_not_matter_and_missing_ones_count_as_nothing() -> None:
    table = pa.table({"user": ["u", "u", "x"], "rank": [1, 2, 1], "id": ["a", "b", "a"], "score": [1.0, 0.5, 1.0]})
    found = evaluate_lists(table, {"u": {"b", "unknown"}, "gone": {"a"}}, 2)
    assert found.recall == pytest.approx([0.5, 0])
    assert found.num_without == 1
    assert "nothing was recommended to 1 of them" in report(found, 2)


def test_later_watches_that_no_list_can_hold() -> None:
    """u watched a before, c is no candidate, d has no embedding; v is new."""
    ids = ["a", "b", "c"]
    histories = Histories.of(["u"], np.zeros(1, np.int64), np.array([0]))
    truth = {"u": {"a", "b", "c", "d"}, "v": {"a"}}
    assert num_unreachable(truth, histories, ids, pa.chunked_array([["a", "b"]])) == 3


def test_truth_of_a_file(tmp_path: Path) -> None:
    columns = SessionColumns(user="user", video="video", time=None)
    (tmp_path / "t.csv").write_text("user,video\nu,a\nv,b\nu,c\nu,a\n")
    assert read_truth(tmp_path / "t.csv", columns) == {"u": {"a", "c"}, "v": {"b"}}
    (tmp_path / "t.csv").write_text("user,video\n")
    with pytest.raises(UserError, match=r"t\.csv: holds no watches"):
        read_truth(tmp_path / "t.csv", columns)

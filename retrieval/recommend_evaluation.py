"""How good recommendations are: recall, NDCG and average precision of what each user watched later, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vidsim.common.errors import UserError
from vidsim.data.cowatch_sessions import KEY, VIDEO, SessionColumns, read_sessions
from vidsim.data.schema import ID
from vidsim.modeling.ranking_metrics import average_precision, mean_interval, ndcg_at_k, ranked_by_rows, recall_at_k
from vidsim.retrieval.recommend_histories import Histories

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class UserMetrics:
    """One value for each user who watched something later, float64 [U]; relevance is 0 or 1.

    Attributes:
        recall: Share of the later videos that are among the k.
        ndcg: NDCG at k.
        average_precision: Average precision over the k, divided by the number of later videos.
        num_without: Users among them to whom nothing was recommended; they count as 0.
    """

    recall: Float64
    ndcg: Float64
    average_precision: Float64
    num_without: int = 0


def user_metrics(rows: npt.ArrayLike, relevant: Sequence[Mapping[int, float]], k: int) -> UserMetrics:
    """Metrics of ranked rows.

    Args:
        rows: int [U, K], the best first, -1 where there is nothing more.
        relevant: For each user, row to relevance (1) of what was watched later; at least one.
        k: Cut-off.
    """
    ranked, ideal = ranked_by_rows(np.asarray(rows)[:, :k], relevant)
    return UserMetrics(
        recall=recall_at_k(ranked, ideal, k),
        ndcg=ndcg_at_k(ranked, ideal, k, gain="linear"),
        average_precision=average_precision(ranked, ideal, k),
    )


def read_truth(path: Path, columns: SessionColumns) -> dict[str, set[str]]:
    """What each user watched later.

    Raises:
        UserError: Bad input, or nobody watched anything.
    """
    truth: dict[str, set[str]] = {}
    for table, _ in read_sessions(path, columns):
        for user, video in zip(table[KEY].to_pylist(), table[VIDEO].to_pylist(), strict=True):
            truth.setdefault(user, set()).add(video)
    if not truth:
        raise UserError("holds no watches", file=path)
    return truth


def num_unreachable(
    truth: Mapping[str, set[str]], histories: Histories, ids: Sequence[str], candidates: pa.ChunkedArray
) -> int:
    """How many later watches no list can hold: of videos that the user has watched before, or of no candidate.

    Args:
        truth: From `read_truth`.
        histories: Of any users.
        ids: What the rows of the histories are.
        candidates: Ids of what may be recommended.
    """
    may_be = set(candidates.to_pylist())
    number = {user: place for place, user in enumerate(histories.users)}
    count = 0
    for user, later in truth.items():
        before = {ids[row] for row in histories.watched(number[user]).tolist()} if user in number else set()
        count += sum(video not in may_be or video in before for video in later)
    return count


def evaluate_lists(recommendations: pa.Table, truth: Mapping[str, set[str]], k: int) -> UserMetrics:
    """Metrics of a table of recommendations (user, rank, id), for the users of `truth`.

    A user of `truth` to whom nothing was recommended counts as 0.
    """
    lists: dict[str, list[str]] = {user: [] for user in truth}
    for user, video in zip(recommendations["user"].to_pylist(), recommendations[ID].to_pylist(), strict=True):
        if user in lists:
            lists[user].append(video)
    numbers: dict[str, int] = {}
    rows = np.full((len(truth), k), -1)
    relevant = []
    for place, (user, later) in enumerate(truth.items()):
        relevant.append({numbers.setdefault(video, len(numbers)): 1.0 for video in later})
        found = [numbers.setdefault(video, len(numbers)) for video in lists[user][:k]]
        rows[place, : len(found)] = found
    metrics = user_metrics(rows, relevant, k)
    without = sum(not found for found in lists.values())
    return UserMetrics(
        recall=metrics.recall,
        ndcg=metrics.ndcg,
        average_precision=metrics.average_precision,
        num_without=without,
    )


def report(metrics: UserMetrics, k: int) -> str:
    """Lines for people."""
    lines = [f"{len(metrics.recall):,} users watched something later"]
    if metrics.num_without:
        lines[0] += f"; nothing was recommended to {metrics.num_without:,} of them, they count as 0"
    for name, values in (
        (f"Recall@{k}", metrics.recall),
        (f"NDCG@{k}", metrics.ndcg),
        (f"MAP@{k}", metrics.average_precision),
    ):
        low, high = mean_interval(values)
        lines.append(f"{name:<10} {values.mean():.4f} [{low:.4f}, {high:.4f}]")
    return "\n".join(lines)

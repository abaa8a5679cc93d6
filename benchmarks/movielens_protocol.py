"""The MovieLens-100K protocol of Lee et al. (KDD'18, §4.2): reading, splits, and how rankings are judged.

Only the movies that a user has rated in the test part are ranked for that user: NDCG@10 with the gain 2^rating - 1, and
average precision where a rating of 4 or 5 is relevant (the first author's own evaluation code; the paper does not
say). Users without a relevant test movie have no average precision. Equal scores are put in a random order.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vidsim.common.errors import UserError
from vidsim.modeling.ranking_metrics import average_precision, ndcg_at_k, ranked_by_scores

K, RELEVANT, LEAST_TEST = 10, 4, 10
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
_LAST = -1e18
_MEMBER = "ml-100k/ml-100k.inter"


@dataclass(frozen=True, eq=False)
class Ratings:
    """Who rated what.

    Attributes:
        user: int64 [n], numbers of users.
        item: int64 [n], numbers of movies.
        rating: float64 [n], 1 to 5.
        items: The movies' ids, by number.
        num_users: U.
    """

    user: Int64
    item: Int64
    rating: Float64
    items: list[str]
    num_users: int

    @property
    def shape(self) -> tuple[int, int]:
        """Users and movies."""
        return self.num_users, len(self.items)

    def take(self, chosen: npt.NDArray[np.bool_] | Int64) -> Ratings:
        """Some of the ratings."""
        return Ratings(self.user[chosen], self.item[chosen], self.rating[chosen], self.items, self.num_users)

    def matrix(self) -> Float64:
        """float64 [U, I], 0 where there is no rating."""
        result = np.zeros(self.shape)
        result[self.user, self.item] = self.rating
        return result


@dataclass(frozen=True, kw_only=True)
class Split:
    """What is known of each user, and what is asked.

    Attributes:
        name: For files and messages.
        train: Ratings to learn from, of all users that take part.
        test: Ratings to rank.
    """

    name: str
    train: Ratings
    test: Ratings

    @property
    def users(self) -> Int64:
        """Who is judged."""
        return np.unique(self.test.user)


def read_ratings(source: Path) -> Ratings:
    """MovieLens 100K from `u.data`, `ml-100k.inter`, a folder with one of them, or the wheel recbole-1.2.1.

    Raises:
        UserError: Nothing of the kind, or a line that is no rating.
    """
    path = source
    if source.is_dir():
        found = [source / name for name in ("u.data", "ml-100k.inter") if (source / name).is_file()]
        if not found:
            raise UserError("holds neither u.data nor ml-100k.inter", file=source)
        path = found[0]
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            members = [name for name in wheel.namelist() if name.endswith(_MEMBER)]
            if not members:
                raise UserError(f"holds no {_MEMBER}", file=path, fix="pip download --no-deps recbole==1.2.1")
            text = wheel.read(members[0]).decode()
    elif path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        raise UserError("no such file", file=path, fix="give MovieLens 100K, or pip download --no-deps recbole==1.2.1")
    skipped = int(text.startswith("user_id"))
    try:
        table = np.loadtxt(io.StringIO(text), delimiter="\t", skiprows=skipped, usecols=(0, 1, 2), ndmin=2)
    except ValueError as error:
        raise UserError(f"is no table of user, movie, rating ({error})", file=path) from None
    users, user = np.unique(table[:, 0].astype(np.int64), return_inverse=True)
    items, item = np.unique(table[:, 1].astype(np.int64), return_inverse=True)
    return Ratings(user, item, table[:, 2], [str(name) for name in items.tolist()], len(users))


def shuffled_places(ratings: Ratings, seed: int) -> tuple[Int64, Int64]:
    """A random place of each rating among its user's, and how many the user has, int64 [n] twice."""
    order = np.lexsort((np.random.default_rng(seed).random(len(ratings.user)), ratings.user))
    counts = np.bincount(ratings.user, minlength=ratings.num_users)
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return place, counts[ratings.user]


def given(ratings: Ratings, number: int, seed: int) -> Split:
    """`number` random ratings of each user to learn from; users with fewer than 10 others are left out."""
    place, count = shuffled_places(ratings, seed)
    taking_part = count >= number + LEAST_TEST
    train, test = taking_part & (place < number), taking_part & (place >= number)
    return Split(name=f"given{number}-{seed}", train=ratings.take(train), test=ratings.take(test))


def halves(ratings: Ratings, seed: int) -> Split:
    """Half of each user's ratings; users with fewer than 10 in the other half are left out."""
    place, count = shuffled_places(ratings, seed)
    taking_part = count - count // 2 >= LEAST_TEST
    train, test = taking_part & (place < count // 2), taking_part & (place >= count // 2)
    return Split(name=f"halves-{seed}", train=ratings.take(train), test=ratings.take(test))


def cold_items(ratings: Ratings, number: int, seed: int, fraction: float = 0.2) -> Split:
    """As `given`, where a fifth of the movies has no training rating at all and only those are ranked.

    Users with fewer than 10 ratings of them, or fewer than `number` of others, are left out.
    """
    is_cold = np.random.default_rng([seed, 1]).random(len(ratings.items)) < fraction
    warm, cold = ratings.take(~is_cold[ratings.item]), ratings.take(is_cold[ratings.item])
    num_cold = np.bincount(cold.user, minlength=ratings.num_users)
    place, count = shuffled_places(warm, seed)
    train = (place < number) & (count >= number) & (num_cold[warm.user] >= LEAST_TEST)
    users = np.unique(warm.user[train])
    return Split(name=f"cold{number}-{seed}", train=warm.take(train), test=cold.take(np.isin(cold.user, users)))


def judge(split: Split, scores: Float64, seed: int = 0) -> tuple[Float64, Float64]:
    """Average precision of each user that has a relevant test movie, and NDCG@10 of each judged user.

    Args:
        split: What is asked.
        scores: float [U, I] of all users, finite.
        seed: Of the order among equal scores.
    """
    users, row = np.unique(split.test.user, return_inverse=True)
    counts = np.bincount(row)
    order = np.lexsort((np.random.default_rng(seed).random(len(row)), row))
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    row, item, rating = row[order], split.test.item[order], split.test.rating[order]
    values, truth = np.full((len(users), counts.max()), _LAST), np.zeros((len(users), counts.max()))
    # Ranks of the scores, with equal ones in the order that was drawn.
    own = scores[users[row], item]
    rank = np.empty(len(own))
    rank[np.lexsort((place, own))] = np.arange(len(own))
    values[row, place], truth[row, place] = rank, rating
    ranked = ranked_by_scores(values, truth)
    has_relevant = (truth >= RELEVANT).any(axis=1)
    precision = average_precision(ranked[has_relevant] >= RELEVANT, truth[has_relevant] >= RELEVANT)
    return precision, ndcg_at_k(ranked, truth, K, gain="exponential")

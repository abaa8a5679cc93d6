"""Scores [users, movies] from training ratings: floors, matrix factorisations, and histories over embeddings."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
from movielens_protocol import Bool, Float64, Ratings
from scipy.sparse.linalg import svds

from vidsim.retrieval.recommend_factors import FactorsConfig, factors, with_content
from vidsim.retrieval.recommend_histories import Histories
from vidsim.retrieval.vectors import unit_vectors

SHRINKAGE, RANK = 5.0, 5
Float32 = npt.NDArray[np.float32]


def random_scores(train: Ratings, seed: int) -> Float64:
    """Any order."""
    return np.random.default_rng([seed, 2]).random(train.shape)


def popularity(train: Ratings) -> Float64:
    """How often a movie was rated."""
    counts = np.bincount(train.item, minlength=len(train.items)).astype(np.float64)
    return np.broadcast_to(counts, train.shape)


def item_mean(train: Ratings) -> Float64:
    """A movie's mean rating, drawn towards that of all by so many ratings."""
    counts = np.bincount(train.item, minlength=len(train.items))
    sums = np.bincount(train.item, train.rating, minlength=len(train.items))
    return np.broadcast_to((sums + SHRINKAGE * train.rating.mean()) / (counts + SHRINKAGE), train.shape)


def centred_svd(train: Ratings) -> Float64:
    """Rank 5 of the ratings less each user's mean, 0 where there is none."""
    counts = np.maximum(np.bincount(train.user, minlength=train.num_users), 1)
    means = np.bincount(train.user, train.rating, minlength=train.num_users) / counts
    values = train.rating - means[train.user]
    matrix = scipy.sparse.csr_array((values, (train.user, train.item)), shape=train.shape)
    left, singular, right = svds(matrix, k=RANK, v0=np.ones(min(train.shape)))
    return np.asarray((left * singular) @ right)


def has_surprise() -> bool:
    """Whether the peers of scikit-surprise can be run."""
    return importlib.util.find_spec("surprise") is not None


def surprise_scores(train: Ratings, name: str, seed: int) -> Float64:
    """Peers of scikit-surprise with 5 factors, otherwise as they come."""
    import pandas
    import surprise  # type: ignore[import-not-found]

    made: dict[str, Any] = {
        "SVD with biases": lambda: surprise.SVD(n_factors=RANK, random_state=seed),
        "SVD": lambda: surprise.SVD(n_factors=RANK, biased=False, random_state=seed),
        "NMF": lambda: surprise.NMF(n_factors=RANK, random_state=seed),
    }
    frame = pandas.DataFrame({"user": train.user, "item": train.item, "rating": train.rating})
    data = surprise.Dataset.load_from_df(frame, surprise.Reader(rating_scale=(1, 5))).build_full_trainset()
    model = made[name]().fit(data)
    users = [data.to_inner_uid(user) for user in np.unique(train.user).tolist()]
    items = [data.to_inner_iid(item) for item in np.unique(train.item).tolist()]
    known = model.pu[users] @ model.qi[items].T
    if name == "SVD with biases":
        known = known + data.global_mean + model.bu[users][:, None] + model.bi[items]
    # What is not in training gets what the model gives a movie without factors: the mean and, where it has one, the
    # user's bias.
    scores = np.full(train.shape, data.global_mean)
    if name == "SVD with biases":
        scores[np.unique(train.user)] += model.bu[users][:, None]
    scores[np.ix_(np.unique(train.user), np.unique(train.item))] = known
    return scores


def preferred(train: Ratings, threshold: str) -> Bool:
    """Which training ratings make the history: `mean` (above the user's own), `all`, or a number of stars.

    A user of whom none is left keeps all.
    """
    if threshold == "all":
        return np.ones(len(train.user), dtype=bool)
    if threshold == "mean":
        counts = np.maximum(np.bincount(train.user, minlength=train.num_users), 1)
        limit = (np.bincount(train.user, train.rating, minlength=train.num_users) / counts)[train.user]
    else:
        limit = np.full(len(train.user), float(threshold))
    liked = train.rating > limit if threshold == "mean" else train.rating >= limit
    has = np.zeros(train.num_users, dtype=bool)
    has[train.user[liked]] = True
    kept: Bool = liked | ~has[train.user]
    return kept


def history_scores(train: Ratings, vectors: Float32, aggregate: str, threshold: str = "4") -> Float64:
    """Eq. 5 (`average`) or Eq. 6 (`max`) over the preferred movies; 0 for users without any rating.

    Args:
        train: Training ratings.
        vectors: float32 [I, E], unit vectors for cosines.
        aggregate: `average` or `max`.
        threshold: See `preferred`.
    """
    liked = train.take(preferred(train, threshold))
    scores = np.zeros(train.shape)
    products = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    for user in np.unique(liked.user).tolist():
        own = products[liked.item[liked.user == user]]
        scores[user] = own.mean(axis=0) if aggregate == "average" else own.max(axis=0)
    return scores


def factor_vectors(train: Ratings, content: Float32, dim: int, content_weight: float) -> Float32:
    """What `vidsim factors --content` writes, from ratings of 4 and more."""
    liked = train.take(train.rating >= 4)
    users, user = np.unique(liked.user, return_inverse=True)
    histories = Histories.of([str(one) for one in users.tolist()], user, liked.item)
    vectors = factors(histories, len(train.items), FactorsConfig(dim=dim, content_weight=content_weight))
    return with_content(vectors, unit_vectors(content, train.items), content_weight)


def standardised(scores: Float64) -> Float64:
    """Each user's scores with mean 0 and deviation 1."""
    deviation = scores.std(axis=1, keepdims=True)
    return (scores - scores.mean(axis=1, keepdims=True)) / np.where(deviation > 0, deviation, 1)

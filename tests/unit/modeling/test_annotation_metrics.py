from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from vidsim.modeling.annotation_metrics import Predictions, annotation_metrics, gap

# Video 0 carries tags 0 and 3, video 1 carries 1. Two predictions each.
TAGS = [[0, 1], [2, 1]]
SCORES = [[0.9, 0.5], [0.8, 0.6]]
VIDEOS, CARRIED = [0, 0, 1], [0, 3, 1]


def random_predictions(seed: int, num_videos: int, num_tags: int, k: int, levels: int | None = None) -> Predictions:
    generator = np.random.default_rng(seed)
    truth = generator.random((num_videos, num_tags)) < 0.2
    truth[np.arange(num_videos), generator.integers(0, num_tags, num_videos)] = True
    scores = generator.random((num_videos, num_tags)) + 0.3 * truth
    if levels:
        scores = np.round(scores * levels) / levels
    tags = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return Predictions.judge(tags, np.take_along_axis(scores, tags, axis=1), *np.nonzero(truth))


def test_by_hand() -> None:
    # Pooled: .9 hit, .8 miss, .6 hit, .5 miss, of 3 tags: (1/1 + 2/3) / 3.
    # Video 0: hit, miss, of 2: 1/2. Video 1: miss, hit, of 1: 1/2.
    # Tag 0: 1. Tag 1: .6 hit, .5 miss: 1. Tag 2: carried by none, left out. Tag 3: never predicted: 0.
    found = annotation_metrics(Predictions.judge(TAGS, SCORES, VIDEOS, CARRIED))
    assert found == pytest.approx({"gap": 5 / 9, "map_sample": 0.5, "map_class": 2 / 3})


def test_recall_is_of_all_tags_that_the_videos_carry() -> None:
    # One of ten tags is found, first of all: without the factor this would be 1.
    found = annotation_metrics(Predictions.judge([[4]], [[0.9]], [0] * 10, range(10)))
    assert found == pytest.approx({"gap": 0.1, "map_sample": 0.1, "map_class": 0.1})


def test_equal_scores_share_a_threshold_whatever_their_order() -> None:
    # All four at one threshold: precision 2/4, and 2 of 3 tags are found there.
    for order in ([0, 1], [1, 0]):
        tied = Predictions.judge(np.array(TAGS)[:, order], np.full((2, 2), 0.5), VIDEOS, CARRIED)
        assert annotation_metrics(tied)["gap"] == pytest.approx(2 / 3 * 2 / 4)
        assert annotation_metrics(tied)["map_sample"] == pytest.approx((1 / 2 * 1 / 2 + 1 / 2) / 2)


@pytest.mark.parametrize("levels", [None, 8])
def test_scikit_learn_says_the_same(levels: int | None) -> None:
    made = random_predictions(0, 60, 15, 6, levels)
    found = annotation_metrics(made)
    share = made.hits.sum() / len(made.carried)
    assert found["gap"] == pytest.approx(average_precision_score(made.hits.ravel(), made.scores.ravel()) * share)
    carried = np.bincount(made.videos)
    per_video = [
        average_precision_score(hits, scores) * hits.sum() / count if hits.any() else 0.0
        for hits, scores, count in zip(made.hits, made.scores, carried, strict=True)
    ]
    assert found["map_sample"] == pytest.approx(np.mean(per_video))
    per_tag = []
    for tag in np.unique(made.carried):
        there = made.tags == tag
        hits = made.hits[there]
        total = (made.carried == tag).sum()
        per_tag.append(average_precision_score(hits, made.scores[there]) * hits.sum() / total if hits.any() else 0.0)
    assert found["map_class"] == pytest.approx(np.mean(per_tag))


def test_a_weight_of_two_is_the_video_twice() -> None:
    made = random_predictions(1, 12, 7, 3)
    times = np.array([0, 1, 2] * 4)
    drawn = np.repeat(np.arange(12), times)
    videos, carried = [], []
    for row, video in enumerate(drawn):
        own = made.carried[made.videos == video]
        videos += [row] * len(own)
        carried += own.tolist()
    again = gap(Predictions.judge(made.tags[drawn], made.scores[drawn], videos, carried))
    assert gap(made, times) == pytest.approx(again)


def test_perfect_and_hopeless() -> None:
    perfect = Predictions.judge([[0, 2, 1]], [[0.9, 0.8, 0.1]], [0, 0], [0, 2])
    assert annotation_metrics(perfect) == {"gap": 1.0, "map_sample": 1.0, "map_class": 1.0}
    hopeless = Predictions.judge([[1]], [[0.9]], [0], [0])
    assert annotation_metrics(hopeless) == {"gap": 0.0, "map_sample": 0.0, "map_class": 0.0}


def test_what_cannot_be_judged_is_refused() -> None:
    for given, message in (
        (([[0, 1]], [[0.5]], [0], [0]), "expected, got"),
        (([0, 1], [0.5, 0.4], [0], [0]), "expected, got"),
        (([[0]], [[np.nan]], [0], [0]), "not finite"),
        (([[0, 0]], [[0.5, 0.4]], [0], [0]), "twice"),
        (([[0]], [[0.5]], [0, 0], [1, 1]), "twice"),
        (([[0], [1]], [[0.5], [0.4]], [0], [0]), "every video must carry"),
        (([[0]], [[0.5]], [0, 1], [0, 0]), "every video must carry"),
    ):
        with pytest.raises(ValueError, match=message):
            Predictions.judge(*given)

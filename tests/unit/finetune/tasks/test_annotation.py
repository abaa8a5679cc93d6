from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from vidsim.common.errors import UserError
from vidsim.data.annotation import Annotation, TaggedVideos, annotate
from vidsim.data.cowatch_graph import TRAIN, VALIDATION
from vidsim.data.feature_streams import FeatureStreams, open_features
from vidsim.finetune.tasks.annotation import AnnotationCollator, AnnotationModule, AnnotationTaskConfig, TrainingRows
from vidsim.modeling.mixture_of_experts import Tagger, TaggerConfig

World = tuple[FeatureStreams, Annotation]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Four videos to train on, one of them without a known tag, and one to validate on."""
    np.save(tmp_path / "visual.npy", np.random.default_rng(0).standard_normal((5, 3)).astype(np.float16))
    features = open_features({"visual": str(tmp_path / "visual.npy")})
    tags = pa.chunked_array([[["cat", "dog"], ["dog"], ["dog"], ["cat"], ["rare"]]], pa.list_(pa.string()))
    part = np.array([TRAIN, VALIDATION, TRAIN, TRAIN, TRAIN])
    return features, annotate(features.ids, TaggedVideos(features.ids, tags, "t"), part, min_count=2, max_tags=None)


def module(annotation: Annotation, **options: Any) -> AnnotationModule:
    torch.manual_seed(0)
    settings = {"streams": {"visual": (3, 2)}, "num_tags": annotation.vocabulary.size, "num_experts": 2}
    return AnnotationModule(Tagger(TaggerConfig(**(settings | options))))


def test_a_batch_holds_features_and_ragged_tags(world: World) -> None:
    features, annotation = world
    rows = TrainingRows(annotation)
    assert len(rows) == 4
    batch = AnnotationCollator(features, annotation)([rows[3, place] for place in (3, 0, 1)])
    assert batch["row_ids"] == ["4", "0", "2"]
    assert batch["tag_rows"].tolist() == [1, 1, 2]
    assert batch["tag_ids"].tolist() == [0, 1, 1]  # equally frequent: by name
    np.testing.assert_array_equal(batch["visual"].numpy(), features.take(np.array([4, 0, 2]))["visual"])
    assert batch["visual"].dtype == torch.float32


def test_the_loss_is_the_sum_over_tags_and_the_mean_over_videos(world: World) -> None:
    features, annotation = world
    made = module(annotation, model="logistic")
    with torch.no_grad():
        made.tagger.head.weight.zero_()  # type: ignore[union-attr,operator]
        made.tagger.head.bias.copy_(torch.tensor([0.0, 2.0]))  # type: ignore[union-attr,operator]
    rows = TrainingRows(annotation)
    batch = AnnotationCollator(features, annotation)([rows[0, place] for place in range(4)])
    (window,) = made.windows([batch], 0)
    loss = made(batch, window)["tags"] * made.weights["tags"]
    plus = math.log1p(math.exp(2.0))
    # Tag 0 (cat): 4 x log 2. Tag 1 (dog) on two of four videos.
    assert loss.item() == pytest.approx((4 * math.log(2) + 4 * plus - 2 * 2.0) / 4)


def test_micro_batches_add_up_to_the_whole_batch(world: World) -> None:
    features, annotation = world
    made = module(annotation)
    rows, collate = TrainingRows(annotation), AnnotationCollator(features, annotation)
    whole = collate([rows[0, place] for place in range(4)])
    parts = [collate([rows[0, place] for place in some]) for some in ((0, 1, 2), (3,))]
    (window,) = made.windows([whole], 0)
    summed = sum(made(part, each)["tags"] for part, each in zip(parts, made.windows(parts, 0), strict=True))
    torch.testing.assert_close(summed, made(whole, window)["tags"])


def test_counts_below_one_are_refused() -> None:
    AnnotationTaskConfig().validate()
    for options in ({"num_experts": 0}, {"num_directions": 0}):
        with pytest.raises(UserError, match=next(iter(options))):
            AnnotationTaskConfig(**options).validate()

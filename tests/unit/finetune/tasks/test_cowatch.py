"""Triplets to batches, and the loss of a batch against one computed pair by pair."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from vidsim.common.errors import UserError
from vidsim.data.cowatch_graph import EVAL, TRAIN, CowatchGraph
from vidsim.data.feature_streams import FeatureStreams
from vidsim.finetune.cowatch_config import CowatchConfig
from vidsim.finetune.cowatch_sources import FeatureSource
from vidsim.finetune.tasks.cowatch import (
    ANCHOR,
    POSITIVE,
    VIDEOS,
    CowatchModule,
    CowatchTaskConfig,
    TripletCollator,
    TripletRows,
    embed,
)
from vidsim.modeling.towers import FusionTowers, TowersConfig

NUM_VIDEOS = 30


@pytest.fixture
def graph() -> CowatchGraph:
    generator = np.random.default_rng(0)
    pairs = np.unique(np.sort(generator.integers(0, NUM_VIDEOS, (2, 120)), axis=0), axis=1)
    pairs = pairs[:, pairs[0] != pairs[1]]
    ids = [f"v{number}" for number in range(NUM_VIDEOS)]
    part = np.where(np.arange(NUM_VIDEOS) % 4 == 0, EVAL, TRAIN).astype(np.int8)
    return CowatchGraph(ids, part, pairs, np.ones(pairs.shape[1], dtype=np.int64), {})


@pytest.fixture
def features(graph: CowatchGraph) -> FeatureStreams:
    generator = np.random.default_rng(1)
    arrays = {"visual": generator.standard_normal((NUM_VIDEOS, 5)), "audio": generator.standard_normal((NUM_VIDEOS, 3))}
    rows = {"visual": np.arange(NUM_VIDEOS), "audio": np.arange(NUM_VIDEOS)[::-1].copy()}
    return FeatureStreams(graph.ids, {name: array.astype(np.float16) for name, array in arrays.items()}, rows)


def module_of(graph: CowatchGraph, **options: Any) -> CowatchModule:
    torch.manual_seed(0)
    config = CowatchTaskConfig(**{"hidden": [8], "embedding_dim": 4, **options})
    towers = FusionTowers(TowersConfig(streams={"visual": 5, "audio": 3}, hidden=(8,), embedding_dim=4))
    return CowatchModule(towers, config, graph.neighbours(graph.training_edges()))


def collator_of(features: FeatureStreams) -> TripletCollator:
    source = FeatureSource(CowatchConfig(graph="", features={"visual": "", "audio": ""}), features)
    return TripletCollator(source.collate, source.ids)


def batch_of(graph: CowatchGraph, features: FeatureStreams, numbers: range) -> dict[str, Any]:
    rows = TripletRows(graph, seed=3)
    return collator_of(features)([rows[(0, number)] for number in numbers])


def test_a_batch_holds_each_video_once_and_none_of_the_eval_part(graph: CowatchGraph, features: FeatureStreams) -> None:
    rows = TripletRows(graph, seed=3)
    assert len(rows) == len(graph.training_edges()) > 20
    collator = copy.deepcopy(collator_of(features))
    assert collator.ids is features.ids
    triplets = [rows[(2, number)] for number in range(12)]
    batch = collator(triplets)
    videos = batch[VIDEOS].numpy()
    assert len(set(videos.tolist())) == len(videos)
    assert (graph.part[videos] == TRAIN).all()
    for number, row in enumerate(triplets):
        anchor, positive, negative = row["triplet"].tolist()
        assert videos[batch[ANCHOR][number]] == anchor
        assert videos[batch[POSITIVE][number]] == positive
        assert negative in videos
        assert batch["row_ids"][number] == f"v{anchor}"
    taken = features.take(videos)
    assert all(np.array_equal(batch[name].numpy(), taken[name]) for name in ("visual", "audio"))


@pytest.mark.parametrize("mask_neighbours", [True, False])
@pytest.mark.parametrize("mining", ["semihard", "hardest"])
@pytest.mark.parametrize("loss", ["hinge", "log", "exponential"])
def test_the_loss_is_that_of_each_triplet_by_itself(
    graph: CowatchGraph, features: FeatureStreams, loss: Any, mining: Any, mask_neighbours: bool
) -> None:
    module = module_of(graph, loss=loss, mining=mining, margin=0.2, mask_neighbours=mask_neighbours)
    batch = batch_of(graph, features, range(15))
    embedding = embed(module.encoder, batch).detach()
    near = graph.neighbours(graph.training_edges())
    videos = batch[VIDEOS].tolist()
    total = 0.0
    for a, p in zip(batch[ANCHOR].tolist(), batch[POSITIVE].tolist(), strict=True):
        linked = set(near.row(videos[a]).tolist()) if mask_neighbours else {videos[p]}
        allowed = [c for c in range(len(videos)) if c != a and videos[c] not in linked]
        distance = {c: (embedding[a] - embedding[c]).square().sum().item() for c in [*allowed, p]}
        farther = [c for c in allowed if distance[c] > distance[p]]
        if not allowed:
            continue
        if mining == "semihard" and not farther:
            chosen = max(allowed, key=lambda c: distance[c])
        else:
            chosen = min(farther if mining == "semihard" else allowed, key=lambda c: distance[c])
        excess = distance[p] - distance[chosen] + 0.2
        total += {"hinge": max(excess, 0.0), "log": np.log1p(np.exp(excess)), "exponential": np.exp(excess)}[loss]
    window = module.windows([batch], 0)[0]
    assert module(batch, window)["triplet"].item() == pytest.approx(total / 15, rel=1e-4)


@pytest.mark.parametrize("loss", ["contrastive", "cosent"])
def test_the_other_losses_are_those_of_plain_sums(graph: CowatchGraph, features: FeatureStreams, loss: Any) -> None:
    module = module_of(graph, loss=loss, mining="hardest", temperature=0.2)
    batch = batch_of(graph, features, range(15))
    embedding = embed(module.encoder, batch).detach().double()
    near = graph.neighbours(graph.training_edges())
    videos = batch[VIDEOS].tolist()
    each, positives, negatives = [], [], []
    for a, p in zip(batch[ANCHOR].tolist(), batch[POSITIVE].tolist(), strict=True):
        allowed = [c for c in range(len(videos)) if c != a and videos[c] not in near.row(videos[a])]
        cosine = embedding @ embedding[a]
        each.append(-torch.log_softmax(cosine[[p, *allowed]] / 0.2, dim=0)[0].item())
        if allowed:
            positives.append(cosine[p].item())
            negatives.append(max(cosine[allowed].tolist()))
    differences = [(far - close) / 0.2 for far in negatives for close in positives]
    expected = np.mean(each) if loss == "contrastive" else np.log1p(np.exp(differences).sum())
    window = module.windows([batch], 0)[0]
    assert module(batch, window)["triplet"].item() == pytest.approx(expected, rel=1e-4)


def test_losses_of_micro_batches_are_divided_by_the_whole_step(graph: CowatchGraph, features: FeatureStreams) -> None:
    module = module_of(graph)
    batches = [batch_of(graph, features, range(8)), batch_of(graph, features, range(8, 12))]
    assert [(count.item(), parts) for count, parts in module.windows(batches, 0)] == [(12.0, 2), (12.0, 2)]
    alone = module(batches[1], module.windows(batches[1:], 0)[0])["triplet"]
    together = module(batches[1], module.windows(batches, 0)[1])["triplet"]
    assert together.item() == pytest.approx(alone.item() / 3)


def test_an_anchor_that_is_linked_to_everything_counts_as_nothing(features: FeatureStreams) -> None:
    everything = np.stack(np.triu_indices(4, 1))
    ids = features.ids
    part = np.where(np.arange(NUM_VIDEOS) >= 4, EVAL, TRAIN).astype(np.int8)
    graph = CowatchGraph(ids, part, everything, np.ones(6, dtype=np.int64), {})
    module = module_of(graph)
    batch = batch_of(graph, features, range(6))
    loss = module(batch, module.windows([batch], 0)[0])["triplet"]
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_what_cannot_be_learned_is_refused() -> None:
    with pytest.raises(UserError, match=r"task.margin.*nothing would be learned"):
        CowatchTaskConfig(margin=0.0).validate()
    CowatchTaskConfig(margin=0.0, mining="hardest").validate()
    for options, name in (({"hidden": [0]}, "hidden"), ({"dropout": 1.0}, "dropout"), ({"margin": -1.0}, "margin"),
        ({"temperature": 0.0}, "temperature"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=name):
            CowatchTaskConfig(**options).validate()  # type: ignore[arg-type]

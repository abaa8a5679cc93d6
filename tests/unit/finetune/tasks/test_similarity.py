from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch.nn import functional

from vidsim.common.errors import UserError
from vidsim.data.pairs import Pairs, read_pairs
from vidsim.data.tags import TagVocabulary
from vidsim.engine.accelerator import make_accelerator
from vidsim.finetune.tasks.similarity import (
    PairCollator,
    PairRows,
    SimilarityConfig,
    SimilarityModule,
    embed_videos,
    evaluate_pairs,
    pair_cosines,
    pair_labels,
)
from vidsim.modeling.build import load_encoder
from vidsim.modeling.losses import pairs as pair_losses

Make = Callable[..., tuple[SimilarityModule, PairCollator, PairRows]]
NUMBERS = range(10)


@pytest.fixture
def pairs(small_data: Any) -> Pairs:
    return read_pairs(small_data.pairs)


@pytest.fixture
def make(small_data: Any, checkpoint: Path, pairs: Pairs) -> Make:
    def build(*, dropout: bool = False, **settings: Any) -> tuple[SimilarityModule, PairCollator, PairRows]:
        encoder, processor = load_encoder(checkpoint)
        for module in encoder.modules():
            if isinstance(module, torch.nn.Dropout) and not dropout:
                module.p = 0.0
        tags = TagVocabulary.build(small_data.videos, size=4) if settings.get("tag_weight") else None
        torch.manual_seed(0)
        made = SimilarityModule(encoder, SimilarityConfig(**settings), num_tags=tags.size if tags else 0, seed=1)
        made.train(dropout)
        return made, PairCollator(processor, tags), PairRows(small_data.videos, pairs, pairs.score)

    return build


def batch(collator: PairCollator, rows: PairRows, numbers: Any) -> dict[str, Any]:
    return collator([rows[(0, number)] for number in numbers])


def losses(module: SimilarityModule, *batches: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Losses of a step, summed over its micro-batches."""
    totals: dict[str, torch.Tensor] = {}
    torch.manual_seed(seed)
    for each, window in zip(batches, module.windows(batches, 0), strict=True):
        for name, loss in module(each, window).items():
            totals[name] = totals[name] + loss if name in totals else loss
    return totals


def test_cosines_by_hand() -> None:
    """Left videos first, then right ones: (1, 0)·(.6, .8) = .6 and (0, 1)·(0, -1) = -1."""
    embedding = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.0, -1.0]])
    assert pair_cosines(embedding).tolist() == pytest.approx([0.6, -1.0])
    assert pair_cosines(embedding.bfloat16()).dtype == torch.float32


def test_a_batch_holds_left_videos_then_right_ones(make: Make, pairs: Pairs) -> None:
    _, collator, rows = make(tag_weight=1.0)
    made = batch(collator, rows, [2, 0])
    assert made["row_ids"] == [pairs.id1[2], pairs.id1[0], pairs.id2[2], pairs.id2[0]] == ["1", "0", "2", "1"]
    assert made["labels"].tolist() == pytest.approx([pairs.score[2], pairs.score[0]])
    assert made["labels"].dtype == torch.float32
    assert made["has_tags"].tolist() == [True, True, False, True]  # every third video has no tags
    assert len(rows) == len(pairs)


def test_a_missing_video_is_named(small_data: Any) -> None:
    with pytest.raises(UserError, match="first nobody"):
        PairRows(small_data.videos, Pairs(["1"], ["nobody"], np.array([0.5])), np.array([0.5]))


def test_mse_is_the_mean_over_all_pairs_of_the_step(make: Make) -> None:
    module, collator, rows = make()
    cosines = pair_cosines(module.encode(batch(collator, rows, NUMBERS)).embedding)
    expected = (cosines - torch.tensor(rows.labels[:10])).square().mean().float()
    whole = losses(module, batch(collator, rows, NUMBERS))
    parts = losses(module, batch(collator, rows, range(7)), batch(collator, rows, range(7, 10)))
    assert list(whole) == ["pair"]
    torch.testing.assert_close(whole["pair"], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts["pair"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", ["lbpc", "cosent"])
def test_losses_of_a_whole_micro_batch_are_averaged_over_the_parts(make: Make, loss: Any) -> None:
    """They have no sum over pairs: a step of two micro-batches is the mean of the two."""
    module, collator, rows = make(loss=loss, temperature=0.3, scale=7.0)
    parts = [batch(collator, rows, range(6)), batch(collator, rows, range(6, 12))]
    singles = []
    for part in parts:
        cosines, labels = pair_cosines(module.encode(part).embedding), part["labels"]
        if loss == "lbpc":
            singles.append(pair_losses.lbpc(cosines, labels, 0.3))
        else:
            singles.append(pair_losses.cosent(cosines, labels, 7.0))
    assert singles[0].item() != pytest.approx(singles[1].item(), rel=1e-3)
    torch.testing.assert_close(losses(module, parts[0])["pair"], singles[0])
    torch.testing.assert_close(losses(module, *parts)["pair"], torch.stack(singles).mean())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss": "lbpc"},
        {"loss": "cosent", "kl_weight": 0.5},
        {"tag_weight": 0.1, "kl_weight": 0.5, "r_drop_weight": 1.0, "num_dropout_samples": 3},
    ],
)
def test_every_parameter_gets_a_gradient(make: Make, settings: dict[str, Any]) -> None:
    module, collator, rows = make(dropout=True, **settings)
    result = losses(module, batch(collator, rows, NUMBERS))
    assert set(result) == set(module.weights)
    assert all(loss.isfinite() for loss in result.values())
    torch.stack(list(result.values())).sum().backward()
    assert [name for name, parameter in module.named_parameters() if parameter.grad is None] == []


def test_weights_are_those_of_the_settings(make: Make) -> None:
    module, _, _ = make(tag_weight=0.1, kl_weight=0.5, r_drop_weight=2.0)
    assert module.weights == {"pair": 1.0, "vtc": 0.1, "kl": 0.5, "r_drop": 2.0}
    assert make()[0].weights == {"pair": 1.0}
    assert make()[0].tags is None


def test_r_drop_compares_two_passes_of_dropout(make: Make) -> None:
    """1 - cosine of the two embeddings of each of the 2N videos; the pair loss is the mean over both passes."""
    module, collator, rows = make(dropout=True, r_drop_weight=1.0)
    made = batch(collator, rows, NUMBERS)
    result = losses(module, made, seed=5)
    torch.manual_seed(5)
    first, second = module.encode(made).embedding, module.encode(made).embedding
    assert not torch.allclose(first, second)
    torch.testing.assert_close(result["r_drop"], (1 - (first * second).sum(1)).mean(), rtol=1e-4, atol=1e-6)
    each = [(pair_cosines(embedding) - made["labels"]).square().mean() for embedding in (first, second)]
    torch.testing.assert_close(result["pair"], (each[0] + each[1]) / 2)
    same, _, _ = make(r_drop_weight=1.0)
    assert losses(same, made)["r_drop"].item() == pytest.approx(0.0, abs=1e-6)


def test_a_window_counts_all_pairs_of_the_step(make: Make) -> None:
    module, collator, rows = make()
    windows = module.windows([batch(collator, rows, range(6)), batch(collator, rows, range(6, 8))], 0)
    assert [(window.num_pairs.item(), window.num_parts) for window in windows] == [(8.0, 2), (8.0, 2)]


def test_several_dropout_masks_are_averaged_in_training_only(make: Make) -> None:
    module, collator, rows = make(dropout=True, num_dropout_samples=2, dropout_sample_rate=0.5)
    with torch.no_grad():
        output = module.encode(batch(collator, rows, NUMBERS))
        torch.manual_seed(3)
        averaged = module.embed(output)
        torch.manual_seed(3)
        masks = [functional.dropout(torch.ones_like(output.pooled), 0.5) for _ in range(2)]
        head = module.encoder.embedding_head.projection
        each = [functional.normalize(head(output.pooled * mask), dim=-1) for mask in masks]
        torch.testing.assert_close(averaged, functional.normalize(each[0] + each[1], dim=-1))
        assert averaged.norm(dim=1).tolist() == pytest.approx([1.0] * 20, abs=1e-5)
        assert torch.equal(module.eval().embed(output), output.embedding)
        assert torch.equal(make(dropout=True)[0].embed(output), output.embedding)


def test_tags_are_learned_from_both_sides(make: Make) -> None:
    module, collator, rows = make(tag_weight=1.0)
    made = batch(collator, rows, [0])  # videos 0 (t0, all) and 1 (t1, all); the vocabulary is all, t0, …
    loss = losses(module, made)["vtc"].item()
    assert module.tags is not None
    with torch.no_grad():
        logits = module.tags.head(module.encode(made).cls_hidden)
    targets = torch.zeros(2, 4)
    for row, tags in enumerate((("all", "t0"), ("all", "t1"))):
        for tag in tags:
            assert collator.tags is not None
            targets[row, collator.tags.tags.index(tag)] = 1.0
    assert loss == pytest.approx(functional.binary_cross_entropy_with_logits(logits, targets).item(), rel=1e-5)


def test_rank_labels_are_fitted_on_training_pairs_only() -> None:
    """Training scores 0, .5, .5, 1: average ranks 1, 2.5, 2.5, 4 become 0, .5, .5, 1. Others are interpolated."""
    train = Pairs(["a"] * 4, ["b"] * 4, np.array([1.0, 0.5, 0.0, 0.5]))
    other = Pairs(["c"] * 4, ["d"] * 4, np.array([0.25, 0.9, 0.9, 0.9]))
    labels, others = pair_labels(SimilarityConfig(label="rank"), train, other, None)
    assert labels.tolist() == pytest.approx([1.0, 0.5, 0.0, 0.5])
    assert others.tolist() == pytest.approx([0.25, 0.9, 0.9, 0.9])
    skewed = Pairs(["a"] * 4, ["b"] * 4, np.array([0.0, 0.1, 0.2, 1.0]))
    labels, others = pair_labels(SimilarityConfig(label="rank"), skewed, other, None)
    assert labels.tolist() == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0])
    assert others.tolist() == pytest.approx([2 / 3 + 0.05 / 0.8 / 3, *[2 / 3 + 0.7 / 0.8 / 3] * 3])
    raw = pair_labels(SimilarityConfig(label="raw"), skewed, other, None)
    assert (raw[0].tolist(), raw[1].tolist()) == (skewed.score.tolist(), other.score.tolist())


def test_a_teacher_softens_training_labels_only() -> None:
    train = Pairs(["a"] * 3, ["b"] * 3, np.array([0.0, 0.5, 1.0]))
    teacher = np.array([0.4, -0.2, 0.6])  # below 0 counts as 0
    labels, others = pair_labels(SimilarityConfig(label="rank", distill_weight=0.3), train, train, teacher)
    assert labels.tolist() == pytest.approx([0.12, 0.35, 0.88])
    assert others.tolist() == pytest.approx([0.0, 0.5, 1.0])


def test_embeddings_come_in_the_order_asked(make: Make, small_data: Any) -> None:
    module, collator, _ = make()
    accelerator = make_accelerator("fp32")
    videos, processor = small_data.videos, collator.processor
    rows = np.array([5, 0, 23, 5])
    vectors = embed_videos(module, videos, rows, processor, batch_size=3, accelerator=accelerator)
    whole = embed_videos(module, videos, np.arange(24), processor, batch_size=24, accelerator=accelerator)
    assert vectors.shape == (4, 4)
    np.testing.assert_allclose(vectors, whole[rows], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1.0, atol=1e-6)


def test_evaluation_by_pairs(make: Make, small_data: Any, pairs: Pairs) -> None:
    module, collator, rows = make()
    labels = np.linspace(0, 1, len(pairs))
    accelerator = make_accelerator("fp32")
    result = evaluate_pairs(
        module, small_data.videos, pairs, labels, collator.processor, batch_size=5, accelerator=accelerator
    )
    with torch.no_grad():
        made = batch(collator, rows, range(len(pairs)))
        cosines = pair_cosines(module.encode(made).embedding).numpy()
    assert result["validation/spearman"] == pytest.approx(spearmanr(cosines, pairs.score).statistic, abs=1e-6)
    assert result["validation/mse"] == pytest.approx(float(np.mean((cosines - labels) ** 2)), abs=1e-6)


def test_training_lowers_the_loss(make: Make) -> None:
    module, collator, rows = make(tag_weight=0.1, kl_weight=0.5)
    made = batch(collator, rows, NUMBERS)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    totals = []
    for _ in range(10):
        optimizer.zero_grad()
        total = torch.stack([loss * module.weights[name] for name, loss in losses(module, made).items()]).sum()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.9 * totals[0]

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vidsim.modeling.losses.tags import (
    log_uniform_log_probability,
    sample_log_uniform,
    sampled_softmax,
    tag_bce,
)

LOGITS = [[0.0, math.log(3.0), 0.0], [math.log(7.0), 0.0, 0.0]]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ids(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def test_tag_bce_by_hand() -> None:
    # Video 0 carries tag 1: ln 2 + ln(4/3) + ln 2. Video 1 carries tags 1, 2: ln 8 + ln 2 + ln 2.
    loss = tag_bce(torch.tensor(LOGITS), ids(1, 1, 2), ids(0, 1, 1))
    assert loss.item() == pytest.approx((1.6739764335716716 + 3.4657359027997265) / 6, rel=1e-6)


def test_tag_bce_equals_the_dense_formula() -> None:
    logits = torch.randn(4, 7, generator=seeded(), dtype=torch.float64)
    target = torch.randint(0, 2, (4, 7), generator=seeded(1))
    rows, tags = torch.nonzero(target, as_tuple=True)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, target.double())
    torch.testing.assert_close(tag_bce(logits, tags, rows), expected)


def test_tag_bce_leaves_videos_without_tags_out() -> None:
    logits = torch.tensor(LOGITS)
    alone = tag_bce(logits[:1], ids(1), ids(0))
    has_tags = torch.tensor([True, False])
    torch.testing.assert_close(tag_bce(logits, ids(1), ids(0), has_tags), alone)
    # Whatever stands in the row that takes no part, tags included, changes nothing.
    other = torch.tensor([LOGITS[0], [50.0, -3.0, 9.0]])
    torch.testing.assert_close(tag_bce(other, ids(1, 2), ids(0, 1), has_tags), alone)


def test_tag_bce_counts_a_video_whose_tags_are_all_unknown_as_all_negative() -> None:
    loss = tag_bce(torch.zeros(1, 5), ids(), ids(), torch.tensor([True]))
    assert loss.item() == pytest.approx(0.6931471805599453)


def test_tag_bce_adds_up_over_parts() -> None:
    logits = torch.randn(3, 4, generator=seeded(), dtype=torch.float64)
    whole = tag_bce(logits, ids(0, 3, 2), ids(0, 1, 2))
    parts = tag_bce(logits[:1], ids(0), ids(0), denominator=3.0)
    parts = parts + tag_bce(logits[1:], ids(3, 2), ids(0, 1), denominator=torch.tensor(3))
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("num_rows", [0, 2])
def test_tag_bce_of_nothing_is_zero_with_gradient(num_rows: int) -> None:
    logits = torch.randn(num_rows, 3, requires_grad=True)
    loss = tag_bce(logits, ids(), ids(), torch.zeros(num_rows, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert logits.grad.count_nonzero() == 0


def test_tag_bce_gradient() -> None:
    logits = torch.randn(2, 3, generator=seeded(), dtype=torch.float64, requires_grad=True)
    has_tags = torch.tensor([True, False])
    assert torch.autograd.gradcheck(lambda x: tag_bce(x, ids(0, 2, 1), ids(0, 0, 1), has_tags), logits)


def test_tag_bce_does_not_depend_on_the_order_of_tags_or_rows() -> None:
    logits = torch.randn(3, 4, generator=seeded(), dtype=torch.float64)
    loss = tag_bce(logits, ids(0, 3, 2), ids(0, 0, 2))
    torch.testing.assert_close(tag_bce(logits, ids(2, 0, 3), ids(2, 0, 0)), loss)
    torch.testing.assert_close(tag_bce(logits.flip(0), ids(0, 3, 2), ids(2, 2, 0)), loss)


def test_log_uniform_law_by_hand() -> None:
    # V = 3: Q = log_4(2), log_4(3/2), log_4(4/3).
    probabilities = log_uniform_log_probability(ids(0, 1, 2), 3).exp()
    torch.testing.assert_close(probabilities, torch.tensor([0.5, 0.2924812503605781, 0.20751874963942188]))
    total = log_uniform_log_probability(torch.arange(1000), 1000).exp().sum()
    assert total.item() == pytest.approx(1.0, abs=1e-5)


def test_sampler_follows_the_law_and_its_seed() -> None:
    drawn = sample_log_uniform(200_000, 10, seeded())
    frequencies = torch.bincount(drawn, minlength=10) / 200_000
    expected = log_uniform_log_probability(torch.arange(10), 10).exp()
    torch.testing.assert_close(frequencies, expected, atol=0.005, rtol=0)
    assert torch.equal(sample_log_uniform(50, 10, seeded(3)), sample_log_uniform(50, 10, seeded(3)))
    assert not torch.equal(sample_log_uniform(50, 10, seeded(3)), sample_log_uniform(50, 10, seeded(4)))
    assert sample_log_uniform(100, 1, seeded()).unique().tolist() == [0]


def test_exact_softmax_by_hand() -> None:
    # Scores 1, 2, 0 for one video with tags 0 and 1: each is set against tag 2 only.
    query = torch.tensor([[1.0, 0.0]])
    table = torch.tensor([[1.0, 5.0], [1.0, -3.0], [0.0, 2.0]])
    loss = sampled_softmax(query, table, torch.tensor([0.0, 1.0, 0.0]), ids(0, 1), ids(0, 0))
    assert loss.item() == pytest.approx((0.3132616875182228 + 0.1269280110429725) / 2, rel=1e-6)


def test_sampled_softmax_by_hand() -> None:
    # V = 3, negatives 1, 1, 0, 2; the video carries 0, so the draw of 0 counts as nothing. All scores are 0.
    # Z = 2 / (4 Q(1)) + 1 / (4 Q(2)) = 1.709511 + 1.204710; loss = ln(1 + Z).
    loss = sampled_softmax(torch.zeros(1, 2), torch.ones(3, 2), None, ids(0), ids(0), ids(1, 1, 0, 2))
    assert loss.item() == pytest.approx(1.3646161, abs=1e-6)


def test_sampled_softmax_estimates_the_full_one() -> None:
    generator = seeded(7)
    query = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    table = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    bias = torch.randn(30, generator=generator, dtype=torch.float64)
    tags, rows = ids(3, 17, 0), ids(0, 0, 1)
    exact = sampled_softmax(query, table, bias, tags, rows)
    negatives = sample_log_uniform(200_000, 30, generator)
    estimate = sampled_softmax(query, table, bias, tags, rows, negatives)
    assert estimate.item() == pytest.approx(exact.item(), rel=0.01)
    # The estimate of the partition sum has the right mean already for few draws.
    sums = []
    for _ in range(3000):
        few = sample_log_uniform(5, 30, generator)
        loss = sampled_softmax(query[1:], table, bias, ids(0), ids(0), few)
        sums.append(torch.expm1(loss))
    wanted = torch.expm1(sampled_softmax(query[1:], table, bias, ids(0), ids(0)))
    assert torch.stack(sums).mean().item() == pytest.approx(wanted.item(), rel=0.1)


def test_sampled_softmax_adds_up_over_parts_and_leaves_videos_out() -> None:
    generator = seeded()
    query, table = torch.randn(3, 2, generator=generator), torch.randn(6, 2, generator=generator)
    negatives = sample_log_uniform(8, 6, generator)
    has_tags = torch.tensor([True, False, True])
    whole = sampled_softmax(query, table, None, ids(0, 4, 5), ids(0, 1, 2), negatives, has_tags)
    parts = sampled_softmax(query[:1], table, None, ids(0), ids(0), negatives, denominator=2.0)
    parts = parts + sampled_softmax(query[2:], table, None, ids(5), ids(0), negatives, denominator=2.0)
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("sampled", [True, False])
def test_sampled_softmax_gradient(sampled: bool) -> None:
    generator = seeded()
    query = torch.randn(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    table = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    negatives = ids(0, 4, 0, 2) if sampled else None

    def loss(q: Tensor, t: Tensor, b: Tensor) -> Tensor:
        return sampled_softmax(q, t, b, ids(0, 3, 1), ids(0, 0, 1), negatives)

    assert torch.autograd.gradcheck(loss, (query, table, bias))


def test_sampled_softmax_without_pairs_or_without_negatives_is_zero_with_gradient() -> None:
    query, table = torch.randn(2, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    nothing = sampled_softmax(query, table, None, ids(), ids(), ids(0, 1))
    only_own = sampled_softmax(query, table, None, ids(1), ids(0), ids(1, 1))
    (nothing + only_own).backward()
    assert nothing.item() == 0.0
    assert only_own.item() == 0.0
    for tensor in (query, table):
        assert tensor.grad is not None
        assert tensor.grad.count_nonzero() == 0

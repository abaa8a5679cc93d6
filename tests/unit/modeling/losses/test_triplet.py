from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from vidsim.modeling.losses.triplet import TripletForm, check_margin, contrastive, squared_distance, triplet

# |a - p|^2 = 2, 2; |a - n|^2 = 4, 0; so d = -2 + margin, 2 + margin.
ANCHOR = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
POSITIVE = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
NEGATIVE = torch.tensor([[-1.0, 0.0], [0.0, 1.0]])


def loss(**options: object) -> float:
    return triplet(ANCHOR, POSITIVE, NEGATIVE, **options).item()  # type: ignore[arg-type]


def test_the_distance_is_squared() -> None:
    assert squared_distance(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])).tolist() == [25.0]


def test_each_form_by_hand() -> None:
    for margin in (0.0, 0.5):
        low, high = -2 + margin, 2 + margin
        assert loss(margin=margin) == pytest.approx(high / 2)
        expected = (math.log1p(math.exp(low)) + math.log1p(math.exp(high))) / 2
        assert loss(margin=margin, form="log") == pytest.approx(expected)
        assert loss(margin=margin, form="exponential") == pytest.approx((math.exp(low) + math.exp(high)) / 2)


def test_a_hinge_is_torchs_own_on_squared_distance() -> None:
    parts = torch.nn.functional.normalize(torch.randn(3, 50, 8, generator=torch.Generator().manual_seed(1)), dim=-1)
    theirs = torch.nn.TripletMarginWithDistanceLoss(distance_function=squared_distance, margin=0.3)
    torch.testing.assert_close(triplet(*parts, margin=0.3), theirs(*parts))


def test_invalid_triplets_do_not_count_and_parts_add_up() -> None:
    valid = torch.tensor([False, True])
    assert loss(margin=0.5, valid=valid) == pytest.approx(2.5)
    first = triplet(ANCHOR[:1], POSITIVE[:1], NEGATIVE[:1], form="log", denominator=2)
    second = triplet(ANCHOR[1:], POSITIVE[1:], NEGATIVE[1:], form="log", denominator=torch.tensor(2))
    assert (first + second).item() == pytest.approx(loss(form="log"))


@pytest.mark.parametrize("form", get_args(TripletForm))
def test_nothing_valid_is_zero_with_gradient(form: TripletForm) -> None:
    anchor = ANCHOR.clone().requires_grad_()
    value = triplet(anchor, POSITIVE, NEGATIVE, form=form, valid=torch.zeros(2, dtype=torch.bool))
    value.backward()
    assert value.item() == 0
    assert anchor.grad is not None
    assert anchor.grad.tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("form", get_args(TripletForm))
def test_the_gradient_pulls_the_positive_and_pushes_the_negative(form: TripletForm) -> None:
    anchor, positive, negative = (torch.tensor([[x]], requires_grad=True) for x in (0.0, 1.0, 1.1))
    triplet(anchor, positive, negative, margin=1.0, form=form).backward()
    assert positive.grad is not None
    assert negative.grad is not None
    assert positive.grad.item() > 0
    assert negative.grad.item() < 0


def test_a_semi_hard_hinge_without_margin_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing would be learned"):
        check_margin("hinge", "semihard", 0.0)
    for margin in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="at least 0"):
            check_margin("hinge", "hardest", margin)
    check_margin("hinge", "hardest", 0.0)
    check_margin("log", "semihard", 0.0)
    check_margin("hinge", "semihard", 0.1)


def test_contrastive_by_hand() -> None:
    anchor, positive = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.8, 0.6], [0.6, 0.8]])
    candidates = torch.cat([anchor, positive])
    # Anchor 0: itself and its positive are no negatives, left are cosines 0 and .6; anchor 1 has no negative.
    excluded = (torch.tensor([0, 0, 1, 1, 1, 1]), torch.tensor([0, 2, 0, 1, 2, 3]))
    expected = math.log(math.exp(1.6) + math.exp(0.0) + math.exp(1.2)) - 1.6
    found = contrastive(anchor, positive, candidates, excluded=excluded, temperature=0.5)
    assert found.item() == pytest.approx(expected / 2)
    halves = [
        contrastive(anchor[i : i + 1], positive[i : i + 1], candidates, excluded=part, temperature=0.5, denominator=2)
        for i, part in enumerate([(excluded[0][:2], excluded[1][:2]), (excluded[0][2:] - 1, excluded[1][2:])])
    ]
    assert sum(halves).item() == pytest.approx(found.item())


def test_contrastive_with_gradient_where_there_is_no_negative() -> None:
    anchor = torch.tensor([[1.0, 0.0]], requires_grad=True)
    nothing = contrastive(anchor, anchor, anchor, excluded=(torch.tensor([0]), torch.tensor([0])))
    nothing.backward()
    assert nothing.item() == 0
    assert anchor.grad is not None
    assert anchor.grad.tolist() == [[0, 0]]

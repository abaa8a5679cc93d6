from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from vidsim.modeling.losses.pairs import bernoulli_kl, cosent, lbpc, mse, r_drop_embeddings

COSINES = torch.tensor([0.9, 0.1, 0.5, -0.2], dtype=torch.float64)
LABELS = torch.tensor([1.0, 0.25, 0.25, 0.0], dtype=torch.float64)
ADDITIVE: list[Callable[..., Tensor]] = [mse, bernoulli_kl]
BATCHWISE: list[Callable[..., Tensor]] = [lbpc, cosent]


def test_mse_by_hand() -> None:
    # .01 + .0225 + .0625 + .04, over 4.
    assert mse(COSINES, LABELS).item() == pytest.approx(0.03375)


def test_lbpc_by_hand() -> None:
    # T = 1 and cosines ln 1, ln 2, ln 3: softmax 1/6, 2/6, 3/6, centred -1, 0, 1 (sixths).
    # Labels 0, 1, 0 centred -1/3, 2/3, -1/3.
    cosines = torch.tensor([0.0, math.log(2.0), math.log(3.0)], dtype=torch.float64)
    loss = lbpc(cosines, torch.tensor([0.0, 1.0, 0.0]), temperature=1.0)
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    # Labels 0, 1, 1 centred -2/3, 1/3, 1/3: 1 / sqrt(2 * 2/3).
    loss = lbpc(cosines, torch.tensor([0.0, 1.0, 1.0]), temperature=1.0)
    assert loss.item() == pytest.approx(-0.8660254037844386)


def test_lbpc_is_minus_pearson_of_the_softmax() -> None:
    stretched = np.exp(COSINES.numpy() / 0.2)
    expected = -np.corrcoef(stretched / stretched.sum(), LABELS.numpy())[0, 1]
    assert lbpc(COSINES, LABELS).item() == pytest.approx(expected)
    # A correlation sees neither scale nor shift of the labels.
    assert lbpc(COSINES, 0.5 * LABELS + 0.1).item() == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.3, 0.0, 1.0])
def test_lbpc_without_a_correlation_is_zero_with_gradient(value: float) -> None:
    for labels in (
        torch.full((7,), value),
        torch.full((13,), value),
        torch.full((1,), value),
        torch.zeros(0),
    ):
        cosines = torch.linspace(-0.1, 0.7, len(labels)).requires_grad_()
        loss = lbpc(cosines, labels)
        loss.backward()
        assert loss.item() == 0.0
        assert cosines.grad is not None
        assert cosines.grad.count_nonzero() == 0


def test_lbpc_of_equal_cosines_has_a_bounded_gradient() -> None:
    cosines = torch.full((4,), 0.5, requires_grad=True)
    loss = lbpc(cosines, LABELS.float())
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-4)
    assert cosines.grad is not None
    assert torch.isfinite(cosines.grad).all()
    assert cosines.grad[0] < 0 < cosines.grad[3]  # still says: the label 1 up, the label 0 down


def test_cosent_by_hand() -> None:
    # One ordered pair: log(1 + exp(2 * (.5 - .1))); scale 2, the higher label has the lower cosine.
    loss = cosent(torch.tensor([0.1, 0.5]), torch.tensor([1.0, 0.0]), scale=2.0)
    assert loss.item() == pytest.approx(1.1711006660)
    # Labels 1, 0, 0: the tie of the last two asks for nothing.
    loss = cosent(torch.tensor([0.0, 0.0, 0.5]), torch.tensor([1.0, 0.0, 0.0]), scale=2.0)
    assert loss.item() == pytest.approx(math.log(1 + 1 + math.e))


def test_cosent_of_one_label_is_zero_with_gradient() -> None:
    cosines = torch.randn(3, requires_grad=True)
    loss = cosent(cosines, torch.full((3,), 0.5))
    loss.backward()
    assert loss.item() == 0.0
    assert cosines.grad is not None
    assert cosines.grad.count_nonzero() == 0
    assert cosent(cosines[:0], torch.zeros(0)).item() == 0.0


def test_bernoulli_kl_by_hand() -> None:
    # y = .5, p = .25: .5 ln 2 + .5 ln(2/3); y = 1, p = .5: ln 2.
    loss = bernoulli_kl(torch.tensor([0.25, 0.5]), torch.tensor([0.5, 1.0]))
    assert loss.item() == pytest.approx((0.1438410362 + 0.6931471806) / 2)
    equal = torch.tensor([0.3, 0.7])
    assert bernoulli_kl(equal, equal).item() == pytest.approx(0.0, abs=1e-6)


def test_bernoulli_kl_outside_the_clamp_leads_back_or_is_flat() -> None:
    cosines = torch.tensor([-0.5, -0.5, 0.99], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    bernoulli_kl(cosines, labels, denominator=1.0).backward()
    assert cosines.grad is not None
    # y = 1 at p = .05: slope (.05 - 1) / (.05 * .95) = -20; y = 0: flat; y = .5 at p = .95: .45 / .0475.
    assert cosines.grad.tolist() == pytest.approx([-20.0, 0.0, 9.473684210526316])


def test_r_drop_by_hand() -> None:
    first, second = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.6, 0.8], [0.0, 5.0]])
    assert r_drop_embeddings(first, second).item() == pytest.approx(0.2)
    assert r_drop_embeddings(second, first).item() == pytest.approx(0.2)


@pytest.mark.parametrize("loss", ADDITIVE)
def test_additive_losses_add_up_and_are_zero_for_nothing(loss: Callable[..., Tensor]) -> None:
    whole = loss(COSINES, LABELS)
    parts = loss(COSINES[:1], LABELS[:1], 4.0) + loss(COSINES[1:], LABELS[1:], torch.tensor(4))
    torch.testing.assert_close(parts, whole)
    empty = torch.zeros(0, requires_grad=True)
    nothing = loss(empty, torch.zeros(0))
    nothing.backward()
    assert nothing.item() == 0.0
    assert empty.grad is not None


@pytest.mark.parametrize("loss", ADDITIVE + BATCHWISE)
def test_gradients_and_order(loss: Callable[..., Tensor]) -> None:
    cosines = COSINES.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, LABELS), cosines)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(loss(COSINES[order], LABELS[order]), loss(COSINES, LABELS))


def test_r_drop_embeddings_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    second = torch.randn(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(r_drop_embeddings, (first, second))


@pytest.mark.parametrize("loss", ADDITIVE + BATCHWISE)
def test_half_precision_cosines_are_taken_as_float32(loss: Callable[..., Tensor]) -> None:
    assert loss(COSINES.bfloat16(), LABELS.float()).dtype == torch.float32

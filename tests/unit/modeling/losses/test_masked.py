from __future__ import annotations

import math

import pytest
import torch

from vidsim.modeling.losses.masked import masked_frame, masked_token


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_masked_token_by_hand() -> None:
    # Softmax (1/4, 3/4) asked for the second, (1/2, 1/2) for the first: (ln 4/3 + ln 2) / 2.
    loss = masked_token(torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]]), torch.tensor([1, 0]))
    assert loss.item() == pytest.approx(0.4904146265058631)


def test_masked_token_softmax_is_float32_for_half_precision_logits() -> None:
    logits = torch.full((1, 4000), 30.0, dtype=torch.bfloat16)
    loss = masked_token(logits, torch.tensor([0]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(4000), rel=1e-6)


def test_masked_frame_by_hand() -> None:
    # Products ln 2, 0, 0: softmax (1/2, 1/4, 1/4); products 0, ln 3, 0: (1/5, 3/5, 1/5).
    candidates = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    predictions = torch.tensor([[math.log(2.0), 0.0], [0.0, math.log(3.0)]])
    loss = masked_frame(predictions, candidates, torch.tensor([0, 2]))
    assert loss.item() == pytest.approx((0.6931471805599453 + 1.6094379124341003) / 2, rel=1e-6)


def test_masked_frame_normalised_by_hand() -> None:
    # Cosines 1 and 0 over T = .5: -ln(e^2 / (e^2 + 1)), whatever the lengths.
    loss = masked_frame(
        torch.tensor([[7.0, 0.0]]),
        torch.tensor([[0.1, 0.0], [0.0, 9.0]]),
        torch.tensor([0]),
        normalize=True,
        temperature=0.5,
    )
    assert loss.item() == pytest.approx(0.1269280110429725, rel=1e-6)


def test_masked_frame_keeps_full_precision_under_autocast() -> None:
    generator = seeded()
    predictions, candidates = torch.randn(3, 64, generator=generator), torch.randn(9, 64, generator=generator)
    expected = masked_frame(predictions, candidates, torch.tensor([0, 4, 8]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(masked_frame(predictions, candidates, torch.tensor([0, 4, 8])), expected)


def test_losses_add_up_over_parts() -> None:
    generator = seeded()
    predictions = torch.randn(4, 3, generator=generator)
    candidates = torch.randn(6, 3, generator=generator)
    positives = torch.tensor([0, 2, 3, 5])
    whole = masked_frame(predictions, candidates, positives)
    parts = sum(
        masked_frame(predictions[part], candidates, positives[part], denominator=torch.tensor(4.0))
        for part in (slice(0, 1), slice(1, 4), slice(4, 4))
    )
    torch.testing.assert_close(torch.as_tensor(parts), whole)
    labels = torch.tensor([0, 0, 2, 1])
    tokens = masked_token(predictions[:1], labels[:1], 4) + masked_token(predictions[1:], labels[1:], 4.0)
    torch.testing.assert_close(tokens, masked_token(predictions, labels))


def test_masked_frame_does_not_depend_on_the_order() -> None:
    generator = seeded()
    predictions = torch.randn(3, 4, generator=generator)
    candidates = torch.randn(5, 4, generator=generator)
    positives = torch.tensor([1, 4, 0])
    loss = masked_frame(predictions, candidates, positives)
    torch.testing.assert_close(masked_frame(predictions.flip(0), candidates, positives.flip(0)), loss)
    torch.testing.assert_close(masked_frame(predictions, candidates.flip(0), 4 - positives), loss)


def test_nothing_masked_is_zero_with_gradient() -> None:
    logits = torch.randn(0, 5, requires_grad=True)
    predictions = torch.randn(0, 4, requires_grad=True)
    labels = torch.zeros(0, dtype=torch.int64)
    for loss, tensor in (
        (masked_token(logits, labels), logits),
        (masked_frame(predictions, torch.randn(3, 4), labels), predictions),
        (masked_frame(predictions, torch.randn(0, 4), labels), predictions),
        (masked_frame(predictions, torch.randn(3, 4), labels, denominator=torch.tensor(0.0)), predictions),
    ):
        loss.backward()
        assert loss.item() == 0.0
        assert tensor.grad is not None
        assert tensor.grad.shape == tensor.shape


@pytest.mark.parametrize("normalize", [False, True])
def test_gradients(normalize: bool) -> None:
    generator = seeded()
    predictions = torch.randn(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    candidates = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    positives = torch.tensor([3, 1])
    assert torch.autograd.gradcheck(
        lambda x: masked_frame(x, candidates, positives, normalize=normalize, temperature=0.5), predictions
    )
    assert torch.autograd.gradcheck(lambda x: masked_token(x, torch.tensor([2, 0])), predictions)

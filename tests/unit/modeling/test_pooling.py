from __future__ import annotations

import math

import pytest
import torch

from vidsim.modeling.pooling import AttentionPooling, masked_mean

HIDDEN = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, -100.0]]])
MASK = torch.tensor([[1, 1, 0]])


def test_masked_mean_by_hand() -> None:
    assert masked_mean(HIDDEN, MASK).tolist() == [[2.0, 4.0]]
    assert masked_mean(HIDDEN, MASK.bool()).tolist() == [[2.0, 4.0]]


def test_masked_mean_of_nothing_is_zero() -> None:
    assert masked_mean(HIDDEN, torch.zeros(1, 3)).tolist() == [[0.0, 0.0]]


def test_masked_mean_adds_in_float32() -> None:
    hidden = torch.ones(1, 1000, 1, dtype=torch.bfloat16)
    hidden[0, 0] = 257.0  # 256 in bfloat16; a bfloat16 sum would stop growing there
    assert masked_mean(hidden, torch.ones(1, 1000)).item() == pytest.approx((256 + 999) / 1000)


def _attention() -> AttentionPooling:
    pooling = AttentionPooling(2)
    with torch.no_grad():
        pooling.dense.weight.copy_(torch.tensor([[0.5, 0.0], [0.0, 0.25]]))
        pooling.dense.bias.copy_(torch.tensor([0.0, 0.1]))
        pooling.score.weight.copy_(torch.tensor([[2.0, -1.0]]))
        pooling.score.bias.fill_(3.0)
    return pooling


def _score(x: float, y: float) -> float:
    return math.exp(2 * math.tanh(0.5 * x) - math.tanh(0.25 * y + 0.1))


def test_attention_by_hand() -> None:
    first, second, third = _score(1, 2), _score(3, 6), _score(100, -100)
    pooled = _attention()(HIDDEN, MASK)[0].tolist()
    total = first + second
    assert math.isclose(pooled[0], (first * 1 + second * 3) / total, rel_tol=1e-6)
    assert math.isclose(pooled[1], (first * 2 + second * 6) / total, rel_tol=1e-6)
    unmasked = _attention()(HIDDEN)[0].tolist()
    total += third
    assert math.isclose(unmasked[0], (first * 1 + second * 3 + third * 100) / total, rel_tol=1e-6)


def test_attention_over_nothing_is_finite() -> None:
    assert torch.isfinite(_attention()(HIDDEN, torch.zeros(1, 3))).all()
